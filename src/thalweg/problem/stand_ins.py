"""What stands for a value while a pickle is followed, and what a pickle may name and call."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from thalweg.problem.file_kind import Refusal, quoted

__all__ = [
    "CALLS",
    "DTYPES",
    "MAX_CONTAINERS",
    "MAX_DEPTH",
    "MAX_VALUES",
    "STORAGES",
    "Global",
    "Seen",
    "Storage",
    "Tensor",
    "advice",
    "natural",
    "require_key",
    "require_small",
]

MAX_DEPTH = 64
MAX_CONTAINERS = 1 << 17  # an optimiser has one for every tensor
MAX_VALUES = 1 << 20  # when everything that is named twice is written out twice
_LARGEST_KEY = (
    1 << 61
) - 1  # greater integers share their hash with smaller ones, and n of a kind take n² time

DTYPES = {
    str(dtype): dtype
    for name in (
        *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128", "bool"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
    if isinstance(dtype := getattr(torch, name, None), torch.dtype)
}
STORAGES = {
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.BoolStorage": torch.bool,
    "torch.CharStorage": torch.int8,
    "torch.ShortStorage": torch.int16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.ByteStorage": torch.uint8,
    "torch.storage.UntypedStorage": torch.uint8,
}


@dataclass(frozen=True)
class Global:
    """A function or a type of storage that the pickle named."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The memory of tensors: its type as the pickle names it."""

    kind: str
    count: int  # of elements

    @property
    def dtype(self) -> torch.dtype:
        """Of its elements."""
        return STORAGES[self.kind]


class Value:
    """A finished value that holds no other: a tensor, a device, a set of numbers."""


class Tensor(Value):
    """A tensor that lies inside its storage."""


@dataclass(frozen=True)
class Bytes(Value):
    """A byte string."""

    length: int


_LEAVES = {type(None), bool, int, float, str, torch.dtype, Storage, Value, Tensor, Bytes}
_CONTAINERS = {list, tuple, dict, OrderedDict}


@dataclass
class Seen:
    """What can be judged only when the whole pickle was followed.

    Attributes:
        limit: how much calls may copy, in bytes and items.
        copied: how much they did.
        hooks: the hooks of tensors, which must be none, and may be filled after they were handed over.
    """

    limit: int
    copied: int = 0
    hooks: list[OrderedDict[Any, Any]] = field(default_factory=list)

    def copies(self, count: int) -> None:
        """Count what a call copies, since the same argument may be copied again and again."""
        self.copied += count
        if self.copied > self.limit:
            raise Refusal("was refused: its pickle copies the same text or list again and again")


def require_key(key: Any) -> Any:
    """Return a key of a dict, which must be text or a number whose hash nobody can choose."""
    if type(key) not in {str, bool, int, float, type(None)} or (
        type(key) is int and abs(key) >= _LARGEST_KEY
    ):
        raise Refusal(f"was refused: a dict has a key that is no text or small number ({type(key).__name__})")
    return key


def natural(value: Any) -> int:
    """Return an integer from 0 that fits 64 bits.

    Raises:
        ValueError: for anything else.
    """
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError
    return value


def _view(storage: Any, dtype: torch.dtype | None, offset: Any, size: Any, stride: Any) -> Tensor:
    """Require that a tensor lies inside its storage and has no more numbers than that."""
    if not isinstance(storage, Storage) or type(size) is not tuple or type(stride) is not tuple:
        raise TypeError
    if len(size) != len(stride) or len(size) > MAX_DEPTH:
        raise ValueError
    held = storage.count * storage.dtype.itemsize // (dtype or storage.dtype).itemsize
    numbers = math.prod(map(natural, size))
    natural(math.prod(max(n, 1) for n in size))  # torch multiplies so, in 64 bits
    last = natural(offset) + sum((n - 1) * natural(step) for n, step in zip(size, stride, strict=True))
    if numbers > held:
        raise Refusal(
            f"was refused: a tensor of {numbers} numbers stands on a storage of {held}",
            "save tensor.clone() in place of an expanded tensor",
        )
    if (numbers and last >= held) or offset > held:
        raise Refusal("is damaged or forged: a tensor lies outside its storage")
    return Tensor()


def _require_flags(seen: Seen, dtype: torch.dtype, grad: Any, hooks: Any, marks: Any = None) -> None:
    """Check what a tensor is given besides numbers: a flag, no hooks, marks of conjugation and sign."""
    marks = {} if marks is None else marks
    if type(hooks) is not OrderedDict or type(marks) is not dict or marks.keys() - {"conj", "neg"}:
        raise TypeError
    if any(type(flag) is not bool for flag in (grad, *marks.values())) or (
        "conj" in marks and not dtype.is_complex
    ):
        raise TypeError
    seen.hooks.append(hooks)


