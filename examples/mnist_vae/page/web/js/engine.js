// A model of the page, run by TensorFlow.js on the CPU: layer by layer, as model.json describes it.

import { fetchBytes, fetchJson } from "./files.js";
import { PageError } from "./notice.js";
import { readSafetensors } from "./safetensors.js";

const KEPT_TIMES = 101;

/**
 * What a layer of PyTorch does to a tensor: images are [N, height, width, channels] here, as TensorFlow.js has them.
 * @type {Record<string, (layer: any, weights: Record<string, any>) => (x: any) => any>}
 */
const LAYERS = {
  conv({ weight, stride, padding }, weights) {
    const { tf } = globalThis;
    const kernel = tf.keep(tf.transpose(weights[weight], [2, 3, 1, 0]));
    const around = [[0, 0], [padding, padding], [padding, padding], [0, 0]];
    return (x) => tf.conv2d(tf.pad(x, around), kernel, stride, "valid");
  },
  norm({ name, epsilon }, weights) {
    const { tf } = globalThis;
    const [mean, variance, scale, offset] = ["running_mean", "running_var", "weight", "bias"].map((part) => weights[`${name}.${part}`]);
    const factor = tf.keep(tf.mul(scale, tf.rsqrt(tf.add(variance, epsilon))));
    const shift = tf.keep(tf.sub(offset, tf.mul(mean, factor)));
    return (x) => tf.add(tf.mul(x, factor), shift);
  },
  relu: () => (x) => globalThis.tf.relu(x),
  flatten: () => (x) => {
    const { tf } = globalThis;
    // PyTorch flattens channels first.
    return tf.reshape(tf.transpose(x, [0, 3, 1, 2]), [x.shape[0], -1]);
  },
  linear({ weight, bias, rows }, weights) {
    const { tf } = globalThis;
    const first = (tensor) => (rows ? tf.slice(tensor, 0, rows) : tensor);
    const matrix = tf.keep(tf.transpose(first(weights[weight])));
    const offset = bias ? tf.keep(tf.clone(first(weights[bias]))) : null;
    return (x) => (offset ? tf.add(tf.matMul(x, matrix), offset) : tf.matMul(x, matrix));
  },
  add: ({ value }) => (x) => globalThis.tf.add(x, value),
};

export class Engine {
  /** @type {number[]} milliseconds of the latest decodes of one code */
  #times = [];

  /**
   * @param {any} description what model.json says
   * @param {any} metrics what metrics.json says
   * @param {Record<string, any>} weights
   */
  constructor(description, metrics, weights) {
    Object.assign(this, { description, metrics, side: description.side, units: description.units });
    this.encoder = description.encoder.map((layer) => LAYERS[layer.layer](layer, weights));
    this.decoder = description.decoder.map((layer) => LAYERS[layer.layer](layer, weights));
  }

  /**
   * Fetch a model.
   * @param {string} folder
   * @param {(fraction: number) => void} [onProgress]
   */
  static async load(folder, onProgress) {
    const [description, metrics, bytes] = await Promise.all([
      fetchJson(`${folder}/model.json`),
      fetchJson(`${folder}/metrics.json`),
      fetchBytes(`${folder}/model.safetensors`, onProgress),
    ]);
    if (!metrics.mean_activation) {
      throw new PageError(`${folder}/metrics.json lacks mean_activation. Export the model and build the folder again.`);
    }
    const { tf } = globalThis;
    try {
      await tf.setBackend("cpu");
      const tensors = readSafetensors(bytes);
      const weights = Object.fromEntries(Object.entries(tensors).map(([name, { shape, values }]) => [name, tf.tensor(values, shape)]));
      return new Engine(description, metrics, weights);
    } catch (error) {
      throw new PageError(`The model in ${folder} could not be started (${error.message ?? error}).`);
    }
  }

