"""What a file is, told from its bytes and not from its name."""

from __future__ import annotations

import pickletools
import warnings
from itertools import islice
from typing import Literal

from thalweg.errors import printable

__all__ = ["HEAD", "TRUSTED", "Refusal", "asked_for", "quoted", "recognise"]

HEAD = 1 << 16  # bytes from the beginning that tell what a file is
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save began with before 1.6

TRUSTED = "where you trust it, load it yourself and torch.save(model.state_dict(), 'weights.pt')"
# offset, bytes, what that is, what to do
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (
        0,
        _LEGACY,
        "is in the format of torch before 1.6, which is not read",
        "torch.save(torch.load(path, weights_only=True), 'weights.pt')",
    ),
    (257, b"ustar", "is a tar archive, which is not read as a checkpoint", TRUSTED),
    (0, b"\x93NUMPY", "is a NumPy array", "torch.save a dict of tensors under the model's names"),
    (0, b"\x89HDF", "is an HDF5 file", "torch.save a dict of tensors under the model's names"),
    (0, b"GGUF", "is a GGUF file", "convert it to .safetensors"),
    (0, b"\x1f\x8b", "is compressed with gzip", "unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7z archive", "unpack it first"),
    (0, b"\xfd7zXZ", "is compressed with xz", "unpack it first"),
    (0, b"BZh", "is compressed with bzip2", "unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "is compressed with zstandard", "unpack it first"),
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "git lfs pull"),
    (0, b"<", "is a web page or another text", "download it again"),
    (0, b"PK\x05\x06", "is an empty zip archive", "save it again"),
)


class Refusal(Exception):  # noqa: N818  a refusal is no error until the file has a name: see checkpoint.py
    """Why a file is not loaded: a phrase that goes on after its name, and what to try."""

    def __init__(self, problem: str, hint: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def quoted(text: str, limit: int = 60) -> str:
    """Return text from a file for a message: one line, printable, at most ``limit`` characters."""
    line = " ".join(printable(text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def recognise(head: bytes, size: int) -> Literal["zip", "safetensors"]:
    """Say which of the two formats that are read a file of ``size`` bytes has.

    Args:
        head: its first bytes, up to `HEAD`.
        size: of the whole file in bytes.

    Raises:
        Refusal: for any other content, with its name where it is known.
    """
    if size == 0:
        raise Refusal("is empty")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    begins = head[8:9] == b"{"
    if begins and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    for offset, magic, what, hint in _FOREIGN:
        if head.startswith(magic, offset):
            raise Refusal(what, hint)
    names = asked_for(head)
    if names:
        raise Refusal(
            f"was refused: it is a bare pickle with {quoted(names[0])}, and loading it could run code",
            TRUSTED,
        )
    if head[:1] == b"\x80":
        raise Refusal("was refused: it is a bare pickle, and loading it could run code", TRUSTED)
    if begins:
        raise Refusal("is a safetensors file that was cut off, or none", "copy it again")
    raise Refusal("is no checkpoint, or one that was cut off")


def asked_for(data: bytes) -> list[str]:
    """Return the names that a pickle of any protocol asks for, as far as it can be followed, for messages."""
    names: list[str] = []
    strings: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes in the text protocols
        try:
            for opcode, argument, _ in islice(pickletools.genops(data), 20_000):
                if opcode.name in {"GLOBAL", "INST"}:
                    names.append(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
        except (ValueError, OverflowError):  # no pickle, or a broken one
            pass
    return [name for name in names if name.replace(".", "").isidentifier()]
