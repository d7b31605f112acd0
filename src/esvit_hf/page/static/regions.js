/* Features of regions and what follows from them. Places are shares of width and height, [0, 1]. */

/**
 * @typedef {Object} Regions
 * @property {number} rows
 * @property {number} columns
 * @property {number} channels
 * @property {Float32Array} features unit vectors, row-major: (rows * columns, channels)
 */

/** Turn base64 into bytes. */
export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

/** Unpack what the server sends: int8 directions become unit vectors. */
export function unpackRegions(answer) {
  const [rows, columns] = answer.grid;
  const channels = answer.channels;
  const features = Float32Array.from(new Int8Array(bytesOf(answer.features).buffer));
  for (let start = 0; start < features.length; start += channels) {
    normalize(features.subarray(start, start + channels));
  }
  return { rows, columns, channels, features };
}

/** Give a vector the length 1, in place; a vector of zeros stays. */
function normalize(vector) {
  let sum = 0;
  for (const value of vector) sum += value * value;
  if (sum === 0) return;
  const scale = 1 / Math.sqrt(sum);
  for (let i = 0; i < vector.length; i++) vector[i] *= scale;
}

/** The unit feature at a place: that of a region at its center, interpolated in between. */
export function featureAt(regions, x, y) {
  const { rows, columns, channels, features } = regions;
  const [top, bottom, down] = neighborsOf(y, rows);
  const [left, right, across] = neighborsOf(x, columns);
  const feature = new Float32Array(channels);
  const corners = [
    [top, left, (1 - down) * (1 - across)],
    [top, right, (1 - down) * across],
    [bottom, left, down * (1 - across)],
    [bottom, right, down * across],
  ];
  for (const [row, column, weight] of corners) {
    const start = (row * columns + column) * channels;
    for (let i = 0; i < channels; i++) feature[i] += weight * features[start + i];
  }
  normalize(feature);
  return feature;
}

/** The two cells whose centers enclose a place, and how far it is on the way between them. */
function neighborsOf(share, count) {
  const position = Math.min(Math.max(share * count - 0.5, 0), count - 1);
  const first = Math.min(Math.floor(position), Math.max(count - 2, 0));
  return [first, Math.min(first + 1, count - 1), position - first];
}

/** Cosine of every region with a unit feature. */
export function cosines(regions, feature) {
  const { channels, features } = regions;
  const values = new Float32Array(regions.rows * regions.columns);
  for (let region = 0, start = 0; region < values.length; region++, start += channels) {
    let sum = 0;
    for (let i = 0; i < channels; i++) sum += features[start + i] * feature[i];
    values[region] = sum;
  }
  return values;
}

/** Mean cosine of all pairs of a region of one image and a region of another. */
export function meanCosine(first, second) {
  const means = [first, second].map(({ channels, features }) => {
    const mean = new Float64Array(channels);
    for (let i = 0; i < features.length; i++) mean[i % channels] += features[i];
    return mean.map((sum) => (sum * channels) / features.length);
  });
  return means[0].reduce((sum, value, i) => sum + value * means[1][i], 0);
}

/** The places that stand out: largest first, none beside a larger one, at most `count`. */
export function peaks(values, rows, columns, count) {
  const found = [];
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const value = values[row * columns + column];
      if (isLargestAround(values, rows, columns, row, column)) {
        found.push({ x: (column + 0.5) / columns, y: (row + 0.5) / rows, value });
      }
    }
  }
  return found.sort((a, b) => b.value - a.value).slice(0, count);
}

function isLargestAround(values, rows, columns, row, column) {
  const value = values[row * columns + column];
  for (let r = Math.max(row - 1, 0); r <= Math.min(row + 1, rows - 1); r++) {
    for (let c = Math.max(column - 1, 0); c <= Math.min(column + 1, columns - 1); c++) {
      const other = values[r * columns + c];
      // Of equal neighbors the first counts.
      const isBefore = r < row || (r === row && c < column);
      if (other > value || (isBefore && other === value)) return false;
    }
  }
  return true;
}

/** Pairs of regions that are each other's most similar one, the most similar pair first. */
export function mutualMatches(first, second) {
  const forward = mostSimilar(first, second);
  const backward = mostSimilar(second, first);
  const matches = [];
  forward.indices.forEach((index, own) => {
    if (backward.indices[index] !== own) return;
    matches.push({
      first: centerOf(first, own),
      second: centerOf(second, index),
      cosine: forward.cosines[own],
    });
  });
  return matches.sort((a, b) => b.cosine - a.cosine);
}

function mostSimilar(from, to) {
  const count = from.rows * from.columns;
  const indices = new Int32Array(count);
  const best = new Float32Array(count).fill(-2);
  for (let own = 0; own < count; own++) {
    const start = own * from.channels;
    const values = cosines(to, from.features.subarray(start, start + from.channels));
    for (let i = 0; i < values.length; i++) {
      if (values[i] > best[own]) {
        best[own] = values[i];
        indices[own] = i;
      }
    }
  }
  return { indices, cosines: best };
}

function centerOf({ rows, columns }, index) {
  return { x: ((index % columns) + 0.5) / columns, y: (Math.floor(index / columns) + 0.5) / rows };
}

const COMPONENTS = 3;
const ITERATIONS = 40;

/**
 * Show the first three principal components of all regions as red, green and blue, in [0, 1]:
 * regions of one color resemble each other, within and across the images.
 * @param {Regions[]} images
 * @returns {Float32Array[]} (rows * columns, 3) for each image
 */
