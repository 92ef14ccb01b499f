"""Matrices of low rank of which some entries are seen."""

import numpy as np

from thalweg.completion import Observations


def low_rank(shape=(30, 24), rank=2, share=0.6, seed=0, noise=0.0):
    """Return a matrix of that rank with entries of size 1, and observations of it."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    truth *= np.sqrt(truth.size) / np.linalg.norm(truth)
    seen = rng.random(shape) < share
    rows, columns = np.nonzero(seen)
    values = truth[rows, columns] + noise * rng.standard_normal(len(rows))
    return truth, Observations.from_triplets(rows, columns, values, shape)


def with_blanks(entries):
    """Return the matrix with NaN where nothing was observed."""
    dense = np.full(entries.shape, np.nan)
    dense[entries.rows, entries.columns] = entries.values
    return dense
