"""The neural tangent kernel of convolutional networks ([arora2019], section 4), exactly.

All pairs of pixels of two images are followed through all layers; `thalweg.kernels.tiles` says how.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from thalweg.errors import InputError
from thalweg.kernels.examples import checked_dtype, checked_pair, num_cores, root_mean_square
from thalweg.kernels.networks import Network, Readout
from thalweg.progress import Progress, Silent

__all__ = ["cntk", "cntk_depths"]

Kind = Literal["ntk", "nngp"]
Padding = Literal["zeros", "circular"]
Device = Literal["cpu", "cuda"]


def cntk(
    x: ArrayLike,
    z: ArrayLike | None = None,
    *,
    depth: int,
    readout: Readout = "gap",
    trained: Literal["paper", "all"] | Sequence[float] = "paper",
    padding: Padding = "zeros",
    kind: Kind = "ntk",
    filter_size: int = 3,
    stride: int | Sequence[int] = 1,
    flips: bool = False,
    dtype: DTypeLike | None = None,
    device: Device = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> NDArray[Any]:
    """Return the kernel (n, m) of an infinitely wide ReLU network on images (n, channels, height, width).

    The scale is the paper's: the first layer has no 1/√fan-in, the others have √(2/fan-in), "flatten" sums
    over the pixels and "gap" averages. At depth 11 a pair of 32×32 pixels takes a core about 15 ms in float32
    (flatten: 20 µs); cost grows with depth − 1 and the square of the pixels (flatten: the pixels). The very
    first call of an installation compiles for about ten seconds, once for each dtype.

    Args:
        x: the images.
        z: the others; without them the symmetric kernel of x with itself, of which half is computed.
        depth: layers of weights: depth − 1 convolutions, each followed by a ReLU, and the readout.
        readout: "gap" averages over the pixels before the last layer, "flatten" does not; a number c averages
            over the (2c + 1)² pixels around each ([li2019], local average pooling; 0 is "flatten").
        trained: "paper" freezes the first convolution and the last layer, but for "flatten", where it trains
            all, as the published table did; "all" trains all; or one number s a layer, from the image on:
            0 frozen, 1 trained, else its learning rate relative to the others. With s = fan-in/2 (1 for
            the first layer) it is the kernel of the standard parametrisation.
        padding: what lies outside the image: "zeros", or "circular" for images that go round.
        kind: "ntk", or "nngp" for the covariance of the outputs at random weights.
        filter_size: pixels along a side of the filters, odd.
        stride: of the convolutions, one for all or one each; with padding of half the filter, as in torch.
        flips: average over the horizontal mirror images of both: two evaluations, where four would be equal.
        dtype: of the computation and the result; float32 if x and z are, else float64. In float32, tiles with
            pairs of pixels that are all but equal are computed in float64; errors stay below 2e-6.
        device: "cpu", or "cuda" for a GPU (stride 1, images of 1,024 pixels at most).
        threads: how many to run on the CPU; without a number one for each core of this process.
        progress: is told how many pairs are done.

    Raises:
        InputError: for arrays of other shapes, NaN or infinity, options that do not go together.
        ThalwegError: if there is no GPU, where one is asked for.
    """
    values = [depth] if isinstance(depth, int | np.integer) else []
    if not values:
        raise InputError("depth is one number", got=f"{depth!r}", hint="cntk_depths for several in one pass")
    first, second = checked_pair(x, z, ("n", "channels", "height", "width"))
    strides = (stride,) * (depth - 1) if isinstance(stride, int | np.integer) else tuple(stride)
    network = _network(first, values, readout, trained, padding, filter_size, strides, flips)
    settings = checked_dtype(dtype, first, second), device, num_cores(threads), progress or Silent()
    return np.asarray(_kernels(network, first, second, z is None, [depth], kind, flips, *settings)[0])


def cntk_depths(
    x: ArrayLike,
    z: ArrayLike | None = None,
    *,
    depths: Sequence[int],
    readout: Readout = "gap",
    trained: Literal["paper", "all"] = "paper",
    padding: Padding = "zeros",
    kind: Kind = "ntk",
    filter_size: int = 3,
    flips: bool = False,
    dtype: DTypeLike | None = None,
    device: Device = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> NDArray[Any]:
    """Return the kernels (depths, n, m) of networks of several depths, for little more than the deepest.

    The layers of a shallow network are the first ones of a deep one; each further depth costs one layer.
    All arguments and errors as for `cntk`.
    """
    values = [int(depth) for depth in depths]
    if not values:
        raise InputError("no depths are given")
    first, second = checked_pair(x, z, ("n", "channels", "height", "width"))
    strides = (1,) * (max(values) - 1)
    network = _network(first, values, readout, trained, padding, filter_size, strides, flips)
    settings = checked_dtype(dtype, first, second), device, num_cores(threads), progress or Silent()
    return _kernels(network, first, second, z is None, values, kind, flips, *settings)


def _network(
    images: NDArray[Any],
    depths: list[int],
    readout: Readout,
    trained: Literal["paper", "all"] | Sequence[float],
    padding: Padding,
    filter_size: int,
    strides: tuple[int, ...],
    flips: bool,
) -> Network:
    depth = max(depths)
    if min(depths) < 2:
        raise InputError(
            "a convolutional network has a convolution and a readout",
            expected="a depth of 2 or more",
            got=f"{min(depths)}",
        )
    if len(strides) != depth - 1:
        raise InputError("the strides do not fit", expected=f"{depth - 1} of them", got=f"{len(strides)}")
    if flips and set(strides) != {1}:
        raise InputError("mirror images need a stride of 1", hint="flip the images and average four kernels")
    if readout not in {"gap", "flatten"} and not (isinstance(readout, int) and readout >= 0):
        raise InputError(
            "the readout is unknown",
            expected='"gap", "flatten" or pixels on each side of a local average',
            got=f"{readout!r}",
        )
    if padding not in {"zeros", "circular"}:
        raise InputError("the padding is unknown", expected='"zeros" or "circular"', got=f"{padding!r}")
    if isinstance(trained, str):
        if trained not in {"paper", "all"}:
            raise InputError("trained is unknown", expected='"paper", "all" or numbers', got=f"{trained!r}")
        scales = [1.0] * depth
        if trained == "paper" and readout != "flatten":
            scales[0] = scales[-1] = 0.0
    else:
        scales = [float(s) for s in trained]
        if len(scales) != depth or not np.isfinite(scales).all() or min(scales) < 0:
            raise InputError(
                "trained does not fit", expected=f"{depth} numbers of 0 or more", got=f"{list(trained)}"
            )
    height, width = images.shape[2:]
    return Network((height, width), tuple(scales), filter_size, strides, padding == "circular", readout)


def _kernels(
    network: Network,
    first: NDArray[Any],
    second: NDArray[Any],
    symmetric: bool,
    depths: list[int],
    kind: Kind,
    flips: bool,
    dtype: np.dtype[Any],
    device: str,
    threads: int,
    progress: Progress,
) -> NDArray[Any]:
    """Put the sums of Θ∘κ₀/q² and Σ together into the kernels (depths, n, m)."""
    if device not in {"cpu", "cuda"}:
        raise InputError("the device is unknown", expected='"cpu" or "cuda"', got=f"{device!r}")
    if kind not in {"ntk", "nngp"}:
        raise InputError("the kind of kernel is unknown", expected='"ntk" or "nngp"', got=f"{kind!r}")
    grids = [depth - 1 for depth in depths]

    def evaluated(left: NDArray[Any], right: NDArray[Any]) -> Iterator[tuple[Any, Any, Any]]:
        if device == "cuda":
            from thalweg.kernels.cuda_evaluation import evaluate_on_gpu

            return evaluate_on_gpu(network, left, right, symmetric, grids, dtype)
        from thalweg.kernels.evaluation import evaluate  # compiled code: only when it is needed

        return evaluate(network, left, right, symmetric, grids, dtype, threads)

    # The kernel of positive multiples is the multiple of the kernel; so no image is too dark for float32.
    def scaled(images: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        size = root_mean_square(images)
        return size, images / np.where(size > 0, size, 1)[:, None, None, None]

    left_size, left = scaled(first)
    right_size, right = (left_size, left) if symmetric else scaled(second)
    mirrored = [right, right[..., ::-1]] if flips else [right]
    found = np.zeros((len(depths), len(first), len(second)), dtype)
    done, num_pairs = 0, len(first) * (len(first) + 1) // 2 if symmetric else len(first) * len(second)
    progress.phase("pairs of images")
    for images in mirrored:
        for i, j, sums in evaluated(left, images):
            for d, h in enumerate(grids):
                values = (
                    sums[:, h, 1] if kind == "nngp" else sums[:, h, 0] + network.scales[-1] * sums[:, h, 1]
                )
                found[d, i, j] += values * left_size[i] * right_size[j] / len(mirrored)
            done += len(i)
            progress.advance(done, num_pairs * len(mirrored))
    if symmetric:
        lower = np.tril_indices(len(first), -1)
        found[:, lower[0], lower[1]] = found[:, lower[1], lower[0]]
    return found
