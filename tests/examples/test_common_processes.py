import pytest
import torch

from common.processes import in_processes


def threads(job: int) -> tuple[int, int]:
    return job, torch.get_num_threads()


def test_jobs_run_on_one_thread_in_their_order_and_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert in_processes(threads, [3, 1, 2], 1) == [(3, 1), (1, 1), (2, 1)]
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            in_processes(lambda job: 1 // job, [1, 0], 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert in_processes(threads, [], 2) == []
