"""Weights from files, without running code from them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from thalweg.errors import CheckpointError
from thalweg.problem.problem import Problem

__all__ = ["Checkpoint", "apply_checkpoint", "read_checkpoint"]

PICKLE = b"\x80"  # the first byte of a pickle, which older checkpoints are
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
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
    """Read a checkpoint: ``.safetensors``, or what `torch.load` accepts with ``weights_only=True``.

    Raises:
        CheckpointError: when the file is missing, damaged, of another kind, or would have to run code.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "nothing"
        raise CheckpointError(f"there is no checkpoint {str(path)!r}", got=kind)
    if path.suffix.lower() not in _SUFFIXES:
        raise CheckpointError(
            f"{path.name!r} is no kind of checkpoint that is known",
            expected="a name that ends in " + ", ".join(_SUFFIXES),
        )
    if path.suffix.lower() == ".safetensors":
        try:
            return Checkpoint(path, load_file(path), None)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path.name!r} is not a whole safetensors file", cause=_first_line(error)
            ) from error
    content = _load(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path.name!r} holds no weights",
            expected="a state_dict, or a dict with one",
            got=f"an object of type {type(content).__name__}",
            hint="save model.state_dict() rather than the model",
        )
    return Checkpoint(path, _find_weights(content, path), _find_optimizer(content))


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
        if name in own and tuple(own[name].shape) != tuple(tensor.shape):
            raise CheckpointError(
                f"{checkpoint.path.name!r} is of another model: {name} has another shape",
                expected=str(tuple(own[name].shape)),
                got=str(tuple(tensor.shape)),
            )
    problem.model.load_state_dict({**own, **weights}, strict=True)
    if checkpoint.optimizer is not None:
        problem.adopt_optimizer_state(checkpoint.optimizer)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # The unpickler lets a dozen kinds of exception escape on damaged files; all mean the same.
        text = str(error)
        if not path.stat().st_size:
            raise CheckpointError(f"{path.name!r} is empty") from error
        if not zipfile.is_zipfile(path) and path.read_bytes()[:1] != PICKLE:
            raise CheckpointError(
                f"{path.name!r} is no checkpoint, or one that was cut off", cause=_first_line(error)
            ) from error
        if "Unsupported" in text or "weights_only" in text or "WeightsUnpickler" in text:
            raise CheckpointError(
                f"{path.name!r} was refused: it holds more than tensors, and loading it could run code",
                cause=_blamed(text),
                hint="save model.state_dict(), or convert the file to .safetensors where it was made",
            ) from error
        raise CheckpointError(
            f"{path.name!r} cannot be read as a checkpoint",
            cause=f"{type(error).__name__}: {_first_line(error)}",
        ) from error


def _find_weights(content: Mapping[str, Any], path: Path) -> Mapping[str, Tensor]:
    candidates = [content, *(content[key] for key in _WEIGHTS if isinstance(content.get(key), Mapping))]
    for candidate in candidates:
        tensors = {str(k): v for k, v in candidate.items() if isinstance(v, Tensor)}
        if tensors and len(tensors) == len(candidate):
            return tensors
    raise CheckpointError(
        f"{path.name!r} holds no weights",
        expected="a state_dict, alone or under one of " + ", ".join(_WEIGHTS),
        got="the keys " + ", ".join(str(key)[:40] for key in list(content)[:8]),
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
            f"{checkpoint.path.name!r} is of another model: " + " and ".join(parts),
            hint="build the model in problem() exactly as it was trained",
        )
    return names


def _list(names: list[str]) -> str:
    return ", ".join(name[:60] for name in names[:4]) + (", …" if len(names) > 4 else "")


def _blamed(text: str) -> str:
    for line in text.splitlines():
        if "GLOBAL" in line or "Unsupported" in line:
            return line.strip()[:160]
    return _first_line_of(text)


def _first_line(error: Exception) -> str:
    return _first_line_of(str(error))


def _first_line_of(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[0][:160]
