/* Layers over a photograph: canvases that are drawn anew for every answer. */

import { enlarge } from "./regions.js";

// Pixels along the longer side of a layer; the browser enlarges the rest.
const LAYER_SIDE = 320;
// Dark to light, the same order for every kind of color vision and in gray: inferno at ten places.
const HEAT = [
  [0, 0, 4], [27, 12, 65], [74, 12, 107], [120, 28, 109], [165, 44, 96],
  [207, 68, 70], [237, 105, 37], [251, 155, 6], [247, 209, 61], [252, 255, 164],
];
const HEAT_STEPS = 256;
const HEAT_COVER = 0.8;
/** Half of the width, in units of the values, over which the edge of a segment fades. */
const EDGE = 0.02;
const EDGE_COLOR = [255, 176, 0];
const VEIL_COLOR = [16, 18, 24];
const VEIL = 0.74;

/** The color of each step as one number: a pixel of a canvas. */
function heatTable(blend) {
  const bytes = new Uint8ClampedArray(4 * HEAT_STEPS);
  for (let step = 0; step < HEAT_STEPS; step++) {
    const position = (step / (HEAT_STEPS - 1)) * (HEAT.length - 1);
    const first = Math.min(Math.floor(position), HEAT.length - 2);
    for (let k = 0; k < 3; k++) {
      const way = HEAT[first + 1][k] - HEAT[first][k];
      bytes[4 * step + k] = HEAT[first][k] + (position - first) * way;
    }
    // The dark end covers less, so that the photograph stays legible where nothing glows.
    const cover = HEAT_COVER + (1 - HEAT_COVER) * Math.min((2 * step) / HEAT_STEPS, 1);
    bytes[4 * step + 3] = 255 * blend * cover;
  }
  return new Uint32Array(bytes.buffer);
}

/** Give a layer the proportions of its picture, and return its pixels. */
function pixelsOf(canvas, ratio) {
  const width = Math.max(1, Math.round(LAYER_SIDE * Math.min(ratio, 1)));
  const height = Math.max(1, Math.round(LAYER_SIDE / Math.max(ratio, 1)));
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  return canvas.getContext("2d").createImageData(width, height);
}

function show(canvas, pixels) {
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** Remove a layer. */
export function clear(canvas) {
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

/** Draw values in [0, 1] as heat: what is 0 turns dark, what is 1 glows. */
export function drawHeat(canvas, ratio, values, rows, columns, blend) {
  const pixels = pixelsOf(canvas, ratio);
  const field = enlarge(values, rows, columns, pixels.width, pixels.height);
  const table = heatTable(blend);
  const colors = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < field.length; i++) {
    colors[i] = table[Math.round(Math.min(Math.max(field[i], 0), 1) * (HEAT_STEPS - 1))];
  }
  show(canvas, pixels);
}

/**
 * Keep what reaches a threshold, and veil the rest.
 * @returns {number} share of the picture that is kept
 */
export function drawSegment(canvas, ratio, values, rows, columns, threshold) {
  const pixels = pixelsOf(canvas, ratio);
  const field = enlarge(values, rows, columns, pixels.width, pixels.height);
  let kept = 0;
  for (let i = 0, at = 0; i < field.length; i++, at += 4) {
    const distance = field[i] - threshold;
    if (distance >= 0) kept += 1;
    const edge = Math.max(0, 1 - Math.abs(distance) / EDGE);
    const veil = distance < 0 ? VEIL : 0;
    for (let k = 0; k < 3; k++) {
      pixels.data[at + k] = VEIL_COLOR[k] + edge * (EDGE_COLOR[k] - VEIL_COLOR[k]);
    }
    pixels.data[at + 3] = 255 * Math.max(veil, edge);
  }
  show(canvas, pixels);
  return kept / field.length;
}

/** Draw a color for each region, (rows * columns, 3) in [0, 1]. */
export function drawColors(canvas, ratio, colors, rows, columns, blend) {
  const pixels = pixelsOf(canvas, ratio);
  const field = enlarge(colors, rows, columns, pixels.width, pixels.height, 3);
  for (let i = 0, at = 0; i < field.length; i += 3, at += 4) {
    for (let k = 0; k < 3; k++) pixels.data[at + k] = 255 * field[i + k];
    pixels.data[at + 3] = 255 * blend;
  }
  show(canvas, pixels);
}

/**
 * Draw lines from places of one picture to places of another.
 * @param lines {from: {x, y}, to: {x, y}, hue, strength} in pixels of the page, below the canvas
 */
export function drawLines(canvas, lines) {
  const box = canvas.getBoundingClientRect();
  const zoom = window.devicePixelRatio;
  canvas.width = box.width * zoom;
  canvas.height = box.height * zoom;
  const context = canvas.getContext("2d");
  context.setTransform(zoom, 0, 0, zoom, -box.left * zoom, -box.top * zoom);
  for (const { from, to, hue, strength } of lines) {
    const color = `hsl(${hue} 95% 60%)`;
    context.globalAlpha = strength;
    context.lineWidth = 1.6;
    context.strokeStyle = color;
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x, to.y);
    context.stroke();
    for (const end of [from, to]) {
      context.beginPath();
      context.arc(end.x, end.y, 4, 0, 2 * Math.PI);
      context.fillStyle = color;
      context.fill();
      context.lineWidth = 1.2;
      context.strokeStyle = "rgb(0 0 0 / 0.75)";
      context.stroke();
    }
  }
}
