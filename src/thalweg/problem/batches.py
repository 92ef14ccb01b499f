"""Users' data as a frozen sample: the same examples, in the same batches, for every evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from thalweg.errors import InputError
from thalweg.problem.intact import random_state_kept
from thalweg.rng import generator

__all__ = ["Batch", "Sample", "draw_sample", "num_examples"]

Data = DataLoader[Any] | Dataset[Any] | Sequence[Any] | Iterable[Any]

_FORMS = "a DataLoader, a Dataset, a list of batches, or an (inputs, targets) pair of tensors"


@dataclass(frozen=True)
class Batch:
    """What the loss is given at once: any nesting of tuples, lists and dicts of tensors."""

    data: Any
    examples: int


@dataclass(frozen=True)
class Sample:
    """Frozen batches.

    Attributes:
        batches: as the user's loader makes them.
        batch_size: the size that training uses, None when it cannot be known.
        available: how many examples there are in all; more than in ``batches`` when only a part was drawn.
        joinable: whether batches may be joined and cut anew; not where examples act on each other.
    """

    batches: tuple[Batch, ...]
    batch_size: int | None
    available: int
    joinable: bool = True

    @property
    def examples(self) -> int:
        """The number of examples in the sample."""
        return sum(batch.examples for batch in self.batches)

    @property
    def complete(self) -> bool:
        """Whether the sample is all the data there is."""
        return self.examples == self.available

    def grouped(self, num_groups: int) -> tuple[Batch, ...]:
        """Return about ``num_groups`` batches of nearly equal size, for statistics between batches.

        Batches that cannot be joined (their tensors differ in length, as token batches do) stay as
        they are.
        """
        joined = self._joined()
        if joined is None:
            return self.batches
        num_groups = max(1, min(num_groups, self.examples))
        edges = [round(i * self.examples / num_groups) for i in range(num_groups + 1)]
        return tuple(Batch(_cut(joined, a, b), b - a) for a, b in pairwise(edges) if b > a)

    def chunked(self, size: int) -> tuple[Batch, ...]:
        """Return the same examples in batches of at most ``size``, where they may be cut anew."""
        return self.grouped(-(-self.examples // size)) if self.examples else ()

    def rebatched(self, size: int, rng: torch.Generator) -> tuple[Batch, ...]:
        """Return the examples shuffled into batches of ``size``, as an epoch of training would."""
        joined = self._joined()
        if joined is None:
            order = torch.randperm(len(self.batches), generator=rng)
            return tuple(self.batches[int(i)] for i in order)
        order = torch.randperm(self.examples, generator=rng)
        starts = range(0, self.examples - size + 1, size) if size < self.examples else [0]
        return tuple(Batch(_take(joined, order[s : s + size]), min(size, self.examples - s)) for s in starts)

    def to(self, device: torch.device) -> Sample:
        """Return the sample on ``device``."""
        moved = tuple(
            Batch(_map(batch.data, lambda t: t.to(device)), batch.examples) for batch in self.batches
        )
        return replace(self, batches=moved)

    def _joined(self) -> Any | None:
        if not self.joinable:
            return None
        try:
            return _join([batch.data for batch in self.batches], [batch.examples for batch in self.batches])
        except _CannotJoinError:
            return None


def draw_sample(data: Data, *, limit: int, seed: int, role: str) -> Sample:
    """Freeze at most about ``limit`` examples of ``data``.

    A DataLoader over an indexable dataset gives a random subset where it has more (the loader's own
    collation and batch size, but never its random state); any other source gives its first batches.
    The global random states stay as they were; an iterator is used up, as iterators are.

    Args:
        data: a DataLoader, Dataset, list of batches, or (inputs, targets) tensors.
        limit: the most examples to take, to the nearest batch.
        seed: decides which examples.
        role: "training" or "held-out", for messages.

    Raises:
        InputError: when there is nothing in it, or it is of no known form.
    """
    with random_state_kept():
        if _is_pair_of_tensors(data):
            return _from_tensors(data, limit, seed, role)
        if isinstance(data, Dataset) and not isinstance(data, DataLoader):
            data = DataLoader(data, batch_size=64)
            return replace(_from_loader(data, limit, seed, role), batch_size=None)
        if isinstance(data, DataLoader):
            return _from_loader(data, limit, seed, role)
        if isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping | Tensor):
            total = None
            if isinstance(data, Sequence):
                total = sum(num_examples(batch, role) for batch in data)
            return _first_batches(data, limit, total, role)
    raise InputError(
        f"the {role} data cannot be read", expected=_FORMS, got=f"an object of type {type(data).__name__}"
    )


def num_examples(data: Any, role: str = "training") -> int:
    """Return the number of examples in a batch: the length of its first tensor.

    Raises:
        InputError: when the batch holds no tensor with a first dimension.
    """
    for tensor in _tensors(data):
        if tensor.dim() > 0:
            return int(tensor.shape[0])
    raise InputError(
        f"a {role} batch holds no tensor with a batch dimension",
        expected="(inputs, targets), or a dict or nesting of tensors whose first dimension is the batch",
        got=f"{type(data).__name__}",
        hint="convert the batch to tensors in the DataLoader's collate_fn",
    )


def _from_tensors(data: Any, limit: int, seed: int, role: str) -> Sample:
    inputs, targets = data
    if inputs.dim() == 0 or targets.dim() == 0 or len(inputs) != len(targets):
        raise InputError(
            f"the {role} inputs and targets do not match",
            expected="as many targets as inputs",
            got=f"inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)}",
        )
    total = len(inputs)
    if total == 0:
        raise _empty(role)
    if total > limit:
        chosen = torch.randperm(total, generator=generator(seed, "sample", role))[:limit]
        inputs, targets = inputs[chosen], targets[chosen]
    return Sample((Batch((inputs, targets), len(inputs)),), None, total)


def _from_loader(loader: DataLoader[Any], limit: int, seed: int, role: str) -> Sample:
    dataset = loader.dataset
    plain = isinstance(loader.sampler, RandomSampler | SequentialSampler) and loader.batch_size is not None
    if isinstance(dataset, IterableDataset) or not plain or not hasattr(dataset, "__len__"):
        own = [g for g in (loader.generator, getattr(loader.sampler, "generator", None)) if g is not None]
        states = [g.get_state() for g in own]
        try:
            sample = _first_batches(loader, limit, None, role)
        finally:
            for g, state in zip(own, states, strict=True):
                g.set_state(state)
        return replace(sample, batch_size=loader.batch_size or sample.batch_size)
    total = len(dataset)
    if total == 0:
        raise _empty(role)
    order = list(range(total))
    if total > limit:
        order = torch.randperm(total, generator=generator(seed, "sample", role))[:limit].tolist()
    size = loader.batch_size or 1
    collate = loader.collate_fn
    batches = []
    for start in range(0, len(order), size):
        data = collate([dataset[i] for i in order[start : start + size]])
        batches.append(Batch(data, num_examples(data, role)))
    return Sample(tuple(batches), size, total)


def _first_batches(batches: Iterable[Any], limit: int, total: int | None, role: str) -> Sample:
    kept: list[Batch] = []
    seen = 0
    for data in batches:
        if seen >= limit:
            # There is more than was taken; how much more cannot be known without reading it all.
            return Sample(tuple(kept), kept[0].examples, total or seen + 1)
        kept.append(Batch(data, num_examples(data, role)))
        seen += kept[-1].examples
    if seen == 0:
        raise _empty(role)
    return Sample(tuple(kept), kept[0].examples, seen)


def _empty(role: str) -> InputError:
    return InputError(
        f"the {role} data is empty",
        expected="at least one batch with at least one example",
        cause="an empty dataset, an iterator that was used up, or drop_last=True with few examples",
    )


def _is_pair_of_tensors(data: Any) -> bool:
    return (
        isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    )


def _tensors(data: Any) -> Iterable[Tensor]:
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, Mapping):
        for part in data.values():
            yield from _tensors(part)
    elif isinstance(data, tuple | list):
        for part in data:
            yield from _tensors(part)


def _map(data: Any, function: Any) -> Any:
    if isinstance(data, Tensor):
        return function(data)
    if isinstance(data, Mapping):
        return {key: _map(part, function) for key, part in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(_map(part, function) for part in data))
    if isinstance(data, tuple | list):
        return type(data)(_map(part, function) for part in data)
    return data


def _cut(data: Any, start: int, stop: int) -> Any:
    return _map(data, lambda tensor: tensor[start:stop])


def _take(data: Any, rows: Tensor) -> Any:
    return _map(data, lambda tensor: tensor[rows.to(tensor.device)])


class _CannotJoinError(Exception):
    """The batches differ in something other than their length."""


def _join(parts: list[Any], sizes: list[int]) -> Any:
    """Concatenate batches along their first dimension."""
    first = parts[0]
    if isinstance(first, Tensor):
        if any(
            not isinstance(part, Tensor)
            or part.dim() == 0
            or part.shape[0] != size
            or part.shape[1:] != first.shape[1:]
            for part, size in zip(parts, sizes, strict=True)
        ):
            raise _CannotJoinError
        return first if len(parts) == 1 else torch.cat(parts)
    if isinstance(first, Mapping):
        if any(not isinstance(part, Mapping) or part.keys() != first.keys() for part in parts):
            raise _CannotJoinError
        return {key: _join([part[key] for part in parts], sizes) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(_join(list(column), sizes) for column in zip(*parts, strict=True)))
    if isinstance(first, tuple | list):
        return type(first)(_join(list(column), sizes) for column in zip(*parts, strict=True))
    raise _CannotJoinError
