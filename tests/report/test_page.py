"""The page that people keep: its structure, whoever named the layers, and what a browser makes of it."""

import base64
import dataclasses
import hashlib
import html
import re

import pytest
import torch
from torch import nn

from tests.report.browser import needs_chromium, screenshot, visit
from tests.report.payloads import PAYLOADS
from tests.report.structure import count, skeleton, texts
from tests.selection import some
from thalweg import Problem, diagnose
from thalweg.diagnosis.activity import LayerActivity
from thalweg.diagnosis.gradient import LayerSignal
from thalweg.diagnosis.moves import Move
from thalweg.report.citation import BIBTEX

_GROUP = 20  # names to a page


def trained(names, class_name="Net"):
    """A diagnosis of a little tanh net whose class and layers have the given names."""
    rng = torch.Generator().manual_seed(0)
    net = type(class_name, (nn.Sequential,), {})()
    for i, name in enumerate(names):
        layer = nn.Linear(3, 3)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(3, 3, generator=rng))
            layer.bias.zero_()
        net.add_module(name, layer)
        net.add_module(f"activation {i}", nn.Tanh())
    x, y = torch.randn(64, 3, generator=rng), torch.randn(64, 3, generator=rng)
    problem = Problem(net, nn.MSELoss(), (x[:48], y[:48]), heldout=(x[48:], y[48:]), name=class_name)
    return diagnose(problem, budget=40)


@pytest.fixture(scope="module")
def diagnosis():
    with torch.random.fork_rng():
        return trained(["first", "second", "third"])


def renamed(diagnosis, names):
    """The diagnosis as if the model, its layers, the remedies and the files in its notes had these names."""
    evidence = diagnosis.evidence
    layers = tuple(LayerSignal(name, 10.0 ** -(i % 5)) for i, name in enumerate(names))
    activity = tuple(LayerActivity(name, name, 8, 64, 0.5, 0.5, 0.0, 0.5) for name in names)
    gradient = dataclasses.replace(evidence.gradient, layers=layers)
    moves = tuple(Move(name, -0.1, -0.2 + 0.1 * i, 0.01) for i, name in enumerate(names))
    return dataclasses.replace(
        diagnosis,
        name=names[0],
        summary=names[1],
        evidence=dataclasses.replace(evidence, gradient=gradient, activity=activity),
        moves=moves,
        notes=tuple(f"Read from {name}." for name in names),
    )


def page_of(record, folder, name="page"):
    path = folder / f"{name}.html"
    record.save(path)
    return path


@pytest.mark.parametrize("first", some(range(0, len(PAYLOADS), _GROUP), now=1))
def test_names_change_nothing_but_texts(diagnosis, tmp_path, first):
    hostile = list(PAYLOADS[first : first + _GROUP])
    harmless = [f"harmless name {i}" for i in range(len(hostile))]
    there = page_of(renamed(diagnosis, hostile), tmp_path, "hostile").read_text()
    here = page_of(renamed(diagnosis, harmless), tmp_path, "harmless").read_text()
    assert skeleton(there) == skeleton(here)
    for payload in hostile:
        if payload.isprintable():
            assert texts(there).count(payload) >= 2  # in the notes, in the table: whole


@pytest.mark.slow
def test_a_real_model_with_hostile_names_makes_the_same_page(tmp_path):
    hostile = [p for p in PAYLOADS if "." not in p and "\x00" not in p][:3]
    with torch.random.fork_rng():
        there, here = trained(hostile, PAYLOADS[0]), trained(["a", "b", "c"])
    assert there.verdict is here.verdict
    pages = [page_of(found, tmp_path, str(i)).read_text() for i, found in enumerate((there, here))]
    assert skeleton(pages[0]) == skeleton(pages[1])
    fragments = [found._repr_html_() for found in (there, here)]
    assert skeleton(fragments[0]) == skeleton(fragments[1])


