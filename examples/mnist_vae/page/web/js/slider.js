// One slider that is a bar as well, with a mark where the encoder put its number.

/** @typedef {{lowest: number, highest: number}} Range */

/**
 * @param {{id: string, name: string, text: string, range: Range, pictures: number}} what `pictures` small ones: one before
 *   the bar, or one at each of its ends
 */
export function makeRow({ id, name, text, range, pictures }) {
  const { lowest, highest } = range;
  const item = document.createElement("li");
  item.className = "row";
  const fraction = (value) => Math.max(0, Math.min(1, (value - lowest) / (highest - lowest))).toFixed(4);
  item.style.setProperty("--zero", fraction(0));
  const glyphs = Array.from({ length: pictures }, () => {
    const glyph = Object.assign(document.createElement("canvas"), { width: 28, height: 28, className: "glyph" });
    glyph.setAttribute("aria-hidden", "true");
    return glyph;
  });
  const label = Object.assign(document.createElement("label"), { htmlFor: id, textContent: text });
  const input = Object.assign(document.createElement("input"), { type: "range", id });
  // In this order: a value outside the limits of the moment would be moved inside them.
  Object.assign(input, { min: String(lowest), max: String(highest), step: "any", value: "0" });
  input.setAttribute("aria-label", name);
  const track = Object.assign(document.createElement("span"), { className: "track" });
  track.append(input);
  // No <output>: ten live regions would talk without end, and the slider itself says its value.
  const value = Object.assign(document.createElement("span"), { className: "value" });
  const mean = Object.assign(document.createElement("span"), { className: "mean" });
  item.append(glyphs[0], label, track, ...glyphs.slice(1), value, mean);

  /**
   * @param {number} now
   * @param {number | null} encoded what the encoder gave; null where nothing was encoded
   */
  function show(now, encoded) {
    input.value = String(now);
    input.setAttribute("aria-valuetext", now.toFixed(1));
    value.textContent = format(now);
    mean.textContent = encoded === null ? "" : format(encoded);
    item.classList.toggle("encoded", encoded !== null);
    item.style.setProperty("--at", fraction(now));
    item.style.setProperty("--mean", fraction(encoded ?? 0));
  }

  return { item, glyphs, input, show };
}

/** Two decimals, a true minus sign, and no minus before zero. */
function format(value) {
  const text = value.toFixed(2);
  return text === "-0.00" ? "0.00" : text.replace("-", "\u2212");
}
