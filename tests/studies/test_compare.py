"""Optimisers compared: paired, tuned alike, failures counted, nothing said that the seeds cannot show."""

import json
import math
import shutil

import pytest
import torch
from torch import nn

import thalweg
from thalweg import Problem, compare
from thalweg.errors import InputError
from thalweg.problem.builtin.initialise import initialised
from thalweg.rng import generator
from thalweg.studies.setting import prepared

from .nets import blobs, net, problem


@pytest.fixture(scope="module")
def found():
    return compare(
        problem(), ["sgd", "adam", "lbfgs", "matlab:trainlm"], seeds=3, rates=5, epochs=8, batch_size=16
    )


def test_all_methods_begin_at_the_same_losses_seed_by_seed(found):
    starts = [
        {run.seed: (run.points[0].train, run.points[0].test) for run in method.reported}
        for method in found.able
    ]
    assert len(starts) == 3
    assert starts[0] == starts[1] == starts[2]
    assert len({loss for loss, _ in starts[0].values()}) == 3  # and each seed elsewhere


def test_rates_are_chosen_without_the_held_out_data_and_with_other_seeds(found):
    for method in found.able:
        assert not {run.seed for run in method.tuning} & {run.seed for run in method.runs}
        assert all(math.isnan(point.test) for run in method.tuning for point in run.points)
        assert all(math.isnan(point.validation) for run in method.runs for point in run.points)
        assert method.validation[method.chosen] == min(method.validation)


def test_every_method_spends_the_budget_and_no_more_than_one_step_beyond(found):
    for method in found.able:
        for run in method.reported:
            assert 8 <= run.points[-1].cost < (8 + 1e-6 if not method.whole else 16)


def test_a_method_that_cannot_take_the_loss_is_in_the_table_with_its_reason(found):
    refused = next(m for m in found.methods if m.name == "matlab:trainlm")
    assert "mean squared error" in refused.refused
    text = str(found)
    assert "matlab:trainlm" in text
    assert "cannot train this" in text


def test_with_so_few_runs_what_cannot_be_told_apart_is_called_so(found):
    same = [m for m in found.able if m is not found.reference and not found.difference(m).detectable]
    for method in same:
        assert "no detectable difference" in repr(found)
        assert method.name in repr(found)


def test_the_record_becomes_json_a_page_and_pictures(found, tmp_path):
    found.save(tmp_path / "c.json")
    found.save(tmp_path / "c.html")
    record = json.loads((tmp_path / "c.json").read_text())
    assert record["schema"] == "thalweg/comparison@1"
    assert len(record["methods"][0]["runs"]) == 15
    assert (tmp_path / "c.html").read_text().count("<svg") >= 4


def test_a_grid_that_ends_too_low_is_flagged():
    low = compare(problem(), ["sgd"], seeds=2, rates=2, epochs=2, batch_size=16)
    assert low.able[0].edge == "upper"
    assert "under-tuned" in str(low)


def test_divergence_counts_and_does_not_win():
    x = blobs()[0] * 10
    model = initialised(lambda: nn.Linear(2, 1), generator(0, "wild"))
    wild = Problem(model, nn.MSELoss(), (x, x[:, :1]), heldout=(x[:40], x[:40, :1]))
    found = compare(wild, ["sgd", "adam"], seeds=2, rates=8, epochs=3)
    sgd = found.able[0]
    assert any(run.failed for run in sgd.runs)
    assert math.isinf(sgd.losses[-1])
    assert not any(run.failed for run in sgd.reported)


def test_the_same_study_twice_gives_the_same_and_another_seed_does_not():
    def losses(seed):
        found = compare(problem(), ["sgd"], seeds=2, rates=2, epochs=1, batch_size=32, seed=seed)
        return [run.points[-1].test for run in found.able[0].runs]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_a_study_leaves_the_model_and_the_data_as_they_were():
    own = problem()
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    compare(own, ["adam"], seeds=2, rates=1, epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in own.model.state_dict().items())
    assert own.model.training


def test_without_held_out_data_a_fifth_of_the_training_data_is_held_out_and_that_is_said():
    own = Problem(net(), nn.CrossEntropyLoss(), blobs(101))
    setting = prepared(own, 0)
    assert (setting.train.examples, setting.validation.examples, setting.test.examples) == (61, 20, 20)
    assert "no held-out data" in str(compare(own, ["adam"], seeds=2, rates=1, epochs=1))


def test_a_plain_function_and_nonsense_are_refused_at_once():
    with pytest.raises(InputError, match="a model with data"):
        compare("rosenbrock", ["sgd"])
    with pytest.raises(InputError, match="different names"):
        compare(problem(), ["sgd", "sgd"])
    with pytest.raises(InputError, match="there is no optimiser 'adamm'"):
        compare(problem(), ["adamm"])
    with pytest.raises(InputError, match="too few seeds"):
        compare(problem(), ["sgd"], seeds=1)
    with pytest.raises(InputError, match="too few training examples"):
        compare(Problem(net(), nn.CrossEntropyLoss(), blobs(19)), ["sgd"])


def test_an_edited_problem_file_is_seen_on_resume(tmp_path):
    source = tmp_path / "mine.py"
    shutil.copy(__file__.replace("test_compare.py", "nets.py"), source)
    name, settings = f"{source}:problem", {"seeds": 2, "rates": 1, "epochs": 1, "folder": tmp_path / "study"}
    compare(name, ["sgd"], **settings)
    source.write_text(source.read_text() + "\n# a thought\n")
    with pytest.raises(InputError, match="the problem has changed since the study"):
        compare(name, ["sgd"], **settings)


@pytest.mark.slow
def test_on_rare_features_a_rate_for_each_weight_helps_and_adagrad_slows_down_where_rmsprop_does_not():
    found = thalweg.compare("sparse-clicks", ["sgd", "adagrad", "rmsprop"], epochs=20)
    sgd, adagrad, rmsprop = found.able
    assert found.difference(sgd).mean > 0 or found.reference is sgd
    words = {m.name: m.shrinking(20) for m in (adagrad, rmsprop)}
    assert "only grows" in words["adagrad"]
    assert "forgets" in words["rmsprop"]
