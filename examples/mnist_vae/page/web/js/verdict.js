// Which digit the loudest number names, on screen at once and for screen readers when it has come to rest.

const REST = 600;

export class Verdict {
  #timer = 0;
  #said = "";

  /**
   * @param {ArrayLike<number>} numbers how strongly the code speaks by each number
   * @param {{encoded: boolean, routed: boolean, accuracy: number}} how whether the encoder said so, and not a hand;
   *   whether the numbers are digits; for how many images the loudest one names theirs
   * @returns {number | null} the loudest number; null where none speaks
   */
  show(numbers, { encoded, routed, accuracy }) {
    const order = Array.from(numbers, (_, i) => i).sort((a, b) => numbers[b] - numbers[a]);
    const [first, second] = order;
    const silent = !encoded && numbers[first] <= 0;
    const title = silent ? (routed ? "No digit" : "Silence") : routed ? `${encoded ? "Read as" : "Set to"} a ${first}` : `Number ${first} is the loudest`;
    const detail = silent
      ? "all ten numbers at zero: a blank page"
      : !routed
        ? `no digit is its own: the loudest names ${accuracy === undefined ? "few" : `${Math.round(100 * accuracy)} %`} of the test images`
        : numbers[second] > 0.05
          ? `largest number, then ${second} at ${numbers[second].toFixed(2)}`
          : "largest number; the others are silent";
    document.getElementById("numeral").textContent = silent ? "–" : routed ? String(first) : "?";
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
