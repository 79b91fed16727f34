"""Ablate, expand, contract: what rewrites the weights of a model.

`expand_` and `contract_` are told the layers between which units come or go. `ablate_` and `contract` are told the
labels alone, and find the layers. They run the model's exported program while the router has the units off (`graph`),
follow the units through its operations to the weights that make and read them, and look what they are worth on the way,
since f(0) need not be 0. The result is a plan of cuts and folds (`_plan`), carried out by zeros or by smaller tensors
(`_resize`), and then compared on the example with what the ablated model computes (`_verify`). An operation that is not
known ends in an error, never in a guess.
"""

from ._ablate import ablate_
from ._contract import Contracted, contract
from ._expand import contract_, expand_

__all__ = ["Contracted", "ablate_", "contract", "contract_", "expand_"]
