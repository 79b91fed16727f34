// Painting images as ink on the paper beneath: the value of a pixel is its opacity, the theme gives its colour.

/** What each canvas shows, to paint it again in another theme. @type {Map<HTMLCanvasElement, ArrayLike<number>>} */
const shown = new Map();

/**
 * @param {HTMLCanvasElement} canvas
 * @param {ArrayLike<number>} values one in [0, 1] for each of the canvas's pixels
 */
export function paint(canvas, values) {
  shown.set(canvas, values);
  const [red, green, blue] = inkColour(canvas);
  // Only pixels are ever put here, which is quicker without a graphics processor in between.
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < values.length; i++) {
    image.data.set([red, green, blue, Math.round(255 * values[i])], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

export function repaintAll() {
  for (const [canvas, values] of shown) {
    if (canvas.isConnected) {
      paint(canvas, values);
    } else {
      shown.delete(canvas);
    }
  }
}

/**
 * The text colour of an element, as three numbers in 0 ... 255.
 * @param {Element} element
 */
export function inkColour(element) {
  return getComputedStyle(element).color.match(/\d+/g).slice(0, 3).map(Number);
}
