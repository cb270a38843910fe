"""A real browser, where one is installed."""

import shutil
import subprocess

import pytest

from tests.asserts.patience import PATIENCE_S

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is here to load the page with")


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
