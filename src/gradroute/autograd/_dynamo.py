"""Tells Dynamo to keep the Functions whole. Imported only by code that is being compiled.

Without this, `torch.compile(torch.func.grad(f))` and `torch.compile(torch.vmap(f))` give unmasked gradients without a
word. It is a module of its own because registering imports `torch._dynamo`, which takes as long as importing torch:
`import gradroute` must not. An import statement in traced code is executed by Dynamo when it gets there, so whoever
compiles has registered in time, and nobody else pays.
"""

import torch

from ._functions import ReplacingRouteMask, RouteMask, Sum

torch.compiler.allow_in_graph([RouteMask, ReplacingRouteMask, Sum])  # type: ignore[no-untyped-call]
