"""The HTML of a report: elements, a style sheet, one page that loads nothing from elsewhere. What is not Html already is escaped."""
import base64
import re
from html import escape

from sre2l.run.errors import UserError, first_line

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d8dde3; --back: #ffffff; --card: #f5f7f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b1; --line: #363d45; --back: #14171b; --card: #1c2127; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 3rem; background: var(--back); color: var(--ink);
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.8rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); font-size: 1.2rem; }
h3 { margin: 0 0 .4rem; font-size: 1rem; }
p { margin: .5rem 0; max-width: 46rem; }
.lead { font-size: 1.1rem; }
.soft, small, figcaption { color: var(--soft); font-size: .875rem; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 0 .35rem .75rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; font-weight: normal; }
thead th { color: var(--soft); font-size: .875rem; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
tbody th small { display: block; }
.track { display: block; height: .4rem; margin: .3rem 0 .15rem; border-radius: .2rem; background: var(--line); }
.fill { display: block; height: 100%; border-radius: .2rem; }
.figures, .cards { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); align-items: start; }
.cards { gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.card { padding: .75rem 1rem; border-radius: .5rem; background: var(--card); font-size: .875rem; }
td { overflow-wrap: normal; }
.card th { color: var(--soft); }
.card th, .card td { padding-top: .15rem; padding-bottom: .15rem; }
.card td { overflow-wrap: anywhere; }
.card tr:last-child > * { border-bottom: 0; }
figure { margin: 0; }
figure svg { display: block; width: 100%; max-width: 34rem; height: auto; }
.key { display: inline-block; margin-right: .9rem; }
.key i { display: inline-block; width: .8rem; height: .25rem; margin-right: .35rem; border-radius: .1rem; vertical-align: middle; }
img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: .25rem; }
@media (max-width: 32rem) { body { font-size: 15px; } .lead { font-size: 1rem; } th, td { padding-left: .5rem; } }
.fault { padding: .5rem .75rem; border-left: .25rem solid #d9732b; background: var(--card); }
"""


class Html(str):
    """Text that is markup already."""


def text(*values):
    """The values one after the other, as markup."""
    return Html("".join(value if isinstance(value, Html) else escape(str(value)) for value in values))


def element(tag, *children, **attributes):
    """<tag attributes>children</tag>; of an attribute's name `class_` gives class and `aria_label` aria-label."""
    given = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for name, value in attributes.items())
    return Html(f"<{tag}{given}>{text(*children)}</{tag}>")


def path_text(name):
    """A path, or the name of a setting, that a narrow column may break at its marks."""
    return Html(re.sub("([/_.])", r"\1<wbr>", escape(name)))


def note(*children):
    return element("p", *children, class_="soft")


def table(rows, head=()):
    """rows: lists of cells, the first of each its heading."""
    top = element("thead", element("tr", *(element("th", cell, scope="col") for cell in head))) if head else ""
    body = (element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest)) for first, *rest in rows)
    return element("table", top, element("tbody", *body))


def bar(percent, colour):
    """A thin bar, full at 100 percent."""
    return element("span", element("span", style=f"width: {min(max(percent, 0), 100):.2f}%; background: {colour}", class_="fill"), class_="track")


def legend(keys):
    """keys: (colour, what it shows)."""
    return text(*(element("span", element("i", style=f"background: {colour}"), name, class_="key") for colour, name in keys))


def image(data, kind, alt):
    """An image within the page. data: bytes, kind: png or jpeg."""
    return Html(f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">')


def in_words(error, folder):
    """An error as a sentence for the page, without the path of the run folder."""
    words = str(error) if isinstance(error, UserError) else first_line(error)
    return words.replace(f"{folder}/", "")


def guarded(folder, make, *args):
    """A piece of the page, make(*args), or the sentence why it is not there: a report must not fail a finished run."""
    try:
        made = make(*args)
        return text(made) if isinstance(made, str) else text(*made)
    except Exception as error:
        return element("p", f"This piece could not be made: {in_words(error, folder)}", class_="fault")


def page(title, *body):
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the browser sees to it that nothing is loaded from elsewhere
    head = (f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(title)}</title><style>{STYLE}</style>')
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{text(*body)}</body></html>\n'
