"""Documents as HTML: self-contained, without scripts, every text escaped."""

from __future__ import annotations

from html import escape

from thalweg.report.curves import colour, is_logarithmic, to_svg
from thalweg.report.document import Block, Curves, Document, Facts, Headline, Note, Table, significant
from thalweg.report.drawing import panel_svgs
from thalweg.report.figures import Figure

__all__ = ["to_fragment", "to_page"]

_STYLE = """
.thalweg{font:15px/1.5 system-ui,sans-serif;max-width:56rem;color:#1b1f24}
.thalweg h1{font-size:1.05rem;margin:0 0 .8rem}
.thalweg .verdict{border-left:.35rem solid #9a6700;padding:.4rem .9rem;margin:.6rem 0;background:#f6f8fa}
.thalweg .good{border-color:#1a7f37}.thalweg .bad{border-color:#cf222e}
.thalweg .verdict b{letter-spacing:.04em;margin-right:.8rem}
.thalweg table{border-collapse:collapse;margin:.8rem 0}
.thalweg caption{text-align:left;font-weight:600}
.thalweg td,.thalweg th{padding:.15rem 1rem .15rem 0;text-align:right;vertical-align:top;
font-variant-numeric:tabular-nums}
.thalweg td:first-child,.thalweg th:first-child,.thalweg .facts td{text-align:left}
.thalweg th{font-weight:400;color:#59636e}
.thalweg .curves{width:100%;max-width:40rem;height:10rem;background:#f6f8fa}
.thalweg .facts td:first-child{color:#0550ae;white-space:nowrap}
@media (prefers-color-scheme:dark){.thalweg-page{background:#0d1117}
.thalweg-page .thalweg{color:#e6edf3}.thalweg-page .verdict,.thalweg-page .curves{background:#161b22}
.thalweg-page .facts td:first-child{color:#79c0ff}.thalweg-page th{color:#9198a1}}
"""


def to_fragment(document: Document) -> str:
    """Return ``document`` as one ``<div>`` with its own style, for notebooks."""
    body = "".join(_block(block) for block in document.blocks)
    return f'<style>{_STYLE}</style><div class="thalweg"><h1>{escape(document.title)}</h1>{body}</div>'


def to_page(document: Document) -> str:
    """Return ``document`` as a whole page that loads nothing from anywhere."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(document.title)}</title></head>"
        f'<body class="thalweg-page">{to_fragment(document)}</body></html>\n'
    )


def _block(block: Block) -> str:
    match block:
        case Headline(word, sentence, tone):
            return f'<p class="verdict {escape(tone)}"><b>{escape(word.upper())}</b>{escape(sentence)}</p>'
        case Facts(rows):
            cells = "".join(_row(row) for row in rows)
            return f'<table class="facts">{cells}</table>'
        case Table(title, columns, rows):
            head = "".join(f"<th>{escape(column)}</th>" for column in columns)
            cells = "".join(_row(row) for row in rows)
            return f"<table><caption>{escape(title)}</caption><tr>{head}</tr>{cells}</table>"
        case Note(text):
            return f"<p>{escape(text)}</p>"
        case Curves(title, axis, series):
            scale = f"over {axis}" + (", logarithmic" if is_logarithmic(block) else "")
            legend = "".join(
                f'<span style="color:{colour(i)}">{escape(label)}</span> '
                f"{significant(values[0], 3)} … {significant(values[-1], 3)} &nbsp; "
                for i, (label, values) in enumerate(series)
            )
            return f"<p><strong>{escape(title)}</strong> ({escape(scale)})<br>{legend}</p>{to_svg(block)}"
        case Figure(_, title, alt, _, caption):
            panels = "".join(panel_svgs(block))
            words = f"<figcaption><b>{escape(title)}</b> {escape(caption)}</figcaption>"
            return f'<figure role="img" aria-label="{escape(alt)}">{panels}{words}</figure>'


def _row(cells: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
