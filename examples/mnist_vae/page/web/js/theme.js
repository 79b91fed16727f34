// Light or dark: as the system has it until the person says otherwise.

const KEY = "gradroute-theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

/**
 * @param {HTMLButtonElement} button
 * @param {() => void} onChange
 */
export function setUpTheme(button, onChange) {
  const root = document.documentElement;
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
