"""Ablate, expand, contract: what rewrites the weights of a model."""

from .ablation import ablate_
from .contraction import Contracted, contract
from .expansion import contract_, expand_

__all__ = ["Contracted", "ablate_", "contract", "contract_", "expand_"]
