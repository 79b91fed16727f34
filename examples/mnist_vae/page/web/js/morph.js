// A straight line through the ten numbers, from the average code of one digit to that of another.

import { paint } from "./picture.js";

const STILLS = 9;

export class Morph {
  /**
   * @param {import("./engine.js").Engine} engine
   * @param {Float32Array[]} codes the average code of each digit
   * @param {(code: Float32Array) => void} onMove told of each new place on the line
   * @param {() => void} onInput before a change that was made by hand
   */
  constructor(engine, codes, onMove, onInput) {
    const byId = (id) => document.getElementById(id);
    Object.assign(this, { engine, codes, onMove, from: byId("from"), to: byId("to"), blend: byId("blend") });
    this.stills = Array.from({ length: STILLS }, () => {
      return Object.assign(document.createElement("canvas"), { width: engine.side, height: engine.side });
    });
    byId("strip").append(...this.stills);
    for (const [select, digit] of [[this.from, 3], [this.to, 8]]) {
      select.append(...codes.map((_, each) => new Option(String(each), String(each), each === digit, each === digit)));
      select.addEventListener("change", () => {
        onInput();
        this.drawStrip();
        this.move(this.blend.valueAsNumber);
      });
    }
    this.blend.addEventListener("input", () => {
      onInput();
      this.move(this.blend.valueAsNumber);
    });
  }

  /** @param {number} part from 0, the first digit, to 1, the second */
  at(part) {
    const [from, to] = [this.codes[this.from.value], this.codes[this.to.value]];
    return from.map((value, i) => (1 - part) * value + part * to[i]);
  }

  async drawStrip() {
    const { units, side } = this.engine;
    const codes = new Float32Array(STILLS * units);
    this.stills.forEach((_, i) => codes.set(this.at(i / (STILLS - 1)), i * units));
    const images = await this.engine.decode(codes);
    this.stills.forEach((still, i) => paint(still, images.slice(i * side * side, (i + 1) * side * side)));
  }

  /** @param {number} part */
  move(part) {
    this.mark(part);
    this.onMove(this.at(part));
  }

  /** Show the place on the line, and leave the ten numbers alone. @param {number} part */
  mark(part) {
    this.blend.value = String(part);
    this.blend.style.setProperty("--at", part.toFixed(4));
    this.blend.setAttribute("aria-valuetext", `${Math.round(100 * part)} % of the way from ${this.from.value} to ${this.to.value}`);
    const nearest = Math.round(part * (STILLS - 1));
    this.stills.forEach((still, i) => still.classList.toggle("near", i === nearest));
  }
}
