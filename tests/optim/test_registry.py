"""Optimisers by name: PyTorch's, ours, MATLAB's names, and those of any other library."""

import subprocess
import sys

import pytest
import torch

import thalweg.optim as optim
from thalweg.errors import InputError
from thalweg.optim.registry import closure_of, get, names
from thalweg.optim.stop_rule import StopRule

MATLAB = {
    # min_grad as the manual prints it
    "traingd": 1e-5,
    "traingdm": 1e-5,
    "traingda": 1e-5,
    "traingdx": 1e-5,
    "trainrp": 1e-5,
    "traincgf": 1e-10,
    "traincgp": 1e-10,
    "traincgb": 1e-10,
    "trainscg": 1e-6,
    "trainbfg": 1e-6,
    "trainoss": 1e-10,
    "trainlm": 1e-7,
}


def parameters():
    return [torch.zeros(3, requires_grad=True)]


@pytest.mark.parametrize("name", list(names()))
def test_every_name_makes_an_optimiser(name):
    factory = get(name)
    assert isinstance(factory(parameters()), torch.optim.Optimizer)


@pytest.mark.parametrize("name", optim.__all__)
def test_every_public_name_is_there_and_is_no_module(name):
    assert callable(getattr(optim, name))


def test_the_package_lists_its_names_and_no_other():
    assert "LAMB" in dir(optim)
    with pytest.raises(AttributeError, match="Lamb"):
        _ = optim.Lamb


def test_names_come_with_a_line_each():
    for name, summary in names().items():
        assert summary == summary.strip()
        assert 5 < len(summary) <= 90, name
        assert get(name).source


def test_pytorchs_own_come_with_pytorchs_defaults():
    for name, kind in {
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "rprop": torch.optim.Rprop,
    }.items():
        made = get(name)(parameters())
        assert type(made) is kind
        assert made.defaults == kind(parameters()).defaults
    assert get("momentum")(parameters()).defaults["momentum"] == 0.9
    assert get("nesterov")(parameters()).defaults["nesterov"] is True


def test_settings_take_the_place_of_the_defaults():
    made = get("momentum")(parameters(), lr=0.5, momentum=0.7, weight_decay=0.1)
    assert (made.defaults["lr"], made.defaults["momentum"], made.defaults["weight_decay"]) == (0.5, 0.7, 0.1)


@pytest.mark.parametrize("name", MATLAB)
def test_matlabs_names_stop_as_its_manual_says(name):
    rule = get(f"matlab:{name}").stop
    assert rule == StopRule(epochs=1000, goal=0.0, min_grad=MATLAB[name], max_fail=6)
    assert get(f"matlab:{name}").whole


def test_matlabs_rprop_has_matlabs_steps():
    group = get("matlab:trainrp")(parameters()).param_groups[0]
    assert (group["lr"], group["etas"], group["step_sizes"]) == (0.07, (0.5, 1.2), (1e-6, 50.0))


def test_there_are_all_of_matlabs_names():
    assert {name.removeprefix("matlab:") for name in names() if name.startswith("matlab:")} == MATLAB.keys()


def test_any_other_class_is_found_by_its_path():
    factory = get("torch.optim:NAdam")
    assert factory.lr == 2e-3
    assert isinstance(factory(parameters()), torch.optim.NAdam)
    assert factory(parameters(), lr=0.1).defaults["lr"] == 0.1
    assert get("torch.optim:LBFGS").evaluates
    assert not get("torch.optim:SGD").evaluates


WRONG = {
    "adma": "try: 'adam'",
    "Adam": "try: 'adam'",
    "levenberg_marquardt": "try: 'levenberg-marquardt'",
    "matlab:trainlmm": "try: 'matlab:trainlm'",
    "qqqqqq": "package.module:Class",
    "nowhere_at_all:Lion": "no module named 'nowhere_at_all'; likely cause: the package is not installed",
    "torch.optim:Lion": "'torch.optim' has no optimiser 'Lion'; got: the optimisers ASGD, Adadelta",
    "builtins:list": "made no optimiser",
    ":Adam": "there is no optimiser",
    "": "there is no optimiser",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_name_is_told_with_what_to_try(name):
    with pytest.raises(InputError) as caught:
        get(name)(parameters())
    assert WRONG[name] in str(caught.value)


def test_a_module_that_fails_is_told_with_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_optimisers.py").write_text("raise RuntimeError('no such card')")
    (tmp_path / "needy_optimisers.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="RuntimeError while broken_optimisers was imported: no such card"):
        get("broken_optimisers:Lion")
    with pytest.raises(InputError, match="likely cause: needy_optimisers needs it"):
        get("needy_optimisers:Lion")


def test_a_setting_that_is_not_taken_is_told_with_those_that_are():
    with pytest.raises(InputError, match="expected: settings among lr, betas, eps"):
        get("adam")(parameters(), momentum=0.9)
    with pytest.raises(InputError, match="Invalid learning rate"):
        get("adam")(parameters(), lr=-1.0)
    with pytest.raises(InputError, match="takes no learning rate"):
        get("bfgs")(parameters(), lr=0.1)


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"min_grad": -1.0}, {"min_grad": float("nan")}, {"max_fail": 0}]
)
def test_a_stop_rule_that_cannot_hold_is_refused(bad):
    with pytest.raises(InputError, match="cannot hold"):
        StopRule(**bad)


def test_the_closure_of_an_optimiser_is_known_by_its_class():
    class Own(torch.optim.Adam):
        pass

    assert closure_of(Own(parameters())) == "standard"
    for name in ("trust-region", "levenberg-marquardt", "dogleg", "cubic-newton"):
        assert closure_of(get(name)(parameters())) == get(name).closure != "standard"


def test_names_are_told_without_any_of_the_classes():
    code = (
        "import sys, thalweg.optim.registry as r; r.names(); "
        "print([m for m in sys.modules if m in ('thalweg.optim.lamb', 'scipy', 'sklearn')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
