"""A page as a test reads it."""
import re
from html.parser import HTMLParser

LOADING = ("src", "href", "xlink:href", "srcset", "data", "action")
VOID = {"meta", "img", "wbr", "path", "use"}


class Reader(HTMLParser):
    """The elements of a page with their attributes, its text, and what it would load.

    Fails where elements are not nested."""

    def __init__(self, html):
        super().__init__()
        self.open = []
        self.elements = []
        self.words = []
        self.loaded = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        found = [value for name, value in attributes if name in LOADING]
        for _, value in attributes:
            found += re.findall(r"url\(([^)]*)\)", value or "")
        self.loaded += [url for url in found if not url.startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words)).replace("\u00a0", " ")