def test_the_comparison_sees_what_is_not_escaped():
    assert skeleton("<p>a</p>") != skeleton("<p><b>a</b></p>")
    assert skeleton('<p class="a">a</p>') != skeleton('<p class="a" onclick="x">a</p>')
    assert skeleton("<p>a</p>") != skeleton("<p>a<!-- --></p>")
    with pytest.raises(AssertionError):
        skeleton("<p>a")


def test_every_figure_has_a_text_alternative_and_is_hidden_besides(diagnosis, tmp_path):
    page = page_of(diagnosis, tmp_path).read_text()
    found = re.findall(r'<div class="panels" role="img" aria-label="([^"]+)">', page)
    assert len(found) == count(page)["figure"] == len(diagnosis.figures()) == 4
    assert [html.unescape(alt) for alt in found] == [figure.alt for figure in diagnosis.figures()]
    assert page.count("<svg") == page.count('aria-hidden="true"')


def test_the_answer_comes_first(diagnosis, tmp_path):
    page = page_of(diagnosis, tmp_path).read_text()
    order = [diagnosis.verdict.value.upper(), "How sure?", "What to do", "The evidence", "The next moves"]
    order += ["How it was measured", "How to repeat it", "How to cite"]
    text = texts(page)
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert BIBTEX in text


def test_the_page_allows_its_own_style_alone(diagnosis, tmp_path):
    page = page_of(diagnosis, tmp_path).read_text()
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;" in page
    assert count(page)["style"] == 1
    assert count(page)["script"] == 0
    assert " style=" not in page
    assert "http:" not in page
    assert "https:" not in page


def test_the_same_record_makes_the_same_page(diagnosis, tmp_path):
    first, second = (page_of(diagnosis, tmp_path, name).read_bytes() for name in "ab")
    assert first == second


@needs_chromium
class TestInABrowser:
    def test_nothing_is_said_and_nothing_asked_for(self, diagnosis, tmp_path):
        hostile = renamed(diagnosis, list(PAYLOADS))
        seen = visit(page_of(hostile, tmp_path))
        assert "How to cite" in seen.dom
        assert seen.console == []
        assert seen.asked_for == []

    def test_the_browser_would_tell(self, tmp_path):
        page = tmp_path / "bad.html"
        page.write_text(
            '<!doctype html><meta charset="utf-8"><img src="http://thalweg.invalid/x.png">'
            "<script>console.error('said')</script>"
        )
        seen = visit(page)
        assert len(seen.console) == 1
        assert seen.asked_for == ["http://thalweg.invalid/x.png"]

    @pytest.mark.slow
    def test_the_policy_refuses_what_slipped_in(self, diagnosis, tmp_path):
        path = page_of(diagnosis, tmp_path)
        path.write_text(path.read_text().replace("</main>", "</main><script>document.title='ran'</script>"))
        seen = visit(path)
        assert "<title>ran" not in seen.dom
        assert any("Content Security Policy" in line for line in seen.console)

    @pytest.mark.slow
    @pytest.mark.parametrize("width", [400, 1280])
    def test_it_fits_the_screen(self, diagnosis, tmp_path, width):
        # The page may not be wider than the window: a probe, allowed for once, measures it.
        path = page_of(renamed(diagnosis, list(PAYLOADS[:_GROUP])), tmp_path)
        probe = "<script>document.title=document.documentElement.scrollWidth+'/'+innerWidth</script>"
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
        path.write_text(page.replace("</body>", f"{probe}</body>"))
        wide, window = re.search(
            r"<title>(\d+)/(\d+)", visit(path, f"--window-size={width},900").dom
        ).groups()
        assert int(wide) <= int(window)

    @pytest.mark.slow
    def test_dark_is_dark_and_light_is_light(self, diagnosis, tmp_path):
        from matplotlib.image import imread

        path = page_of(diagnosis, tmp_path)
        for dark in (False, True):
            screenshot(path, tmp_path / "shot.png", width=400, dark=dark, height=400)
            assert (imread(tmp_path / "shot.png")[..., :3].mean() < 0.5) == dark
