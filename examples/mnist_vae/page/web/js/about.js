// The small print: what was measured of this model, as its metrics.json has it.

const percent = (value) => `${(100 * value).toFixed(2)} %`;
const count = (value) => value.toLocaleString("en");

/** A name, the metrics that it needs, and what to say of them. @type {[string, string[], (metrics: any) => string][]} */
const LINES = [
  ["Loudest number names the digit", ["argmax_accuracy"], (m) => `${percent(m.argmax_accuracy)} of the 10,000 test images`],
  ["Digits that own their number", ["owned_digits"], (m) => `${m.owned_digits} of 10`],
  ["Sliders draw their digit", ["slider_seen_as", "classifier_accuracy"], sliders],
  ["Squared error of a decoded image", ["test_sse"], (m) => `${m.test_sse.toFixed(1)}, summed over 784 pixels`],
  ["Teaching around the route", ["leaks"], leaks],
  ["Training", ["recipe", "epochs", "seed", "routing"], training],
  ["Size", ["parameters"], (m) => `${count(m.parameters)} parameters, matrices in half precision`],
];

/** One row a digit: what a classifier saw in its pictures. */
function sliders({ slider_seen_as: seen, classifier_accuracy: accuracy }) {
  const right = seen.map((row, digit) => row.filter((read) => read === digit).length);
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
  return `${sum(right)} of ${sum(seen.map((row) => row.length))} pictures, as a classifier of ${percent(accuracy)} reads them`;
}

/** In the words of this page: the KL holds no label and is meant to reach all ten; readers are the decoder's. */
const WAYS = { "side loss": "the KL", reader: "weights that read the numbers", "shared bias": "a bias beside them" };

/** What an audit found, kind by kind. */
function leaks({ leaks: found }) {
  const ways = Object.entries(found).map(([kind, share]) => `${WAYS[kind] ?? kind} ${(100 * share).toFixed(0)} %`);
  return ways.length ? `${ways.join(", ")} of a digit's gradient, at most` : "nothing, as an audit finds";
}

function training({ recipe, epochs, seed, routing }) {
  return `recipe ${recipe}, ${epochs} epoch${epochs === 1 ? "" : "s"}, seed ${seed}${routing ? "" : ", without routing"}`;
}

/**
 * @param {HTMLElement} place
 * @param {any} metrics
 * @param {any} description
 */
export function showFinePrint(place, metrics, description) {
  const list = document.createElement("dl");
  for (const [name, keys, say] of LINES) {
    const missing = keys.filter((key) => metrics[key] === undefined || metrics[key] === null);
    const pair = document.createElement("div");
    const [term, value] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    value.textContent = missing.length ? `unknown: metrics.json lacks ${missing.join(", ")}` : say(metrics);
    pair.append(term, value);
    list.append(pair);
  }
  const note = document.createElement("p");
  note.className = "small";
  note.textContent =
    "Measured on the very weights that run here. The random test digits are the first of each kind in the test set, which " +
    "the model was not trained on." +
    (description.per_slider > 1
      ? ` A slider is how strongly its digit speaks, over ${description.loudness}: the norm of its presence and styles, as the decoder reads them.`
      : "");
  place.replaceChildren(list, note);
}
