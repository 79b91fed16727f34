"""Until backward, routing keeps labels and a table of masks, and of small tensors a mask of a byte for each element.

For every shape and dtype, eager and compiled: the graph keeps at most the labels as int64 and the table as float32. The
mask of the smallest tensor has its place within that.
"""

import torch

from cases import TOKENS, Case, build, grid
from claims import Check, Outcome, at_most, main
from measure import Spread
from memory import check_instrument
from memory import measure as measure_memory
from settings import Settings

#: For the smallest block that the CUDA allocator hands out, and for scalars.
SLACK = 1024


def measure(settings: Settings) -> Outcome:
    check_instrument(build(TOKENS, torch.float32, settings.device))
    return Outcome([_saved(case, mode) for case, mode in grid(settings)])


def _saved(case: Case, mode: str) -> Check:
    saved = measure_memory(case.routing(mode), case).saved
    table = case.spec.table.nbytes
    what = f"{case.name}, {case.dtype}, {mode}: saved (x has {case.x.nbytes:,})"
    return at_most(what, Spread.exact(saved), case.labels.nbytes + table + SLACK, unit="bytes")


if __name__ == "__main__":
    main(__doc__, measure)
