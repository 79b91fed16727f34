// Puts the page together: one code of ten numbers, which everything on the page either sets or shows.

import { showFinePrint } from "./about.js";
import { Engine } from "./engine.js";
import { fetchJson } from "./files.js";
import { latest } from "./latest.js";
import { showMatrix } from "./matrix.js";
import { Morph } from "./morph.js";
import { motionButton, stopMotion, sweepCode, swing } from "./motion.js";
import { PageError, isStopped, showError } from "./notice.js";
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
  const [description, metrics] = await Promise.all([fetchJson("model/model.json"), fetchJson("model/metrics.json")]);
  const [engine, samples] = await Promise.all([
    Engine.load(description, (fraction) => {
      byId("progress").value = fraction;
    }),
    loadSamples(description.side),
  ]);
  const bench = new Bench(engine, samples, description, metrics);
  showMatrix(byId("matrix"), metrics.mean_activation);
  showFinePrint(byId("fine"), metrics, description);
  await bench.begin();
  byId("loading").hidden = true;
  byId("bench").inert = byId("morph").inert = false;
  document.documentElement.dataset.state = "ready";
  return bench;
}

class Bench {
  /** @type {Float32Array | null} what the encoder gave for the image on the pad */
  mean = null;
  /** Raised by each act of the person's, so that an encoding that was asked for before it can be dropped. */
  act = 0;
  pending = 0;

  constructor(engine, samples, description, metrics) {
    this.engine = engine;
    this.samples = samples;
    this.range = description;
    this.blank = new Float32Array(description.units);
    this.verdict = new Verdict();
    this.pad = new Pad(byId("pad"), () => this.readPad());
    this.sliders = new Sliders(byId("rows"), description, () => {
      this.interrupt();
      this.show(this.sliders.values);
    });
    this.morph = new Morph(engine, averageCodes(metrics, description), (code) => this.showMorph(code), () => this.interrupt());
    this.decode = latest(async (code) => {
      this.image = await engine.decode(code);
      paint(byId("picture"), this.image);
    });
    this.encode = latest((request) => this.#encode(request));
    this.#connect();
  }

  /** A first picture, and the small ones that stay. */
  async begin() {
    const { units, side } = this.engine;
    const each = new Float32Array(units * units);
    for (let unit = 0; unit < units; unit++) {
      each[unit * units + unit] = 0.95 * this.range.highest;
    }
    const images = await this.engine.decode(each);
    this.sliders.glyphs.forEach((glyph, i) => paint(glyph, images.slice(i * side * side, (i + 1) * side * side)));
    await this.morph.drawStrip();
    this.morph.mark(0);
    paint(byId("morphed"), await this.engine.decode(this.morph.at(0)));
    await this.showSample(this.samples.find(({ index }) => index === SHOWN_FIRST) ?? this.samples[0]);
  }

  #connect() {
    byId("random").addEventListener("click", () => {
      this.interrupt();
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
      this.interrupt();
      this.show(this.blank);
    });
    byId("restore").addEventListener("click", () => {
      this.interrupt();
      this.show(this.clipped(this.mean));
    });
    motionButton(byId("sweep"), (seconds, calm) => this.show(sweepCode(seconds, calm, this.range)));
    motionButton(byId("play"), (seconds, calm) => this.morph.move(swing(seconds, calm)));
  }

  /** Make room for what the person does next. */
  interrupt() {
    this.act += 1;
    stopMotion();
  }

  /** Encode what is drawn. */
  readPad() {
    this.interrupt();
    this.sample = null;
    const { pad } = this;
    const image = pad.isEmpty ? null : normalise(pad.ink(), pad.canvas.width, pad.canvas.height);
    this.#showInput(image, image ? "Your drawing" : "Nothing drawn yet");
    if (image) {
      return this.#wait(this.encode({ image, act: this.act }));
    }
    this.mean = null;
    return this.show(this.blank);
  }

  /** @param {import("./samples.js").Sample} sample */
  showSample(sample) {
    this.sample = sample;
    this.pad.showSample(sample.image, this.engine.side);
    this.#showInput(sample.image, `Test image ${sample.index}, labelled ${sample.label}`);
    return this.#wait(this.encode({ image: sample.image, act: this.act }));
  }

  /** Show a code in the sliders and as a picture. @param {Float32Array} code */
  show(code) {
    const restored = this.mean !== null && this.clipped(this.mean).every((value, i) => Math.abs(value - code[i]) < 1e-6);
    byId("restore").disabled = this.mean === null || restored;
    // The encoder's own numbers, which may all be below zero, decide what it reads; the sliders are all at zero then.
    const largest = this.verdict.show(restored ? this.mean : code, restored);
    this.sliders.show(code, this.mean, largest);
    return this.#wait(this.decode(code));
  }

  /** @param {Float32Array} code */
  showMorph(code) {
    return this.show(code).then(() => paint(byId("morphed"), this.image));
  }

  clipped(mean) {
    return mean.map((value) => Math.max(this.range.lowest, Math.min(this.range.highest, value)));
  }

  async #encode({ image, act }) {
    const mean = await this.engine.encode(image);
    if (act === this.act) {
      this.mean = mean;
      await this.show(this.clipped(mean));
    }
  }

  #showInput(image, caption) {
    const { pad } = this;
    paint(byId("seen"), image ?? new Float32Array(this.engine.side ** 2));
    byId("pad-sheet").classList.toggle("empty", pad.isEmpty);
    byId("undo").disabled = !pad.canUndo;
    byId("caption").textContent = caption;
    byId("pad").setAttribute("aria-label", `Drawing area: ${caption}. With a keyboard, use the test digits or the sliders.`);
  }

  /** Mark the picture as busy until the last of what was asked for has been shown. */
  async #wait(work) {
    const picture = byId("picture");
    this.pending += 1;
    picture.setAttribute("aria-busy", "true");
    try {
      await work;
    } finally {
      this.pending -= 1;
      if (this.pending === 0) {
        picture.setAttribute("aria-busy", "false");
        const time = this.engine.decodeTime;
        byId("speed").textContent = time === null ? "" : `Decoding takes ${time.toFixed(1)} ms here (median).`;
      }
    }
  }
}

/**
 * The average code of each digit over the training set.
 * @returns {Float32Array[]}
 */
function averageCodes({ mean_activation: averages }, { lowest, highest }) {
  if (!averages) {
    throw new PageError("model/metrics.json lacks mean_activation, the average codes. Export the model and build the folder again.");
  }
  return averages.map((average) => Float32Array.from(average, (value) => Math.max(lowest, Math.min(highest, value))));
}

if (!isStopped()) {
  let bench = null;
  setUpTheme(byId("theme"), () => {
    repaintAll();
    bench?.pad.redraw();
  });
  start().then((started) => (bench = started), showError);
}
