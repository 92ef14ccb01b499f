"""Files that pretend to be checkpoints: none runs code, each gets one clear error, soon, in little memory."""

import gc
import json
import os
import random
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.hostile_files import archive, bombs, files_with_code, odd_files
from tests.hostile_pickles import called, lying_pickles, program, storage, table, tensor, text
from thalweg.errors import CheckpointError
from thalweg.problem.checkpoint import read_checkpoint

SECONDS = 2.0
LONGEST = 400
CLEAR = ("could run code", "torch before 1.6", "a tar archive", "is damaged", "is no checkpoint")
CHILD_MEMORY = 1 << 30  # address space that a bomb may take beyond what the process has


def require_clear(said: str) -> None:
    assert said.isprintable(), said
    assert len(said) <= LONGEST, said
    assert "Traceback" not in said


def refusal(path: Path) -> str:
    """Read a file that must be refused, and return what was said after judging that."""
    begun = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert type(caught.value) is CheckpointError
    assert time.process_time() - begun < SECONDS
    require_clear(str(caught.value))
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def test_no_file_runs_code_whatever_it_names_and_however_it_is_wrapped(write, tmp_path):
    target, count, unclear = tmp_path / "ran", 0, []
    for name, content in files_with_code(str(target)):
        path = write(name, content)
        said = refusal(path)
        assert not target.exists(), name
        if not any(part in said for part in CLEAR):
            unclear.append((name, said))
        path.unlink()
        count += 1
    assert unclear == []
    assert count >= 2_000


def test_the_error_names_what_the_file_asks_for(write):
    for name, content in (
        ("a.pt", archive(program(table(weight=tensor(), x=called("os", "system", text("true")))))),
        ("b.safetensors", program(called("os", "system", text("true")))),
        ("c.ckpt", b"\x80\x04" + text("os") + text("system") + b"\x93" + text("true") + b"\x85R."),
        ("d.pt", archive(b"\x80\x04" + text("os") + text("system") + b"\x93" + text("true") + b"\x85R.")),
    ):
        assert "os.system" in refusal(write(name, content))
    assert "model.state_dict()" in refusal(write("e.pt", archive(program(called("__main__", "Net")))))
    number = called("numpy._core.multiarray", "scalar", text("f8"))
    assert "float(x)" in refusal(write("f.pt", archive(program(table(weight=tensor(), x=number)))))


@pytest.mark.parametrize("lie", lying_pickles())
def test_lies_about_tensors_and_containers_are_seen_before_anything_is_built(write, lie):
    pickled, said = lying_pickles()[lie]
    assert any(part in refusal(write("lie.pt", archive(pickled))) for part in said.split("|"))


@pytest.mark.parametrize("file", odd_files())
def test_a_file_that_is_something_else_is_named(write, file):
    content, said = odd_files()[file]
    answer = refusal(write(file, content))
    assert any(part in answer for part in said.split("|")), answer


def test_the_same_pieces_put_together_honestly_are_loaded(write):
    """Without this the tests above could pass because the pieces are wrong in another way than meant."""
    whole = read_checkpoint(write("good.pt", archive(program(table(weight=tensor())))))
    assert torch.equal(whole.weights["weight"], torch.zeros(4))
    views = table(
        a=tensor(size=(2,), stride=(2,)), b=tensor(offset=4, size=(0,)), c=tensor(offset=3, size=(1,))
    )
    assert read_checkpoint(write("views.pt", archive(program(views)))).weights["a"].shape == (2,)
    twice = table(a=tensor(storage()), b=tensor(storage(), size=(2, 2), stride=(2, 1)))
    assert read_checkpoint(write("twice.pt", archive(program(twice)))).weights["b"].shape == (2, 2)


def test_what_the_program_allows_torch_to_load_is_still_refused(write, tmp_path):
    """torch's list can be extended for the whole process; ours cannot."""
    path = tmp_path / "allowed.pt"
    torch.save({"weight": torch.ones(2), "x": torch.nn.ReLU()}, path)
    with torch.serialization.safe_globals([torch.nn.ReLU, set]):
        assert "torch.nn.modules.activation.ReLU" in refusal(path)


