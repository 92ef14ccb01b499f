"""New weights go into a new file, whole or not at all, whatever fails."""

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.models import mlp, seeded
from thalweg.errors import InputError
from thalweg.problem import saving
from thalweg.problem.checkpoint import apply_checkpoint, read_checkpoint
from thalweg.problem.problem import Problem
from thalweg.problem.saving import require_free, save_weights


class Tied(nn.Module):
    """Two layers that share a weight, a transposed parameter, a scalar, integers, an empty buffer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight
        self.turned = nn.Parameter(torch.arange(6.0).view(2, 3).t())
        self.scale = nn.Parameter(torch.tensor(float("nan")))
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("empty", torch.zeros(0, 4))

    def forward(self, x):
        return self.out(self.embed(x))


def content(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", ["new.safetensors", "new.pt", "new.pth", "new.ckpt", "new.bin"])
def test_what_is_read_back_is_what_was_written(tmp_path, name):
    model = seeded(Tied)
    path = save_weights(model, tmp_path / name)
    other = seeded(Tied, seed=1)
    other.load_state_dict(content(path), strict=True)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(7.0), other.state_dict()[key].nan_to_num(7.0)), key
        assert tensor.dtype == other.state_dict()[key].dtype
    assert other.embed.weight is other.out.weight
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["new.safetensors", "new.pt"])
def test_our_own_reader_takes_the_file(tmp_path, name):
    model, other = mlp(), mlp(seed=1)
    save_weights(model, tmp_path / name)
    problem = Problem(other, nn.MSELoss(), (torch.zeros(2, 4), torch.zeros(2, 3)))
    apply_checkpoint(problem, read_checkpoint(tmp_path / name))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_file_has_the_users_mode(tmp_path):
    mask = os.umask(0o027)
    try:
        for name in ("new.safetensors", "new.pt"):
            assert save_weights(mlp(), tmp_path / name).stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(mask)


def test_nothing_is_ever_written_over(tmp_path):
    path = tmp_path / "old.safetensors"
    path.write_bytes(b"precious")
    dangling = tmp_path / "link.pt"
    dangling.symlink_to(tmp_path / "nowhere")
    for taken in (path, dangling):
        with pytest.raises(InputError, match="exists already"):
            save_weights(mlp(), taken)
    assert path.read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_written_over(tmp_path, monkeypatch, links):
    path = tmp_path / "new.safetensors"
    if not links:
        monkeypatch.setattr(saving.os, "link", _refuse(errno.EPERM))
    write = saving._write_safetensors

    def and_another(state, draft):
        write(state, draft)
        path.write_bytes(b"somebody else's")

    monkeypatch.setattr(saving, "_write_safetensors", and_another)
    with pytest.raises(InputError, match="exists already"):
        save_weights(mlp(), path)
    assert path.read_bytes() == b"somebody else's"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_system_without_hard_links_does_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(saving.os, "link", _refuse(errno.EPERM))
    path = save_weights(mlp(), tmp_path / "new.pt")
    assert content(path).keys() == mlp().state_dict().keys()
    assert [p.name for p in tmp_path.iterdir()] == ["new.pt"]


def test_places_and_names_that_cannot_be_written_are_refused_first(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        require_free(tmp_path / "no" / "new.pt")
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        require_free(tmp_path / "new.txt")


def test_extra_state_goes_where_it_can_be_read_without_running_code(tmp_path):
    class Extra(nn.Linear):
        state = None

        def get_extra_state(self):
            return self.state

        def set_extra_state(self, state):
            self.state = state

    model = seeded(lambda: Extra(2, 2))
    model.state = {"step": 3}
    with pytest.raises(InputError, match=r"ends in \.pt"):
        save_weights(model, tmp_path / "new.safetensors")
    assert content(save_weights(model, tmp_path / "new.pt"))["_extra_state"] == {"step": 3}
    model.state = subprocess.Popen
    with pytest.raises(InputError, match="without running code"):
        save_weights(model, tmp_path / "code.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["new.pt"]


def _refuse(number):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return refuse


CALLS = ("open", "fsync", "link", "close", "fstat")


@pytest.mark.parametrize("name", ["new.safetensors", "new.pt"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", CALLS)
def test_the_kth_call_that_fails_leaves_a_whole_file_or_none(tmp_path, monkeypatch, name, number, call):
    old = tmp_path / "old.pt"
    old.write_bytes(b"precious")
    real, model, failures = getattr(os, call), mlp(), 0
    for k in range(1, 9):
        count = 0

        def failing(*arguments, k=k, **options):
            nonlocal count, failures
            count += 1
            if count == k:
                failures += 1
                if call == "close":
                    real(*arguments, **options)
                raise OSError(number, os.strerror(number))
            return real(*arguments, **options)

        path = tmp_path / f"{k}-{name}"
        monkeypatch.setattr(saving.os, call, failing)
        refused = None
        try:
            save_weights(model, path)
        except InputError as error:
            refused = str(error)
        finally:
            monkeypatch.setattr(saving.os, call, real)
        assert path.exists() == (refused is None)
        if refused is not None:
            assert "nothing was left" in refused
        else:
            assert content(path).keys() == model.state_dict().keys()
        assert not [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"]
    assert failures > 0
    assert old.read_bytes() == b"precious"


def test_after_a_failed_fsync_the_whole_draft_is_written_again(tmp_path, monkeypatch):
    real, synced, drafts = os.fsync, [], []
    write = saving._write_safetensors

    def fail_once(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        if len(synced) == 1:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    def noted(state, draft):
        drafts.append(draft)
        write(state, draft)

    monkeypatch.setattr(saving.os, "fsync", fail_once)
    monkeypatch.setattr(saving, "_write_safetensors", noted)
    path = save_weights(mlp(), tmp_path / "new.safetensors")
    assert len(set(drafts)) == 2
    assert content(path).keys() == mlp().state_dict().keys()


def test_a_disk_that_returns_other_bits_is_noticed(tmp_path, monkeypatch):
    stored = {name: tensor + 1 for name, tensor in mlp().state_dict().items()}
    monkeypatch.setattr(saving, "load_file", lambda path: stored)
    with pytest.raises(InputError, match="is not what was written"):
        save_weights(mlp(), tmp_path / "new.safetensors")
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
    import os, resource, signal, sys
    from torch import nn
    from thalweg.errors import InputError
    from thalweg.problem import saving
    how, path = sys.argv[1], sys.argv[2]
    if how == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    elif how != "never":
        place, k = how.split(":")
        real, seen = getattr(os, place), [0]
        def killed(*arguments, **options):
            seen[0] += 1
            if seen[0] == int(k):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        setattr(saving.os, place, killed)
    try:
        saving.save_weights(nn.Linear(100, 100), path)
    except InputError as error:
        sys.exit(f"{error}")
"""


def _in_a_process(how, path):
    code = textwrap.dedent(SCRIPT)
    return subprocess.run(
        [sys.executable, "-c", code, how, str(path)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["new.safetensors", "new.pt"])
def test_a_kill_at_any_call_leaves_a_whole_file_or_none(tmp_path, name):
    old = tmp_path / "old.safetensors"
    old.write_bytes(b"precious")
    before = hashlib.sha256(old.read_bytes()).hexdigest()
    killed = 0
    for how in ("open:1", "open:2", "open:3", "fsync:1", "fsync:2", "link:1", "close:1", "close:2", "never"):
        path = tmp_path / f"{how.replace(':', '-')}-{name}"
        done = _in_a_process(how, path)
        killed += done.returncode == -signal.SIGKILL
        if path.exists():
            assert content(path)["weight"].shape == (100, 100)
        else:
            assert done.returncode != 0
        assert hashlib.sha256(old.read_bytes()).hexdigest() == before
    assert killed >= 6


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no such limit here")
@pytest.mark.parametrize("name", ["new.safetensors", "new.pt"])
def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, name):
    done = _in_a_process("full", tmp_path / name)
    assert done.returncode == 1
    assert "cannot write the weights" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
