// The two models, run by ONNX Runtime on one thread of WebAssembly.

import * as ort from "../vendor/ort.wasm.bundle.min.mjs";

import { fetchBytes } from "./files.js";
import { PageError } from "./notice.js";

const WASM = "vendor/ort-wasm-simd-threaded.wasm";
const KEPT_TIMES = 101;

export class Engine {
  /** @type {number[]} milliseconds of the latest decodes of one code */
  #times = [];
  /** The end of the run before: a session takes one at a time. */
  #before = Promise.resolve();

  /**
   * @param {ort.InferenceSession} encoder
   * @param {ort.InferenceSession} decoder
   * @param {number} units
   * @param {number} side
   */
  constructor(encoder, decoder, units, side) {
    this.encoder = encoder;
    this.decoder = decoder;
    this.units = units;
    this.side = side;
  }

  /**
   * Fetch the runtime and both models.
   * @param {{units: number, side: number}} description
   * @param {(fraction: number) => void} onProgress
   */
  static async load({ units, side }, onProgress) {
    const [wasm, ...models] = await Promise.all([
      fetchBytes(WASM, onProgress),
      fetchBytes("model/encoder.onnx"),
      fetchBytes("model/decoder.onnx"),
    ]);
    // More threads would need response headers that a plain static host does not send, and are not worth it here.
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = wasm;
    try {
      const [encoder, decoder] = [await ort.InferenceSession.create(models[0]), await ort.InferenceSession.create(models[1])];
      return new Engine(encoder, decoder, units, side);
    } catch (error) {
      throw new PageError(`The model could not be started (${error.message ?? error}).`);
    }
  }

  /**
   * The means that the encoder gives an image.
   * @param {Float32Array} image side × side values in [0, 1]
   * @returns {Promise<Float32Array>} one number per unit
   */
  async encode(image) {
    const input = new ort.Tensor("float32", image, [1, 1, this.side, this.side]);
    return (await this.#run(this.encoder, { image: input })).mean.data;
  }

  /**
   * The image of a code, or the images of several.
   * @param {Float32Array} codes count × units numbers
   * @returns {Promise<Float32Array>} count × side × side values in [0, 1]
   */
  async decode(codes) {
    const count = codes.length / this.units;
    const input = new ort.Tensor("float32", codes, [count, this.units]);
    return (await this.#run(this.decoder, { z: input }, count === 1)).image.data;
  }

  /** Median milliseconds of the latest decodes, or null before the first. */
  get decodeTime() {
    const sorted = [...this.#times].sort((a, b) => a - b);
    return sorted.length ? sorted[sorted.length >> 1] : null;
  }

  async #run(session, feeds, timed = false) {
    const run = this.#before.then(async () => {
      const started = performance.now();
      const outputs = await session.run(feeds);
      if (timed) {
        this.#times.push(performance.now() - started);
        this.#times.splice(0, this.#times.length - KEPT_TIMES);
      }
      return outputs;
    });
    this.#before = run.catch(() => {});
    return run;
  }
}
