"""Rewrites the weights of a model: switches units off for good, takes them out, puts new ones in.

`add_units_` and `remove_units_` are told between which layers units come or go.

`ablate_` and `contract` are told labels alone, and find the layers themselves. They export the model while the router
has the units off (`graph`), and follow the units through its operations to the weights that make them and to those that
read them. On the way they compute what the units are worth there, since a function f may turn 0 into another f(0). The
result is a plan of cuts and folds (`_plan`). It is carried out by zeros or by smaller tensors (`_resize`), and the
outputs on the example are then compared with those of the ablated model (`_verify`). An operation that is not known
ends in an error, never in a guess.

A whole module needs no following (`_whole_modules`): `contract` puts an `Absent` in its place, and `ablate_` clears its
parameters where its own program shows that zeros make zeros.
"""

from ._ablate import ablate_
from ._absent import Absent
from ._add_remove_units import add_units_, remove_units_
from ._contract import Contracted, contract

__all__ = ["Absent", "Contracted", "ablate_", "add_units_", "contract", "remove_units_"]
