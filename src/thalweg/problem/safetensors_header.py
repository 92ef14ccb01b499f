"""Does the header of a .safetensors file tell the truth about the file?"""

from __future__ import annotations

import json
import math
from typing import Any, BinaryIO

from thalweg.problem.file_kind import Refusal, quoted

__all__ = ["MAX_HEADER", "read_whole"]

MAX_HEADER = 1 << 23  # the format allows 100 MB, which take many seconds; a tensor takes about 130 bytes
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_TENSOR = {"dtype", "shape", "data_offsets"}


def read_whole(file: BinaryIO, size: int) -> bytes:
    """Read a file of ``size`` bytes whose tensors fill it without gaps or overlap.

    It is read and not mapped into memory: a mapped file that somebody cuts off ends the process.

    Raises:
        Refusal: when the header is damaged or does not fit the file.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise Refusal("is a safetensors file that was cut off, or none", "copy it again")
    if length > MAX_HEADER:
        raise Refusal(f"was refused: its header takes {length} bytes, and at most {MAX_HEADER} are read")
    header = _parsed(file.read(length))
    _require_rows(header, size - 8 - length)
    file.seek(0)
    data = file.read(size)
    if len(data) != size:
        raise Refusal("was cut off while it was read", "copy it again")
    return data


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(
            raw.decode(), object_pairs_hook=_once, parse_float=_no_number, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        raise Refusal("is a damaged safetensors file: its header is no JSON of the format") from error
    if not isinstance(header, dict):
        raise Refusal("is a damaged safetensors file: its header is no table")
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise Refusal("was refused: its header names a tensor twice")
    return table


def _no_number(text: str) -> Any:
    raise ValueError(text)


def _require_rows(header: dict[str, Any], held: int) -> None:
    """Require rows of a known type and true size that lie one after the other and fill ``held`` bytes."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(text, str) for text in metadata.values()):
        raise Refusal("is a damaged safetensors file: its metadata is no table of texts")
    places = []
    for name, row in header.items():
        if not isinstance(row, dict) or row.keys() != _TENSOR:
            raise Refusal(f"is a damaged safetensors file: the entry of {quoted(name)} is incomplete")
        kind, shape, place = row["dtype"], row["shape"], row["data_offsets"]
        if not isinstance(kind, str) or kind not in _BYTES:
            raise Refusal(
                f"holds {quoted(name)} in the type {quoted(str(kind), 20)}, which is not read",
                "save it in float32",
            )
        if not _naturals(shape) or not _naturals(place) or len(place) != 2 or len(shape) > 64:
            raise Refusal(f"is a damaged safetensors file: {quoted(name)} has no proper shape or place")
        if (
            math.prod(shape) * _BYTES[kind] != place[1] - place[0]
            or math.prod(n or 1 for n in shape) >= 1 << 63
        ):
            raise Refusal(f"is damaged or forged: {quoted(name)} has another size than its shape")
        places.append((place[0], place[1]))
    end = 0
    for begin, next_begin in sorted(places):
        if begin != end:
            raise Refusal("is damaged or forged: its tensors overlap or leave gaps")
        end = next_begin
    if end != held:
        raise Refusal(
            "is a safetensors file that was cut off, or has something behind its end", "copy it again"
        )


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in values)
