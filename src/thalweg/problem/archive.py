"""Where an archive of torch.save keeps its records, and whether it is as torch.save writes it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from thalweg.problem.file_kind import TRUSTED, Refusal, quoted

__all__ = ["Record", "records_of", "verify"]

MAX_RECORDS = 1 << 16
_MAX_NAME = 512
_DESCRIPTOR = 24  # bytes that may follow a member and repeat its sizes
_FULL = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)  # stands where a number is in the record for large archives


@dataclass(frozen=True)
class Record:
    """A stored member of a zip archive.

    Attributes:
        offset: of its first byte in the file.
        size: in bytes.
        crc: its CRC-32 as the archive has it; 0 where the writer left it out.
    """

    offset: int
    size: int
    crc: int


def records_of(file: BinaryIO, size: int) -> dict[str, Record]:
    """Read the directory of an archive of torch.save and hold it to what torch.save writes.

    That is: members stored and not compressed, one after the other, each once, all in one folder, and nothing
    before, between or behind them. So the sizes add up to no more than the file, and every reader of zip
    archives sees the same members.

    Returns:
        The records by their name without the folder.

    Raises:
        Refusal: for any other archive.
    """
    start, end, count = _bounds(file, size)
    file.seek(start)
    entries = list(_entries(file.read(end - start), count))
    names = [name.partition("/")[2] for name, *_ in entries]
    if any(name.endswith(".npy") for name, *_ in entries):
        raise Refusal("is a NumPy .npz archive", "torch.save a dict of tensors under the model's names")
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise Refusal("is a TorchScript archive, and loading it could run code", TRUSTED)
    if ".data/extern_modules" in names:
        raise Refusal("is an archive of torch.package, and loading it could run code", TRUSTED)
    if len({name.partition("/")[0] for name, *_ in entries}) != 1:
        raise Refusal("is a zip archive with more than one folder, so none of torch.save's")
    if len({name.lower() for name in names}) != count:
        raise Refusal("was refused: two members of the archive have the same name")
    _require_stored(entries)
    if "data.pkl" not in names:
        raise Refusal("is a zip archive without data.pkl, so none of torch.save's", TRUSTED)
    found = [_located(file, entry) for entry in entries]
    _require_in_a_row(entries, found, start)
    return dict(zip(names, found, strict=True))


def verify(file: BinaryIO, records: Mapping[str, Record]) -> None:
    """Compare every record with its checksum, which torch.load does not; 0.4 seconds a gigabyte.

    Raises:
        Refusal: when the file was altered or cut off since it was written.
    """
    for name, record in records.items():
        if not record.crc:
            continue
        file.seek(record.offset)
        left, crc = record.size, 0
        while left:
            block = file.read(min(left, 1 << 20))
            if not block:
                raise Refusal("was cut off while it was read", "copy it again")
            left, crc = left - len(block), zlib.crc32(block, crc)
        if crc != record.crc:
            raise Refusal(f"is damaged: {quoted(name)} does not match its checksum", "copy it again")


# name, flags, method, CRC, stored and full size, offset of the local header
_Entry = tuple[str, int, int, int, int, int, int]


def _bounds(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Return where the directory begins and ends, and how many members it has."""
    file.seek(max(size - 98, 0))
    tail = file.read(98)
    if len(tail) < 22 or tail[-22:-18] != b"PK\x05\x06":
        raise Refusal("is a zip archive that was cut off, or has something behind its end", "copy it again")
    disk, first, here, count, length, start, comment = struct.unpack("<4H2LH", tail[-18:])
    end = size - 22
    if (
        len(tail) == 98 and tail[-42:-38] == b"PK\x06\x07"
    ):  # the record for large archives; torch.save always has it
        small, end = (here, count, length, start), size - 98
        mark, rest, _, _, _, _, here, count, length, start = struct.unpack("<4sQ2H2L4Q", tail[:56])
        if (mark, rest) != (b"PK\x06\x06", 44) or struct.unpack("<LQL", tail[-38:-22]) != (0, end, 1):
            raise Refusal("is a damaged zip archive: its end does not add up", "copy it again")
        if any(
            old not in {new, full}
            for old, new, full in zip(small, (here, count, length, start), _FULL, strict=True)
        ):
            raise Refusal("was refused: its zip archive has two different directories")
    if (disk, first, comment) != (0, 0, 0) or here != count or start + length != end:
        raise Refusal("is a damaged zip archive: its end does not add up", "copy it again")
    if not 0 < count <= MAX_RECORDS or length > count * (46 + 2 * _MAX_NAME):
        raise Refusal(f"was refused: {count} members in the archive, and at most {MAX_RECORDS} are read")
    return start, end, count


