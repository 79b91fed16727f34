// The drawing pad: strokes by mouse, pen or finger, or a test digit laid on it.

import { inkColour } from "./picture.js";

/** Of the pad's width. MNIST's strokes are about two pixels and a half where the digit is twenty. */
const STROKE = 0.07;

/** @typedef {{x: number, y: number}} Point in parts of the pad's width */

export class Pad {
  /** @type {Point[][]} */
  #strokes = [];
  /** @type {HTMLCanvasElement | null} */
  #sample = null;
  #pointer = null;
  /** The screen frame that will show what was drawn since the last one; 0 for none. */
  #frame = 0;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {() => void} onChange after what was drawn, at most once per screen frame
   */
  constructor(canvas, onChange) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.onChange = onChange;
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#go(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => this.#end(event));
    }
  }

  get isEmpty() {
    return !this.#sample && this.#strokes.length === 0;
  }

  get canUndo() {
    return this.#strokes.length > 0;
  }

  undo() {
    this.#strokes.pop();
    this.redraw();
  }

  clear() {
    this.#strokes = [];
    this.#sample = null;
    this.#pointer = null;
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.redraw();
  }

  /**
   * Lay an image on the empty pad.
   * @param {Float32Array} image side × side values in [0, 1]
   * @param {number} side
   */
  showSample(image, side) {
    this.clear();
    this.#sample = document.createElement("canvas");
    this.#sample.width = this.#sample.height = side;
    const context = this.#sample.getContext("2d");
    const pixels = context.createImageData(side, side);
    image.forEach((value, i) => pixels.data.set([0, 0, 0, Math.round(255 * value)], 4 * i));
    context.putImageData(pixels, 0, 0);
    this.redraw();
  }

  /** The ink on the pad: width × height values in [0, 1]. */
  ink() {
    const { width, height } = this.canvas;
    const { data } = this.context.getImageData(0, 0, width, height);
    const ink = new Float32Array(width * height);
    for (let i = 0; i < ink.length; i++) {
      ink[i] = data[4 * i + 3] / 255;
    }
    return ink;
  }

  redraw() {
    const { canvas, context } = this;
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (this.#sample) {
      context.imageSmoothingEnabled = false;
      context.drawImage(this.#sample, 0, 0, canvas.width, canvas.height);
    }
    context.lineWidth = STROKE * canvas.width;
    context.lineCap = context.lineJoin = "round";
    for (const stroke of this.#strokes) {
      this.#trace(stroke);
    }
    // All ink in the theme's colour, keeping its opacity.
    context.globalCompositeOperation = "source-in";
    context.fillStyle = `rgb(${inkColour(canvas).join(" ")})`;
    context.fillRect(0, 0, canvas.width, canvas.height);
  }

  /** A curve through the middles between the points, which hides that they are few. */
  #trace(stroke) {
    const { width } = this.canvas;
    const at = stroke.map(({ x, y }) => ({ x: x * width, y: y * width }));
    const last = at.at(-1);
    // A dot at the start: a line without length would leave no ink.
    this.context.beginPath();
    this.context.arc(at[0].x, at[0].y, this.context.lineWidth / 2, 0, 2 * Math.PI);
    this.context.fill();
    this.context.beginPath();
    this.context.moveTo(at[0].x, at[0].y);
    for (let i = 1; i < at.length - 1; i++) {
      this.context.quadraticCurveTo(at[i].x, at[i].y, (at[i].x + at[i + 1].x) / 2, (at[i].y + at[i + 1].y) / 2);
    }
    this.context.lineTo(last.x, last.y);
    this.context.stroke();
  }

  /** @param {PointerEvent} event */
  #begin(event) {
    if (this.#pointer !== null || event.button !== 0) {
      return;
    }
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.#pointer = event.pointerId;
    if (this.#sample) {
      this.#sample = null;
      this.#strokes = [];
    }
    this.#strokes.push([this.#point(event)]);
    this.#changed();
  }

  /** @param {PointerEvent} event */
  #go(event) {
    if (event.pointerId !== this.#pointer) {
      return;
    }
    const events = event.getCoalescedEvents?.() ?? [];
    this.#strokes.at(-1).push(...(events.length ? events : [event]).map((each) => this.#point(each)));
    this.#changed();
  }

  /** @param {PointerEvent} event */
  #end(event) {
    if (event.pointerId === this.#pointer) {
      this.#pointer = null;
    }
  }

  #changed() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.redraw();
      this.onChange();
    });
  }

  /** @param {PointerEvent} event */
  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }
}
