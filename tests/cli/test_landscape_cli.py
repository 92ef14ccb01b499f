"""``thalweg landscape`` as a user meets it."""

import json

import pytest
import torch
from safetensors.torch import save_file

import thalweg
from thalweg.cli.main import main


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["landscape", *map(str, arguments)])
    return stopped.value.code


def test_a_picture_is_written_and_json_holds_nothing_else(tmp_path, capsys):
    assert run("saddle", "--png", tmp_path / "s.png", "--svg", tmp_path / "s.svg", "--json", "-") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "thalweg/plane@1"
    assert record["critical_points"][0]["kind"] == "saddle"
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert "saddle 0" in (tmp_path / "s.svg").read_text()


def test_a_function_of_one_variable_is_drawn_as_a_curve(capsys):
    assert run("cube") == 0
    assert "inflection" in capsys.readouterr().out


def test_the_way_between_two_checkpoints(tmp_path, capsys):
    problem = thalweg.Problem.builtin("xor")
    ends = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for i, file in enumerate(ends):
        save_file({n: t + 0.1 * i for n, t in problem.model.state_dict().items()}, file)
    assert run("xor", "--path", *ends, "--points", 7, "--json", "-") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "thalweg/path@1"
    assert record["distance"] == pytest.approx(0.3, rel=1e-4)
    assert torch.tensor(record["ways"][0]["alphas"]).min() == -1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cube", "--plane"), "no plane"),
        (("saddle", "--path", "a.pt", "b.pt"), "no checkpoints"),
        (("saddle", "--png", "picture.jpg"), "must end in .png"),
        (("xor", "--line", "--path", "a.pt", "b.pt"), "not both"),
        (("xor", "--path", "a.pt", "b.pt", "--reach", "2"), "are for lines and planes"),
        (("xor", "--path", "a.pt", "b.pt", "--along", "curvature"), "are for lines and planes"),
        (("saddle", "--points", "2"), "2 is not in the range"),
    ],
)
def test_wrong_usage_is_told_in_one_message_and_ends_with_2(arguments, message, capsys):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
