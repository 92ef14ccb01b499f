"""Documents on a screen, in a page, and the numbers in them."""

import io

import pytest
from rich.console import Console

from tests.report.structure import skeleton
from thalweg.progress import Metered, Silent
from thalweg.report.curves import heights, is_logarithmic, sparkline, to_figure
from thalweg.report.document import Curves, Document, Facts, Headline, Note, Table, signed, significant
from thalweg.report.html import to_fragment, to_page
from thalweg.report.terminal import Bar, to_text

HOSTILE = ["<script>alert(1)</script>", '" onmouseover="x', "[bold]markup[/bold]", "a\x1b[31mb", "&amp;<b>a"]


def document(text):
    return Document(
        text,
        (
            Headline(text, text),
            Facts(((text, text),)),
            Table(text, (text, text), ((text, text),)),
            Note(text),
            Curves(text, text, ((text, (1.0, 2.0)),)),
        ),
    )


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0"),
        (None, "–"),
        (1.0, "1.0"),
        (123.456, "123"),
        (12345.6, "12,346"),
        (0.5, "0.50"),
        (0.0123, "0.012"),
        (0.00123, "0.0012"),
        (0.00012, "1.2e−04"),
        (-2.5, "−2.5"),
        (1e7, "1.0e+07"),
    ],
)
def test_numbers_are_written_for_people(value, written):
    assert significant(value) == written


def test_changes_carry_their_sign():
    assert signed(0.5) == "+0.50"
    assert signed(-0.5) == "−0.50"
    assert signed(0.0) == "0"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text):
    page = to_page(document(text))
    assert skeleton(page) == skeleton(to_page(document("harmless")))
    shown = to_text(document(text))
    assert "\x1b" not in shown
    if "[bold]" in text:
        assert "[bold]markup[/bold]" in shown


def test_a_fragment_needs_nothing_from_anywhere():
    fragment = to_fragment(document("x"))
    for word in ("http://", "https://", "src=", "@import"):
        assert word not in fragment
    assert fragment.count("url(") == fragment.count("url(#")


@pytest.mark.parametrize(
    ("terminal", "after", "shown"), [(False, 0.0, False), (True, 60.0, False), (True, 0.0, True)]
)
def test_the_bar_shows_on_a_terminal_only_and_only_when_it_takes_long(terminal, after, shown):
    out = io.StringIO()
    with Bar(Console(file=out, force_terminal=terminal, width=100), after=after) as bar:
        bar.phase("curvature")
        bar.advance(1, 4)
    assert ("curvature" in out.getvalue()) == shown
    if shown:
        assert "time left" in out.getvalue()
        assert "25%" in out.getvalue()


def test_in_a_log_the_bar_is_a_line_now_and_then():
    out = io.StringIO()
    with Bar(Console(file=out, width=100), pause=0.0) as bar:
        bar.phase("curvature")
        bar.advance(1, 4)
    assert out.getvalue().splitlines() == ["curvature: 0 %", "curvature: 25 %"]
    again = io.StringIO()
    with Bar(Console(file=again, width=100), pause=0.0) as bar:
        bar.advance(4, 4)
        bar.phase("[/b] another")
        bar.advance(1, 4)
    assert again.getvalue().splitlines()[-1] == "[/b] another: 25 %"
    silent = io.StringIO()
    with Bar(Console(file=silent, width=100), pause=60.0) as bar:
        bar.advance(1, 4)
    assert silent.getvalue() == ""


def test_many_phases_are_measured_by_what_they_spend():
    class Told(Silent):
        def __init__(self):
            self.seen = []

        def advance(self, done, total):
            self.seen.append((done, total))

    told, spent = Told(), [0.0]
    meter = Metered(told, lambda: spent[0], planned=10.0)
    meter.phase("a")
    spent[0] = 4.0
    meter.advance(1, 1)
    spent[0] = 40.0
    meter.phase("b")
    assert told.seen == [(0.0, 10.0), (4.0, 10.0), (10.0, 10.0)]


NAN = float("nan")


def curves(*series):
    return Curves("Loss", "2 epochs", tuple((f"curve {i}", values) for i, values in enumerate(series)))


def test_curves_share_one_scale():
    assert heights(curves((1.0, 0.5, 0.0), (0.25, 0.75, NAN))) == [[1.0, 0.5, 0.0], [0.25, 0.75, None]]
    assert heights(curves((3.0, 3.0))) == [[0.0, 0.0]]
    assert heights(curves((NAN,))) == [[None]]


def test_the_scale_is_logarithmic_where_values_span_decades_and_are_positive():
    wide = curves((1e3, 1.0, 1e-3))
    assert is_logarithmic(wide)
    assert heights(wide) == [[1.0, 0.5, 0.0]]
    assert not is_logarithmic(curves((1e3, 0.0)))
    assert not is_logarithmic(curves((1.0, 0.5)))
    assert not is_logarithmic(curves((NAN,)))


def test_a_sparkline_goes_up_and_down_and_leaves_gaps():
    assert sparkline([0.0, 0.5, 1.0, None], 10) == "▁▅█ "
    assert sparkline([0.0, 0.0, 1.0, 1.0], 2) == "▁█"
    assert sparkline([i / 99 for i in range(100)], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([], 5) == ""


def test_curves_become_a_picture_that_says_where_they_begin_and_end():
    figure = to_figure(curves((1000.0, 1.0), (1.0, 2.0)))
    assert figure.panels[0].y_axis.scale == "log"
    assert [series.style for series in figure.panels[0].series] == ["line", "dashed"]
    assert "1,000 to 1.00" in figure.alt


@pytest.mark.parametrize("width", [60, 80, 200])
def test_narrow_terminals_lose_neither_names_nor_numbers(width):
    cells = ("80.0%", "−1.4 ± 0.11", "96.7%", "−0.20 ± 0.054")
    table = Table(
        "Large batches", ("", "10 epochs", "against", "100 updates", "against"), (("lamb 1150", *cells),)
    )
    curve = Curves("Loss", "90 epochs", (("training", tuple(1.25 + i for i in range(90))),))
    text = to_text(Document("title", (table, curve, Table("nothing", ("a", "b"), ()))), width)
    assert max(map(len, text.splitlines())) <= width
    for told in ("lamb", "1150", *cells, "epochs", "updates", "training", "1.25", "90.2"):
        assert told in text, told
