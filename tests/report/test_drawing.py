"""Pictures: what is drawn from which data, the same every time, without a trace in the user's matplotlib."""

import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import pytest

from tests.report.browser import needs_chromium, visit
from tests.report.payloads import PAYLOADS
from tests.report.structure import count, skeleton
from thalweg.errors import InputError
from thalweg.report.document import Document
from thalweg.report.drawing import panel_svgs, to_png, to_svg
from thalweg.report.figures import (
    Axis,
    Band,
    Bar,
    BarPlot,
    ContourPlot,
    Figure,
    LinePlot,
    Mark,
    Reference,
    Series,
    SurfacePlot,
    together,
)
from thalweg.report.html import to_page
from thalweg.report.placing import Box, place
from thalweg.report.ticks import labels, powers

NAN, INF = math.nan, math.inf
GRID = tuple(i / 4 - 1 for i in range(9))
BOWL = tuple(tuple(x * x - y * y for x in GRID) for y in GRID)


X = Axis("x")
Y = Axis("y")
LOSS = Axis("loss")


def line(*series, **more):
    return LinePlot("", X, LOSS, series or (Series("f", (0.0, 1.0, 2.0), (0.0, 1.0, 4.0)),), **more)


def figure(*panels, alt="what it shows"):
    return Figure("picture", "A picture", alt, panels)


def contours(z=BOWL, x=GRID, y=GRID, **more):
    return ContourPlot("", X, Y, x, y, z, LOSS, **more)


def surface(z=BOWL, labels=("saddle",)):
    marks = tuple(Mark(0, 0, "saddle", label) for label in labels)
    return SurfacePlot("a surface", X, Y, GRID, GRID, z, LOSS, marks)


