/* What visitors see and touch. The server is asked once for each picture, network and size. */

import { clear, drawColors, drawHeat, drawLines, drawSegment } from "./drawing.js";
import {
  bytesOf, cosines, featureAt, meanCosine, mutualMatches, peaks, regionColors, unpackRegions,
} from "./regions.js";

const MARKED_MATCHES = 3;
const MOST_LINES = 60;
const NEAR = 0.1;
const SPOKEN_AFTER = 400;
const HINTS = {
  similarity: "Move over a picture: what resembles the region under the pointer glows in both. Click to hold the point, click again to let go.",
  segment: "Move over a picture: what reaches the threshold stays in both. Move the threshold to segment more or less.",
  matches: "Lines join regions that are each other's most similar one. Move over a picture to see those of one place.",
  colors: "Three principal components of all regions as red, green and blue: regions of one color resemble each other, within and across the pictures.",
  attention: "Move over a picture: where the region under the pointer looks, in this block.",
  nearest: "The images of the data set that resemble picture 1 most.",
};

const element = (id) => document.getElementById(id);
const state = {
  view: "similarity",
  rows: 0,
  shown: [0],
  // Where the answer is asked for; `over` only while a pointer is on a picture.
  point: { side: 0, x: 0.4, y: 0.5 },
  over: false,
  held: false,
};
let setup;
/** The two chosen pictures: {title, blob, address, ratio, small, regions: Map, neighbors: Map}. */
const pictures = [null, null];
/** What was computed for a pair of pictures, by network. */
let pairs = new Map();
/** The elements of each shown network and side. */
let panes = [];
const strips = [];

/* The server */

