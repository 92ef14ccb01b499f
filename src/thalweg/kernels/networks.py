"""What a convolutional network looks like: the grid of every layer, and which pixels a readout averages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from thalweg.errors import InputError

__all__ = ["Network", "Readout"]

Floats = NDArray[np.float64]
Readout = Literal["gap", "flatten"] | int


@dataclass(frozen=True)
class Network:
    """A convolutional network of infinite width on images of one size.

    Grid 0 is the image, grid h what the h-th convolution writes: of every ``strides[h − 1]``-th pixel, from
    the first on, as in torch with a padding of half the filter.

    Attributes:
        size: height and width of the images.
        scales: s, the weight of each layer of weights in the tangent kernel, (L + 1,) for L convolutions.
        filter_size: pixels along a side of a filter, odd.
        strides: of each convolution, (L,).
        circular: whether images go round; otherwise zeros surround them.
        readout: "gap", "flatten" or the half-width c of a local average over (2c + 1)² pixels.
    """

    size: tuple[int, int]
    scales: tuple[float, ...]
    filter_size: int
    strides: tuple[int, ...]
    circular: bool
    readout: Readout

    def __post_init__(self) -> None:
        if self.filter_size < 1 or self.filter_size % 2 == 0:
            raise InputError(
                "the filter has no middle", expected="an odd filter_size", got=f"{self.filter_size}"
            )
        if min(self.strides, default=1) < 1:
            raise InputError(
                "the stride steps nowhere", expected="strides of 1 or more", got=f"{self.strides}"
            )
        for h in range(self.num_convolutions if self.circular else 0):
            side, stride = self.grid(h), self.strides[h]
            if side[0] % stride or side[1] % stride:
                raise InputError(
                    f"circular images of {side[0]}×{side[1]} pixels cannot be cut into strides of {stride}",
                    hint='padding="zeros", or images of another size',
                )
            if self.radius > min(side):
                raise InputError(
                    f"the filter goes round images of {side[0]}×{side[1]} pixels more than once",
                    expected=f"a filter_size of {2 * min(side) + 1} at most",
                    got=f"{self.filter_size}",
                )

    @property
    def num_convolutions(self) -> int:
        """L, the depth less one."""
        return len(self.strides)

    @property
    def radius(self) -> int:
        """Pixels of the filter on each side of its middle."""
        return self.filter_size // 2

    def grid(self, h: int) -> tuple[int, int]:
        """Return height and width of grid ``h``."""
        height, width = self.size
        for stride in self.strides[:h]:
            height, width = -(-height // stride), -(-width // stride)
        return height, width

    def zoom(self, h: int) -> int:
        """Return how many pixels of grid ``h`` lie between neighbours of the last grid."""
        return int(np.prod(self.strides[h:], dtype=np.int64))

    def room(self, h: int) -> tuple[int, int]:
        """Return the last grid's size times the zoom: grid ``h``, with dead pixels where it is less."""
        height, width = self.grid(self.num_convolutions)
        return height * self.zoom(h), width * self.zoom(h)

    def pooling(self, axis: int) -> Floats:
        """Return the matrix (positions, pixels) of averages along ``axis`` that the readout sees."""
        side = self.grid(self.num_convolutions)[axis]
        if self.readout == "gap":
            return np.full((1, side), 1 / side)
        reach = 0 if self.readout == "flatten" else int(self.readout)
        matrix = np.zeros((side, side))
        for tap in range(-reach, reach + 1):
            there = np.arange(side) + tap
            inside = np.full(side, fill_value=True) if self.circular else (there >= 0) & (there < side)
            np.add.at(matrix, (np.arange(side)[inside], there[inside] % side), 1 / (2 * reach + 1))
        return matrix

    def patch_sums(self, field: Floats, h: int) -> Floats:
        """Sum fields (…, height, width) on grid ``h`` over the patches of the next convolution."""
        r, stride = self.radius, self.strides[h]
        mode: Literal["wrap", "constant"] = "wrap" if self.circular else "constant"
        wide = np.pad(field, [(0, 0)] * (field.ndim - 2) + [(r, r), (r, r)], mode=mode)
        height, width = field.shape[-2:]
        rows = sum(wide[..., a : a + height : stride, :] for a in range(2 * r + 1))
        return np.asarray(sum(np.asarray(rows)[..., b : b + width : stride] for b in range(2 * r + 1)))

    def variances(self, images: Floats) -> list[Floats]:
        """Return the variances of the pre-activations (n, height, width) on each grid from 1 on.

        Σ(x, x) on grid h + 1 is the patch sum of Σ(x, x)/q² on grid h: at ρ = 1 both kernels are 1.
        """
        found = [self.patch_sums(np.sum(images * images, axis=1), 0)]
        for h in range(1, self.num_convolutions):
            found.append(self.patch_sums(found[-1], h) / self.filter_size**2)
        return found
