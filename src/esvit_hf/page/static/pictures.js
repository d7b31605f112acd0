/* The two chosen pictures, and what the server says about them. */

import { unpackRegions } from "./regions.js";
import { ask, askJson } from "./server.js";
import { showBusy, showPictures } from "./stage.js";
import { element, regionsOf, state } from "./state.js";
import { draw } from "./views.js";

// Of several choices for a side the last one counts, whichever is answered first.
const turns = [0, 0];

/** Show a picture of the gallery. */
export async function choosePicture(side, { title, credit, address }) {
  await showPicture(side, { title, credit, source: address }, () => ask(address));
}

/** Show a file of the visitor, as the server reads it. */
export async function uploadPicture(side, file) {
  if (file.size > state.setup.max_megabytes * 2 ** 20) {
    const size = (file.size / 2 ** 20).toFixed(1);
    throw new Error(
      `The file has ${size} MB: choose one of at most ${state.setup.max_megabytes} MB.`
    );
  }
  const named = { title: "Your picture", credit: null, source: null };
  await showPicture(side, named, () => ask("picture", file));
}

async function showPicture(side, named, load) {
  const turn = ++turns[side];
  const blob = await (await load()).blob();
  const address = URL.createObjectURL(blob);
  const image = new Image();
  image.src = address;
  await image.decode();
  if (turn !== turns[side]) return;
  const chosen = {
    ...named,
    blob,
    address,
    ratio: image.naturalWidth / image.naturalHeight,
    small: image.naturalWidth < 128,
    regions: new Map(),
    neighbors: new Map(),
  };
  const earlier = state.pictures[side];
  state.pictures[side] = chosen;
  try {
    showPictures();
    await askRegions();
  } catch (error) {
    // A network that does not take the picture: what was there before stays.
    if (state.pictures[side] === chosen && earlier) {
      state.pictures[side] = earlier;
      showPictures();
      draw();
    }
    throw error;
  }
}

/** Ask for the regions that the shown networks and pictures lack, then draw. */
export async function askRegions() {
  const missing = [];
  for (const network of state.shown) {
    for (const picture of state.pictures) {
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

/** Ask for the images that resemble picture 1, for the shown networks. */
export async function askNeighbors() {
  const picture = state.pictures[0];
  await Promise.all(
    state.shown.map(async (network) => {
      if (picture.neighbors.has(network)) return;
      picture.neighbors.set(network, await askJson(`neighbors?network=${network}`, picture.blob));
    })
  );
}

/** Offer the blocks and heads of the first shown network. */
function fillAttentionChoices() {
  const heads = regionsOf(state.shown[0], 0)?.heads ?? [];
  const blocks = element("block");
  if (blocks.options.length !== heads.length) {
    blocks.replaceChildren(...heads.map((_, i) => new Option(i + 1, i)));
    blocks.value = heads.length - 1;
  }
  fillHeads(heads);
}

/** Offer the heads of the chosen block. */
export function fillHeads(heads) {
  const count = heads[Number(element("block").value)] ?? 0;
  const choices = element("head");
  if (choices.options.length === count + 1) return;
  const numbered = Array.from({ length: count }, (_, i) => new Option(i + 1, i));
  choices.replaceChildren(new Option("mean", "mean"), ...numbered);
}
