/* The pictures on the page, and the point on them. */

import { clear } from "./drawing.js";
import { element, fromTemplate, regionsOf, state } from "./state.js";
import { requestDraw } from "./views.js";

/**
 * Lay out a row for each shown network.
 * @param onFile called with a side and a file that is dropped on it
 */
export function buildStage(onFile) {
  const stage = element("stage");
  for (const section of stage.querySelectorAll(".network")) section.remove();
  document.documentElement.dataset.networks = state.shown.length;
  state.panes = [];
  for (const network of state.shown) {
    const section = fromTemplate("network-template");
    section.dataset.network = network;
    section.querySelector(".name").textContent = state.setup.networks[network].name;
    for (const side of [0, 1]) {
      const figure = fromTemplate("pane-template");
      const picture = figure.querySelector(".picture");
      section.querySelector(".panes").append(figure);
      state.panes.push({
        network,
        side,
        figure,
        picture,
        image: figure.querySelector("img"),
        layer: figure.querySelector(".layer"),
        marks: figure.querySelector(".marks"),
        note: figure.querySelector(".note"),
        answer: section.querySelector(".answer"),
      });
      listen(picture, side, onFile);
    }
    stage.append(section);
  }
  showPictures();
}

/** Put the chosen pictures in their places. */
export function showPictures() {
  for (const { side, picture, image, layer } of state.panes) {
    const chosen = state.pictures[side];
    if (!chosen) continue;
    image.src = chosen.address;
    image.alt = chosen.title;
    image.classList.toggle("small", chosen.small);
    picture.style.setProperty("--ratio", chosen.ratio);
    picture.setAttribute(
      "aria-label",
      `Picture ${side + 1}, ${chosen.title}: arrow keys move the point, Enter holds it`
    );
    clear(layer);
  }
  state.strips.forEach((strip, side) => {
    const chosen = state.pictures[side];
    for (const tile of strip.querySelectorAll("button")) {
      tile.setAttribute("aria-pressed", tile.dataset.source === chosen?.source);
    }
    const credit = chosen?.credit ? ` (${chosen.credit})` : "";
    strip.querySelector(".credit").textContent = chosen ? `${chosen.title}${credit}` : "";
  });
}

/** Cover the pictures whose regions are not there yet. */
export function showBusy() {
  for (const { network, side, picture } of state.panes) {
    picture.classList.toggle("busy", Boolean(state.pictures[side]) && !regionsOf(network, side));
  }
}

function listen(picture, side, onFile) {
  const moveTo = (event) => {
    const box = picture.getBoundingClientRect();
    const share = (place, start, length) =>
      Math.min(Math.max((place - start) / length, 0), 1 - 1e-6);
    state.over = true;
    if (state.held) return;
    state.point = {
      side,
      x: share(event.clientX, box.left, box.width),
      y: share(event.clientY, box.top, box.height),
    };
    requestDraw();
  };
  picture.addEventListener("pointermove", moveTo);
  picture.addEventListener("pointerleave", () => {
    state.over = false;
    requestDraw();
  });
  picture.addEventListener("click", (event) => {
    const wasHeld = state.held;
    state.held = false;
    moveTo(event);
    // A finger does not hover: each tap sets the point anew.
    state.held = !wasHeld && event.pointerType !== "touch";
  });
  picture.addEventListener("keydown", (event) => movePoint(event, side));
  picture.addEventListener("focus", () => {
    if (picture.matches(":focus-visible") && state.point.side !== side && !state.held) {
      state.point = { side, x: 0.5, y: 0.5 };
      requestDraw();
    }
  });
  picture.addEventListener("dragover", (event) => event.preventDefault());
  picture.addEventListener("drop", (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) onFile(side, file);
  });
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Move the point by regions, from center to center. */
function movePoint(event, side) {
  const regions = regionsOf(state.shown[0], side);
  if (event.key === "Enter" || event.key === " ") state.held = !state.held;
  else if (event.key === "Escape") state.held = false;
  else if (STEPS[event.key] && regions) {
    const [across, down] = STEPS[event.key];
    const from = state.point.side === side ? state.point : { x: 0.5, y: 0.5 };
    state.point = {
      side,
      x: stepped(from.x, across, regions.columns),
      y: stepped(from.y, down, regions.rows),
    };
  } else return;
  event.preventDefault();
  state.over = true;
  requestDraw();
}

function stepped(share, step, count) {
  const cell = Math.min(Math.max(Math.floor(share * count) + step, 0), count - 1);
  return (cell + 0.5) / count;
}
