"""``thalweg compare`` and ``thalweg batch-size`` as a user meets them."""

import json
from pathlib import Path

import pytest

from thalweg.cli.main import main
from thalweg.problem.intact import random_state_kept

NETS = Path(__file__).parents[1] / "studies" / "nets.py"


@pytest.fixture
def thalweg(tmp_path, monkeypatch, capsys):
    """Run the command line in this process; return its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with random_state_kept(), pytest.raises(SystemExit) as stopped:
            main(list(map(str, arguments)))
        said = capsys.readouterr()
        return stopped.value.code or 0, said.out, said.err

    return call


def test_a_comparison_prints_a_table_and_leaves_page_pictures_and_trials(thalweg, tmp_path):
    words = ["--optimizers", "sgd, adam", "--seeds", 2, "--rates", 2, "--epochs", 2, "--executor", "serial"]
    code, out, err = thalweg("compare", f"{NETS}:problem", *words, "--output", "study")
    assert code == 0
    assert "against the best" in out
    assert "study/" in err
    made = {path.name for path in (tmp_path / "study").iterdir()}
    assert {"compare.json", "compare.html", "curves.png", "sensitivity.png", "held-out.png"} <= made
    code, out, _ = thalweg("compare", f"{NETS}:problem", *words, "--output", "study", "--json", "-")
    assert code == 0
    assert json.loads(out)["schema"] == "thalweg/comparison@1"


def test_batch_sizes_are_told_in_json(thalweg):
    words = ["--sizes", "16,96", "--seeds", 2, "--rates", 2, "--epochs", 1, "--updates", 4]
    words += ["--executor", "serial", "--json", "-"]
    code, out, _ = thalweg("batch-size", f"{NETS}:problem", *words)
    assert code == 0
    assert [entry["size"] for entry in json.loads(out)["sizes"]] == [16, 96]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "digits-mlp", "--executor", "clouds"], "there is no such executor"),
        (["compare", "digits-mlp", "--optimizers", "adm"], "there is no optimiser 'adm'"),
        (["batch-size", "digits-mlp", "--sizes", "1,many"], "numbers with commas between"),
        (["batch-size", "digits-mlp", "--seeds", "1"], "--seeds"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(thalweg, arguments, said):
    code, out, err = thalweg(*arguments)
    assert code == 2
    assert said in err
    assert out == ""
    assert "Traceback" not in err
