"""Pages: jinja2 templates over one layout, `templates/base.html`; self-contained, everything escaped, no network.

A Content-Security-Policy in the page itself forbids whatever it does not hold already: styles, and a script where a
page has one, run only if their hash is the one that the policy names.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lightning_apps.run_files.atomic_files import write_text_atomically

UNSHOWABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")
"""What HTML cannot hold, or would turn other text around."""


@dataclass(frozen=True)
class Table:
    """A table of plain text; it scrolls sideways where the page is narrow.

    Attributes:
        caption: what it shows.
        head: names of the columns.
        rows: cells of plain text.
        text: columns that are aligned to the left.
        long: those among them whose cells may wrap.
        sortable: whether a click on a column's head sorts by it, where the page has the script.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[int] = ()
    long: Sequence[int] = ()
    sortable: bool = False

    def kind(self, column: int) -> str | None:
        """Class names of a column's cells."""
        return " ".join(name for name in ("text", "long") if column in getattr(self, name)) or None


def showable(value: object) -> str:
    """A value for a page, before it is escaped; what is UNSHOWABLE becomes U+FFFD."""
    return value if isinstance(value, Markup) else UNSHOWABLE.sub("\ufffd", str(value))


def data_url(picture: Path) -> str:
    """A PNG as part of the page."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"


ENVIRONMENT = Environment(
    loader=PackageLoader("lightning_apps.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=showable,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["data_url"] = data_url


def render(template: str, **content: Any) -> Markup:
    """A template, filled in, to stand in another."""
    return Markup(ENVIRONMENT.get_template(template).render(**content))  # noqa: S704 (what is filled in is escaped)


def page(template: str, title: str, *, style: str = "", script: str = "", **content: Any) -> str:
    """A whole document.

    Args:
        template: extends base.html.
        title: what the page is called, plain text.
        style: CSS behind what every page has.
        script: runs once the document is there; must not hold `</script`.
        content: what the template is filled with; plain text is escaped.
    """
    style = render("page.css") + Markup(style)  # noqa: S704 (ours)
    policy = f"default-src 'none'; img-src data:; style-src {_source(style)}; "
    policy += f"script-src {_source(script)}; " if script else ""
    return ENVIRONMENT.get_template(template).render(
        title=title, style=style, script=Markup(script),  # noqa: S704 (ours)
        policy=f"{policy}base-uri 'none'; form-action 'none'", **content,
    )  # fmt: skip


def write_page(path: Path, template: str, title: str, **content: Any) -> None:
    """Write a whole document, see `page`."""
    write_text_atomically(path, page(template, title, **content))


def _source(text: str) -> str:
    """How a policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
