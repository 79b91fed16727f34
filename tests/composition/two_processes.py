"""Running a script in several processes that know each other."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from multiprocessing.connection import wait
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch.distributed import TCPStore

#: Seconds after which a script hangs; nothing that a busy machine could reach.
LIMIT = 600

# The processes are forked from one that has imported torch and nothing has run in it, so that each starts in no time.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch._dynamo"])


def run_in_two_processes(script: Path, saved: Path) -> Any:
    """What the script's first process saves at the path that it is given; a process that fails, fails the test."""
    return run_in_processes(2, script, saved)


def run_in_processes(n: int, script: Path, saved: Path) -> Any:
    """The same with a number of processes."""
    said = [saved.with_name(f"said_{rank}.txt") for rank in range(n)]
    # Where they meet is here, as with torchrun: a port that was only looked up could be taken until they come.
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    processes = []
    try:
        for rank in range(n):
            arguments = script, saved, said[rank], _environment(rank, n, store.port)
            process = FORKS.Process(target=_run, args=arguments)
            process.start()
            processes.append(process)
        _wait_for(processes)
    finally:
        for process in processes:
            process.kill()
            process.join()
    codes = [process.exitcode for process in processes]
    assert codes == [0] * n, f"{codes}\n" + "\n".join(path.read_text()[-4000:] for path in said if path.exists())
    return torch.load(saved)


def run_by_torchrun(script: Path, saved: Path) -> Any:
    """As `run_in_two_processes`, by the command that a user starts a training with."""
    paths = [str(script.parents[2]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(str(script), str(saved)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = process.communicate(timeout=LIMIT)
    finally:
        # Asked to end, it ends the processes that it started too; killed, it would leave them running.
        process.terminate()
        try:
            process.communicate(timeout=40)
        finally:
            process.kill()
    assert process.returncode == 0, said[-4000:]
    return torch.load(saved)


def _wait_for(processes: list[Any]) -> None:
    """Until all have ended, or one has failed: the others would wait for it."""
    end = monotonic() + LIMIT
    while running := [process for process in processes if process.is_alive()]:
        if any(process.exitcode for process in processes) or monotonic() > end:
            return
        wait([process.sentinel for process in running], timeout=end - monotonic())


def _environment(rank: int, n: int, port: int) -> dict[str, str]:
    """As torchrun sets it."""
    values = {
        **{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n},
        **{"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 1},
        **{"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0},
    }
    return {name: str(value) for name, value in values.items()}


def _run(script: Path, saved: Path, said: Path, environment: dict[str, str]) -> None:
    with said.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    os.environ.update(environment)
    sys.argv = [str(script), str(saved)]
    runpy.run_path(str(script), run_name="__main__")


def _end_with_the_parent() -> None:
    """A parent that is killed cannot end its processes, and each would wait for the other."""
    multiprocessing.parent_process().join()
    os._exit(1)
