"""Named tensors as one flat vector θ, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from thalweg.errors import InputError, ModelError

__all__ = ["ParameterSpace"]


@dataclass(frozen=True)
class ParameterSpace:
    """The trainable parameters of a model as coordinates of one vector ``theta`` (n,).

    Tied parameters count once, frozen ones not at all. ``theta`` has the widest dtype among the
    parameters, at least float32; each tensor gets its own dtype back.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    device: torch.device

    @classmethod
    def of(cls, model: nn.Module) -> ParameterSpace:
        """Describe the trainable parameters of ``model``.

        Raises:
            InputError: when nothing is trainable, or a parameter has no memory yet (meta, lazy).
            ModelError: for complex parameters, or parameters on several devices.
        """
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        for name, p in named:
            if isinstance(p, nn.parameter.UninitializedParameter) or p.is_meta:
                raise InputError(
                    f"parameter {name!r} has no values yet",
                    cause="a lazy layer, or a model built on the meta device",
                    hint="run one forward pass or load the weights first",
                )
            if p.is_complex():
                raise ModelError(
                    f"parameter {name!r} is complex, and curvature is defined here for real parameters only",
                    hint="store its real and imaginary parts as two real parameters (torch.view_as_real)",
                )
        named = [(name, p) for name, p in named if p.numel() > 0]
        if not named:
            raise InputError(
                "the model has no trainable parameters",
                expected="at least one parameter with requires_grad=True",
                cause="every parameter is frozen, or the model has none",
                hint="call model.requires_grad_(True) on the part that is being trained",
            )
        devices = {p.device for _, p in named}
        if len(devices) > 1:
            raise ModelError(
                f"the parameters lie on several devices ({', '.join(sorted(map(str, devices)))})",
                hint="move the model to one device",
            )
        return cls(
            names=tuple(name for name, _ in named),
            shapes=tuple(p.shape for _, p in named),
            dtypes=tuple(p.dtype for _, p in named),
            device=devices.pop(),
        )

    @property
    def size(self) -> int:
        """The number n of coordinates."""
        return sum(shape.numel() for shape in self.shapes)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of ``theta``."""
        widest = torch.float32
        for dtype in self.dtypes:
            widest = torch.promote_types(widest, dtype)
        return widest

    def slices(self) -> dict[str, slice]:
        """Return where each named parameter lies in ``theta``."""
        ends = list(accumulate((shape.numel() for shape in self.shapes), initial=0))
        return {name: slice(a, b) for name, (a, b) in zip(self.names, pairwise(ends), strict=True)}

    def flatten(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Join tensors in the order of ``names`` to one vector (n,); None becomes zeros."""
        parts = [
            torch.zeros(shape.numel(), dtype=self.dtype, device=self.device)
            if tensor is None
            else tensor.detach().reshape(-1).to(self.dtype)
            for tensor, shape in zip(tensors, self.shapes, strict=True)
        ]
        return torch.cat(parts)

    def unflatten(self, theta: Tensor) -> list[Tensor]:
        """Cut ``theta`` (n,) into tensors in the order of ``names``."""
        if theta.shape != (self.size,):
            raise InputError(
                "theta has the wrong shape", expected=f"({self.size},)", got=str(tuple(theta.shape))
            )
        pieces = theta.split([shape.numel() for shape in self.shapes])
        return [
            piece.view(shape).to(dtype)
            for piece, shape, dtype in zip(pieces, self.shapes, self.dtypes, strict=True)
        ]

    def unflatten_stacked(self, points: Tensor) -> list[Tensor]:
        """Cut ``points`` (k, n) into stacked tensors (k, …) in the order of ``names``."""
        pieces = points.split([shape.numel() for shape in self.shapes], dim=1)
        return [
            piece.reshape(len(points), *shape).to(dtype)
            for piece, shape, dtype in zip(pieces, self.shapes, self.dtypes, strict=True)
        ]

    def read(self, model: nn.Module) -> Tensor:
        """Return a copy of the weights of ``model`` as ``theta``."""
        parameters = dict(model.named_parameters())
        return self.flatten([parameters[name] for name in self.names])

    @torch.no_grad()
    def write(self, model: nn.Module, theta: Tensor) -> None:
        """Copy ``theta`` into the weights of ``model``, in place."""
        parameters = dict(model.named_parameters())
        for name, tensor in zip(self.names, self.unflatten(theta), strict=True):
            parameters[name].copy_(tensor)