def _entries(directory: bytes, count: int) -> Iterator[_Entry]:
    at = 0
    for _ in range(count):
        fields = directory[at : at + 46]
        if len(fields) < 46 or fields[:4] != b"PK\x01\x02":
            raise Refusal("is a damaged zip archive: its directory breaks off", "copy it again")
        flags, method = struct.unpack("<2H", fields[8:12])
        crc, stored, full, named, extra, comment = struct.unpack("<3L3H", fields[16:34])
        attributes, offset = struct.unpack("<2L", fields[38:])
        name = directory[at + 46 : at + 46 + named]
        more = directory[at + 46 + named : at + 46 + named + extra]
        full, stored, offset = _large(more, full, stored, offset)
        if attributes & 0x10:  # a folder: torch would take the record's memory as it finds it
            raise Refusal("was refused: a member of the archive is marked as a folder")
        yield _name(name), flags, method, crc, stored, full, offset
        at += 46 + named + extra + comment
    if at != len(directory):
        raise Refusal("is a damaged zip archive: its directory does not add up", "copy it again")


def _large(extra: bytes, *values: int) -> tuple[int, ...]:
    """Take the numbers that do not fit 32 bits from where the format keeps them."""
    at, large = 0, b""
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        if tag == 1:
            large = extra[at + 4 : at + 4 + length]
        at += 4 + length
    missing = sum(value == 0xFFFFFFFF for value in values)
    if len(large) < 8 * missing:
        raise Refusal("is a damaged zip archive: a size is missing", "copy it again")
    numbers = iter(struct.unpack_from(f"<{missing}Q", large))
    return tuple(next(numbers) if value == 0xFFFFFFFF else value for value in values)


def _name(raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise Refusal("was refused: a member of the archive has a name that is no text") from None
    parts = name.split("/")
    if len(raw) > _MAX_NAME or not name.isprintable() or "\\" in name or {"", "..", "."} & set(parts):
        raise Refusal(f"was refused: {quoted(name)!r} is no name for a member of an archive")
    return name


def _require_stored(entries: list[_Entry]) -> None:
    for name, flags, method, _, stored, full, _ in entries:
        if method or stored != full:
            raise Refusal(
                f"was refused: {quoted(name)} in the archive is compressed, which torch.save never does",
                "unpack and save it again where it was made",
            )
        if flags & ~0x0808:  # sizes behind the data; names in UTF-8
            raise Refusal(f"was refused: {quoted(name)} in the archive is encrypted or marked unusual")


def _located(file: BinaryIO, entry: _Entry) -> Record:
    """Find the data behind the member's own header, which must agree with the directory."""
    name, flags, method, crc, _, full, offset = entry
    file.seek(offset)
    header = file.read(30)
    if len(header) == 30 and header[:4] == b"PK\x03\x04":
        named, extra = struct.unpack("<2H", header[26:])
        if struct.unpack("<2H", header[6:10]) == (flags, method) and file.read(named) == name.encode():
            return Record(offset + 30 + named + extra, full, crc)
    raise Refusal(f"was refused: {quoted(name)} and the archive's directory do not agree")


def _require_in_a_row(entries: list[_Entry], found: list[Record], end: int) -> None:
    rows = sorted(zip((entry[-1] for entry in entries), found, strict=True), key=lambda row: row[0])
    if rows[0][0] != 0:
        raise Refusal("was refused: something lies before the first member of the archive")
    nexts = [*(offset for offset, _ in rows[1:]), end]
    for after, (_, record) in zip(nexts, rows, strict=True):
        if not 0 <= after - record.offset - record.size <= _DESCRIPTOR:
            raise Refusal("was refused: the members of the archive overlap or leave gaps")
