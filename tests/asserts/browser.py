"""A real browser, where one is installed, and axe-core in it."""

import importlib.util
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from tests.asserts.patience import PATIENCE_S

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is here to load the page with")
VIEWS = [(width, scheme) for width in (1280, 400) for scheme in ("light", "dark")]
"""A desk and a telephone, by day and by night."""
AXE = """
const view = [innerWidth, matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"];
const tell = (passed, found) => parent.postMessage([view, passed, found], "*");
const wide = () => document.documentElement.scrollWidth - innerWidth;
for (const part of document.querySelectorAll("details")) part.open = true;
for (const part of document.querySelectorAll("article")) part.style.contentVisibility = "visible";
axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"] }).then(
  (said) => tell(said.passes.length, said.violations.flatMap((rule) => rule.nodes.map((node) =>
    `${rule.id} at ${node.target}: ${[...node.any, ...node.all, ...node.none].map((check) => check.message)}`))
    .concat(wide() > 0 ? [`${wide()} pixels wider than the window`] : [])),
  (error) => tell(0, [String(error)]));
"""
LISTEN = """
const said = [];
addEventListener("message", (event) => { document.body.dataset.said = JSON.stringify(said.push(event.data) && said); });
"""


def violations(path, folder):
    """What axe-core finds on a page, all that folds opened, and whether it scrolls sideways, in each of VIEWS.

    Asked for are the rules of WCAG 2.1 at levels A and AA. Each view is a frame: no window of the browser is narrower
    than 500 pixels.

    Args:
        path: of the page.
        folder: for a copy of the page that lets the script in, the frames and the browser's profile.
    """
    package = importlib.util.find_spec("axe_playwright_python").submodule_search_locations[0]
    axe = (Path(package) / "axe.min.js").read_text(encoding="utf-8")
    document = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", path.read_text(encoding="utf-8"))
    script = f"<script>{axe}</script><script>{AXE}</script></body>"
    (folder / "audited.html").write_text(document.replace("</body>", script), encoding="utf-8")
    frames = "".join(
        f'<iframe src=audited.html width={width} height=6000 style="border: 0; color-scheme: {scheme}"></iframe>'
        for width, scheme in VIEWS
    )
    (folder / "frames.html").write_text(f"<body><script>{LISTEN}</script>{frames}</body>", encoding="utf-8")
    dom, _ = load(folder / "frames.html", profile=folder / "profile")
    said = json.loads(unescape(re.search(r'data-said="(.*?)"', dom)[1]))
    assert sorted(tuple(view) for view, _, _ in said) == sorted(VIEWS)
    assert all(num_passed or found for _, num_passed, found in said)  # it looked
    return sorted(f"{width} {scheme}: {line}" for (width, scheme), _, found in said for line in found)


def load(path, fragment="", *, action="--dump-dom", size="1280,900", profile):
    """What a browser says after it loaded the page; what it wrote to the console comes second."""
    done = subprocess.run(
        [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            f"--user-data-dir={profile}", f"--window-size={size}", "--virtual-time-budget=4000",
            "--enable-logging=stderr", action, f"{path.resolve().as_uri()}{fragment}",
        ],
        capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
