// Ten sliders that are bars as well: one per number, with a mark where the encoder put it.

/** @typedef {{lowest: number, highest: number, units: number}} Range */

export class Sliders {
  /**
   * @param {HTMLOListElement} list
   * @param {Range} range
   * @param {() => void} onInput after the person has moved one
   */
  constructor(list, range, onInput) {
    this.range = range;
    this.rows = Array.from({ length: range.units }, (_, digit) => makeRow(digit, range));
    list.append(...this.rows.map(({ item }) => item));
    list.addEventListener("input", onInput);
  }

  /** The small pictures before the sliders. */
  get glyphs() {
    return this.rows.map(({ glyph }) => glyph);
  }

  get values() {
    return Float32Array.from(this.rows, ({ input }) => input.valueAsNumber);
  }

  /**
   * @param {ArrayLike<number>} values
   * @param {ArrayLike<number> | null} mean what the encoder gave; null where nothing was encoded
   * @param {number | null} largest which one to stress
   */
  show(values, mean, largest) {
    this.rows.forEach((row, digit) => {
      row.input.value = String(values[digit]);
      row.input.setAttribute("aria-valuetext", values[digit].toFixed(1));
      row.value.textContent = format(values[digit]);
      row.mean.textContent = mean ? format(mean[digit]) : "";
      row.item.classList.toggle("largest", digit === largest);
      row.item.classList.toggle("encoded", mean !== null);
      const { style } = row.item;
      style.setProperty("--at", this.#fraction(values[digit]));
      style.setProperty("--mean", this.#fraction(mean ? mean[digit] : 0));
    });
  }

  #fraction(value) {
    const { lowest, highest } = this.range;
    return Math.max(0, Math.min(1, (value - lowest) / (highest - lowest))).toFixed(4);
  }
}

function makeRow(digit, { lowest, highest }) {
  const item = document.createElement("li");
  item.className = "row";
  item.style.setProperty("--zero", ((0 - lowest) / (highest - lowest)).toFixed(4));
  const glyph = Object.assign(document.createElement("canvas"), { width: 28, height: 28, className: "glyph" });
  glyph.setAttribute("aria-hidden", "true");
  const label = Object.assign(document.createElement("label"), { htmlFor: `z${digit}`, textContent: String(digit) });
  const input = Object.assign(document.createElement("input"), { type: "range", id: `z${digit}` });
  // In this order: a value outside the limits of the moment would be moved inside them.
  Object.assign(input, { min: String(lowest), max: String(highest), step: "any", value: "0" });
  input.setAttribute("aria-label", `Number ${digit}, draws a ${digit}`);
  const track = Object.assign(document.createElement("span"), { className: "track" });
  track.append(input);
  // No <output>: ten live regions would talk without end, and the slider itself says its value.
  const value = Object.assign(document.createElement("span"), { className: "value" });
  const mean = Object.assign(document.createElement("span"), { className: "mean" });
  item.append(glyph, label, track, value, mean);
  return { item, glyph, input, value, mean };
}

/** Two decimals, a true minus sign, and no minus before zero. */
function format(value) {
  const text = value.toFixed(2);
  return text === "-0.00" ? "0.00" : text.replace("-", "−");
}
