"""A count sketch: vectors of any length as a few hundred numbers that keep lengths and angles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.rng import generator, signs

__all__ = ["SIZE", "CountSketch"]

SIZE = 512


class CountSketch:
    """A random linear map S from n to ``size`` numbers with E⟨Sx, Sy⟩ = ⟨x, y⟩.

    Each coordinate is added, with a random sign, to one of ``size`` cells drawn at random
    ([charikar2002]; as a feature map [weinberger2009], whose eq. (3) is the inner product). The relative
    standard deviation of ‖Sx‖² is at most √(2/size), so that of a length is about 1/√(2·size): 3 % for 512.
    What is not longer than ``size`` is kept exactly.

    Args:
        num: n.
        size: cells.
        seed: of the map; the same seed gives the same map on every device.
        device: where the vectors lie.
    """

    def __init__(
        self, num: int, *, size: int = SIZE, seed: int = 0, device: torch.device | None = None
    ) -> None:
        self.num, self.size = num, min(size, num)
        self.exact = num <= size
        if self.exact:
            return
        rng = generator(seed, "count sketch", num, size)
        self._cells = torch.randint(0, size, (num,), generator=rng).to(device)
        self._signs = signs(num, rng, like=torch.empty(0, dtype=torch.float32, device=device))

    @property
    def error(self) -> float:
        """The relative standard error of a length."""
        return 0.0 if self.exact else float((2 * self.size) ** -0.5)

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the sketch (size,) in float64, on the CPU, of the vector that ``tensors`` make together.

        Cost: two passes over the vector.
        """
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        if self.exact:
            return flat.double().cpu()
        cells = torch.zeros(self.size, dtype=torch.float64, device=flat.device)
        return cells.index_add_(0, self._cells, flat.double() * self._signs).cpu()
