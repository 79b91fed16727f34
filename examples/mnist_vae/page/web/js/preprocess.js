// From a drawing of any size to an image as MNIST's were made: the ink, 20 pixels along its longer side with soft
// edges, placed by whole pixels so that its centre of mass lies in the pixel right of and below the middle of 28 x 28.
// MNIST's own page says no more than "centred", but this is where the centres of all its test images are.

const SIDE = 28;
const BOX = 20;
/** Fainter than this is no ink, but the soft edge of some. */
const FAINTEST = 0.02;

/**
 * @param {ArrayLike<number>} ink width × height values in [0, 1], 1 where there is ink
 * @param {number} width
 * @param {number} height
 * @returns {Float32Array | null} SIDE × SIDE values in [0, 1]; null where there is no ink at all
 */
export function normalise(ink, width, height) {
  const box = boundingBox(ink, width, height);
  if (!box) {
    return null;
  }
  const scale = BOX / Math.max(box.width, box.height);
  const small = {
    width: Math.max(1, Math.round(box.width * scale)),
    height: Math.max(1, Math.round(box.height * scale)),
  };
  const columns = averageRows(ink, width, box, small.height);
  const pixels = averageColumns(columns, box.width, small);
  return place(pixels, small);
}

/** The smallest rectangle that holds all ink. */
function boundingBox(ink, width, height) {
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (ink[y * width + x] > FAINTEST) {
        left = Math.min(left, x);
        right = Math.max(right, x);
        top = Math.min(top, y);
        bottom = y;
      }
    }
  }
  return right < 0 ? null : { left, top, width: right - left + 1, height: bottom - top + 1 };
}

/**
 * Which of `count` equal parts of a line of `length` pixels each pixel overlaps, and by which share of the part.
 * @returns {{part: number, pixel: number, weight: number}[]}
 */
function shares(length, count) {
  const size = length / count;
  const found = [];
  for (let part = 0; part < count; part++) {
    const [start, end] = [part * size, (part + 1) * size];
    for (let pixel = Math.floor(start); pixel < Math.min(length, Math.ceil(end)); pixel++) {
      const overlap = Math.min(end, pixel + 1) - Math.max(start, pixel);
      if (overlap > 0) {
        found.push({ part, pixel, weight: overlap / size });
      }
    }
  }
  return found;
}

/** The box with its rows averaged into `count` of them. */
function averageRows(ink, stride, box, count) {
  const averaged = new Float32Array(count * box.width);
  for (const { part, pixel, weight } of shares(box.height, count)) {
    const from = (box.top + pixel) * stride + box.left;
    for (let x = 0; x < box.width; x++) {
      averaged[part * box.width + x] += weight * ink[from + x];
    }
  }
  return averaged;
}

/** The same along the other axis. */
function averageColumns(rows, stride, small) {
  const averaged = new Float32Array(small.width * small.height);
  for (const { part, pixel, weight } of shares(stride, small.width)) {
    for (let y = 0; y < small.height; y++) {
      averaged[y * small.width + part] += weight * rows[y * stride + pixel];
    }
  }
  return averaged;
}

/** Copy into the middle of an empty image, and not beyond its edges. */
function place(pixels, { width, height }) {
  let [total, right, down] = [0, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = pixels[y * width + x];
      total += value;
      right += value * (x + 0.5);
      down += value * (y + 0.5);
    }
  }
  const left = clamp(Math.ceil(SIDE / 2 - right / total), 0, SIDE - width);
  const top = clamp(Math.ceil(SIDE / 2 - down / total), 0, SIDE - height);
  const image = new Float32Array(SIDE * SIDE);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      image[(top + y) * SIDE + left + x] = Math.min(1, pixels[y * width + x]);
    }
  }
  return image;
}

function clamp(value, lowest, highest) {
  return Math.max(lowest, Math.min(highest, value));
}
