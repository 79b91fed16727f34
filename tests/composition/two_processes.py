"""Running a script in two processes that know each other."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def run_in_two_processes(script: Path, saved: Path) -> Any:
    """What the script's first process saves at the path that it is given; a process that fails, fails the test."""
    paths = [str(script.parents[2]), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script), str(saved)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return torch.load(saved)