def test_folders_pipes_and_names_that_are_no_files_are_refused(tmp_path):
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(program(called("os", "system", text("true"))))
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    cases = {
        "dcp": "distributed checkpoint",
        "": "a folder",
        "pipe.pt": "no checkpoint",
        "loop.pt": "loop.pt",
    }
    cases |= {
        "missing.pt": "no checkpoint",
        "x" * 300: "cannot be read",
        "zero\0.pt": "zero",
        "/dev/zero": "zero",
    }
    cases |= {"\x1b[2J\u202e.pt": "there is no checkpoint"}
    for name, said in cases.items():
        assert said in refusal(tmp_path / name)


def test_a_file_that_is_cut_off_while_it_is_read_is_an_error_and_not_a_signal(tmp_path, monkeypatch):
    import thalweg.problem.checkpoint as checkpoint

    weights = {"weight": torch.arange(300_000.0)}
    for path, save, step in (
        (tmp_path / "a.pt", torch.save, "verify"),
        (tmp_path / "b.safetensors", save_file, "read_whole"),
    ):
        save(weights, path)
        original = getattr(checkpoint, step)

        def cutting(*arguments, path=path, original=original):
            os.truncate(path, 100_000)
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, step, cutting)
            assert "cut off" in refusal(path)
    save, path = torch.save, tmp_path / "c.pt"
    save(weights, path)
    load = torch.load

    def late(*arguments, **options):
        os.truncate(path, 100_000)
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", late)
    assert "cannot be read" in refusal(path)


# --- bombs: each in a process of its own whose memory is limited

