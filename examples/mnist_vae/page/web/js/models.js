// The switch between models: the same drawing, other numbers.

import { Engine } from "./engine.js";
import { showError } from "./notice.js";

/** @typedef {{name: string, title: string, folder: string}} Model */

const percent = (value) => (value === undefined ? "an unknown part" : `${(100 * value).toFixed(2)} %`);
const error = (value) => (value === undefined ? "squared error unknown" : `squared error ${value.toFixed(1)}`);

export class Models {
  /** @type {Map<string, Promise<Engine>>} those that were asked for, by their folder */
  #engines = new Map();
  /** @type {Model} */
  now;

  /**
   * @param {Model[]} models
   * @param {(engine: Engine) => void} onChange
   */
  constructor(models, onChange) {
    Object.assign(this, { models, onChange });
    const choices = document.getElementById("choices");
    for (const model of models) {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name: "model", value: model.name });
      input.addEventListener("change", () => this.#choose(model));
      label.append(input, model.title);
      choices.append(label);
    }
    document.getElementById("models").hidden = models.length < 2;
  }

  /** @param {Model} model @param {Engine} engine */
  begin(model, engine) {
    this.now = model;
    this.#engines.set(model.folder, Promise.resolve(engine));
    document.querySelector(`#choices input[value="${model.name}"]`).checked = true;
    this.#describe(engine);
  }

  async #choose(model) {
    this.now = model;
    const bench = document.getElementById("bench");
    document.getElementById("picture").setAttribute("aria-busy", "true");
    bench.classList.add("waiting");
    try {
      if (!this.#engines.has(model.folder)) {
        this.#engines.set(model.folder, Engine.load(model.folder));
      }
      const engine = await this.#engines.get(model.folder);
      if (this.now === model) {
        this.#describe(engine);
        this.onChange(engine);
      }
    } catch (error) {
      this.#engines.delete(model.folder);
      showError(error);
    } finally {
      bench.classList.remove("waiting");
    }
  }

  /** What this model is, in a sentence with its own measures. */
  #describe({ description: { routed, per_slider: per }, metrics }) {
    const right = `of the test images, ${percent(metrics.argmax_accuracy)} are read right by the loudest number`;
    const far = error(metrics.test_sse);
    document.getElementById("about-model").textContent = !routed
      ? `The same kind of model, trained without routing: it draws well (${far}), by numbers for strokes that digits share, in an order of their own (${right}).`
      : per > 1
        ? `Ten numbers say which digit and how strongly, and ${per - 1} more behind each its style (${far}); ${right}.`
        : `Ten numbers and nothing else: which digit, and how strongly (${far}); ${right}.`;
  }
}
