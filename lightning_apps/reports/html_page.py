"""One self-contained HTML page: no network, everything escaped, readable on a phone and on paper.

A Content-Security-Policy in the page itself forbids whatever it does not hold already: styles, and a script where a
page has one, run only if their hash is the one that the policy names.
"""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; background: white; }
figcaption { font-size: .9rem; } code, pre { font-family: ui-monospace, monospace; font-size: .85rem; }
pre { white-space: pre-wrap; }
.scroll { overflow-x: auto; } .scroll:focus { outline: 2px solid; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; font-size: .9rem; padding: .3rem 0; max-width: calc(100vw - 2rem); }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #8886;
  white-space: nowrap; }
th { border-bottom-width: 2px; vertical-align: bottom; } th.text, td.text { text-align: left; }
td.long { white-space: normal; min-width: 16rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; }
@media (max-width: 40rem) { figure img { max-width: none; width: 46rem; } }
@media (max-width: 40rem) { dl { display: block; } dd { margin: 0 0 .5rem 0; } body { padding: .6rem; } }
@media print { body { max-width: none; font-size: 10pt; } .scroll { overflow: visible; }
  table { font-size: 7pt; } th, td { white-space: normal; padding: .1rem .25rem; } td.long { min-width: 0; }
  figure, tr { break-inside: avoid; } details { display: block; } }
"""


def page(title: str, sections: Sequence[str], *, style: str = "", script: str = "") -> str:
    """A whole document.

    Args:
        title: what the page is called, plain text; it is escaped here.
        sections: HTML, one section behind the other.
        style: CSS behind what every page has.
        script: runs once the document is there; must not hold `</script`.
    """
    body = "\n".join(sections)
    style = STYLE + style
    sources = f"style-src {_source(style)};" + (f" script-src {_source(script)};" if script else "")
    policy = f"default-src 'none'; img-src data:; {sources} base-uri 'none'; form-action 'none'"
    tail = f"<script>{script}</script>\n" if script else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
{tail}</body>
</html>
"""


def _source(text: str) -> str:
    """How a policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def section(heading: str, *parts: str) -> str:
    """A heading over parts of HTML."""
    return "\n".join(["<section>", f"<h2>{escape(heading)}</h2>", *parts, "</section>"])


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def bullets(lines: Sequence[str]) -> str:
    """A list of plain texts."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def facts(entries: Sequence[tuple[str, str]]) -> str:
    """Names and values of plain text, one below the other."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in entries) + "</dl>"


def details(summary: str, text: str) -> str:
    """Preformatted text that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[int] = (),
          long: Sequence[int] = ()) -> str:  # fmt: skip
    """A table that scrolls sideways where the page is narrow.

    Args:
        caption: what it shows.
        head: names of the columns.
        rows: cells of plain text.
        text: columns that are aligned to the left.
        long: those among them whose cells may wrap.
    """

    def kind(column: int) -> str:
        classes = ["text"] * (column in text or column in long) + ["long"] * (column in long)
        return f' class="{" ".join(classes)}"' if classes else ""

    names = "".join(f'<th scope="col"{kind(index)}>{escape(name)}</th>' for index, name in enumerate(head))
    lines = [
        "<tr>" + "".join(f"<td{kind(index)}>{escape(cell)}</td>" for index, cell in enumerate(row)) + "</tr>"
        for row in rows
    ]
    # a region that scrolls must be reachable by keyboard, and so needs a name
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{names}</tr></thead>\n"
        f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )


def figure(picture: Path, alt: str, caption: str) -> str:
    """A PNG, embedded; on a narrow screen it keeps a width at which it can be read, and scrolls."""
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    return (
        f'<figure><div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
