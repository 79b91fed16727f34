// What stands in the way, in words, at the top of the page.

/** An error whose message is written for the person at the page. */
export class PageError extends Error {}

/** Whether `check.js` has already said why the page cannot work here. */
export function isStopped() {
  return document.documentElement.dataset.state === "stopped";
}

/**
 * Show what went wrong and leave the controls inert.
 * @param {unknown} error
 */
export function showError(error) {
  const notice = document.getElementById("notice");
  const strong = document.createElement("strong");
  strong.textContent = "The page could not start.";
  const text = error instanceof PageError ? error.message : `Something unexpected happened: ${error}`;
  notice.replaceChildren(strong, ` ${text}`);
  notice.hidden = false;
  document.getElementById("loading").hidden = true;
  document.documentElement.dataset.state = "failed";
}
