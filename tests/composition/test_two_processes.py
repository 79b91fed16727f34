"""What the tests of several processes stand on: a process that fails, fails the test, and says why."""

from pathlib import Path
from textwrap import dedent

import pytest

from composition.two_processes import run_in_two_processes


def script(folder: Path, body: str) -> Path:
    path = folder / "script.py"
    path.write_text("import sys, time, torch, torch.distributed as dist\n" + dedent(body))
    return path


def test_what_the_first_process_saves_comes_back(tmp_path: Path) -> None:
    body = """
        dist.init_process_group("gloo")
        total = torch.tensor(dist.get_rank() + 1)
        dist.all_reduce(total)
        if dist.get_rank() == 0:
            torch.save(total, sys.argv[1])
        dist.destroy_process_group()
    """
    assert run_in_two_processes(script(tmp_path, body), tmp_path / "saved.pt") == 1 + 2


def test_a_process_that_fails_says_why_and_is_not_waited_for_by_the_other(tmp_path: Path) -> None:
    body = """
        dist.init_process_group("gloo")
        if dist.get_rank() == 1:
            raise RuntimeError("as a test")
        time.sleep(100_000)
    """
    with pytest.raises(AssertionError, match=r"(?s)\[-9, 1\].*as a test"):
        run_in_two_processes(script(tmp_path, body), tmp_path / "saved.pt")
