"""Weights from files, without running code from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from thalweg.errors import CheckpointError
from thalweg.problem import stand_ins
from thalweg.problem.archive import records_of, verify
from thalweg.problem.file_kind import HEAD, Refusal, quoted, recognise
from thalweg.problem.pickled import require_data
from thalweg.problem.problem import Problem
from thalweg.problem.safetensors_header import read_whole

__all__ = ["Checkpoint", "apply_checkpoint", "read_checkpoint"]

T = TypeVar("T")

_WEIGHTS = ("state_dict", "model_state_dict", "model", "weights", "module", "net")
_OPTIMIZERS = ("optimizer_state_dict", "optimizer", "optimizer_states", "optim")
# Wrappers put these before every name: data parallelism, torch.compile, Lightning modules.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "_forward_module.")


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        path: of the file.
        weights: named tensors, on the CPU.
        optimizer: the state of an optimiser (``state`` and ``param_groups``), None without.
    """

    path: Path
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any] | None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint: a ``.safetensors`` file, or what `torch.save` writes for a state_dict.

    The bytes decide what a file is, not its name. It is looked through before anything is built from it
    (decision 5), so it costs no more memory than twice its size and a few hundred megabytes.

    Raises:
        CheckpointError: when the file is missing, damaged, of another kind, or would have to run code.
    """
    path = Path(path)
    name = repr(quoted(path.name))
    try:
        with _opened(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            if recognise(file.read(HEAD), size) == "safetensors":
                return Checkpoint(path, _built(safetensors.torch.load, read_whole(file, size)), None)
            content = _read_archive(file, size)
            return Checkpoint(path, _find_weights(content, Tensor), _find_optimizer(content))
    except Refusal as refusal:
        raise CheckpointError(f"{name} {refusal.problem}", hint=refusal.hint) from refusal
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {quoted(str(path), 200)!r}") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise CheckpointError(f"{name} cannot be read", cause=quoted(str(error), 120)) from error


def apply_checkpoint(problem: Problem, checkpoint: Checkpoint) -> None:
    """Copy the weights of ``checkpoint`` into the problem's model, and adopt its optimiser state.

    Everything is checked before anything is written.

    Raises:
        CheckpointError: when names or shapes do not fit the model; the model is then untouched.
    """
    if problem.model is None:
        raise CheckpointError("a plain function has no weights to load a checkpoint into")
    own = problem.model.state_dict()
    weights = _fit_names(checkpoint, own)
    for name, tensor in weights.items():
        if name in own and own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{quoted(checkpoint.path.name)!r} is of another model: {quoted(name)} has another shape",
                expected=str(tuple(own[name].shape)),
                got=str(tuple(tensor.shape)),
            )
        if name in own and own[name].is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(
                f"{quoted(checkpoint.path.name)!r} is of another model: {quoted(name)} has other numbers",
                expected=str(own[name].dtype),
                got=str(tensor.dtype),
            )
    problem.model.load_state_dict({**own, **weights}, strict=True)
    if checkpoint.optimizer is not None:
        problem.adopt_optimizer_state(checkpoint.optimizer)


def _opened(path: Path) -> BinaryIO:
    if path.is_dir():
        if (path / ".metadata").exists():
            raise Refusal(
                "is a distributed checkpoint, whose index is a pickle that could run code",
                "dcp_to_torch_save of torch.distributed.checkpoint.format_utils, where you trust it",
            )
        raise Refusal("is a folder and no checkpoint", "name the file in it")
    if not path.is_file():
        raise FileNotFoundError(path)
    return path.open("rb")


def _read_archive(file: BinaryIO, size: int) -> Mapping[Any, Any]:
    records = records_of(file, size)
    pickled = records["data.pkl"]
    file.seek(pickled.offset)
    sizes = {name: record.size for name, record in records.items()}
    _find_weights(require_data(file.read(pickled.size), sizes), stand_ins.Tensor)
    verify(file, records)
    file.seek(0)
    content: Mapping[Any, Any] = _built(
        lambda: torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    )
    return content


def _built(load: Callable[..., Any], *arguments: Any) -> Any:
    """Call a library's loader; whatever it raises on a file that was looked through means damage."""
    try:
        return load(*arguments)
    except Exception as error:
        raise Refusal(f"cannot be read ({type(error).__name__}: {quoted(str(error), 120)})") from error


def _find_weights(content: Any, kind: type[T]) -> Mapping[str, T]:
    """Return the named tensors, which are of ``kind``: stand-ins before loading, then tensors."""
    if not isinstance(content, Mapping):
        raise Refusal(f"holds no weights but a {type(content).__name__}", "save model.state_dict()")
    candidates = [content, *(content[key] for key in _WEIGHTS if isinstance(content.get(key), Mapping))]
    for candidate in candidates:
        tensors = {str(k): v for k, v in candidate.items() if isinstance(v, kind)}
        if tensors and len(tensors) == len(candidate):
            return tensors
    keys = quoted(", ".join(str(key)[:40] for key in list(content)[:8]), 100) or "no keys"
    raise Refusal(
        f"holds no weights but {keys}", "save a state_dict, alone or under one of " + ", ".join(_WEIGHTS)
    )


def _find_optimizer(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for key in _OPTIMIZERS:
        state = content.get(key)
        if isinstance(state, list) and state:
            state = state[0]
        if isinstance(state, Mapping) and "param_groups" in state:
            return state
    return None


def _fit_names(checkpoint: Checkpoint, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefixes that wrappers put on, as many as it needs to fit the model."""
    names = dict(checkpoint.weights)
    required = {name for name in own if not name.endswith("num_batches_tracked")}
    for _ in range(4):
        if names.keys() & required:  # already the model's own names, if not all of them
            break
        prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in names)), None)
        if prefix is None:
            break
        names = {n.removeprefix(prefix): t for n, t in names.items() if n.startswith(prefix)}
    # Of tensors that share their memory (tied weights) a file may hold one.
    stored = {own[name].data_ptr() for name in names if name in own and own[name].numel()}
    missing = sorted(name for name in required - names.keys() if own[name].data_ptr() not in stored)
    unknown = sorted(names.keys() - own.keys())
    if missing or unknown:
        parts = []
        if missing:
            parts.append(f"{len(missing)} of the model's tensors are missing ({_list(missing)})")
        if unknown:
            parts.append(f"{len(unknown)} are not the model's ({_list(unknown)})")
        raise CheckpointError(
            f"{quoted(checkpoint.path.name)!r} is of another model: " + " and ".join(parts),
            hint="build the model in problem() exactly as it was trained",
        )
    return names


def _list(names: list[str]) -> str:
    return ", ".join(quoted(name) for name in names[:4]) + (", …" if len(names) > 4 else "")
