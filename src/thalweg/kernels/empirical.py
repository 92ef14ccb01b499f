"""The neural tangent kernel of a net at the weights that it has: products with it, and the matrix."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from thalweg.errors import FOREIGN_FAILURES, InputError, ModelError

__all__ = ["EmpiricalNTK", "empirical_ntk"]

_BLOCK_BYTES = 256e6  # of Jacobian rows held at once


class EmpiricalNTK:
    """Θ = J Jᵀ of a net at its present weights, as a linear map that never holds J.

    The net is copied and put into evaluation mode, so that the original keeps its modes, buffers and
    gradients, and examples do not act on each other through batch normalisation. All parameters that require
    a gradient count.

    Args:
        model: from inputs (n, …) to outputs (n, c) or (n,), each row from its own input.
        x: (n, …) inputs.

    Raises:
        InputError: for a model without trainable parameters or outputs of another shape.
        ModelError: when the model fails on ``x``.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        with _differentiable():  # a copy made in inference mode could not be differentiated
            self._model = copy.deepcopy(model).eval()
            self.x = x.detach()
            self.parameters = {
                name: value.detach() for name, value in self._model.named_parameters() if value.requires_grad
            }
        if not self.parameters:
            raise InputError("the model has nothing to train", expected="parameters that require a gradient")
        try:
            with torch.no_grad():
                shape = self._outputs(self.parameters).shape
        except FOREIGN_FAILURES as error:
            raise ModelError(
                "the model fails on these inputs", got=f"{type(error).__name__}: {error}"
            ) from error
        if len(shape) != 2 or shape[0] != len(x) or 0 in shape:
            raise InputError(
                "the outputs have no kernel", expected=f"the shape ({len(x)}, outputs)", got=str(tuple(shape))
            )
        self.num_outputs = int(shape[1])
        self._require_reached()

    @property
    def num_parameters(self) -> int:
        """Trainable parameters."""
        return sum(value.numel() for value in self.parameters.values())

    def matvec(self, v: Tensor) -> Tensor:
        """Return Θv (n, c) for v (n, c): u = Jᵀv by a backward pass, Ju as the derivative of ⟨Jᵀw, u⟩ by w.

        Cost: about 3 gradient-equivalents over ``x``.
        """
        expected = (len(self.x), self.num_outputs)
        if tuple(v.shape) != expected:
            raise InputError("the vector does not fit", expected=str(expected), got=str(tuple(v.shape)))
        with _differentiable():
            weights = {name: value.clone().requires_grad_() for name, value in self.parameters.items()}
            outputs = self._call(weights, self.x.clone())
            w = torch.zeros_like(outputs, requires_grad=True)
            pulled = torch.autograd.grad(
                outputs, list(weights.values()), w, create_graph=True, materialize_grads=True
            )
            u = torch.autograd.grad(
                outputs, list(weights.values()), v.to(outputs), retain_graph=True, materialize_grads=True
            )
            along = torch.stack([(g * d).sum() for g, d in zip(pulled, u, strict=True)]).sum()
            (product,) = torch.autograd.grad(along, w)
        return product.detach()

    def jacobian_rows(self, start: int, stop: int) -> Tensor:
        """Return J (k, c, p) of the examples from ``start`` to ``stop``, flat over the parameters."""

        def outputs_of_one(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
            return self._call(parameters, one[None])[0]

        block = self.x[start:stop]
        with _differentiable():
            try:
                rows = vmap(jacrev(outputs_of_one), (None, 0))(self.parameters, block)
            except FOREIGN_FAILURES:  # what vmap cannot batch is done one by one
                each = [jacrev(outputs_of_one)(self.parameters, one) for one in block]
                rows = {name: torch.stack([row[name] for row in each]) for name in self.parameters}
        return torch.cat([rows[name].detach().flatten(2) for name in self.parameters], dim=2)

    def matrix(self, other: EmpiricalNTK | None = None) -> Tensor:
        """Return (1/c) Σ_c J_c J'_cᵀ (n, m) in float64: the mean over the outputs.

        That is what tends to the kernel of the infinite net, where the outputs do not act on each other.

        Args:
            other: the same weights on other inputs; None for the symmetric matrix.

        Cost: c backward passes over all inputs; blocks of the Jacobian of 256 MB at most, each pair of
        blocks once.
        """
        size = self._block()
        mine = _spans(len(self.x), size)
        theirs = mine if other is None else _spans(len(other.x), size)
        right = self if other is None else other
        whole = torch.empty(len(self.x), len(right.x), dtype=torch.float64)
        for i, (a, b) in enumerate(mine):
            rows = self.jacobian_rows(a, b)
            for j, (c, d) in enumerate(theirs):
                if other is None and j < i:
                    continue
                columns = rows if other is None and j == i else right.jacobian_rows(c, d)
                values = _contract(rows, columns)
                whole[a:b, c:d] = values
                if other is None and j > i:
                    whole[c:d, a:b] = values.T
        return whole

    def _require_reached(self) -> None:
        """Refuse models that wrap their weights anew before use, as slices of a ParameterList do.

        Substituted weights would not be seen then, and their part of the kernel would silently be missing.
        """
        with _differentiable():
            own: dict[str, Tensor] = dict(self._model.named_parameters())
            own = {name: own[name] for name in self.parameters}
            given = {name: value.clone().requires_grad_() for name, value in self.parameters.items()}
            one = self.x[:1].clone()
            reached = [
                torch.autograd.grad(self._call(weights, one).sum(), list(weights.values()), allow_unused=True)
                for weights in (own, given)
            ]
        lost = [n for n, a, b in zip(own, *reached, strict=True) if a is not None and b is None]
        if lost:
            raise ModelError(
                f"the model does not use substituted weights: {', '.join(lost[:3])}",
                cause="it wraps them anew before use; a slice of an nn.ParameterList does that",
                hint="index the list one by one: weights[k]",
            )

    def _block(self) -> int:
        return max(1, int(_BLOCK_BYTES // (8 * self.num_outputs * self.num_parameters)))

    def _outputs(self, parameters: dict[str, Tensor]) -> Tensor:
        return self._call(parameters, self.x)

    def _call(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        outputs = functional_call(self._model, parameters, (x,))
        if not isinstance(outputs, Tensor):
            raise InputError("the outputs have no kernel", expected="a tensor", got=type(outputs).__name__)
        return outputs[:, None] if outputs.dim() == 1 else outputs


def empirical_ntk(model: nn.Module, x: Tensor, z: Tensor | None = None) -> Tensor:
    """Return the neural tangent kernel (n, m) of ``model`` as it is, in float64, mean over its outputs.

    Args:
        model: from inputs (n, …) to outputs (n, c); left as it is.
        x: (n, …) inputs.
        z: (m, …) other inputs; None for the symmetric matrix.

    Cost: c backward passes over all inputs, and n·m·c·p products of numbers for p parameters.
    Source: [jacot2018], definition of Θ in section 4.
    """
    return EmpiricalNTK(model, x).matrix(None if z is None else EmpiricalNTK(model, z))


def _contract(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the mean over outputs of the products (k, l) of Jacobians (k, c, p) and (l, c, p)."""
    total = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for c in range(rows.shape[1]):
        total += (rows[:, c].double() @ columns[:, c].double().T).cpu()
    return total / rows.shape[1]


def _spans(count: int, size: int) -> list[tuple[int, int]]:
    return [(k * size, min((k + 1) * size, count)) for k in range(math.ceil(count / size))]


@contextmanager
def _differentiable() -> Iterator[None]:
    """Differentiate even where the caller is inside `torch.no_grad` or `torch.inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
