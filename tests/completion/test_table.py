"""Tables in files, long and wide; MovieLens files; and the command that completes them."""

import csv
import hashlib
import json
import math

import numpy as np
import pytest

from tests.completion.lowrank import low_rank, with_blanks
from thalweg.cli.main import main
from thalweg.completion import complete, load_movielens, observed
from thalweg.completion.table import read_table, require_new, write_completed
from thalweg.completion.table_completion import STARTS, _from_starts, _notes_of
from thalweg.errors import InputError
from thalweg.problem.intact import random_state_kept
from thalweg.progress import Silent


def written(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def wide_file(tmp_path, matrix, name="table.csv"):
    lines = ["place," + ",".join(f"h{j}" for j in range(matrix.shape[1]))]
    for i, row in enumerate(matrix):
        lines.append(f"p{i}," + ",".join("" if np.isnan(x) else repr(float(x)) for x in row))
    return written(tmp_path, "\n".join(lines) + "\n", name)


def test_a_wide_table_is_read_with_its_blanks(tmp_path):
    table = read_table(written(tmp_path, "city,a,b\nRome,1,\nOslo,NA,0\nBern,-,2.5\n"))
    assert not table.is_long
    assert table.row_names == ("Rome", "Oslo", "Bern")
    assert (table.observations.rows.tolist(), table.observations.values.tolist()) == ([0, 1, 2], [1, 0, 2.5])


def test_a_long_table_is_read_by_its_names(tmp_path):
    text = "user;film;rating\nann;Heat;5\nbob;Heat;3\nann;Alien;\nann;Up;1\n"
    table = read_table(written(tmp_path, text))
    assert table.is_long
    assert table.row_names == ("ann", "bob")
    assert table.column_names == ("Heat", "Up")
    assert table.observations.shape == (2, 2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a,b\n3,4\n9,6\n7,\n", False),
        ("year,a\n1990,1\n1991,2\n1992,3\n", True),
        (",a\n5,1\n3,2\n4,3\n", True),
    ],
)
def test_a_first_column_that_counts_or_has_no_name_holds_the_names_of_rows(tmp_path, text, named):
    assert read_table(written(tmp_path, text), layout="wide").has_row_names is named


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n", "no lines below"),
        ("a,b\n1,2,3\n", "line 2 .* another number of cells"),
        ("a,b\nx,1\ny,two\n", "line 3 .*text where a number"),
        ("a,b\nx,1\ny,inf\n", "line 3 .*infinite"),
        ("a,b\nx,\ny,\n", "nothing is observed"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_table(written(tmp_path, text))


def test_files_that_are_not_text_or_not_there_are_told(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00\x01\x80")
    with pytest.raises(InputError, match="not a table of text"):
        read_table(tmp_path / "x.csv")
    with pytest.raises(InputError, match="cannot read"):
        read_table(tmp_path / "no.csv")


def test_the_completed_table_keeps_what_was_observed_and_is_never_written_over(tmp_path):
    _, entries = low_rank((12, 9), 1, 0.7)
    path = wide_file(tmp_path, with_blanks(entries))
    table = read_table(path)
    model = complete(table.observations, depths=[3]).model
    target = tmp_path / "done.csv"
    assert write_completed(table, model, target)
    again = read_table(target)
    assert len(again.observations) == 108
    dense = with_blanks(again.observations)
    assert np.array_equal(dense[entries.rows, entries.columns], entries.values)
    for call in (lambda: write_completed(table, model, target), lambda: require_new(target)):
        with pytest.raises(InputError, match="exists already"):
            call()
    with pytest.raises(InputError, match="does not exist"):
        require_new(tmp_path / "no" / "x.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("u.data", "7\t30\t4\t881250949\n7\t10\t2\t1\n9\t30\t5\t2\n"),
        ("ratings.dat", "7::30::4::881250949\n7::10::2::1\n9::30::5::2\n"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n7,30,4.0,1\n7,10,2.0,1\n9,30,5.0,2\n"),
    ],
)
def test_movielens_files_of_every_age_are_read_alike(tmp_path, name, text):
    path = written(tmp_path, text, name)
    for place in (path, tmp_path):
        ratings = load_movielens(place)
        assert ratings.users.tolist() == [7, 9]
        assert ratings.films.tolist() == [10, 30]
        assert with_blanks(ratings.observations)[0].tolist() == [2, 4]
        assert ratings.positions([9, 8], [30, 30]).tolist() == [[1, 1], [-1, 1]]


def test_what_is_not_movielens_is_refused(tmp_path):
    for text in ("1\t2\n", "1\t2\tx\t4\n", "1\t2\t3\t4\n5\n"):
        with pytest.raises(InputError, match=r"u\.data.*lines of user, film, rating"):
            load_movielens(written(tmp_path, text, "u.data"))
    with pytest.raises(InputError, match="no MovieLens file"):
        (tmp_path / "empty").mkdir()
        load_movielens(tmp_path / "empty")


@pytest.mark.slow
def test_the_choice_of_depth_is_paid_for_and_the_better_method_is_seen():
    _, entries = low_rank((40, 30), 2, 0.4)
    found = complete(entries, compare=True, center=None)
    names = [c.name for c in found.candidates]
    assert names == ["zero", "depth 2", "depth 3", "nuclear norm, penalty chosen", "nuclear norm, exact"]
    assert found.depth == 3
    assert found.rank == 2
    exact = found.candidates[-1]
    assert exact.against_chosen.lower(0.975) > 0
    assert found.candidates[0].mse.value > found.error.value
    said = str(found)
    assert "COMPLETED" in said
    assert json.loads(found.to_json())["schema"] == "thalweg/completion@1"
    assert found.descent.figure().alt


def test_noise_alone_is_told_to_be_no_better_than_the_baseline():
    noise = np.random.default_rng(0).standard_normal((25, 20))
    found = complete(observed(noise), depths=[2], rank_cap=8)
    assert "NO BETTER" in str(found)


def test_too_few_entries_to_hold_out_are_refused():
    with pytest.raises(InputError, match="too few entries"):
        complete(np.eye(2) + 1)


@pytest.fixture
def thalweg(tmp_path, monkeypatch, capsys):
    """Run the verb in this process; return its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with random_state_kept(), pytest.raises(SystemExit) as stopped:
            main(["complete", *map(str, arguments)])
        said = capsys.readouterr()
        return stopped.value.code or 0, said.out, said.err

    return call


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_command_writes_beside_the_table_and_draws_its_picture(tmp_path, thalweg):
    _, entries = low_rank((16, 12), 1, 0.6)
    path = wide_file(tmp_path, with_blanks(entries))
    before = digest(path)
    code, out, err = thalweg("table.csv", "--html", "r.html", "--png", "d.png", "--json", "r.json")
    assert code == 0, err
    assert "COMPLETED" in out
    assert digest(path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("d.png", "r.html", "r.json", "table.completed.csv", "table.csv")
    ]
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["saved_to"] == "table.completed.csv"
    assert record["depth"] in (2, 3)
    assert thalweg("table.csv")[0] == 2  # the completed table is there already


def test_json_on_standard_output_stands_alone_and_long_tables_say_what_was_predicted(tmp_path, thalweg):
    _, entries = low_rank((10, 8), 1, 0.7)
    lines = [f"r{i},c{j},{v}" for i, j, v in zip(entries.rows, entries.columns, entries.values, strict=True)]
    written(tmp_path, "row,column,value\n" + "\n".join(lines) + "\n")
    code, out, _ = thalweg("table.csv", "--json", "-", "--depth", "3", "--folds", "2")
    assert code == 0
    assert json.loads(out)["depth"] == 3
    with (tmp_path / "table.completed.csv").open() as file:
        done = list(csv.DictReader(file))
    assert len(done) == 80
    assert sum(line["source"] == "observed" for line in done) == len(entries)


def test_ratings_are_completed_within_their_bounds(tmp_path, thalweg):
    rng = np.random.default_rng(0)
    lines = [
        f"{u}\t{f}\t{rng.integers(1, 6)}\t0" for u in range(1, 21) for f in range(1, 16) if rng.random() < 0.5
    ]
    written(tmp_path, "\n".join(lines) + "\n", "u.data")
    code, _, err = thalweg("u.data", "--clip", "1", "5", "--depth", "2", "--rank-cap", "4")
    assert code == 0, err
    with (tmp_path / "u.completed.csv").open() as file:
        values = [float(line["rating"]) for line in csv.DictReader(file)]
    assert min(values) >= 1
    assert max(values) <= 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.csv"], "cannot read"),
        (["table.csv", "--png", "x.gif"], "ends in .png"),
        (["table.csv", "--html", "no/x.html"], "does not exist"),
        (["table.csv", "--output", "table.csv"], "exists already"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_work(tmp_path, thalweg, arguments, message):
    written(tmp_path, "a,b\nx,1\n")
    code, out, err = thalweg(*arguments)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("first", [",,3.8,3.7", "4.1,3.9,3.9,3.8"])
def test_a_line_of_numbers_is_not_lost_as_a_header(tmp_path, first):
    with pytest.raises(InputError, match="names no columns"):
        read_table(written(tmp_path, f"{first}\n1,2,3,4\n5,6,,8\n"))


def test_years_are_names_of_columns(tmp_path):
    table = read_table(written(tmp_path, "country,1960,1961,1962\nA,1,2,3\nB,2,,6\n"))
    assert table.column_names == ("1960", "1961", "1962")


def test_a_start_that_ends_in_a_poor_place_is_followed_by_others():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(14, 2)) @ rng.normal(size=(2, 12))
    entries = observed(np.where(rng.uniform(size=truth.shape) < 0.7, truth, np.nan))
    options = {"center": None, "rank_cap": 8, "clip": None, "random_state": 0}
    (alone,) = _from_starts(2, options, entries, math.inf, Silent())
    several = _from_starts(2, options, entries, 0.0, Silent())
    assert len(several) == STARTS
    assert several[0].validation_rmse_ == alone.validation_rmse_
    assert len({model.validation_rmse_ for model in several}) == STARTS
    assert _notes_of(alone, [alone], math.inf) == ()
    best = min(several, key=lambda model: model.validation_rmse_)
    (note,) = _notes_of(best, several, 1e-12)
    assert "The first start ended in a poor place" in note
    assert "do not rely on the table" in note


def test_a_wide_table_is_not_read_as_a_long_one(tmp_path):
    path = wide_file(tmp_path, np.arange(20.0).reshape(4, 5))
    with pytest.raises(InputError, match=r"not a long table.*--layout wide"):
        read_table(path, layout="long")
