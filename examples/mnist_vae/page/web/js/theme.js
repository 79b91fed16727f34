// Light or dark: as the system has it until the person says otherwise; in the documentation, as that has it.

import { hostWithScheme } from "./frame.js";

const KEY = "gradroute-theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

/**
 * @param {HTMLButtonElement} button
 * @param {() => void} onChange
 */
export function setUpTheme(button, onChange) {
  const root = document.documentElement;
  const host = hostWithScheme();
  if (host) {
    const follow = () => {
      root.dataset.theme = host.dataset.mdColorScheme === "slate" ? "dark" : "light";
      onChange();
    };
    new MutationObserver(follow).observe(host, { attributes: true, attributeFilter: ["data-md-color-scheme"] });
    follow();
    return;
  }
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const update = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    onChange();
  };
  const kept = recall();
  if (kept === "light" || kept === "dark") {
    root.dataset.theme = kept;
  }
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember(root.dataset.theme);
    update();
  });
  dark.addEventListener("change", update);
  button.hidden = false;
  update();
}

// Storage is closed to pages in some frames, and then the choice lasts as long as the page.
function recall() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function remember(theme) {
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // Not kept.
  }
}
