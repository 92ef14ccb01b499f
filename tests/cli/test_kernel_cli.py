"""``thalweg kernel`` as a user meets it: what it says, what it writes, how it refuses."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits

import thalweg.kernels.room as room
from thalweg.cli.main import main
from thalweg.kernels import NTKClassifier, ntk


@pytest.fixture
def thalweg(tmp_path, monkeypatch, capsys):
    """Run the command line in this process; return its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main(["kernel", *map(str, arguments)])
        said = capsys.readouterr()
        return stopped.value.code or 0, said.out, said.err

    return call


@pytest.fixture
def digits(tmp_path):
    x, y = load_digits(return_X_y=True)
    x = x[:, np.ptp(x[:200], axis=0) > 0]
    np.savez(tmp_path / "train.npz", x=x[:200], y=y[:200])
    np.savez(tmp_path / "test.npz", X=x[200:300], Y=y[200:300])
    return x, y


class TestFit:
    def test_it_learns_and_writes_predictions_that_python_makes_too(self, digits, thalweg, tmp_path):
        x, y = digits
        code, out, err = thalweg(
            "fit", "train.npz", "--test", "test.npz", "--output", "p.npy", "--json", "r.json"
        )
        assert (code, err) == (0, "Predictions: p.npy\n")
        assert "LEARNED" in out
        assert "held out" in out
        train, test = x[:200], x[200:300]
        mean, spread = train.mean(axis=0), train.std(axis=0)
        model = NTKClassifier().fit((train - mean) / spread, y[:200])
        predicted = np.load(tmp_path / "p.npy", allow_pickle=False)
        assert np.array_equal(predicted, model.predict((test - mean) / spread))
        told = json.loads((tmp_path / "r.json").read_text())
        assert told["heldout"]["value"] == pytest.approx(np.mean(predicted == y[200:300]))
        assert told["left_out"]["value"] == model.loo_score_
        assert told["ridge"] == model.ridge_

    def test_json_leaves_nothing_else_on_the_output(self, digits, thalweg):
        code, out, _ = thalweg("fit", "train.npz", "--json", "-")
        assert code == 0
        assert json.loads(out)["schema"] == "thalweg/kernel-fit@1"

    def test_a_table_with_names_above_and_the_target_last(self, thalweg, tmp_path):
        load_diabetes(as_frame=True).frame.to_csv(tmp_path / "d.csv", index=False)
        code, out, _ = thalweg("fit", "d.csv", "--depth", 2, "--ridge", "gcv")
        assert code == 0
        assert "root mean squared error" in out
        assert "the mean alone gets 77.0" in " ".join(out.split())

    def test_labels_can_be_words(self, thalweg, tmp_path):
        rng = np.random.default_rng(0)
        lines = [f"{a:.3f};{b:.3f};{'up' if a > 0 else 'down'}" for a, b in rng.normal(size=(40, 2))]
        (tmp_path / "w.csv").write_text("\n".join(lines))
        code, out, _ = thalweg("fit", "w.csv")
        assert code == 0
        assert "LEARNED" in out

    def test_noise_is_not_learned(self, thalweg, tmp_path):
        rng = np.random.default_rng(0)
        np.savez(tmp_path / "n.npz", x=rng.normal(size=(60, 4)), y=rng.integers(0, 2, 60))
        assert "NOT LEARNED" in thalweg("fit", "n.npz")[1]

    def test_images_are_convolved(self, thalweg, tmp_path):
        x, y = load_digits(return_X_y=True)
        np.savez(tmp_path / "i.npz", x=x[:60].reshape(-1, 1, 8, 8), y=y[:60])
        code, out, _ = thalweg("fit", "i.npz", "--depth", 2)
        assert code == 0
        assert "cntk(depth=2" in out
        assert "1 × 8 × 8" in out


