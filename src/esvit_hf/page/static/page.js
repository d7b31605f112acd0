/* The page: its controls, its gallery, and its start. */

import { askNeighbors, askRegions, choosePicture, fillHeads, uploadPicture } from "./pictures.js";
import { askJson, attempt } from "./server.js";
import { buildStage } from "./stage.js";
import { element, fromTemplate, regionsOf, state } from "./state.js";
import { draw, requestDraw } from "./views.js";

const HINTS = {
  similarity:
    "Move over a picture: what resembles the region under the pointer glows in both. " +
    "Click to hold the point, click again to let go.",
  segment:
    "Move over a picture: what reaches the threshold stays in both. " +
    "Move the threshold to segment more or less.",
  matches:
    "Lines join regions that are each other's most similar one. " +
    "Move over a picture to see those of one place.",
  colors:
    "Three principal components of all regions as red, green and blue: " +
    "regions of one color resemble each other, within and across the pictures.",
  attention: "Move over a picture: where the region under the pointer looks, in this block.",
  nearest: "The images of the data set that resemble picture 1 most.",
};

const onFile = (side, file) => attempt(() => uploadPicture(side, file));

async function changeView(view) {
  state.view = view;
  element("hint").textContent = HINTS[view];
  for (const control of document.querySelectorAll("[data-views]")) {
    control.hidden = !control.dataset.views.split(" ").includes(view);
  }
  for (const { side, picture, figure } of state.panes) {
    if (side === 1) picture.hidden = view === "nearest";
    if (view !== "nearest") figure.querySelector(".found")?.remove();
  }
  if (view === "nearest") await askNeighbors();
  draw();
}

function listenToControls() {
  for (const choice of document.querySelectorAll("#views input")) {
    choice.addEventListener("change", () => attempt(() => changeView(choice.value)));
  }
  element("threshold").addEventListener("input", requestDraw);
  element("blend").addEventListener("input", requestDraw);
  element("head").addEventListener("change", requestDraw);
  element("block").addEventListener("change", () => {
    fillHeads(regionsOf(state.shown[0], 0).heads);
    requestDraw();
  });
  element("rows").addEventListener("change", (event) => {
    state.rows = Number(event.target.value);
    attempt(askRegions);
  });
  element("compare").addEventListener("change", (event) => {
    const other = event.target.value;
    state.shown = other === "" ? [0] : [0, Number(other)];
    attempt(async () => {
      buildStage(onFile);
      await askRegions();
      await changeView(state.view);
    });
  });
  window.addEventListener("resize", requestDraw);
  listenToTheme();
}

function listenToTheme() {
  const root = document.documentElement;
  const button = element("theme");
  const isDark = () =>
    (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "")) ===
    "dark";
  const kept = localStorage.getItem("theme");
  if (kept) root.dataset.theme = kept;
  button.setAttribute("aria-pressed", isDark());
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem("theme", root.dataset.theme);
    button.setAttribute("aria-pressed", isDark());
  });
}

function buildGallery() {
  for (const side of [0, 1]) {
    const strip = fromTemplate("strip-template");
    strip.setAttribute("aria-label", `Pictures to choose from for picture ${side + 1}`);
    strip.querySelector("h2").textContent = side + 1;
    const tiles = strip.querySelector(".tiles");
    const upload = tiles.querySelector("input");
    upload.setAttribute(
      "aria-label",
      `Upload picture ${side + 1}, at most ${state.setup.max_megabytes} MB`
    );
    upload.parentElement.title = "Upload a picture, or drop it on the one above";
    upload.addEventListener("change", () => {
      const [file] = upload.files;
      if (file) onFile(side, file);
      upload.value = "";
    });
    for (const picture of state.setup.pictures) tiles.append(galleryTile(side, picture));
    state.strips.push(strip);
    element("gallery").append(strip);
  }
}

function galleryTile(side, picture) {
  const tile = document.createElement("button");
  const image = document.createElement("img");
  tile.type = "button";
  tile.className = "tile";
  tile.title = picture.title;
  tile.dataset.source = picture.address;
  tile.setAttribute("aria-label", `Picture ${side + 1}: ${picture.title}`);
  image.src = picture.address;
  image.alt = "";
  image.loading = "lazy";
  tile.append(image);
  tile.addEventListener("click", () => attempt(() => choosePicture(side, picture)));
  return tile;
}

async function start() {
  const setup = await askJson("setup");
  state.setup = setup;
  const [{ name }] = setup.networks;
  element("model").textContent = name;
  document.title = `What does ${name} see?`;
  const others = setup.networks.slice(1).map((network, i) => new Option(network.name, i + 1));
  element("compare").replaceChildren(new Option("nothing", ""), ...others);
  element("compare-field").hidden = others.length === 0;
  element("rows").replaceChildren(
    ...setup.rows.map((rows) => new Option(`${rows} × ${rows}`, rows))
  );
  state.rows = setup.default_rows;
  element("rows").value = state.rows;
  element("nearest-choice").hidden = !setup.has_dataset;
  buildGallery();
  buildStage(onFile);
  listenToControls();
  await changeView(state.view);
  await Promise.all(
    [0, 1].map((side) => choosePicture(side, setup.pictures[side]))
  );
}

attempt(start);
