// A straight line through the numbers, from those of one drawing to those of another, as bold as its ends all the way.

import { paint } from "./picture.js";
import { joined, paintAll } from "./sliders.js";

const STILLS = 9;
/** Two ends that share nothing are half as bold between them, and less where they keep each other down. */
const BOLDEST = 4;

export class Morph {
  /**
   * @param {import("./samples.js").Sample[]} samples
   * @param {(code: Float32Array) => void} onMove told of each new place on the line
   * @param {() => void} onInput before a change that was made by hand
   */
  constructor(samples, onMove, onInput) {
    const byId = (id) => document.getElementById(id);
    Object.assign(this, { onMove, from: byId("from"), to: byId("to"), blend: byId("blend") });
    /** The images at the ends by the name of their choice. @type {Map<string, Float32Array>} */
    this.images = new Map();
    for (const { image, label } of samples) {
      // Of each digit two, so that one can become another of its own kind.
      const name = [String(label), `${label}, another`].find((free) => !this.images.has(free));
      if (name) {
        this.images.set(name, image);
      }
    }
    const names = [...this.images.keys()].sort();
    for (const [select, chosen] of [[this.from, "3"], [this.to, "8"]]) {
      select.append(...names.map((each) => new Option(each, each, each === chosen, each === chosen)));
      select.addEventListener("change", () => {
        onInput();
        this.drawStrip();
        this.move(this.blend.valueAsNumber);
      });
    }
    this.stills = Array.from({ length: STILLS }, () => Object.assign(document.createElement("canvas"), { width: 28, height: 28 }));
    byId("strip").append(...this.stills);
    this.blend.addEventListener("input", () => {
      onInput();
      this.move(this.blend.valueAsNumber);
    });
  }

  /** Offer the image on the pad as an end, too. @param {Float32Array} image */
  offer(image) {
    const name = "your drawing";
    if (!this.images.has(name)) {
      for (const select of [this.from, this.to]) {
        select.prepend(new Option(name, name));
      }
    }
    this.images.set(name, image);
    if ([this.from.value, this.to.value].includes(name)) {
      this.drawStrip();
    }
  }

  /** Begin with a model. @param {import("./engine.js").Engine} engine */
  use(engine) {
    this.engine = engine;
    this.drawStrip();
    this.mark(this.blend.valueAsNumber);
    paint(document.getElementById("morphed"), engine.decode(this.at(this.blend.valueAsNumber)));
  }

  /** @param {number} part from 0, the first drawing, to 1, the second */
  at(part) {
    const [first, second] = this.ends;
    const code = first.code.map((value, i) => (1 - part) * value + part * second.code[i]);
    const wanted = (1 - part) * first.bold + part * second.bold;
    return this.engine.strengthened(code, Math.min(BOLDEST, wanted / this.engine.boldness(code)));
  }

  drawStrip() {
    const { engine } = this;
    this.ends = [this.from, this.to].map(({ value }) => {
      const code = engine.clipped(engine.encode(this.images.get(value)));
      return { code, bold: engine.boldness(code) };
    });
    const images = engine.decode(joined(this.stills.map((_, i) => this.at(i / (STILLS - 1)))));
    paintAll(this.stills, images, engine.side);
  }

  /** @param {number} part */
  move(part) {
    this.mark(part);
    this.onMove(this.at(part));
  }

  /** Show the place on the line, and leave the numbers alone. @param {number} part */
  mark(part) {
    this.blend.value = String(part);
    this.blend.style.setProperty("--at", part.toFixed(4));
    this.blend.setAttribute("aria-valuetext", `${Math.round(100 * part)} % of the way from ${this.from.value} to ${this.to.value}`);
    const nearest = Math.round(part * (STILLS - 1));
    this.stills.forEach((still, i) => still.classList.toggle("near", i === nearest));
  }
}