class TestGram:
    def test_the_matrix_is_that_of_the_scaled_examples_and_the_second_run_finds_it(
        self, digits, thalweg, tmp_path
    ):
        arguments = ("gram", "train.npz", "--folder", "tiles", "--tile", 64, "--output", "k.npy")
        code, out, _ = thalweg(*arguments)
        assert code == 0
        assert "0 were there, 10 computed now" in out
        assert "10 were there, 0 computed now" in thalweg(*arguments)[1]
        x = digits[0][:200]
        expected = ntk((x - x.mean(axis=0)) / x.std(axis=0), depth=3)
        assert np.allclose(np.load(tmp_path / "k.npy", allow_pickle=False), expected, rtol=1e-12)

    def test_two_workers(self, digits, thalweg, tmp_path):
        thalweg("gram", "train.npz", "--folder", "one", "--tile", 64, "--output", "a.npy")
        code, _, _ = thalweg(
            "gram", "train.npz", "--folder", "two", "--tile", 64, "--workers", 2, "--output", "b.npy"
        )
        assert code == 0
        assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()

    def test_another_kernel_does_not_mix(self, digits, thalweg):
        thalweg("gram", "train.npz", "--folder", "tiles")
        code, _, err = thalweg("gram", "train.npz", "--folder", "tiles", "--depth", 4)
        assert code == 2
        assert "holds the tiles of another matrix" in err
        assert "depth=4" in err


