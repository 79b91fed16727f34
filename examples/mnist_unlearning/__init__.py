"""Expand, route, ablate on MNIST: one digit's ability in a block of units that can be taken out."""
