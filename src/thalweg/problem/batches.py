"""Users' data as a frozen sample: the same examples, in the same batches, for every evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from thalweg.errors import InputError
from thalweg.problem.intact import random_state_kept
from thalweg.rng import generator

__all__ = [
    "Batch",
    "Data",
    "Sample",
    "draw_sample",
    "loader_generators",
    "num_examples",
    "taken",
    "tensors_of",
    "visits_each_once",
]

Data = DataLoader[Any] | Dataset[Any] | Sequence[Any] | Iterable[Any]

_FORMS = "a DataLoader, a Dataset, a list of batches, or an (inputs, targets) pair of tensors"


@dataclass(frozen=True)
class Batch:
    """What the loss is given at once: any nesting of tuples, lists and dicts of tensors."""

    data: Any
    examples: int

    def cast(self, dtype: torch.dtype | None) -> Batch:
        """Return the batch with its real tensors in ``dtype``; None leaves them as they are."""
        if dtype is None:
            return self
        return replace(self, data=_map(self.data, lambda t: t.to(dtype) if t.is_floating_point() else t))

    def channels_last(self) -> Batch:
        """Return the batch with its images laid out channel by channel within a pixel; the same numbers."""
        form = torch.channels_last
        return replace(self, data=_map(self.data, lambda t: t.to(memory_format=form) if t.dim() == 4 else t))

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``."""
        return Batch(_map(self.data, lambda t: t.to(device)), self.examples)


