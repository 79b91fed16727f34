"""All runs of a table: each in a file of its own, so that an interrupted table goes on where it was."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from common.datasets import Split
from common.files import read_json, write_json
from mnist_unlearning.config import Condition, Settings
from mnist_unlearning.images import Parts
from mnist_unlearning.run import identity, run

Job = tuple[Condition, int]


def finish(
    rows: Sequence[Condition],
    seeds: Sequence[int],
    settings: Settings,
    data: Parts,
    folder: Path,
    *,
    workers: int = 1,
    fresh: bool = False,
) -> list[dict[str, Any]]:
    """Run what is not in the folder yet; all results, a run each.

    A file whose settings, condition or judging images are not these is replaced. One seed of all rows comes first.

    Args:
        rows: Conditions.
        seeds: Of each condition.
        settings: Of all.
        data: Images.
        folder: Where the runs' files are.
        workers: Processes. Each computes on one thread, so that results do not depend on how many there are.
        fresh: Run everything again.
    """
    jobs = [(row, seed) for seed in seeds for row in rows]
    todo = [job for job in jobs if fresh or not _is_done(job, settings, data, folder)]
    print(f"runs: {len(jobs) - len(todo)} of {len(jobs)} are in {folder} already")
    with tqdm(total=len(todo), desc="runs", unit="run", disable=None) as bar:
        for job, result in _results(todo, settings, data, workers):
            write_json(_path(job, folder), result)
            bar.update()
            bar.set_postfix_str(result["condition"]["name"])
    return [read_json(_path(job, folder)) for job in jobs]


def _results(jobs: list[Job], settings: Settings, data: Parts, workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for job in jobs:
                yield job, run(job[0], settings, data, job[1])
        finally:
            torch.set_num_threads(threads)
        return
    # Tensors would travel through shared memory, of which a container may have little.
    arrays = [(split.images.numpy(), split.labels.numpy()) for split in (data.train, data.relearn, data.judge)]
    # Not forked: a fork inherits the state of threads that do not run in it.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_prepare, initargs=(arrays, data.judged_on, settings))
    try:
        futures = {pool.submit(_run, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


_GIVEN: list[Any] = []  # in a worker: the data and the settings


def _prepare(arrays: list[tuple[Any, Any]], judged_on: str, settings: Settings) -> None:
    torch.set_num_threads(1)
    train, relearn, judge = (Split(torch.from_numpy(images), torch.from_numpy(labels)) for images, labels in arrays)
    _GIVEN[:] = [Parts(train, relearn, judge, judged_on), settings]


def _run(job: Job) -> dict[str, Any]:
    data, settings = _GIVEN
    return run(job[0], settings, data, job[1])


def _path(job: Job, folder: Path) -> Path:
    return folder / f"{job[0].name}-seed{job[1]}.json"


def _is_done(job: Job, settings: Settings, data: Parts, folder: Path) -> bool:
    path = _path(job, folder)
    if not path.is_file():
        return False
    found, expected = read_json(path), identity(job[0], settings, data.judged_on, job[1])
    return all(found.get(key) == value for key, value in expected.items())
