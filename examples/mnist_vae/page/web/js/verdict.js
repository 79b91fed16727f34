// Which digit the largest number names, on screen at once and for screen readers when it has come to rest.

const REST = 600;

export class Verdict {
  #timer = 0;
  #said = "";

  /**
   * @param {ArrayLike<number>} numbers
   * @param {boolean} encoded whether they are the encoder's, and not set by hand
   * @returns {number | null} the digit; null where none speaks
   */
  show(numbers, encoded) {
    const order = Array.from(numbers, (_, i) => i).sort((a, b) => numbers[b] - numbers[a]);
    const [first, second] = order;
    const silent = !encoded && numbers[first] <= 0;
    const title = silent ? "No digit" : encoded ? `Read as a ${first}` : `Set to a ${first}`;
    const detail = silent
      ? "all ten numbers at zero: a blank page"
      : numbers[second] > 0.05
        ? `largest number, then ${second} at ${numbers[second].toFixed(2)}`
        : "largest number; the others are silent";
    document.getElementById("numeral").textContent = silent ? "–" : String(first);
    document.getElementById("verdict").textContent = title;
    document.getElementById("runner-up").textContent = detail;
    document.getElementById("picture").setAttribute("aria-label", silent ? "Decoded image: blank" : `Decoded image: ${title}`);
    this.#announce(title);
    return silent ? null : first;
  }

  #announce(text) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      if (text !== this.#said) {
        document.getElementById("status").textContent = text;
        this.#said = text;
      }
    }, REST);
  }
}
