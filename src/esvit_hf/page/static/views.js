/* The answers: what each view draws on the pictures, and says about them. */

import { clear, drawColors, drawHeat, drawLines, drawSegment } from "./drawing.js";
import {
  bytesOf, cosines, featureAt, meanCosine, mutualMatches, peaks, regionColors,
} from "./regions.js";
import { askJson, attempt } from "./server.js";
import { element, regionsOf, state } from "./state.js";

const MARKED_MATCHES = 3;
const MOST_LINES = 60;
const NEAR = 0.1;
const SPOKEN_AFTER = 400;

/** What was computed for the chosen pair of pictures, by network. */
const pairs = new Map();

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

let isAwaited = false;

/** Draw at the next frame, however many events there are until then. */
export function requestDraw() {
  if (isAwaited) return;
  isAwaited = true;
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

/** Draw the chosen view now. */
export function draw() {
  isAwaited = false;
  const lines = [];
  for (const pane of state.panes) {
    pane.marks.replaceChildren();
    pane.note.textContent = "";
  }
  for (const network of state.shown) {
    const pair = pairOf(network);
    if (!pair) continue;
    const own = state.panes.filter((pane) => pane.network === network);
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
    drawHeat(layer, state.pictures[side].ratio, maps[side], rows, columns, blend());
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
    return (
      `Most similar in picture ${other + 1}: cosine ${list} ` +
      `(two regions at random: ${cosine(0)}).`
    );
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
    return drawSegment(layer, state.pictures[side].ratio, maps[side], rows, columns, threshold);
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
  return `Pairs that find each other: ${shown.length}${few}. Cosine ${worst} to ${best}.`;
}

function placeOf({ picture }, { x, y }) {
  const box = picture.getBoundingClientRect();
  return { x: box.left + x * box.width, y: box.top + y * box.height };
}

function drawRegionColors(pair, own) {
  pair.colors ??= regionColors(pair.regions);
  own.forEach(({ side, layer }) => {
    const { rows, columns } = pair.regions[side];
    drawColors(layer, state.pictures[side].ratio, pair.colors[side], rows, columns, blend());
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
  if (attention?.picture !== state.pictures[side] || !attention.maps) return "";
  const [rows, columns] = attention.maps.grid;
  const head = element("head").value;
  const values = headValues(attention.maps, head === "mean" ? null : Number(head));
  drawHeat(own[side].layer, state.pictures[side].ratio, values.shares, rows, columns, blend());
  return `A region gets up to ${(100 * values.largest).toFixed(1)} % of the attention.`;
}

/** Keep at most one question under way; the newest place is asked for when it is answered. */
async function askAttention(pair, network) {
  const { side, x, y } = state.point;
  const blocks = pair.regions[side].heads.length;
  const block = Math.min(Number(element("block").value), blocks - 1);
  const key = [state.rows, block, x, y].join(" ");
  const picture = state.pictures[side];
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



function drawNearest(pair, own) {
  own.forEach(({ layer }) => clear(layer));
  const found = state.pictures[0].neighbors.get(own[0].network);
  if (!found) return "";
  let grid = own[1].figure.querySelector(".found");
  if (grid?.dataset.address !== state.pictures[0].address) {
    grid?.remove();
    grid = document.createElement("div");
    grid.className = "found";
    grid.dataset.address = state.pictures[0].address;
    grid.append(...found.map(neighborFigure));
    own[1].figure.append(grid);
  }
  const [{ name, place, cosine }] = found;
  return `Most similar: ${name} ${place}, cosine ${cosine.toFixed(2)}.`;
}

function neighborFigure({ name, place, cosine, picture }) {
  const figure = document.createElement("figure");
  const image = document.createElement("img");
  const caption = document.createElement("figcaption");
  const title = document.createElement("b");
  const details = document.createElement("span");
  image.src = picture;
  image.alt = "";
  title.textContent = name;
  details.textContent = `${place}, ${cosine.toFixed(2)}`;
  caption.append(title, details);
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
    const words = state.panes
      .filter(({ side }) => side === 0)
      .map(({ network, answer }) =>
        state.shown.length > 1
          ? `${state.setup.networks[network].name}: ${answer.textContent}`
          : answer.textContent
      );
    element("spoken").textContent = words.join(" ");
  }, SPOKEN_AFTER);
}
