"""What a measurement depends on besides the code: written next to every result."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

import gradroute


def environment(device: torch.device) -> dict[str, object]:
    """JSON-safe, and the same for all results of a run but for the date."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gradroute": gradroute.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "cpu": _cpu(),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda,
        "parallel": torch.__config__.parallel_info(),
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
