"""The HTML of a report: elements, and a page that loads nothing. What is not Html already is escaped."""
import base64
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


class Html(str):
    """Text that is markup already."""


def text(*values):
    """The values one after the other, as markup."""
    return Html("".join(value if isinstance(value, Html) else escape(str(value)) for value in values))


def element(tag, *children, **attributes):
    """<tag attributes>children</tag>. An attribute `class_` gives class, `aria_label` aria-label."""
    given = ""
    for name, value in attributes.items():
        given += f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
    return Html(f"<{tag}{given}>{text(*children)}</{tag}>")


def note(*children):
    return element("p", *children, class_="soft")


def table(rows, head=()):
    """rows: lists of cells, the first of each its heading."""
    top = [element("th", cell, scope="col") for cell in head]
    body = [element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
            for first, *rest in rows]
    return element("table", element("thead", element("tr", *top)) if head else "", element("tbody", *body))


def image(data, kind, alt):
    """An image within the page. data: bytes, kind: png or jpeg."""
    return Html(f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">')


def page(title, *body):
    # The policy has the browser see to it that nothing is loaded from elsewhere.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = (f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f'<title>{escape(title)}</title><style>\n{STYLE}</style>')
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{text(*body)}</body></html>\n'
