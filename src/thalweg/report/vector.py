"""Matplotlib's SVG made fit for a page: no styles, no stray ids, colours that the page's theme may change."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from thalweg.report.palette import LIGHT

__all__ = ["inline", "standalone"]

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_NAMES = {colour: name for name, colour in LIGHT.items()}
_REFERENCE = re.compile(r"#([\w.-]+)")


def inline(svg: str, prefix: str) -> str:
    """Return a drawing as an ``<svg>`` element for HTML.

    Every style becomes attributes, so that a page may forbid styles; what has a colour of the palette gets
    a class ``fill-…`` or ``stroke-…`` by which the page can choose another. Ids that nothing refers to are
    dropped, the others begin with ``prefix``.
    """
    root = _cleaned(svg)
    used = {name for element in root.iter() for name in _referred(element)}
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        if _LINK in element.attrib:
            element.set("href", element.attrib.pop(_LINK))
        _rename(element, used, prefix)
    for size in ("width", "height"):
        root.attrib.pop(size)
    root.set("aria-hidden", "true")  # the figure around it has the text alternative
    return ElementTree.tostring(root, encoding="unicode")


def standalone(svg: str, alt: str) -> str:
    """Return a drawing as an SVG file that stands alone, with its text alternative."""
    root = _cleaned(svg)
    ElementTree.register_namespace("", _SVG.strip("{}"))
    ElementTree.register_namespace("xlink", _LINK[1:].partition("}")[0])
    described = ElementTree.Element(f"{_SVG}desc")
    described.text = alt
    root.insert(0, described)
    root.set("role", "img")
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'


def _cleaned(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in {f"{_SVG}metadata", f"{_SVG}style"}:
                parent.remove(child)
    for element in root.iter():
        _attributes_for_style(element)
        for key in ("d", "points"):
            if key in element.attrib:
                element.set(key, " ".join(element.attrib[key].split()))
        if element.text is not None and not element.text.strip():
            element.text = None
        if element.tail is not None and not element.tail.strip():
            element.tail = None
    for shape in root.iterfind(f".//{_SVG}defs/{_SVG}path"):
        for key in ("fill", "stroke", "class"):  # a use says so itself, and a theme cannot reach in here
            shape.attrib.pop(key, None)
    root.set("stroke-linejoin", "round")
    return root


def _attributes_for_style(element: ElementTree.Element) -> None:
    classes = []
    for declaration in element.attrib.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if not value:
            continue
        if key == "font":  # weight, size and family in one
            size, _, family = value.partition("px ")
            *weight, size = size.split()
            element.set("font-size", f"{size}px")
            element.set("font-family", family)
            if weight:
                element.set("font-weight", weight[0])
            continue
        element.set(key, value)
    for key in ("fill", "stroke"):
        name = _NAMES.get(element.get(key, ""))
        if name is not None:
            classes.append(f"{key}-{name}")
    if classes:
        element.set("class", " ".join(classes))


def _referred(element: ElementTree.Element) -> set[str]:
    links = [element.get(_LINK, ""), element.get("clip-path", "")]
    return {name for link in links for name in _REFERENCE.findall(link)}


def _rename(element: ElementTree.Element, used: set[str], prefix: str) -> None:
    name = element.attrib.pop("id", None)
    if name in used:
        element.set("id", f"{prefix}{name}")
    for key in ("href", "clip-path"):
        if key in element.attrib:
            element.set(key, _REFERENCE.sub(rf"#{prefix}\1", element.attrib[key]))