def words(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_a_figure_without_text_alternative_or_file_name_is_refused():
    with pytest.raises(ValueError, match="text alternative"):
        Figure("a", "A", " ", ())
    for name in ("", "a/b", "../a", "A", "a.svg"):
        with pytest.raises(ValueError, match="names no file"):
            Figure(name, "A", "a", ())


def test_text_stays_text_and_the_alternative_is_in_the_file():
    svg = to_svg(figure(line(marks=(Mark(1.0, 1.0, "minimum", "here it is"),)), alt="a <curve>"))
    assert {"here it is", "loss", "A picture"} <= set(words(svg))
    assert ElementTree.fromstring(svg)[0].text == "a <curve>"


def test_the_same_figure_is_the_same_drawing_whatever_the_style_of_the_user():
    first = to_svg(figure(line(), contours()))
    kept = dict(matplotlib.rcParams)
    with matplotlib.rc_context(
        {"font.size": 30, "text.usetex": True, "svg.fonttype": "path", "axes.grid": False}
    ):
        inside = dict(matplotlib.rcParams)
        assert to_svg(figure(line(), contours())) == first
        assert dict(matplotlib.rcParams) == inside
    assert dict(matplotlib.rcParams) == kept


def test_matplotlib_and_jinja_are_loaded_when_something_is_drawn_and_pyplot_never():
    code = (
        "import sys; from thalweg.report.html import to_page; from thalweg.report.document import *;"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules);"
        "to_page(Document('t', (Curves('Loss', '2 epochs', (('a', (1.0, 2.0)),)),)));"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "panel",
    [
        line(Series("", (), ())),
        line(Series("one", (1.0,), (2.0,), (1.0,), (3.0,), "points")),
        line(Series("gaps", (0.0, 1.0, 2.0), (NAN, INF, 1.0), (NAN, 0.0, -INF), (NAN, 1.0, INF), "joined")),
        LinePlot("", Axis("x", "symlog"), Axis("y", "log"), (Series("s", (-1.0, 0.0), (0.0, 1.0)),)),
        LinePlot("", X, Axis("y", "log"), (Series("s", (-1.0, 0.0), (0.0, 1.0), style="stems"),)),
        line(references=(Reference(NAN, "nowhere"), Reference(0.0, "zero", "x"))),
        line(bands=(Band(-1.0, 1.0, "b"),), marks=(Mark(NAN, 1.0, "here", "nowhere"), Mark(1.0, NAN))),
        BarPlot("", LOSS, ()),
        BarPlot("", Axis("change", "log", limits=(0.1, 10.0)), (Bar("a", 1.0), Bar("none", NAN))),
        BarPlot("", Axis("change", "symlog", 1e-3), (Bar("a", -1.0, -2.0, INF), Bar("b", 0.0, 0.0, 0.0))),
        contours(tuple((1.0,) * 9 for _ in GRID)),
        contours(tuple((NAN,) * 9 for _ in GRID)),
        contours(((NAN, 1.0), (2.0, INF)), (0.0, 1.0), (0.0, 1.0), path=((0.0, 0.0),)),
        ContourPlot("", X, Y, GRID, GRID, BOWL, Axis("loss", "log")),
        surface(tuple((NAN,) * 9 for _ in GRID)),
    ],
)
def test_gaps_zeros_constants_and_nothing_are_drawn(panel, tmp_path):
    assert len(panel_svgs(figure(panel))) == 1
    to_png(figure(panel), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_names_change_nothing_but_texts_in_a_drawing():
    def drawn(names):
        panel = line(
            *(Series(f"s {name}", (0.0, 1.0), (0.0, 1.0)) for name in names[:3]),
            marks=tuple(Mark(0.5, 0.5, "point", f"m {name}") for name in names),
            references=(Reference(0.5, f"r {names[0]}"),),
        )
        return to_page(
            Document("t", (figure(panel, BarPlot(names[1], Axis(names[2]), (Bar(names[0], 1.0),))),))
        )

    assert skeleton(drawn(PAYLOADS)) == skeleton(drawn([f"name {i}" for i in range(60)]))


def test_every_reference_inside_a_drawing_leads_somewhere_and_colours_have_classes():
    svg = "".join(panel_svgs(figure(line(), contours())))
    ids = re.findall(r' id="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg)) == set(ids)
    assert "stroke-blue" in svg
    assert "style=" not in svg


@pytest.mark.parametrize("number", [1, 6, 7, 13])
def test_every_line_is_told_apart_also_where_the_colours_come_round(number):
    lines = [Series(f"s{i}", (0.0, 1.0), (float(i), 2.0 * i)) for i in range(number)]
    drawn = [tag for tag in re.findall(r"<path [^>]*>", to_svg(figure(line(*lines)))) if '"1.6"' in tag]
    looks = {tuple(re.findall(r' stroke(?:-dasharray)?="([^"]*)"', tag)) for tag in drawn}
    assert len(looks) == number


def test_all_of_a_curve_is_in_view():
    svg = to_svg(figure(line(Series("f", (0.0, 15.0, 30.0), (5.0, 7.0, 9.0)))))
    assert {"0", "30", "5", "9"} <= set(words(svg))


def test_a_picture_that_cannot_be_written_is_one_error(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        to_png(figure(line()), tmp_path / "missing" / "a.png")


def test_figures_are_put_together_with_their_titles():
    one, two = figure(line()), figure(contours(), surface())
    all_ = together("all", "All", (one, two))
    assert [panel.title for panel in all_.panels] == ["A picture", "A picture", "a surface"]
    assert all_.alt == "what it shows; what it shows"


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([0.0, 0.25, 0.5], ["0", "0.25", "0.50"]),
        ([-1.0, 0.0, 1.0], ["−1", "0", "1"]),
        ([0.0, 2e-5, 4e-5], ["0", "2·10⁻⁵", "4·10⁻⁵"]),
        ([0.0, 5000.0, 10000.0], ["0", "5,000", "10,000"]),
        ([1e9, 2e9], ["1·10⁹", "2·10⁹"]),
        ([0.998, 0.999, 1.0], ["0.998", "0.999", "1.000"]),
        ([0.0], ["0"]),
        ([], []),
    ],
)
def test_numbers_along_an_axis_tell_its_places_apart(values, written):
    assert labels(values) == written


def test_powers_of_ten_are_written_and_what_lies_between_is_not():
    assert [powers(v) for v in (1e-4, -1e-4, 0.01, 1.0, 1000.0, 1e4, 0.0, 2.0)] == [
        *("10⁻⁴", "−10⁻⁴", "0.01", "1", "1000", "10⁴", "0", "")
    ]


def test_words_beside_marks_cover_neither_each_other_nor_leave_the_picture():
    marks = [(0.98, 0.98), (0.97, 0.95), (0.02, 0.5), (0.03, 0.5), (0.5, 0.02)]
    boxes = place(marks, [(0.3, 0.08)] * 5)
    for i, box in enumerate(boxes):
        assert all(box.overlap(other) == 0 for other in boxes[:i])
        assert box.overlap(Box(0.0, 0.0, 1.0, 1.0)) == pytest.approx(box.width * box.height)


class TestASurface:
    def test_its_page_alone_has_the_script_and_allows_nothing_else(self):
        still, turning = (to_page(Document("t", (figure(panel),))) for panel in (line(), surface()))
        assert (count(still)["script"], count(turning)["script"]) == (0, 1)
        assert "script-src" not in still
        assert turning.count("'sha256-") == 2
        assert "unsafe" not in turning

    def test_its_labels_are_data(self):
        harmless = [f"name {i}" for i in range(60)]
        hostile, plain = (to_page(Document("t", (figure(surface(labels=n)),))) for n in (PAYLOADS, harmless))
        assert skeleton(hostile) == skeleton(plain)

    @needs_chromium
    @pytest.mark.slow
    def test_it_can_be_turned(self, tmp_path):
        page = to_page(Document("t", (figure(surface()),)))
        (tmp_path / "as-is.html").write_text(page)
        seen = visit(tmp_path / "as-is.html")
        assert seen.console == seen.asked_for == []
        assert "<canvas" in seen.dom
        probe = (
            "<script>const c=document.querySelector('canvas'),a=c.toDataURL();"
            "c.dispatchEvent(new KeyboardEvent('keydown',{key:'ArrowLeft'}));"
            "document.title=(a.length>5000)+' '+(a!==c.toDataURL())</script>"
        )
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        (tmp_path / "probed.html").write_text(page.replace("</body>", f"{probe}</body>"))
        assert "<title>true true</title>" in visit(tmp_path / "probed.html").dom
