"""``thalweg kernel``: fit the kernel of an infinitely wide net, compute its matrix, compare kernels."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
from numpy.typing import NDArray

from thalweg.cli.arrays import (
    DataSet,
    computed_in,
    read_data,
    require_usable,
    require_varied,
    standardised,
    write_array,
)
from thalweg.cli.options import give_out, require_writable, working
from thalweg.errors import InputError
from thalweg.kernels.room import require_memory

__all__ = ["command"]

_Function = Callable[..., Any]
_FEW = 20  # different whole numbers at most for a column to be one of classes


@click.group("kernel")
def command() -> None:
    """Kernels of infinitely wide nets on DATA: .npz (x, y), .npy, or .csv with the target last.

    Rows are examples. Images are (examples, channels, height, width) in .npz or .npy; for them the kernel is
    the convolutional one.

    \b
    thalweg kernel fit train.npz --test test.npz
    thalweg kernel compare train.csv --depths 1,2,3,5
    thalweg kernel gram images.npy --folder tiles --depth 11 --readout gap --workers 2
    """


@dataclass(frozen=True)
class _Prepared:
    x: NDArray[Any]
    y: NDArray[Any] | None
    tests: DataSet | None


def _data_options(function: _Function) -> _Function:
    for option in (
        click.option(
            "--json", "json_path", metavar="FILE", help="Write the record as JSON; - for standard output."
        ),
        click.option("--as-is", is_flag=True, help="Do not shift and scale to mean 0 and variance 1."),
        click.option("--drop-constant", is_flag=True, help="Leave out features that never change."),
        click.option("--targets", type=click.Path(path_type=Path), help="A .npy of the targets of DATA."),
        click.argument("data", type=click.Path(path_type=Path)),
    ):
        function = option(function)
    return function


def _kernel_options(function: _Function) -> _Function:
    for option in (
        click.option("--kind", type=click.Choice(["ntk", "nngp"]), default="ntk", show_default=True),
        click.option(
            "--readout",
            type=click.Choice(["flatten", "gap"]),
            default="flatten",
            show_default=True,
            help="Of images: gap averages over positions, which costs height × width times as much.",
        ),
        click.option(
            "--depth", type=click.IntRange(min=1), default=3, show_default=True, help="Layers of weights."
        ),
    ):
        function = option(function)
    return function


@command.command("fit")
@_data_options
@_kernel_options
@click.option("--test", type=click.Path(path_type=Path), help="Held-out examples, as DATA.")
@click.option(
    "--ridge", default="loo", show_default=True, metavar="loo|gcv|X", help="X: of the mean diagonal."
)
@click.option(
    "--task",
    type=click.Choice(["auto", "classification", "regression"]),
    default="auto",
    show_default=True,
    help="auto: classes where the targets are text or at most 20 different whole numbers.",
)
@click.option("--output", type=click.Path(path_type=Path), help="A .npy for the predictions of --test.")
def _fit(
    data: Path,
    targets: Path | None,
    drop_constant: bool,
    as_is: bool,
    json_path: str | None,
    depth: int,
    readout: str,
    kind: str,
    test: Path | None,
    ridge: str,
    task: str,
    output: Path | None,
) -> None:
    """Fit the kernel to DATA; the ridge is chosen on DATA alone, never on --test."""
    from thalweg.completion.table import require_new

    require_writable(json_path, output)
    if output is not None:
        require_new(output)
    if output is not None and test is None:
        raise click.BadParameter("there is nothing to predict without --test", param_hint="--output")
    with working() as bar:
        bar.phase("reading the data")
        from thalweg.kernels.estimators import NTKClassifier, NTKRegressor
        from thalweg.kernels.fitted import fit_kernel

        ready = _prepared(data, targets, test, drop=drop_constant, as_is=as_is)
        y = _required(ready.y, data)
        _require_room(len(ready.x))
        name, settings = _named(ready.x, readout, kind)
        chosen = _ridge(ridge)
        classes = _are_classes(y, task)
        estimator = NTKClassifier if classes else NTKRegressor
        model = estimator(name, depth=depth, kernel_params=settings, ridge=chosen)
        if not classes and not _are_numbers(y):
            raise InputError(
                "these targets are not numbers", got=repr(str(y[0])), hint="--task classification"
            )
        x_test, y_test = (None, None) if ready.tests is None else (ready.tests.x, ready.tests.y)
        if y_test is not None:
            _require_alike(y, y_test, classes=classes)
        record, predicted = fit_kernel(model, ready.x, y, x_test, y_test, progress=bar)
        if output is not None and predicted is not None:
            write_array(output, predicted)
    give_out(record, json_path)
    if output is not None:
        click.echo(f"Predictions: {output}", err=True)


@command.command("gram")
@_data_options
@_kernel_options
@click.option(
    "--folder", type=click.Path(path_type=Path), required=True, help="Where the tiles are and will be."
)
@click.option("--tile", type=click.IntRange(min=1), default=128, show_default=True, help="Examples a side.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option("--output", type=click.Path(path_type=Path), help="A .npy for the whole matrix, in float64.")
def _gram(
    data: Path,
    targets: Path | None,
    drop_constant: bool,
    as_is: bool,
    json_path: str | None,
    depth: int,
    readout: str,
    kind: str,
    folder: Path,
    tile: int,
    workers: int,
    output: Path | None,
) -> None:
    """Compute the kernel matrix of DATA in tiles; stopped at any moment, the same command goes on."""
    require_writable(json_path, output, folder)
    with working() as bar:
        bar.phase("reading the data")
        from thalweg.kernels.estimators import named_kernel
        from thalweg.kernels.gram import Gram

        ready = _prepared(data, targets, None, drop=drop_constant, as_is=as_is)
        name, settings = _named(ready.x, readout, kind)
        found = Gram(named_kernel(name, depth, settings), ready.x, folder=folder, tile_size=tile)
        if output is not None:
            require_memory(2 * found.memory, "the whole matrix", hint="leave --output out: the tiles hold it")
        if workers == 1:
            record = found.compute(progress=bar)
        else:
            with ProcessPoolExecutor(workers) as pool:
                record = found.compute(pool, progress=bar)
        if output is not None:
            bar.phase("writing the matrix")
            write_array(output, found.matrix())
    give_out(record, json_path)
    if output is not None:
        click.echo(f"Matrix: {output}", err=True)


@command.command("compare")
@_data_options
@click.option("--depths", default="1,2,3,5", show_default=True, help="Layers of weights, by commas.")
@click.option("--readout", type=click.Choice(["flatten", "gap"]), default="flatten", show_default=True)
@click.option(
    "--task", type=click.Choice(["auto", "classification", "regression"]), default="auto", show_default=True
)
def _compare(
    data: Path,
    targets: Path | None,
    drop_constant: bool,
    as_is: bool,
    json_path: str | None,
    depths: str,
    readout: str,
    task: str,
) -> None:
    """Compare kernels on DATA by leave-one-out: all layers trained (NTK), or the last alone (NNGP)."""
    require_writable(json_path)
    with working() as bar:
        bar.phase("reading the data")
        from thalweg.kernels.comparison import compare_kernels
        from thalweg.kernels.estimators import named_kernel

        ready = _prepared(data, targets, None, drop=drop_constant, as_is=as_is)
        y = _required(ready.y, data)
        _require_room(len(ready.x))
        kernels = [
            (f"{kind.upper()} {depth}", named_kernel(*_spread(ready.x, readout, kind, depth)))
            for depth in _depths(depths, images=ready.x.ndim == 4)
            for kind in (("ntk", "nngp") if depth > 1 else ("ntk",))
        ]
        classes = _are_classes(y, task)
        if classes:
            _, labels = np.unique(y, return_inverse=True)
            goals = np.eye(labels.max() + 1)[labels] - 1 / (labels.max() + 1)
        else:
            labels, goals = None, (y - y.mean())[:, None]
        record = compare_kernels(kernels, ready.x, goals, labels=labels, progress=bar)
    give_out(record, json_path)


def _prepared(data: Path, targets: Path | None, test: Path | None, *, drop: bool, as_is: bool) -> _Prepared:
    train = read_data(data, targets)
    require_usable(train.x, str(data))
    require_varied(train.x, str(data), drop=drop)
    held = None if test is None else read_data(test)
    if held is not None and test is not None:
        require_usable(held.x, str(test))
        if held.x.shape[1:] != train.x.shape[1:]:
            raise InputError(
                "training and held-out examples differ in shape",
                expected=str(train.x.shape[1:]),
                got=str(held.x.shape[1:]),
            )
    others = [] if held is None else [held.x]
    if as_is:
        dtype = computed_in(train.x)
        x, rest = train.x.astype(dtype), [other.astype(dtype) for other in others]
    else:
        x, rest = standardised(train.x, others, drop=drop)
    return _Prepared(x, train.y, None if held is None else DataSet(rest[0], held.y))


def _named(x: NDArray[Any], readout: str, kind: str) -> tuple[str, dict[str, Any]]:
    return ("ntk", {"kind": kind}) if x.ndim == 2 else ("cntk", {"kind": kind, "readout": readout})


def _spread(x: NDArray[Any], readout: str, kind: str, depth: int) -> tuple[str, int, dict[str, Any]]:
    name, settings = _named(x, readout, kind)
    return name, depth, settings


def _required(y: NDArray[Any] | None, data: Path) -> NDArray[Any]:
    if y is None:
        raise InputError(f"{str(data)!r} holds no targets", expected="an array y", hint="--targets FILE.npy")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise InputError("the targets hold NaN or infinity", got=f"{np.sum(~np.isfinite(y)):,} of them")
    if len(np.unique(y)) < 2:
        raise InputError("the targets are all the same", got=str(y[0]), hint="there is nothing to learn")
    return y


def _are_numbers(y: NDArray[Any]) -> bool:
    return y.dtype.kind in "fiub"


def _are_classes(y: NDArray[Any], task: str) -> bool:
    numbers = _are_numbers(y)
    whole = not numbers or bool(np.all(y == np.round(y)))
    if task == "auto":
        return not numbers or (whole and len(np.unique(y)) <= _FEW)
    if task == "classification" and not whole:
        fraction = y[y != np.round(y)][0]
        raise InputError(
            "these targets are no classes",
            expected="text or whole numbers",
            got=f"{fraction:.6g}",
            hint="--task regression",
        )
    return task == "classification"


def _require_alike(y: NDArray[Any], held_out: NDArray[Any], *, classes: bool) -> None:
    """Refuse held-out targets that cannot be compared with those of the training examples."""
    if _are_numbers(y) != _are_numbers(held_out):
        ours, theirs = (
            f"numbers such as {t[0]}" if _are_numbers(t) else f"text such as {str(t[0])!r}"
            for t in (y, held_out)
        )
        raise InputError(
            "the targets of --test are of another kind than those of DATA", expected=ours, got=theirs
        )
    if classes and not np.isin(held_out, y).any():
        raise InputError(
            "no label of --test occurs in DATA",
            expected=", ".join(map(str, np.unique(y)[:6])),
            got=", ".join(map(str, np.unique(held_out)[:6])),
        )


def _require_room(n: int) -> None:
    require_memory(
        4 * 8 * n * n,
        f"the kernel of {n:,} examples and its eigendecomposition",
        hint="fewer examples, or `thalweg kernel gram` for the matrix alone, in tiles",
    )


def _ridge(text: str) -> float | Literal["loo", "gcv"]:
    if text == "loo":
        return "loo"
    if text == "gcv":
        return "gcv"
    try:
        return float(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is neither loo nor gcv nor a number", param_hint="--ridge"
        ) from error


def _depths(text: str, *, images: bool) -> list[int]:
    try:
        depths = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list like 1,2,3", param_hint="--depths") from error
    least = 2 if images else 1
    depths = [depth for depth in depths if depth >= least]
    if not depths:
        raise click.BadParameter(f"depths begin at {least}", param_hint="--depths")
    return depths
