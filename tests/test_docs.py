"""The pages of `make docs`: all are in the navigation, they build without a broken link, and fetch nothing."""

import importlib.util
import re
import subprocess
import sys

import pytest
import yaml

from lightning_apps.config.composition import CONF
from tests.asserts.browser import browser, load, violations

ROOT = CONF.parent
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages_of(navigation):
    """Files that a navigation names, however deep."""
    for entry in navigation:
        (part,) = entry.values()
        yield from [part] if isinstance(part, str) else pages_of(part)


def test_every_page_is_in_the_navigation():
    pages = [f"{folder}{page.name}" for folder in ("", "docs/") for page in (ROOT / folder).glob("*.md")]
    assert sorted(pages_of(CONFIG["nav"])) == sorted(pages)


def test_files_of_the_theme_are_there():
    for file in [*CONFIG["extra"]["polyfills"], *CONFIG["extra_css"], *CONFIG["extra_javascript"]]:
        assert (ROOT / file).is_file()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("the packages of `make docs` are not installed")
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run([sys.executable, ROOT / ".ci/docs", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"wrote  {folder / 'index.html'}\n")
    return folder


@pytest.mark.slow
def test_the_pages_build_and_fetch_nothing(site):
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert {"index.html", "LOG.html", "docs/location.html", "code/lightning_apps.statistics.html"} <= set(pages)
    fetched = r"<(?:script|img|iframe)[^>]* src=[\"']?(?:https?:)?//|<link[^>]* href=[\"']?(?:https?:)?//"
    assert [name for name, text in pages.items() if re.search(fetched, text)] == []
    code = pages["code/lightning_apps.statistics.html"]
    assert 'id="lightning_apps.statistics.bootstrap.bootstrap_interval"' in code
    assert "Percentile interval of a statistic under resampling with replacement" in code
    assert not re.search(r'id="[\w.]+\._[a-z]', code)  # what is private is not shown


SEARCH = """
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
addEventListener("load", async () => {
  document.querySelector(".md-search__button").click();
  await pause(500);
  const { shadowRoot } = [...document.querySelectorAll("*")].find((node) => node.shadowRoot);
  const input = shadowRoot.querySelector("input");
  input.value = "McNemar";
  input.dispatchEvent(new Event("input", { bubbles: true }));
  await pause(1500);
  document.body.dataset.found = [...shadowRoot.querySelectorAll("a")].map((link) => link.href);
});
"""


@browser
@pytest.mark.slow
def test_the_search_needs_no_server(site, tmp_path):
    page = site / "searched.html"
    page.write_text((site / "index.html").read_text(encoding="utf-8") + f"<script>{SEARCH}</script>", encoding="utf-8")
    dom, console = load(page, profile=tmp_path / "profile")
    assert console == []
    (found,) = re.findall(r'data-found="([^"]+)"', dom)
    assert "code/lightning_apps.statistics.html" in found


@browser
@pytest.mark.slow
@pytest.mark.parametrize("page", ["index.html", "docs/troubles.html", "code/lightning_apps.statistics.html"])
def test_everyone_can_read_them(site, page):
    path = site / page
    assert violations(path, path.parent) == []
