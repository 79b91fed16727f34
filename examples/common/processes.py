"""Jobs in several processes, each on one thread, so that what they find does not depend on how many there are."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import TypeVar

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

Job = TypeVar("Job")
Found = TypeVar("Found")


def in_processes(function: Callable[[Job], Found], jobs: Sequence[Job], workers: int) -> list[Found]:
    """What the function finds for each job, in the jobs' order; with a bar of how many are done.

    Args:
        function: At the top of a module, so that another process can find it.
        jobs: Each can be pickled.
        workers: How many processes; 1 for none but this one.
    """
    found: dict[int, Found] = {}
    with tqdm(total=len(jobs), desc="runs", unit="run", disable=None) as bar:
        for place, each in _as_they_come(partial(_on_one_thread, function), jobs, workers):
            found[place] = each
            bar.update()
    return [found[place] for place in range(len(jobs))]


def _as_they_come(function: Callable[[Job], Found], jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Found]]:
    if workers == 1:
        yield from ((place, function(job)) for place, job in enumerate(jobs))
        return
    # Not forked: a fork inherits the state of threads that do not run in it.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        futures = {pool.submit(function, job): place for place, job in enumerate(jobs)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _on_one_thread(function: Callable[[Job], Found], job: Job) -> Found:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(job)
    finally:
        torch.set_num_threads(threads)
