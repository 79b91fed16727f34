// Animations that the person starts and can stop; only one at a time.

const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** The running one's stop, if any. @type {(() => void) | null} */
let stopRunning = null;

export function stopMotion() {
  stopRunning?.();
}

/**
 * A button that starts and stops an animation.
 * @param {HTMLButtonElement} button
 * @param {(seconds: number, calm: boolean) => void} frame called once per screen frame, `calm` if motion is unwelcome
 */
export function motionButton(button, frame) {
  const name = button.textContent;
  button.addEventListener("click", () => {
    const wasRunning = button.getAttribute("aria-pressed") === "true";
    stopMotion();
    if (!wasRunning) {
      start();
    }
  });

  function start() {
    let request = 0;
    let started = null;
    const tick = (now) => {
      started ??= now;
      request = requestAnimationFrame(tick);
      frame((now - started) / 1000, calm.matches);
    };
    button.setAttribute("aria-pressed", "true");
    button.textContent = "Stop";
    stopRunning = () => {
      cancelAnimationFrame(request);
      stopRunning = null;
      button.setAttribute("aria-pressed", "false");
      button.textContent = name;
    };
    request = requestAnimationFrame(tick);
  }
}

/** Seconds that each number has in a sweep. */
const TURN = 1.6;

/**
 * One number after another from zero to a bold digit's and back, the others at zero.
 * @param {number} seconds
 * @param {boolean} calm stills in place of motion
 * @param {import("./engine.js").Engine} engine
 */
export function sweepCode(seconds, calm, engine) {
  const { sliders, bold } = engine.description;
  const turn = Math.floor(seconds / TURN);
  const part = seconds / TURN - turn;
  return engine.pure(turn % sliders, bold * (calm ? 0.9 : Math.sin(Math.PI * part) ** 2));
}

/** There and back again in four seconds, resting at both ends. */
export function swing(seconds, calm) {
  const phase = (seconds % 4) / 4;
  if (calm) {
    return Math.floor(seconds % 5) / 4;
  }
  return Math.min(1, Math.max(0, 0.5 - 0.6 * Math.cos(2 * Math.PI * phase)));
}
