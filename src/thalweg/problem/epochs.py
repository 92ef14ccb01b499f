"""The training data epoch by epoch: in batches of any size, in the same order under the same seed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from thalweg.errors import InputError
from thalweg.problem.batches import (
    Batch,
    Data,
    Sample,
    draw_sample,
    loader_generators,
    num_examples,
    visits_each_once,
)
from thalweg.rng import generator

__all__ = ["BatchSize", "Epochs", "open_epochs"]

BatchSize = int | Literal["all"] | None
USUAL = 64  # for tensors and datasets, which have no batch size of their own


@dataclass(frozen=True)
class Epochs:
    """The training data as often as they are wanted.

    Attributes:
        examples: in an epoch; None where only reading them tells.
        batch_size: of all batches but a shorter last one; None where the data come in batches.
        num_batches: in an epoch; None where only reading them tells.
        device: where the batches are wanted.
    """

    examples: int | None
    batch_size: int | None
    num_batches: int | None
    device: torch.device
    _batches: Callable[[int], Iterable[Batch]]

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch; those of another number come in another order."""
        for batch in self._batches(number):
            yield batch.to(self.device)


def open_epochs(data: Data | None, batch_size: BatchSize, *, seed: int, device: torch.device) -> Epochs:
    """Make training data readable epoch by epoch.

    A DataLoader over an indexable dataset is read in its own order (shuffled or not), batch size,
    ``drop_last`` and collation, in this process; tensors, datasets and lists of batches are shuffled anew in
    each epoch. A loader with a sampler of the user's own, or over a stream, is iterated as it is, its
    generators seeded for the epoch and put back after it. Random transformations are drawn anew.

    Args:
        data: as they were handed to the problem; None for a plain function, whose epoch is one empty batch.
        batch_size: examples per batch; None as the data come (tensors and datasets in batches of 64), "all"
            for one batch with all of them.
        seed: of the order.
        device: where the batches are wanted.

    Raises:
        InputError: for data that can be read only once, or that do not come in batches of this size.
    """
    if batch_size != "all" and batch_size is not None and not batch_size >= 1:
        raise InputError("the batch size cannot be used", expected="1 or more, or 'all'", got=str(batch_size))
    if data is None:
        return Epochs(1, 1, 1, device, lambda number: (Batch(None, 1),))
    if isinstance(data, Iterator):
        raise InputError(
            "the training data can be read only once",
            got=f"an iterator ({type(data).__name__})",
            hint="a DataLoader, a Dataset, a list of batches, or an (inputs, targets) pair of tensors",
        )
    if isinstance(data, Dataset) and not isinstance(data, DataLoader):
        shuffle = not isinstance(data, IterableDataset)
        data = DataLoader(data, batch_size=USUAL, shuffle=shuffle)
    if isinstance(data, DataLoader) and visits_each_once(data):
        return _from_dataset(data, batch_size, seed, device)
    if isinstance(data, Sequence):
        sample = draw_sample(data, limit=sys.maxsize, seed=seed, role="training")
        if isinstance(data, tuple) and batch_size is None:
            batch_size = USUAL
        return _from_sample(sample, batch_size, seed, device)
    return _from_stream(data, batch_size, seed, device)


def _from_sample(sample: Sample, batch_size: BatchSize, seed: int, device: torch.device) -> Epochs:
    """Read tensors and lists of batches, which lie in memory."""
    total = sample.examples
    if batch_size is None:

        def whole(number: int) -> Iterable[Batch]:
            order = torch.randperm(len(sample.batches), generator=generator(seed, "epoch", number))
            return (sample.batches[i] for i in order.tolist())

        return Epochs(total, None, len(sample.batches), device, whole)
    size = total if batch_size == "all" else min(batch_size, total)
    if len(sample.grouped(1)) > 1:
        raise InputError(
            "the batches of the training data cannot be cut anew",
            expected="batches whose tensors differ in nothing but their length",
            hint="leave the batch size out, and make the batches as they are wanted",
        )

    def cut(number: int) -> Iterable[Batch]:
        if size == total:
            return sample.grouped(1)
        return sample.rebatched(size, generator(seed, "epoch", number), all_of_them=True)

    return Epochs(total, size, -(-total // size), device, cut)


def _from_dataset(loader: DataLoader[Any], batch_size: BatchSize, seed: int, device: torch.device) -> Epochs:
    """Read an indexable dataset as its loader would, example by example."""
    dataset: Any = loader.dataset
    total = len(dataset)
    if total == 0:
        raise InputError("the training data is empty", expected="at least one example")
    wanted = loader.batch_size if batch_size is None else batch_size
    size = total if wanted == "all" else min(int(wanted or 1), total)
    in_order = isinstance(loader.sampler, SequentialSampler) or size == total
    stop = total - total % size if batch_size is None and loader.drop_last else total
    is_plain = type(dataset) is TensorDataset and loader.collate_fn is default_collate

    def collated(rows: torch.Tensor) -> Any:
        if is_plain:
            return [tensor[rows] for tensor in dataset.tensors]
        return loader.collate_fn([dataset[i] for i in rows.tolist()])

    def cut(number: int) -> Iterable[Batch]:
        rng = generator(seed, "epoch", number)
        order = torch.arange(total) if in_order else torch.randperm(total, generator=rng)
        for rows in order[:stop].split(size):
            yield Batch(collated(rows), len(rows))

    return Epochs(stop, size, -(-stop // size), device, cut)


def _from_stream(data: Any, batch_size: BatchSize, seed: int, device: torch.device) -> Epochs:
    """Read what can only be iterated over."""
    if batch_size is not None:
        raise InputError(
            "the batch size of these training data cannot be chosen",
            got=f"{batch_size}, for a loader with its own sampler or over a stream",
            hint="tensors or an indexable dataset; or leave it out, and make the batches in the loader",
        )

    def read(number: int) -> Iterable[Batch]:
        generators = loader_generators(data) if isinstance(data, DataLoader) else []
        states = [rng.get_state() for rng in generators]
        try:
            for i, rng in enumerate(generators):
                rng.manual_seed(generator(seed, "loader", number, i).initial_seed())
            for batch in data:
                yield Batch(batch, num_examples(batch))
        finally:
            for rng, state in zip(generators, states, strict=True):
                rng.set_state(state)

    return Epochs(None, None, None, device, read)
