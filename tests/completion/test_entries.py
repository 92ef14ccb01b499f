"""Folds over entries, errors of their means, the graph of what was observed, and centring."""

import numpy as np
import pytest

from tests.completion.lowrank import low_rank
from thalweg.completion import EntryKFold, Observations, observation_graph
from thalweg.completion.centring import centre_of
from thalweg.completion.folds import mean_over_entries
from thalweg.errors import InputError


def test_folds_hold_every_entry_once_and_spread_each_row():
    _, entries = low_rank((17, 13), 2, 0.5)
    folds = [out for _, out in EntryKFold(4).split(entries)]
    assert sorted(np.concatenate(folds)) == list(range(len(entries)))
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    for fitted, out in EntryKFold(4).split(entries):
        assert not set(fitted) & set(out)
        counts = np.bincount(entries.rows[out], minlength=17) - np.bincount(entries.rows, minlength=17) / 4
        assert np.abs(counts).max() < 1


def test_folds_repeat_with_their_seed_and_refuse_what_cannot_be():
    first, again, other = (
        EntryKFold(3, random_state=seed).assigned(np.zeros(30, dtype=int)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    for wrong in (1, 31, 2.5):
        with pytest.raises(InputError, match="2 to 30"):
            EntryKFold(wrong).assigned(np.zeros(30, dtype=int))


def test_the_interval_of_a_mean_covers_though_rows_and_columns_have_effects_of_their_own():
    rng = np.random.default_rng(0)
    rows, columns = (index.ravel() for index in np.meshgrid(range(30), range(25), indexing="ij"))
    covered, naive = 0, 0
    for _ in range(400):
        values = rng.standard_normal(30)[rows] + rng.standard_normal(25)[columns] + rng.standard_normal(750)
        estimate = mean_over_entries(values, rows, columns)
        low, high = estimate.interval()
        covered += low <= 0 <= high
        naive += abs(values.mean()) <= 1.96 * values.std() / np.sqrt(750)
    assert 0.92 <= covered / 400 <= 0.98
    assert naive / 400 < 0.5


def test_the_mean_over_entries_of_few_rows_knows_what_it_does_not_know():
    assert mean_over_entries(np.array([2.0]), np.array([0]), np.array([0])).stderr == np.inf
    assert mean_over_entries(np.ones(3), np.zeros(3, int), np.arange(3)).stderr == np.inf
    assert np.isnan(mean_over_entries(np.array([]), np.array([]), np.array([])).value)
    assert mean_over_entries(np.ones(4), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])).stderr == 0


def test_the_graph_counts_parts_and_gaps():
    two = Observations.from_triplets([0, 0, 1, 3], [0, 1, 1, 3], np.ones(4), (5, 4))
    graph = observation_graph(two)
    assert (graph.num_parts, graph.empty_rows, graph.empty_columns) == (2, 2, 1)
    assert graph.largest_part == pytest.approx(4 / 6)
    assert "2 parts" in graph.warnings()[0]
    assert "IN PARTS" in str(graph)
    _, whole = low_rank((30, 24), 2, 0.6)
    report = observation_graph(whole)
    assert (report.num_parts, report.largest_part, report.warnings()) == (1, 1.0, ())
    assert report.entries_per_freedom(2) == pytest.approx(len(whole) / (2 * (30 + 24 - 2)))
    assert report.entries_per_freedom(report.attainable_rank) >= 1.5
    assert report.entries_per_freedom(report.attainable_rank + 1) < 1.5
    assert "below 1.5" in report.warnings(rank=20)[0]


def test_effects_of_rows_and_columns_are_those_of_ridge_regression():
    _, entries = low_rank((9, 7), 1, 0.6)
    centre = centre_of(entries, "bias")
    design = np.zeros((len(entries), 16))
    design[np.arange(len(entries)), entries.rows] = 1
    design[np.arange(len(entries)), 9 + entries.columns] = 1
    rest = entries.values - entries.values.mean()
    effects = np.linalg.solve(design.T @ design + 5 * np.eye(16), design.T @ rest)
    assert np.concatenate([centre.row, centre.column]) == pytest.approx(effects, abs=1e-8)
    assert centre_of(entries, "mean").overall == pytest.approx(entries.values.mean())
    assert not centre_of(entries, None).dense().any()
