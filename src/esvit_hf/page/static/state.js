/* What the page knows; every module reads it, and few lines change it. */

export const state = {
  /** What the server offers. */
  setup: null,
  view: "similarity",
  /** Regions along the shorter side, and the numbers of the networks that are shown. */
  rows: 0,
  shown: [0],
  /** Where the answer is asked for; `over` only while a pointer is on a picture. */
  point: { side: 0, x: 0.4, y: 0.5 },
  over: false,
  held: false,
  /** The chosen ones: {title, credit, source, blob, address, ratio, small, regions, neighbors}. */
  pictures: [null, null],
  /** The elements of each shown network and side. */
  panes: [],
  /** The elements with the pictures to choose from, for each side. */
  strips: [],
};

/** An element of the page by its id. */
export const element = (id) => document.getElementById(id);

/** A copy of what a template holds. */
export function fromTemplate(id) {
  return element(id).content.firstElementChild.cloneNode(true);
}

/** Regions of a chosen picture for a network; undefined until they are there. */
export function regionsOf(network, side) {
  return state.pictures[side]?.regions.get(`${network} ${state.rows}`);
}
