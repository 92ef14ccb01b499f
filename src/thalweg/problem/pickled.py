"""What a pickle of torch.save would build, found by following it without building it.

torch's own unpickler (``weights_only=True``) runs no code, but it believes what a file says about sizes, and
the user's program can extend what it may build. So the pickle is followed on stand-ins first: only operations
that torch.save writes, names from a list of our own, tensors inside the storage that the file holds for them.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from thalweg.problem.file_kind import Refusal, asked_for, quoted
from thalweg.problem.stand_ins import (
    CALLS,
    DTYPES,
    STORAGES,
    Global,
    Seen,
    Storage,
    advice,
    natural,
    require_key,
    require_small,
)

__all__ = ["MAX_BYTES", "MAX_OPERATIONS", "require_data"]

MAX_BYTES = 1 << 26
MAX_OPERATIONS = 3 << 18  # a tensor takes about 45; following all takes about a second


def require_data(data: bytes, sizes: Mapping[str, int]) -> Any:
    """Require that a pickle builds nothing but tensors, numbers, text and containers of them.

    Args:
        data: the pickle, which is not loaded.
        sizes: bytes of each record of the archive, by name.

    Returns:
        What it would build, with stand-ins in place of tensors and other objects.

    Raises:
        Refusal: for anything that could run code, would take memory or time out of proportion, or is damaged.
    """
    if len(data) > MAX_BYTES:
        raise Refusal(f"was refused: its pickle takes {len(data)} bytes, and at most {MAX_BYTES} are read")
    if data[:2] != b"\x80\x02":
        raise Refusal(
            f"was refused: its pickle is not in protocol 2, and loading it could run code{_culprit(data)}",
            "save model.state_dict() with torch.save, without pickle_protocol",
        )
    reading = _Reading(data, sizes)
    try:
        reading.follow()
    except (IndexError, KeyError, ValueError, TypeError, struct.error) as error:
        raise Refusal(f"is damaged: its pickle breaks off or makes no sense at byte {reading.at}") from error
    require_small([*reading.stack, *reading.attributes])
    if any(reading.seen.hooks):
        raise Refusal("was refused: it puts hooks on tensors, and loading it could run code")
    return reading.stack[0]


class _Reading:
    """The state of an unpickler: where it is, its stack and the stacks below it, its memo."""

    def __init__(self, data: bytes, sizes: Mapping[str, int]) -> None:
        self.data = data
        self.sizes = sizes
        self.at = 2
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.attributes: list[Any] = []  # of ordered dicts: reachable, but no element of anything
        self.seen = Seen(limit=2 * len(data))  # torch.save writes nothing that is copied more than twice

    def follow(self) -> None:
        data, operations = self.data, _OPERATIONS
        for _ in range(MAX_OPERATIONS):
            code = data[self.at]
            self.at += 1
            if code == pickle.STOP[0]:
                if len(self.stack) != 1 or self.below or self.at != len(data):
                    raise Refusal("is damaged: its pickle ends too early or too late")
                return
            act = operations.get(code)
            if act is None:
                raise Refusal(
                    f"was refused: its pickle does more than hold data, and could run code{_culprit(data)}",
                    advice(""),
                )
            act(self)
        raise Refusal(
            f"was refused: its pickle takes more than {MAX_OPERATIONS} operations",
            "save the weights as .safetensors",
        )

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) != count:
            raise IndexError
        self.at += count
        return taken

    def number(self, form: str, count: int) -> int:
        value: int = struct.unpack(form, self.take(count))[0]
        return value

    def line(self) -> str:
        end = self.data.index(b"\n", self.at)
        text = self.data[self.at : end].decode()
        self.at = end + 1
        return text

    def unmark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items


def _mark(r: _Reading) -> None:
    r.below.append(r.stack)
    r.stack = []


def _tuple(r: _Reading) -> None:
    items = r.unmark()
    r.stack.append(tuple(items))


def _fold(r: _Reading, count: int) -> None:
    if len(r.stack) < count:
        raise IndexError
    r.stack[-count:] = [tuple(r.stack[-count:])]


def _put(r: _Reading, index: int) -> None:
    r.memo[index] = r.stack[-1]


def _append(r: _Reading, items: list[Any]) -> None:
    if type(r.stack[-1]) is not list:
        raise TypeError
    r.stack[-1].extend(items)


def _set_items(r: _Reading, items: list[Any]) -> None:
    target = r.stack[-1]
    if type(target) not in {dict, OrderedDict} or len(items) % 2:
        raise TypeError
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[require_key(key)] = value


def _two(r: _Reading) -> list[Any]:
    value, key = r.stack.pop(), r.stack.pop()
    return [key, value]


def _name(r: _Reading) -> None:
    module, name = r.line(), r.line()
    full = f"{'builtins' if module == '__builtin__' else module}.{name}"
    if full in DTYPES:
        r.stack.append(DTYPES[full])
    elif full in CALLS or full in STORAGES:
        r.stack.append(Global(full))
    else:
        raise Refusal(
            f"was refused: it holds more than tensors ({quoted(full, 80)}), and loading it could run code",
            advice(full),
        )


def _persistent(r: _Reading) -> None:
    """Resolve a storage: each has a record of exactly its size, and one type."""
    identity = r.stack.pop()
    if type(identity) is not tuple:
        raise TypeError
    tag, kind, key, location, count = identity
    if tag != "storage" or not isinstance(kind, Global) or type(key) is not str or type(location) is not str:
        raise TypeError
    storage = Storage(kind.name, natural(count))
    size = r.sizes.get(f"data/{key}")
    if size != count * storage.dtype.itemsize:
        raise Refusal(f"is damaged or forged: storage {quoted(key)} has another size than the pickle says")
    if r.storages.setdefault(key, storage) != storage:
        raise Refusal(f"is damaged or forged: storage {quoted(key)} has two types")
    r.stack.append(storage)


def _reduce(r: _Reading) -> None:
    arguments, function = r.stack.pop(), r.stack.pop()
    if type(arguments) is not tuple or not isinstance(function, Global) or function.name not in CALLS:
        raise TypeError
    r.stack.append(CALLS[function.name](r.seen, *arguments))


def _build(r: _Reading) -> None:
    state = r.stack.pop()
    if type(r.stack[-1]) is not OrderedDict or type(state) is not dict or state.keys() - {"_metadata"}:
        raise Refusal(
            "was refused: it sets attributes of objects, which a state_dict does not need", advice("")
        )
    r.attributes.extend(state.values())


_OPERATIONS: dict[int, Callable[[_Reading], None]] = {
    pickle.MARK[0]: _mark,
    pickle.NONE[0]: lambda r: r.stack.append(None),
    pickle.NEWTRUE[0]: lambda r: r.stack.append(True),
    pickle.NEWFALSE[0]: lambda r: r.stack.append(False),
    pickle.BININT[0]: lambda r: r.stack.append(r.number("<i", 4)),
    pickle.BININT1[0]: lambda r: r.stack.append(r.take(1)[0]),
    pickle.BININT2[0]: lambda r: r.stack.append(r.number("<H", 2)),
    pickle.LONG1[0]: lambda r: r.stack.append(int.from_bytes(r.take(r.take(1)[0]), "little", signed=True)),
    pickle.BINFLOAT[0]: lambda r: r.stack.append(struct.unpack(">d", r.take(8))[0]),
    pickle.BINUNICODE[0]: lambda r: r.stack.append(str(r.take(r.number("<I", 4)), "utf-8", "surrogatepass")),
    pickle.EMPTY_DICT[0]: lambda r: r.stack.append({}),
    pickle.EMPTY_LIST[0]: lambda r: r.stack.append([]),
    pickle.EMPTY_TUPLE[0]: lambda r: r.stack.append(()),
    pickle.TUPLE[0]: _tuple,
    pickle.TUPLE1[0]: lambda r: _fold(r, 1),
    pickle.TUPLE2[0]: lambda r: _fold(r, 2),
    pickle.TUPLE3[0]: lambda r: _fold(r, 3),
    pickle.APPEND[0]: lambda r: _append(r, [r.stack.pop()]),
    pickle.APPENDS[0]: lambda r: _append(r, r.unmark()),
    pickle.SETITEM[0]: lambda r: _set_items(r, _two(r)),
    pickle.SETITEMS[0]: lambda r: _set_items(r, r.unmark()),
    pickle.BINGET[0]: lambda r: r.stack.append(r.memo[r.take(1)[0]]),
    pickle.LONG_BINGET[0]: lambda r: r.stack.append(r.memo[r.number("<I", 4)]),
    pickle.BINPUT[0]: lambda r: _put(r, r.take(1)[0]),
    pickle.LONG_BINPUT[0]: lambda r: _put(r, r.number("<I", 4)),
    pickle.GLOBAL[0]: _name,
    pickle.BINPERSID[0]: _persistent,
    pickle.REDUCE[0]: _reduce,
    pickle.BUILD[0]: _build,
}


def _culprit(data: bytes) -> str:
    names = [name for name in asked_for(data) if name not in CALLS and name not in STORAGES]
    return f" (it asks for {quoted(names[0])})" if names else ""