@dataclass(frozen=True)
class Sample:
    """Frozen batches.

    Attributes:
        batches: as the user's loader makes them.
        batch_size: the size that training uses, None when it cannot be known.
        complete: whether the sample is all the data there is, each example once.
        origin: how the examples were chosen, for people.
        joinable: whether batches may be joined and cut anew; not where examples act on each other.
    """

    batches: tuple[Batch, ...]
    batch_size: int | None
    complete: bool
    origin: str
    joinable: bool = True

    @property
    def examples(self) -> int:
        """The number of examples in the sample."""
        return sum(batch.examples for batch in self.batches)

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

    def rebatched(self, size: int, rng: torch.Generator, *, all_of_them: bool = False) -> Iterator[Batch]:
        """Yield the examples shuffled in batches of ``size``, as an epoch of training does.

        What is left over at the end is dropped, unless ``all_of_them`` are wanted.
        """
        joined = self._joined()
        if joined is None:
            for i in torch.randperm(len(self.batches), generator=rng).tolist():
                yield self.batches[i]
            return
        order = torch.randperm(self.examples, generator=rng)
        size = min(size, self.examples)
        for start in range(0, self.examples if all_of_them else self.examples - size + 1, size):
            rows = order[start : start + size]
            yield Batch(taken(joined, rows), len(rows))

    def to(self, device: torch.device) -> Sample:
        """Return the sample on ``device``."""
        return replace(self, batches=tuple(batch.to(device) for batch in self.batches))

    def few(self, most: int) -> Sample:
        """Return one batch of about ``most`` examples."""
        return replace(self, batches=self.grouped(-(-self.examples // most))[:1], complete=False)

    def _joined(self) -> Any | None:
        if not self.joinable:
            return None
        try:
            return _join([batch.data for batch in self.batches], [batch.examples for batch in self.batches])
        except _CannotJoinError:
            return None


def draw_sample(data: Data, *, limit: int, seed: int, role: str) -> Sample:
    """Freeze at most about ``limit`` examples of ``data``.

    Tensors and a DataLoader over an indexable dataset give a random subset where there is more (with the
    loader's own collation and batch size), a list of batches gives random ones, any other source its first.
    All random states stay as they were; an iterator is used up, as iterators are.

    Args:
        data: a DataLoader, Dataset, list of batches, or (inputs, targets) tensors.
        limit: the most examples to take, to the nearest batch.
        seed: decides which examples.
        role: "training" or "held-out", for messages.

    Raises:
        InputError: when there is nothing in it, or it is of no known form.
    """
    with random_state_kept(seed):  # for loaders and datasets that draw from the global states
        if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
            return _from_tensors(data, limit, seed, role)
        if isinstance(data, Dataset) and not isinstance(data, DataLoader):
            data = DataLoader(data, batch_size=64)
            return replace(_from_loader(data, limit, seed, role), batch_size=None)
        if isinstance(data, DataLoader):
            return _from_loader(data, limit, seed, role)
        if isinstance(data, Sequence) and not isinstance(data, str | bytes):
            order = torch.randperm(len(data), generator=generator(seed, "sample", role)).tolist()
            total = sum(num_examples(batch, role) for batch in data)
            chosen = data if total <= limit else (data[i] for i in order)
            return _first_batches(chosen, limit, role, "whole batches drawn at random")
        if isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping | Tensor):
            return _first_batches(data, limit, role, "the first batches that came")
    raise InputError(
        f"the {role} data cannot be read", expected=_FORMS, got=f"an object of type {type(data).__name__}"
    )


def num_examples(data: Any, role: str = "training") -> int:
    """Return the number of examples in a batch: the length of its first tensor.

    Raises:
        InputError: when the batch holds no tensor with a first dimension.
    """
    for tensor in tensors_of(data):
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
        chosen = torch.randperm(total, generator=generator(seed, "sample", role))[:limit].to(inputs.device)
        inputs, targets = inputs[chosen], targets[chosen.to(targets.device)]
    return Sample((Batch((inputs, targets), len(inputs)),), None, total <= limit, "drawn at random")


def _from_loader(loader: DataLoader[Any], limit: int, seed: int, role: str) -> Sample:
    dataset = loader.dataset
    if not visits_each_once(loader):
        states = [(g, g.get_state()) for g in loader_generators(loader)]
        try:
            sample = _first_batches(loader, limit, role, "the first batches that the loader gave")
        finally:
            for g, state in states:
                g.set_state(state)
        # A sampler of the user's own may leave examples out or repeat them.
        complete = sample.complete and isinstance(dataset, IterableDataset)
        size = loader.batch_size or sample.batch_size
        return replace(sample, batch_size=size, complete=complete)
    total = len(dataset)  # type: ignore[arg-type]
    if total == 0:
        raise _empty(role)
    order = list(range(total))
    if total > limit:
        order = torch.randperm(total, generator=generator(seed, "sample", role))[:limit].tolist()
    size = loader.batch_size or 1
    batches = []
    for start in range(0, len(order), size):
        data = loader.collate_fn([dataset[i] for i in order[start : start + size]])
        batches.append(Batch(data, num_examples(data, role)))
    return Sample(tuple(batches), size, total <= limit, "drawn at random")


def visits_each_once(loader: DataLoader[Any]) -> bool:
    """Say whether the loader goes through an indexable dataset, each example once, in or out of order."""
    sampler = loader.sampler
    if isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        return False
    if not hasattr(loader.dataset, "__len__"):
        return False
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)
    return isinstance(sampler, SequentialSampler)


def loader_generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """Return the random generators that a pass over the loader moves."""
    inner = getattr(loader.batch_sampler, "sampler", None)
    holders = (loader, loader.sampler, loader.batch_sampler, inner)
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def _first_batches(batches: Iterable[Any], limit: int, role: str, origin: str) -> Sample:
    kept: list[Batch] = []
    seen = 0
    complete = True
    for data in batches:
        if seen >= limit:
            complete = False
            break
        kept.append(Batch(data, num_examples(data, role)))
        seen += kept[-1].examples
    if seen == 0:
        raise _empty(role)
    return Sample(tuple(kept), kept[0].examples, complete, origin)


def _empty(role: str) -> InputError:
    return InputError(
        f"the {role} data is empty",
        expected="at least one batch with at least one example",
        cause="an empty dataset, an iterator that was used up, or drop_last=True with few examples",
    )


def tensors_of(data: Any) -> Iterable[Tensor]:
    """Yield the tensors in a nesting of tuples, lists and dicts."""
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, Mapping):
        for part in data.values():
            yield from tensors_of(part)
    elif isinstance(data, tuple | list):
        for part in data:
            yield from tensors_of(part)


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


def taken(data: Any, rows: Tensor) -> Any:
    """Return the examples at ``rows``, of any shape, which takes the place of the batch dimension."""
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