CHILD = """
import json, os, resource, sys, time
from thalweg.errors import CheckpointError
from thalweg.problem.checkpoint import read_checkpoint

def answer(path):
    with open("/proc/self/statm") as statm:
        taken = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        read_checkpoint(path)
        said = "loaded"
    except CheckpointError as error:
        said = "refused: " + str(error)
    except BaseException as error:
        said = type(error).__name__ + ": " + str(error)
    seconds, after = time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"said": said, "seconds": seconds, "grown": (after - before) * 1024}

for path in sys.argv[1:]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, json.dumps(answer(path)).encode())
        os._exit(0)
    os.close(writer)
    said = b""
    while block := os.read(reader, 65536):
        said += block
    os.close(reader)
    os.waitpid(child, 0)
    print(said.decode() or '{"said": "killed", "seconds": 0, "grown": 0}')
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the memory of a process is limited as Linux does"
)
def test_bombs_are_refused_soon_and_in_little_memory(write):
    paths = [write(name, content) for name, content in bombs().items()]
    assert len(paths) >= 40
    gc.collect()
    finished = subprocess.run(
        [sys.executable, "-c", CHILD.replace("MEMORY", str(CHILD_MEMORY)), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=170,
        check=True,
    )
    answers = {
        path.name: json.loads(line) for path, line in zip(paths, finished.stdout.splitlines(), strict=True)
    }
    wrong = {
        name: answer
        for name, answer in answers.items()
        if not answer["said"].startswith("refused: ")
        or answer["seconds"] > SECONDS
        or len(answer["said"]) > LONGEST + 9
        or not answer["said"].isprintable()
    }
    assert wrong == {}


# --- damage


def small(path: Path) -> dict[str, torch.Tensor]:
    weights = {f"{i}.weight": torch.arange(6.0).view(2, 3) + i for i in range(3)} | {"n": torch.tensor(3)}
    if path.suffix == ".safetensors":
        save_file(weights, path, metadata={"format": "pt"})
    else:
        state = {
            "state": {0: {"step": torch.tensor(2.0), "exp_avg": torch.ones(3)}},
            "param_groups": [{"lr": 0.1}],
        }
        torch.save({"model": weights, "optimizer": state, "epoch": 3, "names": ("a", None, 1.5)}, path)
    return weights


MANY = pytest.param(2_000, marks=pytest.mark.slow)


@pytest.fixture(params=[".pt", ".safetensors"])
def whole(request, tmp_path):
    path = tmp_path / f"whole{request.param}"
    return path, small(path)


def outcome(path: Path) -> dict[str, torch.Tensor] | None:
    """Read a damaged file: its weights, or None where it was refused as it must be."""
    begun = time.process_time()
    try:
        return dict(read_checkpoint(path).weights)
    except CheckpointError as error:
        return require_clear(str(error))
    except Exception:
        pytest.fail(f"{path.read_bytes()!r}\n{traceback.format_exc()}")
    finally:
        assert time.process_time() - begun < SECONDS


def same(found: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> bool:
    return found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_cut_off_anywhere_is_refused(whole, tmp_path, step):
    path, _ = whole
    content = path.read_bytes()
    cut = tmp_path / ("cut" + path.suffix)
    for length in [*range(0, len(content), step), len(content) - 1]:
        cut.write_bytes(content[:length])
        refusal(cut)


@pytest.mark.parametrize("count", [200, pytest.param(1 << 20, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_a_torch_file_is_seen_or_changes_nothing(tmp_path, count):
    path = tmp_path / "whole.pt"
    weights = small(path)
    content = bytearray(path.read_bytes())
    draw = random.Random(0)
    flipped = tmp_path / "flipped.pt"
    seen = 0
    bits = range(8 * len(content))
    for bit in draw.sample(bits, count) if count < len(bits) else bits:
        content[bit // 8] ^= 1 << bit % 8
        flipped.write_bytes(content)
        found = outcome(flipped)
        seen += found is None
        assert found is None or same(found, weights)
        content[bit // 8] ^= 1 << bit % 8
    assert seen > min(count, len(bits)) / 2  # the rest lies in padding, dates and unused fields


def test_a_flipped_bit_in_the_weights_is_seen_by_its_checksum(tmp_path):
    path = tmp_path / "large.pt"
    torch.save({"weight": torch.arange(1000.0)}, path)
    content = bytearray(path.read_bytes())
    first = content.index(torch.arange(1000.0).numpy().tobytes())
    for bit in range(8 * first, 8 * (first + 4000), 101):
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        assert "checksum" in refusal(path)
        content[bit // 8] ^= 1 << bit % 8


def test_a_file_written_without_checksums_is_read(tmp_path):
    path = tmp_path / "whole.pt"
    torch.serialization.set_crc32_options(False)
    try:
        weights = small(path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(dict(read_checkpoint(path).weights), weights)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Change a file as fuzzers do: bytes, blocks, lengths, repetitions, for some files more than one."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at, length = draw.randrange(len(changed)), draw.choice((1, 1, 2, 4, 8, 40))
        kind = draw.randrange(6)
        if kind == 0:
            changed[at] = draw.randrange(256)
        elif kind == 1:
            changed[at : at + length] = draw.randbytes(length)
        elif kind == 2:
            changed[at : at + length] = draw.choice((b"\x00", b"\xff", b"\x7f")) * length
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length]
        else:
            other = draw.randrange(len(changed))
            changed[at : at + length] = changed[other : other + length]
        if not changed:
            return b""
    return bytes(changed)


@pytest.mark.parametrize("count", [200, MANY])
def test_mutations_load_or_are_refused(whole, tmp_path, count):
    path, _ = whole
    draw = random.Random(1)
    content, changed = path.read_bytes(), tmp_path / ("changed" + path.suffix)
    for _ in range(count):
        changed.write_bytes(mutated(content, draw))
        outcome(changed)


@pytest.mark.parametrize("count", [200, MANY])
def test_mutations_of_the_pickle_behind_its_checksum_load_or_are_refused(tmp_path, count):
    """Checksums stop what chance does; who forges a file writes them anew."""
    import zipfile

    path = tmp_path / "whole.pt"
    small(path)
    with zipfile.ZipFile(path) as archived:
        records = {name: archived.read(name) for name in archived.namelist()}
    pickled = next(name for name in records if name.endswith("data.pkl"))
    draw, loaded = random.Random(2), 0
    forged = tmp_path / "forged.pt"
    for _ in range(count):
        with zipfile.ZipFile(forged, "w") as archived:
            for name, content in records.items():
                archived.writestr(name, mutated(content, draw) if name == pickled else content)
        loaded += outcome(forged) is not None
    assert loaded > count / 40  # else the mutations would be too coarse to get past the first check
