// Puts the page together: a model, and one code of its numbers, which everything on the page either sets or shows.

import { showFinePrint } from "./about.js";
import { Engine } from "./engine.js";
import { fetchJson } from "./files.js";
import { fillFrame } from "./frame.js";
import { linkTo, readLink } from "./link.js";
import { showMatrix } from "./matrix.js";
import { Models } from "./models.js";
import { Morph } from "./morph.js";
import { motionButton, stopMotion, sweepCode, swing } from "./motion.js";
import { isStopped, showError } from "./notice.js";
import { Pad } from "./pad.js";
import { paint, repaintAll } from "./picture.js";
import { normalise } from "./preprocess.js";
import { loadSamples } from "./samples.js";
import { Sliders } from "./sliders.js";
import { setUpTheme } from "./theme.js";
import { Verdict } from "./verdict.js";

/** A test image to begin with, by its place in the test set: a plain 3. */
const SHOWN_FIRST = 32;

const byId = (id) => document.getElementById(id);

async function start() {
  byId("loading").hidden = false;
  const { models, links } = await fetchJson("models.json");
  byId("links").append(...Object.entries(links).flatMap(([text, href]) => [Object.assign(document.createElement("a"), { href, textContent: text, target: "_blank" }), " "]));
  const linked = readLink(location.hash, models);
  const first = linked?.model ?? models[0];
  const progress = (fraction) => (byId("progress").value = fraction);
  const [engine, samples] = await Promise.all([Engine.load(first.folder, progress), loadSamples()]);
  const bench = new Bench(samples);
  const shown = new Models(models, (next) => bench.use(next));
  shown.begin(first, engine);
  bench.begin(engine, linked?.codeFor(engine));
  byId("loading").hidden = true;
  byId("bench").inert = byId("morph").inert = false;
  byId("share").addEventListener("click", () => linkTo(shown.now, bench.code, bench.engine));
  document.documentElement.dataset.state = "ready";
  return bench;
}

class Bench {
  /** @type {Float32Array | null} the image on the pad, as the encoder sees it */
  image = null;
  /** @type {Float32Array | null} what the encoder gave for it */
  mean = null;

  /** @param {import("./samples.js").Sample[]} samples */
  constructor(samples) {
    this.samples = samples;
    this.verdict = new Verdict();
    this.pad = new Pad(byId("pad"), () => this.readPad());
    this.morph = new Morph(samples, (code) => this.showMorph(code), () => stopMotion());
    this.#connect();
  }

  /** Show the first model, and a code that was linked to or the first image. */
  begin(engine, code) {
    this.#set(engine);
    if (code) {
      this.#showInput(null, "Numbers from a link");
      this.show(code);
    } else {
      this.showSample(this.samples.find(({ index }) => index === SHOWN_FIRST) ?? this.samples[0]);
    }
  }

  /** Go on with another model, and the same image. @param {Engine} engine */
  use(engine) {
    stopMotion();
    this.#set(engine);
    this.#encode();
  }

  #set(engine) {
    this.engine = engine;
    this.sliders = new Sliders(engine, () => {
      stopMotion();
      this.show(this.sliders.values);
    });
    this.morph.use(engine);
    showMatrix(byId("matrix"), engine.metrics.mean_activation, engine.description.routed);
    showFinePrint(byId("fine"), engine.metrics, engine.description);
  }

  #connect() {
    byId("random").addEventListener("click", () => {
      stopMotion();
      const others = this.samples.filter((sample) => sample !== this.sample);
      this.showSample(others[Math.floor(Math.random() * others.length)]);
    });
    byId("undo").addEventListener("click", () => {
      this.pad.undo();
      this.readPad();
    });
    byId("clear").addEventListener("click", () => {
      this.pad.clear();
      this.readPad();
    });
    byId("reset").addEventListener("click", () => {
      stopMotion();
      this.show(new Float32Array(this.engine.units));
    });
    byId("restore").addEventListener("click", () => {
      stopMotion();
      this.show(this.engine.clipped(this.mean));
    });
    motionButton(byId("sweep"), (seconds, calm) => this.show(sweepCode(seconds, calm, this.engine)));
    motionButton(byId("play"), (seconds, calm) => this.morph.move(swing(seconds, calm)));
  }

  /** Encode what is drawn. */
  readPad() {
    stopMotion();
    this.sample = null;
    const { pad } = this;
    const image = pad.isEmpty ? null : normalise(pad.ink(), pad.canvas.width, pad.canvas.height);
    this.#showInput(image, image ? "Your drawing" : "Nothing drawn yet");
    if (image) {
      this.morph.offer(image);
    }
    this.#encode();
  }

  /** @param {import("./samples.js").Sample} sample */
  showSample(sample) {
    this.sample = sample;
    this.pad.showSample(sample.image, this.engine.side);
    this.#showInput(sample.image, `Test image ${sample.index}, labelled ${sample.label}`);
    this.#encode();
  }

  #encode() {
    this.mean = this.image ? this.engine.encode(this.image) : null;
    this.show(this.mean ? this.engine.clipped(this.mean) : new Float32Array(this.engine.units));
  }

  /** Show a code in the sliders and as a picture. @param {Float32Array} code */
  show(code) {
    const { engine, mean } = this;
    this.code = code;
    const encoded = mean !== null && engine.clipped(mean).every((value, i) => Math.abs(value - code[i]) < 1e-6);
    byId("restore").disabled = mean === null || encoded;
    // The encoder's own numbers, which may all be below zero, decide what it reads; the sliders are all at zero then.
    const numbers = engine.strengths(encoded ? mean : code);
    const { routed } = engine.description;
    const largest = this.verdict.show(numbers, { encoded, routed, accuracy: engine.metrics.argmax_accuracy });
    this.sliders.show(code, mean, largest);
    this.picture = engine.decode(code);
    paint(byId("picture"), this.picture);
    byId("picture").setAttribute("aria-busy", "false");
    const time = engine.decodeTime;
    byId("speed").textContent = time === null ? "" : `Decoding takes ${time.toFixed(1)} ms here (median).`;
  }

  /** @param {Float32Array} code */
  showMorph(code) {
    this.show(code);
    paint(byId("morphed"), this.picture);
  }

  #showInput(image, caption) {
    const { pad } = this;
    this.image = image;
    paint(byId("seen"), image ?? new Float32Array(this.engine.side ** 2));
    byId("pad-sheet").classList.toggle("empty", pad.isEmpty);
    byId("undo").disabled = !pad.canUndo;
    byId("caption").textContent = caption;
    byId("pad").setAttribute("aria-label", `Drawing area: ${caption}. With a keyboard, use the test digits or the sliders.`);
  }
}

if (!isStopped()) {
  let bench = null;
  fillFrame();
  setUpTheme(byId("theme"), () => {
    repaintAll();
    bench?.pad.redraw();
  });
  start().then((started) => (bench = started), showError);
}
