"""The layers whose own parameters can be routed in one forward and one backward pass: values and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autograd._functions import sum_of
from ..unit_dims import kind_of, unit_dims
from ._site_mask import SiteMask, detached, product, scaled, tell_apart, those_for, times


class Layer:
    """How a kind of layer computes, and its gradients from a gradient and an input that may each be masked."""

    reads_what_it_writes = False

    def __init__(self, module: Any) -> None:
        self.weight: Tensor = module.weight
        self.bias: Tensor | None = getattr(module, "bias", None)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output."""
        raise NotImplementedError

    def grad_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the input."""
        raise NotImplementedError

    def grad_own(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The gradients of weight and bias. In one call where PyTorch does so: bit for bit the same sums."""
        raise NotImplementedError

    def grad_bias(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The gradient of the bias alone."""
        raise NotImplementedError

    def composed(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, writers: Sequence[SiteMask], readers: Sequence[SiteMask]
    ) -> Tensor:
        """The output by ordinary operations: the parts that learn and do not, and a value that is neither's sum."""
        fixed = weight.detach(), detached(bias)
        whole = self.run(x, *fixed)
        m = product([mask.weights(whole) for mask in those_for(writers, "weight")])
        n = product([mask.weights(x) for mask in those_for(readers, "weight")])
        apart = bias is not None and tell_apart(writers, "weight", "bias")
        parts = [scaled(self.run(times(x, n), weight, fixed[1] if apart else bias), m)]
        if apart:
            own = product([mask.weights(whole) for mask in those_for(writers, "bias")])
            parts.append(scaled(self.run(x.detach(), fixed[0], bias), own))
        if m is not None:
            parts.append(scaled(whole, 1 - m))
        if n is not None:
            parts.append(scaled(self.run(times(x, 1 - n), fixed[0], None), m))
        return sum_of(whole.detach(), *parts)


class _Linear(Layer):
    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def grad_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return grad @ weight

    def grad_own(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        grad, x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        return grad.t() @ x, None if bias is None else grad.sum(0)

    def grad_bias(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return grad.reshape(-1, grad.shape[-1]).sum(0)


class _TransposedLinear(_Linear):
    """The linear layer of GPT-2 in transformers."""

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight.t(), bias)

    def grad_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return grad @ weight.t()

    def grad_own(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        grad, x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        return x.t() @ grad, None if bias is None else grad.sum(0)


class _Convolution(Layer):
    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.settings = module.stride, module.padding, module.dilation
        self.groups = module.groups

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        function = (F.conv1d, F.conv2d, F.conv3d)[len(self.settings[0]) - 1]
        return function(x, weight, bias, *self.settings, self.groups)

    def grad_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        found = self._backward(grad, x, weight, [True, False, False])[0]
        return found if x.ndim == weight.ndim else found.squeeze(0)

    def grad_own(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        _, of_weight, of_bias = self._backward(grad, x, weight, [False, True, bias is not None])
        return of_weight, of_bias if bias is not None else None

    def grad_bias(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self._backward(grad, x, weight, [False, False, True])[2]

    def _backward(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
        if x.ndim < weight.ndim:
            grad, x = grad.unsqueeze(0), x.unsqueeze(0)
        stride, padding, dilation = self.settings
        zeros = [0] * len(stride)
        found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            grad, x, weight, [len(weight)], stride, padding, dilation, False, zeros, self.groups, wanted
        )
        return found


class _Norm(Layer):
    """LayerNorm and RMSNorm: a unit's weight is both its writer and its reader; the bias only writes."""

    reads_what_it_writes = True

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.of_layer = isinstance(module, nn.LayerNorm)
        self.shape, self.eps = module.normalized_shape, module.eps

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.of_layer:
            return F.layer_norm(x, self.shape, weight, bias, self.eps)
        return F.rms_norm(x, self.shape, weight, self.eps)

    def grad_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return self._gradients(grad, (x, weight.detach(), None), [x])[0]

    def grad_own(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        own = [parameter.detach().requires_grad_() for parameter in (weight, bias) if parameter is not None]
        found = self._gradients(grad, (x.detach(), own[0], own[1] if bias is not None else None), own)
        return found[0], found[1] if bias is not None else None

    def grad_bias(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        own = bias.detach().requires_grad_()
        return self._gradients(grad, (x.detach(), weight.detach(), own), [own])[0]

    def _gradients(self, grad: Tensor, inputs: tuple[Any, ...], wanted: list[Tensor]) -> tuple[Tensor, ...]:
        """Computed anew, which is cheap, rather than from statistics that would have to be kept."""
        with torch.enable_grad():
            y = self.run(*inputs)
        return torch.autograd.grad(y, wanted, grad.to(y.dtype))

    def composed(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, writers: Sequence[SiteMask], readers: Sequence[SiteMask]
    ) -> Tensor:
        whole = self.run(x, weight.detach(), detached(bias))
        m = product([mask.weights(whole) for mask in those_for(writers, "bias")])
        of_weight = product([mask.weights(whole) for mask in those_for([*writers, *readers], "weight")])
        parts = [scaled(self.run(x, weight, detached(bias)), of_weight)]
        if of_weight is not None:
            parts.append(scaled(whole, 1 - of_weight))
        if bias is not None:
            parts.append(scaled(self.run(x.detach(), weight.detach(), bias), m))
        return sum_of(whole.detach(), *parts)


def known_layer(module: nn.Module) -> Layer | None:
    """The layer of a module whose class and settings are known."""
    if unit_dims(module, "output") is None or module.weight is None:
        return None
    name = kind_of(module).__name__
    if name in ("Linear", "NonDynamicallyQuantizableLinear"):
        return _Linear(module)
    if name == "Conv1D":
        return _TransposedLinear(module)
    if name in ("Conv1d", "Conv2d", "Conv3d"):
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return _Convolution(module) if plain else None
    return _Norm(module) if name in ("LayerNorm", "RMSNorm") else None
