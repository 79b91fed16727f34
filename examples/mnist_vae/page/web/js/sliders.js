// The ten numbers that say which digit, and the style of the one that is the loudest.

import { paint } from "./picture.js";
import { makeRow } from "./slider.js";

export class Sliders {
  /** The small pictures of each digit's styles, once they were drawn. @type {Map<number, Float32Array>} */
  #styles = new Map();
  /** The digit whose style is shown. */
  #shown = null;

  /**
   * @param {import("./engine.js").Engine} engine
   * @param {() => void} onInput after the person has moved one
   */
  constructor(engine, onInput) {
    const { description } = engine;
    const { sliders, per_slider: per, highest, style, routed } = description;
    Object.assign(this, { engine, per });
    this.code = new Float32Array(description.units);
    this.rows = Array.from({ length: sliders }, (_, number) => {
      const name = routed ? `Number ${number}, draws a ${number}` : `Number ${number}`;
      return makeRow({ id: `z${number}`, name, text: String(number), range: { lowest: 0, highest }, pictures: 1 });
    });
    this.styles = Array.from({ length: per - 1 }, (_, i) => {
      const name = `Style ${i + 1} of the loudest digit`;
      return makeRow({ id: `s${i + 1}`, name, text: "", range: { lowest: -style, highest: style }, pictures: 2 });
    });
    const byId = (id) => document.getElementById(id);
    for (const [id, rows] of [["rows", this.rows], ["style-rows", this.styles]]) {
      byId(id).replaceChildren(...rows.map(({ item }) => item));
      byId(id).oninput = onInput;
    }
    byId("style").hidden = per === 1;
    byId("style").ontoggle = () => this.#drawStyles();
    this.#drawGlyphs();
  }

  /** The code as it is set: that which is shown, with what the person has moved. */
  get values() {
    const code = Float32Array.from(this.code);
    if (this.#shown !== null) {
      this.styles.forEach(({ input }, i) => (code[this.#shown * this.per + 1 + i] = input.valueAsNumber));
    }
    return this.engine.withStrengths(code, this.rows.map(({ input }) => input.valueAsNumber));
  }

  /**
   * @param {Float32Array} code
   * @param {Float32Array | null} mean what the encoder gave; null where nothing was encoded
   * @param {number | null} largest which number to stress
   */
  show(code, mean, largest) {
    const { engine, per } = this;
    this.code = code;
    const [now, encoded] = [code, mean].map((each) => each && engine.strengths(each));
    this.rows.forEach((row, number) => {
      row.show(now[number], encoded && encoded[number]);
      row.item.classList.toggle("largest", number === largest);
    });
    this.#shown = largest;
    this.styles.forEach((row, i) => {
      const unit = (largest ?? 0) * per + 1 + i;
      row.show(code[unit], mean && mean[unit]);
      row.input.disabled = largest === null;
    });
    document.getElementById("style-title").textContent = largest === null ? "Style" : `Style of the ${largest}`;
    this.#drawStyles();
  }

  /** What each number draws alone. */
  #drawGlyphs() {
    const { engine } = this;
    const codes = this.rows.map((_, number) => engine.pure(number, 0.95 * engine.description.bold));
    paintAll(this.rows.map(({ glyphs }) => glyphs[0]), engine.decode(joined(codes)), engine.side);
  }

  /** At either end of each style's slider what it does to the digit's plain form. */
  #drawStyles() {
    const { engine, per } = this;
    const digit = this.#shown;
    if (digit === null || per === 1 || !document.getElementById("style").open) {
      return;
    }
    if (!this.#styles.has(digit)) {
      const { bold, style } = engine.description;
      const codes = this.styles.flatMap((_, i) =>
        [-1, 1].map((sign) => {
          const code = engine.pure(digit, bold);
          code[digit * per + 1 + i] = sign * 0.7 * style;
          return engine.withStrengths(code, this.rows.map((_, number) => (number === digit ? bold : 0)));
        })
      );
      this.#styles.set(digit, engine.decode(joined(codes)));
    }
    paintAll(this.styles.flatMap(({ glyphs }) => glyphs), this.#styles.get(digit), engine.side);
  }
}

/** Codes one after another. @param {Float32Array[]} codes */
export function joined(codes) {
  const all = new Float32Array(codes.length * codes[0].length);
  codes.forEach((code, i) => all.set(code, i * code.length));
  return all;
}

/** @param {HTMLCanvasElement[]} canvases */
export function paintAll(canvases, images, side) {
  canvases.forEach((canvas, i) => paint(canvas, images.slice(i * side * side, (i + 1) * side * side)));
}
