"""What of a record can be kept: page, pictures, citation."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from thalweg.errors import InputError
from thalweg.records import Record
from thalweg.report.citation import BIBTEX
from thalweg.report.document import Curves, Document, Note
from thalweg.report.figures import Axis, Bar, BarPlot, Figure

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Told(Record):
    schema: ClassVar[str] = "thalweg/told@1"
    figures_of: tuple[Figure, ...] = ()

    def document(self):
        return Document("told", (Note("gradient-equivalents were spent"), *self.figures_of))


def picture(name):
    return Figure(name, name, f"the {name}", (BarPlot("", Axis("change"), (Bar("a", 1.0),)),))


def test_a_record_saves_its_pictures_in_one_or_one_by_one(tmp_path):
    told = Told((picture("first"), picture("second")))
    told.save(tmp_path / "all.svg")
    told.save(tmp_path / "all.png")
    assert "the first; the second" in (tmp_path / "all.svg").read_text()
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    written = told.save_figures(tmp_path / "deep" / "folder")
    assert [path.name for path in written] == ["first.svg", "first.png", "second.svg", "second.png"]
    assert all(path.stat().st_size > 1000 for path in written)


def test_a_record_without_pictures_says_so(tmp_path):
    assert Told().figures() == ()
    assert Told().save_figures(tmp_path) == ()
    with pytest.raises(InputError, match="no picture"):
        Told().save(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_curves_are_pictures_too(tmp_path):
    told = Told((Curves("Loss", "2 epochs", (("training", (3.0, 2.0, 1.0)),)),))
    assert [figure.name for figure in told.figures()] == ["curves"]
    told.save(tmp_path / "a.svg")
    assert "training from 3.00 to 1.00" in (tmp_path / "a.svg").read_text()


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="folder"):
        Told((picture("first"),)).save_figures(tmp_path / "file")


def test_a_page_explains_the_words_it_uses_and_no_others(tmp_path):
    Told().save(tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "one forward and backward pass" in page
    assert "λmin" not in page


def test_the_citation_is_that_of_the_repository():
    cff = (ROOT / "CITATION.cff").read_text()
    for key in ("title", "version", "license"):
        value = next(line for line in cff.splitlines() if line.startswith(f"{key}:")).partition(": ")[2]
        assert value.strip('"') in BIBTEX
    assert "The Thalweg developers" in cff
    assert "The Thalweg developers" in BIBTEX


def test_the_templates_travel_with_the_package():
    assert "report/templates/*" in (ROOT / "pyproject.toml").read_text()
    folder = ROOT / "src" / "thalweg" / "report" / "templates"
    assert {path.suffix for path in folder.iterdir()} == {".html", ".css", ".js"}