export function regionColors(images) {
  const channels = images[0].channels;
  const total = images.reduce((sum, image) => sum + image.features.length, 0);
  const features = new Float32Array(total);
  let offset = 0;
  for (const image of images) {
    features.set(image.features, offset);
    offset += image.features.length;
  }
  center(features, channels);
  const projected = project(features, channels, principalAxes(features, channels));
  for (let k = 0; k < COMPONENTS; k++) stretch(projected, k);
  offset = 0;
  return images.map(({ rows, columns }) => {
    const length = rows * columns * COMPONENTS;
    offset += length;
    return projected.subarray(offset - length, offset);
  });
}

function center(features, channels) {
  const count = features.length / channels;
  const mean = new Float64Array(channels);
  for (let i = 0; i < features.length; i++) mean[i % channels] += features[i] / count;
  for (let i = 0; i < features.length; i++) features[i] -= mean[i % channels];
}

/** Principal axes by iterating on a subspace, from a fixed start. */
function principalAxes(features, channels) {
  let axes = Array.from({ length: COMPONENTS }, (_, k) =>
    Float64Array.from({ length: channels }, (_, i) => Math.sin((k + 1) * (i + 1) * 1.7))
  );
  for (let iteration = 0; iteration < ITERATIONS; iteration++) {
    const projected = project(features, channels, axes);
    axes = axes.map(() => new Float64Array(channels));
    for (let start = 0, row = 0; start < features.length; start += channels, row += COMPONENTS) {
      for (let k = 0; k < COMPONENTS; k++) {
        const weight = projected[row + k];
        const axis = axes[k];
        for (let i = 0; i < channels; i++) axis[i] += weight * features[start + i];
      }
    }
    orthonormalize(axes);
  }
  return axes;
}

function orthonormalize(axes) {
  axes.forEach((axis, k) => {
    for (const earlier of axes.slice(0, k)) {
      const along = axis.reduce((sum, value, i) => sum + value * earlier[i], 0);
      for (let i = 0; i < axis.length; i++) axis[i] -= along * earlier[i];
    }
    normalize(axis);
  });
}

function project(features, channels, axes) {
  const projected = new Float32Array((features.length / channels) * COMPONENTS);
  for (let start = 0, row = 0; start < features.length; start += channels, row += COMPONENTS) {
    for (let k = 0; k < COMPONENTS; k++) {
      const axis = axes[k];
      let sum = 0;
      for (let i = 0; i < channels; i++) sum += features[start + i] * axis[i];
      projected[row + k] = sum;
    }
  }
  return projected;
}

// Of unit features in single precision; less is rounding.
const SMALLEST_SPAN = 1e-4;
const CUT_OFF = 0.01;

/** Stretch a component to [0, 1], in place, but for its extremes; one that does not vary is 0.5. */
function stretch(projected, component) {
  const values = projected.filter((_, i) => i % COMPONENTS === component).sort();
  const low = values[Math.floor(CUT_OFF * (values.length - 1))];
  const span = values[Math.ceil((1 - CUT_OFF) * (values.length - 1))] - low;
  // The sign of a component is arbitrary: its long tail becomes light.
  const flips = values[values.length - 1] + values[0] < 0;
  for (let i = component; i < projected.length; i += COMPONENTS) {
    const share = Math.min(Math.max((projected[i] - low) / span, 0), 1);
    projected[i] = span < SMALLEST_SPAN ? 0.5 : flips ? 1 - share : share;
  }
}

/**
 * Enlarge a grid of values smoothly.
 * @param {Float32Array} values (rows * columns * depth)
 * @returns {Float32Array} (height * width * depth)
 */
export function enlarge(values, rows, columns, width, height, depth = 1) {
  const across = cubicWeights(columns, width);
  const down = cubicWeights(rows, height);
  const wide = new Float32Array(rows * width * depth);
  for (let row = 0; row < rows; row++) {
    for (let x = 0; x < width; x++) {
      for (let d = 0; d < depth; d++) {
        let sum = 0;
        for (let tap = 4 * x; tap < 4 * x + 4; tap++) {
          sum += across.weights[tap] * values[(row * columns + across.cells[tap]) * depth + d];
        }
        wide[(row * width + x) * depth + d] = sum;
      }
    }
  }
  const line = width * depth;
  const large = new Float32Array(height * line);
  for (let y = 0; y < height; y++) {
    for (let tap = 4 * y; tap < 4 * y + 4; tap++) {
      const weight = down.weights[tap];
      const start = down.cells[tap] * line;
      for (let i = 0; i < line; i++) large[y * line + i] += weight * wide[start + i];
    }
  }
  return large;
}

/** Cells and weights of Catmull-Rom interpolation, four for each pixel. */
function cubicWeights(cellCount, size) {
  const cells = new Int32Array(4 * size);
  const weights = new Float32Array(4 * size);
  for (let pixel = 0; pixel < size; pixel++) {
    const position = ((pixel + 0.5) / size) * cellCount - 0.5;
    const first = Math.floor(position);
    const t = position - first;
    const taps = [
      ((-t + 2) * t - 1) * t,
      (3 * t - 5) * t * t + 2,
      ((-3 * t + 4) * t + 1) * t,
      (t - 1) * t * t,
    ];
    taps.forEach((weight, k) => {
      cells[4 * pixel + k] = Math.min(Math.max(first - 1 + k, 0), cellCount - 1);
      weights[4 * pixel + k] = weight / 2;
    });
  }
  return { cells, weights };
}