async function ask(path, body) {
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

async function askJson(path, body) {
  return (await ask(path, body)).json();
}

/** Run what a visitor started; what is refused is shown as it is, and nothing else changes. */
async function attempt(action) {
  try {
    await action();
    element("message").textContent = "";
  } catch (error) {
    element("message").textContent = error.message;
  }
}

/* Pictures */

async function choosePicture(side, { title, credit, address }) {
  const blob = await (await ask(address)).blob();
  await showPicture(side, { title, credit, source: address, blob });
}

async function uploadPicture(side, file) {
  if (file.size > setup.max_megabytes * 2 ** 20) {
    const size = (file.size / 2 ** 20).toFixed(1);
    throw new Error(
      `The file has ${size} MB: choose one of at most ${setup.max_megabytes} MB.`
    );
  }
  const blob = await (await ask("picture", file)).blob();
  await showPicture(side, { title: "Your picture", credit: null, source: null, blob });
}

async function showPicture(side, picture) {
  const address = URL.createObjectURL(picture.blob);
  const image = new Image();
  image.src = address;
  await image.decode();
  const chosen = {
    ...picture,
    address,
    ratio: image.naturalWidth / image.naturalHeight,
    small: image.naturalWidth < 128,
    regions: new Map(),
    neighbors: new Map(),
  };
  const earlier = pictures[side];
  pictures[side] = chosen;
  try {
    showPictures();
    await askRegions();
  } catch (error) {
    // A network that does not take the picture: what was there before stays.
    if (pictures[side] === chosen && earlier) {
      pictures[side] = earlier;
      showPictures();
      draw();
    }
    throw error;
  }
}

/** Ask for the regions that the shown networks and pictures lack, then draw. */
async function askRegions() {
  const missing = [];
  for (const network of state.shown) {
    for (const picture of pictures) {
      const key = `${network} ${state.rows}`;
      if (!picture || picture.regions.has(key)) continue;
      const path = `regions?network=${network}&rows=${state.rows}`;
      missing.push(
        askJson(path, picture.blob).then((answer) => {
          picture.regions.set(key, { ...unpackRegions(answer), heads: answer.heads });
        })
      );
    }
  }
  showBusy();
  try {
    await Promise.all(missing);
  } finally {
    showBusy();
  }
  fillAttentionChoices();
  if (state.view === "nearest") await askNeighbors();
  draw();
}

function regionsOf(network, side) {
  return pictures[side]?.regions.get(`${network} ${state.rows}`);
}

async function askNeighbors() {
  const picture = pictures[0];
  await Promise.all(
    state.shown.map(async (network) => {
      if (picture.neighbors.has(network)) return;
      picture.neighbors.set(network, await askJson(`neighbors?network=${network}`, picture.blob));
    })
  );
}

/** Both pictures for one network: their regions, and their common level. */
function pairOf(network) {
  const [first, second] = [regionsOf(network, 0), regionsOf(network, 1)];
  if (!first || !second) return null;
  let pair = pairs.get(network);
  if (!pair || pair.regions[0] !== first || pair.regions[1] !== second) {
    pair = { regions: [first, second], unrelated: meanCosine(first, second) };
    pairs.set(network, pair);
  }
  return pair;
}

/** From a cosine to [0, 1]: 0 as alike as any two regions of the pictures, 1 the same. */
const relative = (cosine, { unrelated }) => (cosine - unrelated) / Math.max(1 - unrelated, 1e-6);
const absolute = (share, { unrelated }) => unrelated + share * (1 - unrelated);

/* The stage */

function buildStage() {
  const stage = element("stage");
  for (const section of stage.querySelectorAll(".network")) section.remove();
  document.documentElement.dataset.networks = state.shown.length;
  panes = [];
  for (const network of state.shown) {
    const section = fromTemplate("network-template");
    section.dataset.network = network;
    section.querySelector(".name").textContent = setup.networks[network].name;
    for (const side of [0, 1]) {
      const figure = fromTemplate("pane-template");
      const picture = figure.querySelector(".picture");
      section.querySelector(".panes").append(figure);
      panes.push({
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
      listen(picture, side);
    }
    stage.append(section);
  }
  showPictures();
}

function fromTemplate(id) {
  return element(id).content.firstElementChild.cloneNode(true);
}

function showPictures() {
  for (const { side, picture, image, layer } of panes) {
    const chosen = pictures[side];
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
  strips.forEach((strip, side) => {
    const chosen = pictures[side];
    for (const tile of strip.querySelectorAll("button")) {
      tile.setAttribute("aria-pressed", tile.dataset.source === chosen?.source);
    }
    const credit = chosen?.credit ? ` (${chosen.credit})` : "";
    strip.querySelector(".credit").textContent = chosen ? `${chosen.title}${credit}` : "";
  });
}

function showBusy() {
  for (const { network, side, picture } of panes) {
    picture.classList.toggle("busy", Boolean(pictures[side]) && !regionsOf(network, side));
  }
}

/* The point */

function listen(picture, side) {
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
    if (file) attempt(() => uploadPicture(side, file));
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

/* Drawing */

let isDrawn = true;

function requestDraw() {
  if (!isDrawn) return;
  isDrawn = false;
  requestAnimationFrame(draw);
}

const DRAWERS = {
  similarity: drawSimilarity,
  segment: drawSegments,
  matches: drawMatches,
  colors: drawRegionColors,
  attention: drawAttention,
  nearest: drawNearest,
};

function draw() {
  isDrawn = true;
  const lines = [];
  for (const pane of panes) {
    pane.marks.replaceChildren();
    pane.note.textContent = "";
  }
  for (const network of state.shown) {
    const pair = pairOf(network);
    if (!pair) continue;
    const own = panes.filter((pane) => pane.network === network);
    own[0].answer.textContent = DRAWERS[state.view](pair, own, lines);
  }
  drawLines(element("lines"), lines);
  speak();
}

function drawSimilarity(pair, own) {
  const threshold = Number(element("threshold").value);
  const maps = relativeMaps(pair);
  own.forEach(({ side, layer }) => {
    const { rows, columns } = pair.regions[side];
    drawHeat(layer, pictures[side].ratio, maps[side], rows, columns, blend());
  });
  const other = 1 - state.point.side;
  const { rows, columns } = pair.regions[other];
  const best = peaks(maps[other], rows, columns, MARKED_MATCHES);
  const similar = best.filter(({ value }) => value >= threshold);
  markPoint(own);
  similar.forEach((match, i) => mark(own[other], match, "match", i + 1));
  const cosine = (share) => absolute(share, pair).toFixed(2);
  if (similar.length > 0) {
    const list = similar.map(({ value }) => cosine(value)).join(", ");
    return `Most similar in picture ${other + 1}: cosine ${list} (two regions at random: ${cosine(0)}).`;
  }
  own[other].note.textContent = "Nothing similar";
  return (
    `Nothing similar in picture ${other + 1}: its best region has cosine ` +
    `${cosine(best[0].value)}, the threshold is ${cosine(threshold)}.`
  );
}

function drawSegments(pair, own) {
  const threshold = Number(element("threshold").value);
  const maps = relativeMaps(pair);
  const shares = own.map(({ side, layer }) => {
    const { rows, columns } = pair.regions[side];
    return drawSegment(layer, pictures[side].ratio, maps[side], rows, columns, threshold);
  });
  markPoint(own);
  shares.forEach((share, side) => {
    if (share === 0) own[side].note.textContent = "Nothing similar";
  });
  const parts = shares.map((share, side) =>
    share === 0
      ? `nothing similar in picture ${side + 1}`
      : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} % of picture ${side + 1}`
  );
  const text = `${parts.join(", ")}: cosine of at least ${absolute(threshold, pair).toFixed(2)}.`;
  return text[0].toUpperCase() + text.slice(1);
}

function relativeMaps(pair) {
  const { side, x, y } = state.point;
  const feature = featureAt(pair.regions[side], x, y);
  return pair.regions.map((regions) =>
    cosines(regions, feature).map((cosine) => relative(cosine, pair))
  );
}

function drawMatches(pair, own, lines) {
  pair.matches ??= mutualMatches(...pair.regions);
  const threshold = absolute(Number(element("threshold").value), pair);
  const similar = pair.matches.filter(({ cosine }) => cosine >= threshold);
  own.forEach(({ layer }) => clear(layer));
  const ends = ["first", "second"];
  const isNear = (match) => {
    const end = match[ends[state.point.side]];
    return Math.hypot(end.x - state.point.x, end.y - state.point.y) < NEAR;
  };
  const some = state.over && similar.some(isNear);
  const shown = some ? similar.filter(isNear) : similar;
  for (const match of shown.slice(0, MOST_LINES)) {
    lines.push({
      from: placeOf(own[0], match.first),
      to: placeOf(own[1], match.second),
      hue: 360 * match.first.x,
      strength: 0.9,
    });
  }
  if (similar.length === 0) {
    own.forEach(({ note }) => (note.textContent = "Nothing similar"));
    return `Nothing similar: no pair of regions has cosine ${threshold.toFixed(2)} or more.`;
  }
  const few = shown.length > MOST_LINES ? `, the best ${MOST_LINES} are drawn` : "";
  const [best, worst] = [shown[0], shown[shown.length - 1]].map(({ cosine }) => cosine.toFixed(2));
  return `Pairs of regions that find each other: ${shown.length}${few}. Cosine ${worst} to ${best}.`;
}

function placeOf({ picture }, { x, y }) {
  const box = picture.getBoundingClientRect();
  return { x: box.left + x * box.width, y: box.top + y * box.height };
}

function drawRegionColors(pair, own) {
  pair.colors ??= regionColors(pair.regions);
  own.forEach(({ side, layer }) => {
    const { rows, columns } = pair.regions[side];
    drawColors(layer, pictures[side].ratio, pair.colors[side], rows, columns, blend());
  });
  return "One color space for both pictures.";
}

function drawAttention(pair, own) {
  const { side } = state.point;
  markPoint(own);
  clear(own[1 - side].layer);
  if (pair.regions[side].heads.length === 0) {
    clear(own[side].layer);
    return "This network reports no attention.";
  }
  askAttention(pair, own[side].network);
  const attention = pair.attention;
  if (attention?.picture !== pictures[side] || !attention.maps) return "";
  const [rows, columns] = attention.maps.grid;
  const head = element("head").value;
  const values = headValues(attention.maps, head === "mean" ? null : Number(head));
  drawHeat(own[side].layer, pictures[side].ratio, values.shares, rows, columns, blend());
  return `A region gets up to ${(100 * values.largest).toFixed(1)} % of the attention.`;
}

/** Keep at most one question under way; the newest place is asked for when it is answered. */
async function askAttention(pair, network) {
  const { side, x, y } = state.point;
  const blocks = pair.regions[side].heads.length;
  const block = Math.min(Number(element("block").value), blocks - 1);
  const key = [state.rows, block, x, y].join(" ");
  const picture = pictures[side];
  if (pair.isAsking || (pair.attention?.key === key && pair.attention.picture === picture)) return;
  pair.isAsking = true;
  const path = `attention?network=${network}&rows=${state.rows}&block=${block}&x=${x}&y=${y}`;
  await attempt(async () => {
    pair.attention = { key, picture, maps: null };
    const answer = await askJson(path, picture.blob);
    pair.attention.maps = { ...answer, values: bytesOf(answer.values) };
  });
  pair.isAsking = false;
  if (state.view === "attention") requestDraw();
}

/** One head's map or the mean of all, as shares of its largest value. */
function headValues({ grid, count, values, largest }, head) {
  const size = grid[0] * grid[1];
  const map = new Float32Array(size);
  const heads = head === null || head >= count ? [...Array(count).keys()] : [head];
  for (const k of heads) {
    for (let i = 0; i < size; i++) map[i] += values[k * size + i] / heads.length;
  }
  const top = map.reduce((a, b) => Math.max(a, b), 1e-6);
  return { shares: map.map((value) => value / top), largest: (top / 255) * largest };
}

function fillAttentionChoices() {
  const heads = regionsOf(state.shown[0], 0)?.heads ?? [];
  const blocks = element("block");
  if (blocks.options.length !== heads.length) {
    blocks.replaceChildren(...heads.map((_, i) => new Option(i + 1, i)));
    blocks.value = heads.length - 1;
  }
  fillHeads(heads);
}

function fillHeads(heads) {
  const count = heads[Number(element("block").value)] ?? 0;
  const choices = element("head");
  if (choices.options.length === count + 1) return;
  const numbered = Array.from({ length: count }, (_, i) => new Option(i + 1, i));
  choices.replaceChildren(new Option("mean", "mean"), ...numbered);
}

function drawNearest(pair, own) {
  own.forEach(({ layer }) => clear(layer));
  const found = pictures[0].neighbors.get(own[0].network);
  if (!found) return "";
  let grid = own[1].figure.querySelector(".found");
  if (grid?.dataset.address !== pictures[0].address) {
    grid?.remove();
    grid = document.createElement("div");
    grid.className = "found";
    grid.dataset.address = pictures[0].address;
    grid.append(...found.map(neighborFigure));
    own[1].figure.append(grid);
  }
  return `Most similar: ${found[0].name}, cosine ${found[0].cosine.toFixed(2)}.`;
}

function neighborFigure({ name, cosine, picture }) {
  const figure = document.createElement("figure");
  const image = document.createElement("img");
  const caption = document.createElement("figcaption");
  const title = document.createElement("b");
  image.src = picture;
  image.alt = name;
  title.textContent = name;
  caption.append(title, cosine.toFixed(2));
  figure.append(image, caption);
  return figure;
}

const blend = () => Number(element("blend").value);

function markPoint(own) {
  mark(own[state.point.side], state.point, state.held ? "point held" : "point", "");
}

function mark({ marks }, { x, y }, kind, text) {
  const dot = document.createElement("div");
  dot.className = `mark ${kind}`;
  dot.textContent = text;
  dot.style.left = `${100 * x}%`;
  dot.style.top = `${100 * y}%`;
  marks.append(dot);
}

/* Screen readers hear an answer when the point rests. */

let speaking;

function speak() {
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    const words = panes
      .filter(({ side }) => side === 0)
      .map(({ network, answer }) =>
        state.shown.length > 1
          ? `${setup.networks[network].name}: ${answer.textContent}`
          : answer.textContent
      );
    element("spoken").textContent = words.join(" ");
  }, SPOKEN_AFTER);
}

/* Controls */

async function changeView(view) {
  state.view = view;
  element("hint").textContent = HINTS[view];
  for (const control of document.querySelectorAll("[data-views]")) {
    control.hidden = !control.dataset.views.split(" ").includes(view);
  }
  for (const { side, picture, figure } of panes) {
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
      buildStage();
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
      `Upload picture ${side + 1}, at most ${setup.max_megabytes} MB`
    );
    upload.parentElement.title = "Upload a picture, or drop it on the one above";
    upload.addEventListener("change", () => {
      const [file] = upload.files;
      if (file) attempt(() => uploadPicture(side, file));
      upload.value = "";
    });
    for (const picture of setup.pictures) tiles.append(galleryTile(side, picture));
    strips.push(strip);
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
  setup = await askJson("setup");
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
  buildStage();
  listenToControls();
  await changeView(state.view);
  await Promise.all(
    [0, 1].map((side) => choosePicture(side, setup.pictures[side % setup.pictures.length]))
  );
}

attempt(start);
