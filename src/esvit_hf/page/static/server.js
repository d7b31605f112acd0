/* Questions to the server. */

import { element } from "./state.js";

/** Ask for something, and throw what the server says where it refuses. */
export async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(path, body ? { method: "POST", body } : {});
  } catch {
    throw new Error("The server does not answer: is it still running?");
  }
  if (answer.ok) return answer;
  const isRefusal = answer.headers.get("content-type")?.includes("json");
  throw new Error(isRefusal ? (await answer.json()).error : "The server failed: see its output.");
}

/** The same, for an answer in JSON. */
export async function askJson(path, body) {
  return (await ask(path, body)).json();
}

/** Run what a visitor started; what is refused is shown as it is, and nothing else changes. */
export async function attempt(action) {
  try {
    await action();
    element("message").textContent = "";
  } catch (error) {
    element("message").textContent = error.message;
  }
}
