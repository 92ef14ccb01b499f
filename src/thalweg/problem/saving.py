"""Weights into a new file: whole or not at all, and never over another."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from thalweg.errors import InputError
from thalweg.problem.interrupt import at_safe_points

__all__ = ["require_free", "save_training", "save_weights"]

_ZIPPED = (".pt", ".pth", ".ckpt", ".bin")
# What file systems without hard links say (FAT, some network drives).
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write ``model.state_dict()`` to the new file ``path``, on the CPU.

    ``.safetensors`` by suffix, else what `torch.save` makes. The weights are written beside ``path``, brought
    to the disk, read back and compared bit for bit, and only then given their name; on any failure, a kill
    included, nothing of that name exists. Tied weights get a copy under each of their names in a
    ``.safetensors`` file, so that ``load_state_dict`` takes it as it is.

    Raises:
        InputError: when the file exists, its folder does not or cannot be written to, the disk is full, or
            the format cannot hold what the model keeps. Nothing is left behind.
    """
    path = Path(path)
    require_free(path)
    state = _on_cpu(model.state_dict())
    zipped = path.suffix.lower() in _ZIPPED
    return _save(state if zipped else _own_copies(state, path), path)


def save_training(model: nn.Module, optimizer: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write weights and the state of an optimiser to the new file ``path``, as `save_weights` writes weights.

    What `torch.save` makes, under the names "model" and "optimizer"; a ``.safetensors`` file holds weights
    only.

    Raises:
        InputError: as `save_weights` does.
    """
    path = Path(path)
    if path.suffix.lower() not in _ZIPPED:
        return save_weights(model, path)
    require_free(path)
    return _save(_on_cpu({"model": model.state_dict(), "optimizer": dict(optimizer)}), path)


def _save(state: dict[str, Any], path: Path) -> Path:
    write = _write_zip if path.suffix.lower() in _ZIPPED else _write_safetensors
    with at_safe_points():
        try:
            _publish(lambda draft: write(state, draft), path)
        except FileExistsError:
            raise _exists(path) from None
        except (OSError, SafetensorError, RuntimeError) as error:  # torch's writer raises RuntimeError
            raise InputError(
                f"cannot write the weights to {str(path)!r}; nothing was left there",
                got=f"{type(error).__name__}: {_first_line(error)}",
                cause="a full disk, a quota, or a folder that cannot be written to",
                hint="another folder",
            ) from error
    return path


def require_free(path: Path) -> None:
    """Refuse a path that weights cannot be written to, before any work is done.

    Raises:
        InputError: when it exists, its folder does not, or its suffix is of no known format.
    """
    if path.suffix.lower() not in {".safetensors", *_ZIPPED}:
        raise InputError(
            f"weights cannot be written to {path.name!r}",
            expected="a name that ends in .safetensors, " + ", ".join(_ZIPPED),
        )
    if os.path.lexists(path):
        raise _exists(path)
    if not path.absolute().parent.is_dir():
        raise InputError(
            f"cannot write {str(path)!r}", got="a folder that does not exist", hint="create it first"
        )


def _publish(write: Callable[[Path], None], path: Path) -> None:
    """Write a draft beside ``path`` and give it its name; a second draft where the disk fails to keep it.

    After a failed fsync the pages count as clean though they were never written, so that a second fsync of
    the same file would lie: the draft is thrown away.
    """
    for last in (False, True):
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            mode = _create(draft)
            write(draft)
            draft.chmod(mode)  # safetensors makes files that only their owner can read
            try:
                _sync(draft)
            except OSError:
                if last:
                    raise
                continue
            _name(draft, path)
            break
        finally:
            draft.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the file is whole; a folder may not be syncable
        _sync(path.absolute().parent)


def _create(draft: Path) -> int:
    """Create the file, which must not exist, and return the mode that the user's umask gives it."""
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _name(draft: Path, path: Path) -> None:
    """Give ``draft`` the name ``path`` unless that exists: a hard link, or a rename over a claimed name."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            draft.replace(path)
        except BaseException:
            path.unlink()
            raise


def _sync(path: Path) -> None:
    """Wait until the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_safetensors(state: dict[str, Any], draft: Path) -> None:
    save_file(state, draft, metadata={"format": "pt"})
    _require_same(state, load_file(draft))


def _write_zip(state: dict[str, Any], draft: Path) -> None:
    with draft.open("wb") as file:
        torch.save(state, file)
    try:
        stored = torch.load(draft, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            "the model's state_dict holds more than tensors, and could not be loaded without running code",
            cause=_first_line(error),
            hint="leave get_extra_state() out of the model, or save it by hand",
        ) from error
    _require_same(state, stored)


def _own_copies(state: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors contiguous, each with memory of its own."""
    foreign = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise InputError(
            f"{path.name!r} cannot hold what the model keeps beside tensors ({', '.join(foreign[:3])})",
            hint="a name that ends in .pt",
        )
    seen: set[int] = set()
    own = {}
    for name, tensor in state.items():
        held = tensor.detach().contiguous()
        storage = held.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != held.numel() * held.element_size():
            held = held.clone()
        seen.add(held.untyped_storage().data_ptr())
        own[name] = held
    return own


def _require_same(state: dict[str, Any], stored: dict[str, Any]) -> None:
    """Check that what was read back is what was to be written, bit for bit."""
    if not _is_same(state, stored):
        raise OSError(errno.EIO, "what was read back is not what was written")


def _is_same(written: Any, stored: Any) -> bool:
    if isinstance(written, Tensor):
        return _same_bits(written, stored)
    if isinstance(written, Mapping):
        return written.keys() == stored.keys() and all(_is_same(written[key], stored[key]) for key in written)
    if isinstance(written, tuple | list):
        return len(written) == len(stored) and all(map(_is_same, written, stored))
    return True  # what is not a tensor is checked by the archive's own sums


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(entry) for key, entry in value.items()}
    if type(value) in {tuple, list}:
        return type(value)(_on_cpu(entry) for entry in value)
    return value


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Compare bytes: NaN equals itself here."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    flat = (tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b))
    return torch.equal(*flat)


def _exists(path: Path) -> InputError:
    return InputError(
        f"{str(path)!r} exists already, and nothing is ever written over",
        hint="another name, or move it away",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:160]