def _tensor(seen: Seen, storage: Any, offset: Any, size: Any, stride: Any, *flags: Any) -> Tensor:
    tensor = _view(storage, None, offset, size, stride)
    _require_flags(seen, storage.dtype, *flags)
    return tensor


def _typed_tensor(
    seen: Seen,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    *marks: Any,
) -> Tensor:
    if not isinstance(dtype, torch.dtype):
        raise TypeError
    _require_flags(seen, dtype, grad, hooks, *marks)
    return _view(storage, dtype, offset, size, stride)


def _parameter(seen: Seen, tensor: Any, grad: Any, hooks: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError
    _require_flags(seen, torch.float32, grad, hooks)
    return tensor


def _encode(seen: Seen, text: Any, encoding: Any) -> Bytes:
    if type(text) is not str or encoding not in {"latin1", "latin-1"}:
        raise TypeError
    seen.copies(len(text))
    return Bytes(len(text))


def _bytearray(seen: Seen, content: Any = Bytes(0)) -> Value:
    if not isinstance(content, Bytes):  # a number would be a size to allocate
        raise TypeError
    seen.copies(content.length)
    return Value()


def _copied(*types: type) -> Callable[..., Value]:
    """Make the stand-in for a constructor that copies one container of plain values."""

    def call(seen: Seen, items: Any = ()) -> Value:
        if type(items) not in types:
            raise TypeError
        seen.copies(len(items))
        for item in items:
            require_key(item)
        if isinstance(items, dict) and any(type(value) not in {int, float} for value in items.values()):
            raise TypeError
        return Value()

    return call


def _plain(*allowed: type) -> Callable[..., Value]:
    """Make the stand-in for a constructor with a few plain arguments."""

    def call(seen: Seen, *arguments: Any) -> Value:
        if not 0 < len(arguments) <= 2 or any(type(argument) not in allowed for argument in arguments):
            raise TypeError
        return Value()

    return call


def _ordered(seen: Seen) -> OrderedDict[Any, Any]:
    return OrderedDict()


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _ordered,
    "collections.Counter": _copied(dict, tuple),
    "torch.Size": _copied(tuple),
    "torch.device": _plain(str, int),
    "_codecs.encode": _encode,
    "builtins.bytearray": _bytearray,
    "builtins.set": _copied(list, tuple),
    "builtins.complex": _plain(int, float),
}


def require_small(roots: list[Any]) -> None:
    """Bound depth and written-out size, each container measured once; refuse one that holds itself.

    Raises:
        Refusal: for those, and for values that are neither numbers, texts, tensors nor containers of them.
    """
    known: dict[int, tuple[int, int]] = {}  # depth and values of containers that are done
    begun: set[int] = set()
    waiting: list[Any] = [roots]
    while waiting:
        node = waiting[-1]
        items = node.values() if isinstance(node, dict) else node
        kinds = set(map(type, items))
        for kind in kinds - _LEAVES - _CONTAINERS:
            stranger = next(item for item in items if type(item) is kind)
            name = quoted(stranger.name) if isinstance(stranger, Global) else kind.__name__
            raise Refusal(f"was refused: it holds more than tensors ({name})", advice(name))
        inner = [item for item in items if type(item) in _CONTAINERS] if kinds & _CONTAINERS else []
        if pending := [item for item in inner if id(item) not in known]:
            if id(node) in begun:
                raise Refusal("was refused: a list or dict in it holds itself")
            begun.add(id(node))
            waiting += pending
            if len(begun) <= MAX_CONTAINERS:
                continue
        if len(begun) > MAX_CONTAINERS or len(known) > MAX_CONTAINERS:
            raise Refusal(f"was refused: it has more than {MAX_CONTAINERS} lists, tuples and dicts")
        depth = 1 + max((known[id(item)][0] for item in inner), default=0)
        values = 1 + len(items) - len(inner) + sum(known[id(item)][1] for item in inner)
        if depth > MAX_DEPTH + 1:  # the roots stand in a list
            raise Refusal(f"was refused: it is nested more than {MAX_DEPTH} deep")
        if values > MAX_VALUES:
            raise Refusal(f"was refused: written out it has more than {MAX_VALUES} values")
        known[id(node)] = depth, values
        waiting.pop()


def advice(name: str = "") -> str:
    """Say what to save in place of what ``name`` builds."""
    if name.startswith("numpy."):
        return "turn NumPy's numbers into Python's (float(x)) or into tensors before saving"
    if "_rebuild_" in name or name.startswith("torch.Q"):
        return "save dense tensors: sparse, quantised and subclassed ones are not read"
    return "save model.state_dict(), or convert the file to .safetensors where it was made"