class TestCompare:
    def test_the_order_is_that_of_the_errors(self, digits, thalweg):
        code, out, _ = thalweg("compare", "train.npz", "--depths", "1,2", "--json", "-")
        assert code == 0
        rows = json.loads(out)["kernels"]
        errors = [row["error"]["value"] for row in rows]
        assert errors == sorted(errors)
        assert {row["name"] for row in rows} == {"NTK 1", "NTK 2", "NNGP 2"}
        assert rows[0]["behind"]["value"] == 0
        assert all(
            row["behind"]["value"] == pytest.approx(e - errors[0])
            for row, e in zip(rows, errors, strict=True)
        )
        assert rows[-1]["name"] == "NTK 1"  # a linear classifier is the worst on digits
        assert rows[-1]["behind"]["value"] > 5 * rows[-1]["behind"]["stderr"]

    def test_it_reads_well(self, digits, thalweg):
        out = thalweg("compare", "train.npz", "--depths", "1,2")[1]
        assert "COMPARED" in out
        assert "behind the best" in out
        assert max(map(len, out.splitlines())) <= 110


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                lambda x: x.__setitem__((3, 4), np.nan),
                r"hold NaN or infinity; got: 1 of them, the first at [3, 4]",
            ),
            (lambda x: x.__setitem__((slice(None), 2), 7.0), "features 2 (counted from 0)"),
            (lambda x: x.__setitem__(..., 7.0), "try: other examples"),
        ],
        ids=["nan", "a constant feature", "all constant"],
    )
    def test_data_that_say_nothing(self, digits, thalweg, tmp_path, change, said):
        x, y = digits[0][:200].copy(), digits[1][:200]
        change(x)
        np.savez(tmp_path / "bad.npz", x=x, y=y)
        for verb in (("fit",), ("gram", "--folder", "f"), ("compare",)):
            code, out, err = thalweg(verb[0], "bad.npz", *verb[1:])
            assert (code, out) == (2, "")
            assert said in err

    def test_constant_features_can_be_left_out(self, digits, thalweg, tmp_path):
        x, y = digits[0][:200].copy(), digits[1][:200]
        x[:, 2] = 7
        np.savez(tmp_path / "bad.npz", x=x, y=y)
        code, out, _ = thalweg("fit", "bad.npz", "--drop-constant", "--json", "-")
        assert code == 0
        assert json.loads(out)["shape"] == [x.shape[1] - 1]

    def test_too_little_memory_is_said_before_the_work_with_the_size(self, digits, thalweg, monkeypatch):
        monkeypatch.setattr(room, "available_memory", lambda: 10**6)
        code, _, err = thalweg("fit", "train.npz")
        assert code == 2
        assert "too little memory for the kernel of 200 examples" in err
        assert "expected: 1.3 MB free; got: 1.0 MB" in err

    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"x": np.ones((3, 2, 2)), "y": np.arange(3)}, "wrong shape"),
            ({"x": np.arange(6.0).reshape(3, 2), "y": np.arange(4)}, "one target for each of the 3 examples"),
            ({"x": np.arange(6.0).reshape(3, 2)}, "holds no targets"),
            ({"x": np.arange(6.0).reshape(3, 2), "y": np.ones(3)}, "targets are all the same"),
            ({"x": np.arange(6.0).reshape(3, 2), "y": np.array([0, np.nan, 1])}, "the targets hold NaN"),
            ({"a": np.ones(3)}, "expected: an array called x or X"),
        ],
    )
    def test_arrays_that_do_not_fit(self, thalweg, tmp_path, arrays, said):
        np.savez(tmp_path / "bad.npz", **arrays)
        code, _, err = thalweg("fit", "bad.npz")
        assert code == 2
        assert said in err

    def test_files_that_are_none(self, thalweg, tmp_path):
        (tmp_path / "object.npy").write_bytes(b"\x93NUMPY")
        np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
        (tmp_path / "ragged.csv").write_text("1,2,0\n1,2\n")
        (tmp_path / "words.csv").write_text("a,b\nred,1\nblue,2\n")
        for name, said in (
            ("none.npy", "does not exist"),
            ("object.npy", "cannot be read"),
            ("pickled.npy", "cannot be read"),
            ("ragged.csv", "2 in line 2"),
            ("words.csv", "'red' in line 2"),
            ("x.parquet", "no known kind"),
        ):
            code, _, err = thalweg("fit", name)
            assert code == 2, name
            assert said in err, name

    def test_held_out_examples_of_another_shape(self, digits, thalweg, tmp_path):
        np.savez(tmp_path / "other.npz", x=np.ones((3, 2)) * np.arange(3)[:, None], y=np.arange(3))
        code, _, err = thalweg("fit", "train.npz", "--test", "other.npz")
        assert code == 2
        assert "differ in shape" in err

    def test_options_that_are_none(self, digits, thalweg, tmp_path):
        assert thalweg("fit", "train.npz", "--ridge", "best")[0] == 2
        assert thalweg("compare", "train.npz", "--depths", "deep")[0] == 2
        assert thalweg("fit", "train.npz", "--output", "p.npy")[0] == 2
        (tmp_path / "p.npy").write_bytes(b"mine")
        code, _, err = thalweg("fit", "train.npz", "--test", "test.npz", "--output", "p.npy")
        assert (code, (tmp_path / "p.npy").read_bytes()) == (2, b"mine")
        assert "nothing is ever written over" in err

    def test_targets_that_are_no_classes_or_of_another_kind(self, digits, thalweg, tmp_path):
        x, y = digits[0][:200], digits[1][:200]
        np.savez(tmp_path / "rates.npz", x=x, y=y + 0.25)
        code, _, err = thalweg("fit", "rates.npz", "--task", "classification")
        assert code == 2
        assert "no classes" in err
        assert "--task regression" in err
        assert thalweg("compare", "rates.npz", "--task", "classification")[0] == 2
        np.savez(tmp_path / "words.npz", x=x, y=np.where(y > 4, "large", "small"))
        code, _, err = thalweg("fit", "words.npz", "--test", "test.npz")
        assert code == 2
        assert "of another kind" in err
        np.savez(tmp_path / "others.npz", x=x, y=y + 20)
        code, _, err = thalweg("fit", "train.npz", "--test", "others.npz")
        assert code == 2
        assert "no label of --test occurs in DATA" in err

    def test_a_file_that_is_no_archive_is_told_without_advice_to_unpickle(self, thalweg, tmp_path):
        (tmp_path / "garbage.npz").write_bytes(b"not at all" * 40)
        code, _, err = thalweg("fit", "garbage.npz")
        assert code == 2
        assert "never loaded" in err
        assert "pickle" not in err
        code, _, err = thalweg("fit", "pickle.npz")
        assert code == 2
        assert "does not exist" in err
