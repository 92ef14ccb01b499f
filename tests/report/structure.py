"""What a page is made of, without its texts."""

from collections import Counter
from html.parser import HTMLParser

_VOID = {"meta", "link", "br", "img", "input", "base", "embed", "source"}
# Their values are written by Thalweg alone, so that a name may not change them; the others carry numbers
# that follow the length of a text, or the text itself.
_FIXED = ("class", "role", "scope", "charset", "http-equiv", "content", "rel", "lang", "name")


class _Skeleton(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.seen, self.open, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        names = tuple(sorted(name for name, _ in attrs))
        fixed = tuple((name, value) for name, value in attrs if name in _FIXED)
        self.seen.append((len(self.open), tag, names, fixed))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        self.seen.append(("end", tag, tag == self.open[-1] if self.open else False))
        if self.open:
            self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        self.seen.append(("comment", data))

    def handle_decl(self, decl):
        self.seen.append(("declaration", decl))

    def handle_pi(self, data):
        self.seen.append(("instruction", data))

    def unknown_decl(self, data):
        self.seen.append(("unknown", data))


def skeleton(page):
    """Return the page's elements in order, with their depth, attribute names and fixed attributes."""
    parser = _Skeleton()
    parser.feed(page)
    parser.close()
    assert parser.open == [], f"left open: {parser.open}"
    return parser.seen


def texts(page):
    """Return all text of the page as one."""
    parser = _Skeleton()
    parser.feed(page)
    return "".join(parser.texts)


def count(page):
    """Return how many elements of each kind the page has."""
    return Counter(entry[1] for entry in skeleton(page) if isinstance(entry[0], int))
