"""Running a script in several processes that know each other."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def run_in_two_processes(script: Path, saved: Path) -> Any:
    """What the script's first process saves at the path that it is given; a process that fails, fails the test."""
    return run_in_processes(2, script, saved)


def run_in_processes(n: int, script: Path, saved: Path) -> Any:
    """The same with a number of processes."""
    paths = [str(script.parents[2]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"),
            *(str(script), str(saved)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = process.communicate(timeout=240)
    finally:
        # Asked to end, it ends the processes that it started too; killed, it would leave them running.
        process.terminate()
        try:
            process.communicate(timeout=40)
        finally:
            process.kill()
    assert process.returncode == 0, said[-4000:]
    return torch.load(saved)
