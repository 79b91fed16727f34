// The bundled test digits.

import { fetchBytes, fetchJson } from "./files.js";
import { PageError } from "./notice.js";

/** @typedef {{image: Float32Array, label: number, index: number}} Sample index is that in MNIST's test set */

/**
 * @param {number} side
 * @returns {Promise<Sample[]>}
 */
export async function loadSamples(side) {
  const [bytes, { labels, test_index }] = await Promise.all([
    fetchBytes("model/digits.bin"),
    fetchJson("model/digits.json"),
  ]);
  const pixels = new Uint8Array(bytes);
  if (pixels.length !== labels.length * side * side) {
    throw new PageError("model/digits.bin and model/digits.json do not belong together. Build the folder again.");
  }
  return labels.map((label, i) => ({
    image: Float32Array.from(pixels.subarray(i * side * side, (i + 1) * side * side), (value) => value / 255),
    label,
    index: test_index[i],
  }));
}
