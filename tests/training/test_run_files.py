"""A run's files: what survives a kill, damage, a full disk and another version, and what is said about it."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import numpy as np
import pytest
import torch

from tests.models import mlp
from thalweg.errors import InputError
from thalweg.training import storage
from thalweg.training.recorded import read_run
from thalweg.training.recorder import Recorder

WANTED = {"loss": 1, "gradient": 1, "path": 1}


def step(model, optimizer, recorder):
    optimizer.zero_grad()
    recorder.loss(model(torch.ones(3, 4, dtype=torch.float64)).square().sum()).backward()
    optimizer.step()


def record(folder, steps, model=None, **settings):
    model = model or mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    wanted = {"quantities": WANTED, "budget": float("inf"), **settings}
    with Recorder(folder, model, optimizer, **wanted) as recorder:
        for _ in range(steps):
            step(model, optimizer, recorder)
    return model


def test_a_killed_run_is_readable_up_to_its_last_second(tmp_path):
    program = """
        import sys, torch, thalweg
        model = torch.nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        recorder = thalweg.Recorder(sys.argv[1], model, optimizer, budget=float("inf"))
        while True:
            optimizer.zero_grad()
            recorder.loss(model(torch.ones(2, 4)).square().sum()).backward()
            optimizer.step()
            if recorder.step == 50:
                print("going", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"going\n"
        lines = tmp_path / "run" / storage.SCALARS
        before = time.monotonic()
        while lines.stat().st_size == 0 and time.monotonic() < before + 60:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    run = read_run(tmp_path / "run")
    assert run.last_step >= 50
    assert run.notes == ()
    steps, losses = run.series("loss/train")
    assert list(steps) == list(range(1, run.last_step + 1))
    assert np.isfinite(losses).all()
    assert len(run.to_pandas()) == run.last_step


def test_half_a_line_at_the_end_is_what_a_kill_leaves(tmp_path):
    record(tmp_path / "run", 5)
    path = tmp_path / "run" / storage.SCALARS
    whole = path.read_bytes()
    cut = whole[: whole.index(b'{"step":5,"time"') + 14]
    path.write_bytes(cut)
    with (tmp_path / "run" / storage.SKETCHES).open("ab") as file:
        file.write(b"\0" * 11)
    run = read_run(tmp_path / "run")
    assert run.notes == ()
    assert list(run.series("loss/train")[0]) == [1, 2, 3, 4]
    record(tmp_path / "run", 2, resume_from=4)  # what is added does not run into it
    run = read_run(tmp_path / "run")
    assert list(run.series("loss/train")[0]) == [1, 2, 3, 4, 5, 6]
    assert list(run.sketches()[0]) == [0, 1, 2, 3, 4, 5, 6]


def test_damaged_lines_are_left_out_and_counted(tmp_path):
    record(tmp_path / "run", 5)
    path = tmp_path / "run" / storage.SCALARS
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"\xff\x00garbage\n"
    lines[2] = b'{"step": -3, "loss/train": 1}\n'
    path.write_bytes(b"".join(lines))
    run = read_run(tmp_path / "run")
    assert list(run.series("loss/train")[0]) == [1, 4, 5]
    assert "2 of 6 lines are damaged" in " ".join(run.notes)


def test_without_its_description_a_run_is_read_but_not_gone_on_with(tmp_path):
    record(tmp_path / "run", 3)
    (tmp_path / "run" / storage.META).write_text("{half")
    run = read_run(tmp_path / "run")
    assert len(run.series("loss/train")[0]) == 3
    assert "meta.json is missing or damaged" in run.notes[0]
    with pytest.raises(InputError, match=r"cannot be gone on with: meta.json is missing or damaged"):
        record(tmp_path / "run", 1, resume_from=3)


def test_a_run_of_another_version_is_refused_and_left_as_it_is(tmp_path):
    record(tmp_path / "run", 3)
    meta = tmp_path / "run" / storage.META
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps({**content, "schema": "thalweg/run@2", "thalweg": "9.1"}))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(
        InputError, match=r"another version.*expected: thalweg/run@1; got: thalweg/run@2.*9\.1"
    ):
        read_run(tmp_path / "run")
    with pytest.raises(InputError, match="another version"):
        record(tmp_path / "run", 1, resume_from=3)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_run_is_never_written_over_and_only_gone_on_with_by_its_own_model(tmp_path):
    record(tmp_path / "run", 3)
    with pytest.raises(InputError, match="nothing is ever written over"):
        record(tmp_path / "run", 1)
    with pytest.raises(InputError, match="one of another model"):
        record(tmp_path / "run", 1, model=mlp((4, 7, 3)), resume_from=3)
    with pytest.raises(InputError, match="there is no recorded run"):
        read_run(tmp_path)


def test_going_on_supersedes_what_was_recorded_after_that_step(tmp_path):
    model = record(tmp_path / "run", 6)
    record(tmp_path / "run", 2, model=model, resume_from=3)
    run = read_run(tmp_path / "run")
    assert run.sessions == 2
    assert list(run.series("loss/train")[0]) == [1, 2, 3, 4, 5]
    assert list(run.sketches()[0]) == [0, 1, 2, 3, 4, 5]
    assert (np.diff(run.series("time")[1]) > 0).all()
    assert [event.kind for event in run.events] == ["cost", "session", "cost"]
    assert run.series("dist/init")[1][-1] > run.series("dist/init")[1][2]  # still from the first start


class TestAFullDisk:
    @pytest.fixture
    def disk(self, monkeypatch):
        """A disk that takes so many bytes more; half a write is one of the things that happen."""
        room, write = [0], os.write

        def limited(descriptor, data):
            if room[0] <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = bytes(data)[: room[0]]
            room[0] -= len(taken)
            return write(descriptor, taken)

        monkeypatch.setattr(storage.os, "write", limited)
        return room

    def test_is_told_once_and_when_there_is_room_again_nothing_is_lost(self, tmp_path, disk, monkeypatch):
        monkeypatch.setattr("thalweg.training.recorder.WRITE_EVERY", 0.0)
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        recorder = Recorder(tmp_path / "run", model, optimizer, quantities=WANTED, budget=float("inf"))
        disk[0] = 333
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(20):
                step(model, optimizer, recorder)
        assert "No space left on device); training goes on" in str(told[0].message)
        assert len(told) == 1
        assert (tmp_path / "run" / storage.SCALARS).stat().st_size <= 333
        disk[0] = 1 << 30
        for _ in range(5):
            step(model, optimizer, recorder)
        recorder.close()
        run = read_run(tmp_path / "run")
        assert list(run.series("loss/train")[0]) == list(range(1, 26))
        assert list(run.sketches()[0]) == list(range(26))
        assert run.notes == ()
        assert [e.kind for e in run.events] == ["storage", "cost"]

    def test_to_the_end_costs_the_end_of_the_record_only(self, tmp_path, disk):
        model, twin = mlp(), mlp()
        disk[0] = 500
        with pytest.warns(UserWarning, match="could not be written|cannot be written"):
            record(tmp_path / "run", 20, model=model)
        disk[0] = 1 << 30
        record(tmp_path / "whole", 20, model=twin)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
        assert read_run(tmp_path / "run").series("loss/train")[0][0] == 1


def test_a_folder_that_cannot_be_made_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a run cannot be recorded in"):
        record(tmp_path / "file" / "run", 1)
