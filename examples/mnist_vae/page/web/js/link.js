// A link that shows again what is on screen: the model, and its numbers, in the address behind the #.

const NOTE = 2000;

/**
 * Put the numbers into the address, and a link to them on the clipboard.
 * @param {import("./models.js").Model} model
 * @param {Float32Array} code
 * @param {import("./engine.js").Engine} engine
 */
export async function linkTo(model, code, engine) {
  const { per_slider: per } = engine.description;
  // A style without its presence draws nothing.
  const said = Array.from(code, (value, i) => [i, value]).filter(([i, value]) => Math.abs(value) >= 0.005 && code[i - (i % per)] > 0);
  const numbers = said.map(([i, value]) => `${i}:${Number(value.toFixed(2))}`).join(",");
  history.replaceState(null, "", `#model=${encodeURIComponent(model.name)}&numbers=${numbers}`);
  const button = document.getElementById("share");
  const name = button.dataset.name ?? button.textContent;
  button.dataset.name = name;
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Copied";
  } catch {
    button.textContent = "It is in the address bar";
  }
  setTimeout(() => (button.textContent = name), NOTE);
}

/**
 * @param {string} fragment
 * @param {import("./models.js").Model[]} models
 * @returns {{model: import("./models.js").Model, codeFor: (engine: import("./engine.js").Engine) => Float32Array} | null}
 *   null where it is no such link
 */
export function readLink(fragment, models) {
  const said = new URLSearchParams(fragment.slice(1));
  const model = models.find(({ name }) => name === said.get("model"));
  if (!model) {
    return null;
  }
  const codeFor = (engine) => {
    const code = new Float32Array(engine.units);
    for (const pair of (said.get("numbers") ?? "").split(",")) {
      const [unit, value] = pair.split(":").map(Number);
      if (Number.isInteger(unit) && unit >= 0 && unit < code.length && Number.isFinite(value)) {
        code[unit] = value;
      }
    }
    return engine.clipped(code);
  };
  return { model, codeFor };
}
