"""Documents as HTML: one page or fragment that loads nothing, every text escaped."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

from thalweg.errors import printable
from thalweg.report.curves import to_figure
from thalweg.report.document import Block, Curves, Document, Headline
from thalweg.report.drawing import panel_svgs
from thalweg.report.figures import SurfacePlot
from thalweg.report.palette import DARK, LIGHT
from thalweg.report.turning import script, surface

__all__ = ["to_fragment", "to_page"]

# A page follows the reader's taste on a screen and is light on paper; a fragment is light, as notebooks are.
_BODY = (
    "body{background:var(--ground);margin:0}main.thalweg{margin:0 auto;padding:1.2rem 1rem 3rem}"
    "@media print{:root{font-size:11px}main.thalweg{font-size:1rem;padding:0}}"
)


def to_fragment(document: Document) -> str:
    """Return ``document`` as one ``<div>`` with its own style, for notebooks."""
    return _render("fragment.html", document, style=_themed(".thalweg", LIGHT) + _style())


def to_page(document: Document) -> str:
    """Return ``document`` as a whole page, the answer first.

    It loads nothing from anywhere: its content-security policy allows its own style alone and, where there
    is a surface, the script that turns it.
    """
    first = tuple(block for block in document.blocks if isinstance(block, Headline))
    rest = tuple(block for block in document.blocks if not isinstance(block, Headline))
    style = (
        _themed(":root", LIGHT)
        + f"@media screen and (prefers-color-scheme:dark){{{_themed(':root', DARK)}}}"
        + _style()
        + _BODY
    )
    policy = f"default-src 'none'; style-src '{_fingerprint(style)}'; img-src data:; "
    turning = ""
    if any(isinstance(panel, SurfacePlot) for figure in document.figures for panel in figure.panels):
        turning = script()
        policy += f"script-src '{_fingerprint(turning)}'; "
    policy += "base-uri 'none'; form-action 'none'"
    return _render(
        "page.html", Document(document.title, first + rest), style=style, policy=policy, script=turning
    )


def _render(template: str, document: Document, **more: str) -> str:
    blocks = tuple(to_figure(block) if isinstance(block, Curves) else block for block in document.blocks)
    shown: str = (
        _environment()
        .get_template(template)
        .render(
            document=Document(document.title, blocks),
            drawings=lambda figure: zip(panel_svgs(figure), map(surface, figure.panels), strict=True),
            **more,
        )
    )
    return shown


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("thalweg.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["kind"] = _kind
    return environment


def _kind(block: Block) -> str:
    return type(block).__name__


def _style() -> str:
    colours = "".join(
        f".thalweg .{what}-{name}{{{what}:var(--{name})}}" for name in LIGHT for what in ("fill", "stroke")
    )
    return (resources.files("thalweg.report") / "templates" / "style.css").read_text("utf-8") + colours


def _themed(where: str, colours: dict[str, str]) -> str:
    return f"{where}{{" + "".join(f"--{name}:{colour};" for name, colour in colours.items()) + "}"


def _fingerprint(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
