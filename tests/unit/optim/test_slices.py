"""Frozen entries are taken out of a parameter and put back, whichever part of it a process holds."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from gradroute.errors import UsageError
from gradroute.optim._slices import FrozenBlocks, local, put, take


@pytest.fixture
def rank_of_four(request):
    """One process that takes itself for one of four, which never speak to each other."""
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=4)
    yield request.param
    dist.destroy_process_group()


class TestDistributedParameters:
    @pytest.mark.parametrize("rank_of_four", range(4), indirect=True)
    @pytest.mark.parametrize("size", [2, 5, 7, 8])
    def test_freeze_in_each_process_the_part_that_it_holds(self, rank_of_four, size):
        """As `torch.chunk` divides it, with shorter parts and empty ones at the end."""
        chunks = torch.arange(size).chunk(4)
        held = chunks[rank_of_four] if rank_of_four < len(chunks) else torch.arange(0)
        mesh = init_device_mesh("cpu", (4,))
        parameter = DTensor.from_local(torch.zeros(3, len(held)), mesh, [Shard(1)], shape=(3, size), stride=(size, 1))
        untaught = torch.arange(size) % 3 != 1
        block = FrozenBlocks([~untaught])(parameter, {1: (0,)})
        expected = untaught[held]
        if not expected.any():
            assert block is None
        else:
            put(local(parameter), block, take(torch.ones(3, len(held)), block))
            assert torch.equal(local(parameter), expected.float().expand(3, -1))

    @pytest.mark.parametrize("rank_of_four", [1], indirect=True)
    @pytest.mark.parametrize("placements", [[Partial(), Replicate()], [Shard(0), Shard(0)]], ids=str)
    def test_of_other_placements_are_refused(self, rank_of_four, placements):
        parameter = DTensor.from_local(torch.zeros(2, 2), init_device_mesh("cpu", (2, 2)), placements)
        taught = torch.arange(len(parameter)) == 0
        with pytest.raises(
            UsageError, match="cannot be isolated or held in part: expected Replicate, or at most one plain Shard"
        ):
            FrozenBlocks([taught])(parameter, {0: (0,)})
