// One job at a time; of those asked for meanwhile, only the last.

/**
 * @template T
 * @param {(argument: T) => Promise<void>} job
 * @returns {(argument: T) => Promise<void>} resolved when nothing is left to do
 */
export function latest(job) {
  let waiting = null;
  let running = null;

  async function work() {
    while (waiting) {
      const { argument } = waiting;
      waiting = null;
      await job(argument);
    }
  }

  return (argument) => {
    waiting = { argument };
    running ??= work().finally(() => {
      running = null;
    });
    return running;
  };
}
