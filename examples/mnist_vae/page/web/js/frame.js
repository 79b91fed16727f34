// In a frame of another page: what is around the bench is left out (see style.css), and the frame is made to fit.

export function fillFrame() {
  if (window.self === window.top) {
    return;
  }
  document.documentElement.classList.add("framed");
  const frame = hostFrame();
  if (frame) {
    new ResizeObserver(() => (frame.style.height = `${document.body.offsetHeight}px`)).observe(document.body);
  }
}

/** The element that holds this page; null where the page around it is somebody else's. */
function hostFrame() {
  try {
    return window.frameElement;
  } catch {
    return null;
  }
}

/** The body of the documentation around this page, if it has a colour scheme; null where there is none. */
export function hostWithScheme() {
  const body = hostFrame()?.ownerDocument.body;
  return body?.dataset.mdColorScheme ? body : null;
}
