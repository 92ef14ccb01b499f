"""What a recorded run says: rules over its stretches, pictures, and ``thalweg show``."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from tests.models import mlp, seeded
from thalweg.cli.main import command
from thalweg.estimates import Estimate
from thalweg.problem.problem import Problem
from thalweg.report.drawing import to_svg
from thalweg.training.findings import findings, gradient_end, trend
from thalweg.training.loop import train
from thalweg.training.recorded import RecordedRun, read_run
from thalweg.training.recorder import Recorder
from thalweg.training.run_summary import summarise
from thalweg.training.windows import Window, path_shape, windows


def stretch(number, **known):
    settings = dict.fromkeys(
        ("loss", "raw_square", "square", "noise_scale", "examples", "critical", "edge", "turning")
    )
    return Window(begin=100 * number, end=100 * (number + 1), **{**settings, **known})


def run_of(path=None, sketches=None, **series):
    columns = {name: (np.asarray(s, float), np.asarray(v, float)) for name, (s, v) in series.items()}
    rows = sketches if sketches is not None else (np.empty(0), np.empty((0, 0)))
    return RecordedRun(path, {}, 1, (), (), columns, rows)


class TestTheGradientAtTheEnd:
    @pytest.mark.parametrize(
        ("square", "stderr", "answer"),
        [
            (1e-4, 1e-5, "near zero"),
            (-1e-4, 5e-5, "near zero"),
            (0.5, 0.01, "far from zero"),
            (0.01, 0.01, "undecided"),
            (0.5, math.inf, "undecided"),
        ],
    )
    def test_is_told_by_the_interval_without_noise(self, square, stderr, answer):
        ends = stretch(1, square=Estimate(square, stderr), raw_square=Estimate(0.9, 0.1))
        begins = stretch(0, square=Estimate(1.0, 0.01), raw_square=Estimate(1.5, 0.1))
        assert gradient_end([begins, ends]) == answer

    def test_a_gradient_that_is_noise_all_along_is_left_undecided(self):
        both = [stretch(i, square=Estimate(-0.1, 1.0), raw_square=Estimate(1.0, 0.1)) for i in range(2)]
        assert gradient_end(both) == "undecided"
        (found,) = findings(both, None)
        assert "all of it may be noise" in found.sentence

    def test_a_gradient_that_is_zero_all_along_is_said_to_be(self):
        both = [stretch(i, square=Estimate(0.0, 0.0), raw_square=Estimate(0.0, 0.0)) for i in range(2)]
        (found,) = findings(both, None)
        assert "zero all along" in found.sentence

    def test_a_norm_that_is_all_noise_is_said_to_be(self):
        ends = stretch(1, square=Estimate(0.0, 1e-5), raw_square=Estimate(0.81, 0.1))
        begins = stretch(0, square=Estimate(1.0, 0.01), raw_square=Estimate(1.0, 0.1))
        (found,) = findings([begins, ends], None)
        assert "ends at 0.90, 90 % of its largest value, but 100 % of its square is noise" in found.sentence
        assert "it ends near zero" in found.sentence

    def test_noise_hides_a_gradient_that_batches_alone_would_not_show(self):
        """On ½‖θ − x‖² with constant steps the batch's norm stays while the gradient vanishes."""
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(512, 20, generator=rng)
        layer = seeded(lambda: nn.Linear(1, 20))
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.fill_(3.0)
        layer.weight.requires_grad_(False)

        def loss(model, batch):
            return (model(batch[0]) - batch[1]).square().sum(1).mean() / 2

        problem = Problem(layer, loss, (torch.zeros(512, 1), x))
        train(problem, "sgd", lr=0.01, batch_size=32, epochs=100, record=self.folder, budget=math.inf)
        summary = summarise(read_run(self.folder))
        first, last = summary.windows[0], summary.windows[-1]
        assert summary.gradient_ends == "near zero"
        assert last.raw_norm == pytest.approx(math.sqrt(20 / 32), rel=0.2)  # tr Σ/B, for ever
        assert last.norm[2] < 0.1 * first.norm[0]
        assert last.norm[2] < 0.7 * last.raw_norm

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path / "run"


