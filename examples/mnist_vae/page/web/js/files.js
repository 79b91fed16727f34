// Fetching the parts of the page, all of them from its own folder.

import { PageError } from "./notice.js";

/**
 * The bytes of a file beside the page.
 * @param {string} path relative to the page
 * @param {(fraction: number) => void} [onProgress] told how much has come, where the server says how much there is
 * @returns {Promise<ArrayBuffer>}
 */
export async function fetchBytes(path, onProgress = () => {}) {
  const response = await fetchFile(path);
  // Of a packed response, the length is that of the packed bytes, and those that arrive are more.
  const packed = response.headers.get("Content-Encoding");
  const total = packed ? 0 : Number(response.headers.get("Content-Length"));
  if (!total || !response.body) {
    return response.arrayBuffer();
  }
  const bytes = new Uint8Array(total);
  let done = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done: finished, value } = await reader.read();
    if (finished) {
      break;
    }
    if (done + value.length > total) {
      throw new PageError(`${path} is longer than its server announced.`);
    }
    bytes.set(value, done);
    done += value.length;
    onProgress(done / total);
  }
  if (done < total) {
    throw new PageError(`${path} arrived only in part. Reload the page to try again.`);
  }
  return bytes.buffer;
}

/**
 * @param {string} path relative to the page
 * @returns {Promise<any>}
 */
export async function fetchJson(path) {
  const response = await fetchFile(path);
  try {
    return await response.json();
  } catch {
    throw new PageError(`${path} is not valid JSON. Build the page's folder again.`);
  }
}

/** @param {string} path */
async function fetchFile(path) {
  let response;
  try {
    response = await fetch(path);
  } catch {
    throw new PageError(`${path} could not be fetched. Is the server still running?`);
  }
  if (!response.ok) {
    throw new PageError(
      `${path} is missing from the page's folder (the server answered ${response.status}). ` +
        "Build it again with “python examples/mnist_vae demo”."
    );
  }
  return response;
}
