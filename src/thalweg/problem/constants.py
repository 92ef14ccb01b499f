"""What a loss needs besides θ: buffers, frozen parameters in another precision, padding rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from thalweg.errors import ModelError

__all__ = ["Constants", "require_unwritten"]


class Constants:
    """What the model needs besides θ; every run finds the values that the model holds.

    A forward pass that writes to a buffer, as moving averages do, writes to a copy, and only for once:
    the loss stays a fixed function of θ. The padding row of an embedding gets no gradient and is never
    trained, so it is a constant too.

    Args:
        model: whose constants these are.
        dtype: to cast them to, and the frozen parameters with them; None leaves both as they are.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        own = dict(model.named_buffers())
        if dtype is not None:
            own |= {name: p for name, p in model.named_parameters() if not p.requires_grad}
        self._own = {f"model.{name}": tensor.detach() for name, tensor in own.items()}
        self._dtype = dtype
        self._handed = {name: self._copy(tensor) for name, tensor in self._own.items()}
        self._padding = {
            f"model.{name}": (row, self._copy(p[row : row + 1].detach()))
            for name, p, row in _padding_rows(model)
        }

    @property
    def untouched(self) -> bool:
        """Whether what was handed out for a run is good for the next: nothing written, no padding."""
        return not self._padding and not any(tensor._version > 0 for tensor in self._handed.values())

    def beside(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all tensors for a run by name: ``named`` with its padding rows held, and the constants."""
        for name, tensor in self._handed.items():
            if tensor._version > 0:  # the last run wrote to it
                self._handed[name] = self._copy(self._own[name])
        held = dict(named)
        for name, (row, value) in self._padding.items():
            index = torch.tensor([row], device=value.device)
            held[name] = held[name].index_copy(0, index, value.to(held[name].dtype))
        return {**self._handed, **held}

    def _copy(self, tensor: Tensor) -> Tensor:
        with torch.inference_mode(False):  # a tensor made in inference mode does not count its versions
            cast = self._dtype is not None and tensor.is_floating_point()
            return tensor.to(self._dtype, copy=True) if cast else tensor.clone()


def require_unwritten(names: Sequence[str], tensors: Sequence[Tensor], versions: Sequence[int]) -> None:
    """Raise ModelError when a forward pass has written to a parameter.

    Args:
        names: of the parameters.
        tensors: the parameters as the forward pass got them.
        versions: their version counters before it.
    """
    written = [n for n, t, version in zip(names, tensors, versions, strict=True) if t._version != version]
    if written:
        raise ModelError(
            "the forward pass writes to parameters, so that the loss is not a function of them",
            got=", ".join(written[:5]),
            cause="nn.Embedding(max_norm=...), or weights that are clipped inside forward()",
            hint="clip the weights after the optimiser's step instead",
        )


def _padding_rows(model: nn.Module) -> list[tuple[str, nn.Parameter, int]]:
    """Return name, weight and padding row of the embeddings whose padding nothing trains."""
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    return [
        (name, p, module.padding_idx)
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None
        for name, p in [(f"{path}.weight".removeprefix("."), module._parameters.get("weight"))]
        if p is not None and p.requires_grad and uses[id(p)] == 1
    ]