  /**
   * The means that the encoder gives an image.
   * @param {Float32Array} image side × side values in [0, 1]
   * @returns {Float32Array} one number per unit
   */
  encode(image) {
    const { tf } = globalThis;
    return tf.tidy(() => run(this.encoder, tf.tensor(image, [1, this.side, this.side, 1])).dataSync());
  }

  /**
   * The image of a code, or the images of several.
   * @param {Float32Array} codes count × units numbers
   * @returns {Float32Array} count × side × side values in [0, 1]
   */
  decode(codes) {
    const { tf } = globalThis;
    const count = codes.length / this.units;
    const started = performance.now();
    const images = tf.tidy(() => tf.sigmoid(run(this.decoder, tf.tensor(this.#read(codes), [count, this.units]))).dataSync());
    if (count === 1) {
      this.#times.push(performance.now() - started);
      this.#times.splice(0, this.#times.length - KEPT_TIMES);
    }
    return images;
  }

  /** Median milliseconds of the latest decodes, or null before the first. */
  get decodeTime() {
    const sorted = [...this.#times].sort((a, b) => a - b);
    return sorted.length ? sorted[sorted.length >> 1] : null;
  }

  /**
   * How strongly a code speaks by each number that has a slider: with styles, the norm of what the decoder reads of it.
   * @param {ArrayLike<number>} code
   * @returns {Float32Array}
   */
  strengths(code) {
    const { sliders, per_slider: per, loudness } = this.description;
    return Float32Array.from({ length: sliders }, (_, i) => {
      return per === 1 ? code[i] : (Math.max(0, code[i * per]) * this.#boost(code, i)) / loudness;
    });
  }

  /** A code with other strengths and the same styles. @param {ArrayLike<number>} code @param {ArrayLike<number>} strengths */
  withStrengths(code, strengths) {
    const { per_slider: per, loudness } = this.description;
    return Float32Array.from(code, (value, i) => {
      const number = Math.floor(i / per);
      return i % per === 0 ? (loudness * strengths[number]) / this.#boost(code, number) : value;
    });
  }

  /** A code that speaks by one number alone, of its plain form. @param {number} number @param {number} strength */
  pure(number, strength) {
    const code = new Float32Array(this.units);
    code[number * this.description.per_slider] = strength * this.description.loudness;
    return code;
  }

  /** A code within the limits of the sliders. @param {ArrayLike<number>} code */
  clipped(code) {
    const { per_slider: per, highest, style } = this.description;
    const within = Float32Array.from(code, (value, i) => (i % per === 0 ? value : Math.max(-style, Math.min(style, value))));
    return this.withStrengths(within, this.strengths(within).map((value) => Math.max(0, Math.min(highest, value))));
  }

  /**
   * How far the darkest pixel of a code's picture is from a blank page, in logits: a measure that grows in proportion with
   * a code whose every number grows, since the decoder has no biases.
   * @param {Float32Array} code
   */
  boldness(code) {
    const blank = this.description.decoder.at(-1).value ?? 0;
    const peak = this.decode(code).reduce((a, b) => Math.max(a, b));
    return Math.max(1e-3, Math.log(peak / Math.max(1e-9, 1 - peak)) - blank);
  }

  /** A code that says the same, louder. @param {Float32Array} code @param {number} factor */
  strengthened(code, factor) {
    return this.withStrengths(code, this.strengths(code).map((value) => factor * value));
  }

  /** By how much its styles make a number louder. */
  #boost(code, number) {
    const { per_slider: per } = this.description;
    return Math.hypot(1, ...Array.from({ length: per - 1 }, (_, i) => code[number * per + 1 + i]));
  }

  /** What the decoder reads: no negative presence, and styles multiplied by it. */
  #read(codes) {
    const { per_slider: per } = this.description;
    return Float32Array.from(codes, (value, i) => {
      const first = Math.max(0, codes[i - (i % per)]);
      return i % per === 0 ? first : first * value;
    });
  }
}

function run(layers, x) {
  return layers.reduce((value, layer) => layer(value), x);
}
