// The bundled test digits.

import { fetchBytes, fetchJson } from "./files.js";
import { PageError } from "./notice.js";

/** @typedef {{image: Float32Array, label: number, index: number}} Sample index is that in MNIST's test set */

const SIDE = 28;

/** @returns {Promise<Sample[]>} */
export async function loadSamples() {
  const [bytes, { labels, test_index }] = await Promise.all([
    fetchBytes("samples/digits.bin"),
    fetchJson("samples/digits.json"),
  ]);
  const pixels = new Uint8Array(bytes);
  if (pixels.length !== labels.length * SIDE * SIDE) {
    throw new PageError("samples/digits.bin and samples/digits.json do not belong together. Build the folder again.");
  }
  return labels.map((label, i) => ({
    image: Float32Array.from(pixels.subarray(i * SIDE * SIDE, (i + 1) * SIDE * SIDE), (value) => value / 255),
    label,
    index: test_index[i],
  }));
}