class TestFindings:
    def test_what_the_loss_does_at_the_end(self):
        def said(*values):
            return trend([stretch(i, loss=Estimate(v, 0.01, 20)) for i, v in enumerate(values)])[0]

        assert said(2.0, 1.0, 0.5) == "falling"
        assert said(2.0, 0.5, 0.5) == "levelled"
        assert said(2.0, 0.5, 0.9) == "rising"
        assert said(2.0) == "short"
        assert trend([])[0] == "recorded"

    def test_holds_since_the_first_of_the_last_stretches_that_show_it(self):
        seen = [stretch(i, critical=c) for i, c in enumerate((5.0, 0.5, 3.0, 0.9, 0.7))]
        (found,) = findings(seen, None)
        assert (found.topic, found.since) == ("steps", 300)
        edges = [stretch(i, edge=e) for i, e in enumerate((0.1, 0.9, 1.1))]
        (found,) = findings(edges, None)
        assert (found.topic, found.since) == ("stability", 100)
        assert findings([stretch(0)], None) == ()

    def test_a_random_walk_explains_what_the_null_says(self):
        """Antognini and Sohl-Dickstein: 6/(π²k²) whatever the dimension, if it is large."""
        rng = np.random.default_rng(0)
        walk = rng.normal(size=(400, 512)).cumsum(axis=0)
        shape = path_shape(run_of(sketches=(np.arange(400.0), walk)))
        assert shape.explained == pytest.approx(shape.random_walk, abs=0.02)
        straight = path_shape(run_of(sketches=(np.arange(9.0), np.outer(np.arange(9.0), np.ones(4)))))
        assert straight.explained[0] == pytest.approx(1.0)
        assert straight.straightness == pytest.approx(1.0)
        assert path_shape(run_of(sketches=(np.arange(3.0), np.ones((3, 4))))) is None
        assert path_shape(run_of()) is None

    @pytest.mark.parametrize(("noises", "cuts"), [(1, 12), (15, 12), (16, 4), (60, 12)])
    def test_few_measurements_of_the_noise_do_not_merge_the_stretches(self, noises, cuts):
        losses = (range(1, 1001), [1.0] * 1000)
        at = np.linspace(1, 1000, noises)
        run = run_of(**{"loss/train": losses, "grad/noise": (at, [1.0] * noises)})
        assert len(windows(run)) == cuts

    def test_a_recording_of_the_noise_alone_has_a_stretch(self):
        assert len(windows(run_of(**{"grad/noise": ([1, 2], [1.0, 1.0])}))) == 1

    @pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 8, 47, 48, 49, 1000])
    def test_windows_cover_the_run_once(self, count):
        found = windows(run_of(**{"loss/train": (range(1, count + 1), [1.0] * count)}))
        assert len(found) == min(max(count // 4, 1), 12) if count else found == ()
        if found:
            assert (found[0].begin, found[-1].end) == (0, count)
            assert all(a.end == b.begin for a, b in pairwise(found))
            assert all(w.loss.value == 1.0 for w in found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "a"
    train(Problem.builtin("xor"), "momentum", lr=0.1, epochs=60, record=folder, budget=math.inf)
    return folder


class TestShow:
    def test_it_tells_people_and_machines(self, folder, tmp_path):
        page, figures = tmp_path / "run.html", tmp_path / "figures"
        arguments = ["show", str(folder), "--json", "-", "--html", str(page), "--figures", str(figures)]
        result = CliRunner().invoke(command, arguments, catch_exceptions=False)
        said = json.loads(result.stdout)
        assert said["schema"] == "thalweg/run-summary@1"
        assert said["steps"] == 60
        assert said["gradient_ends"] in {"near zero", "far from zero", "undecided"}
        assert {one["topic"] for one in said["findings"]} >= {"noise", "stability", "path"}
        assert "random walk" in page.read_text()
        assert {"loss.png", "loss.svg", "path.svg"} <= {path.name for path in figures.iterdir()}
        text = CliRunner().invoke(command, ["show", str(folder)], catch_exceptions=False).output
        assert "60 steps of SGD" in text
        assert "recording took" in " ".join(text.split())

    def test_an_empty_and_a_missing_run_are_told(self, tmp_path):
        model = mlp()
        Recorder(tmp_path / "empty", model, torch.optim.SGD(model.parameters(), lr=0.1)).close()
        result = CliRunner().invoke(command, ["show", str(tmp_path / "empty")], catch_exceptions=False)
        assert "no loss was recorded" in result.output
        with pytest.raises(Exception, match="there is no recorded run"):
            CliRunner().invoke(command, ["show", str(tmp_path)], catch_exceptions=False)

    def test_pictures_show_their_curves(self, folder):
        for figure in summarise(read_run(folder)).pictures:
            assert to_svg(figure).count("<path") > 5
