"""Tests stand alone: what several need is in a module that is no test, or in a fixture."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent


def modules_imported(source):
    """Dotted names of all modules that the source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def of_a_test(module):
    parts = module.split(".")
    return parts[0] == "tests" and any(part == "conftest" or part.startswith("test_") for part in parts[1:])


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from tests.lightning_apps.runs.test_resume import killed", True),
        ("def inside():\n    import tests.conftest as shared", True),
        ("from tests import conftest", True),
        ("from tests.killed_runs import killed", False),
        ("from lightning_apps.test_something import x", False),
    ],
)
def test_an_import_of_a_test_is_found(source, found):
    assert any(map(of_a_test, modules_imported(source))) == found


def test_no_test_imports_from_a_test():
    files = sorted(ROOT.rglob("*.py"))
    assert Path(__file__) in files
    found = {
        str(file.relative_to(ROOT)): names
        for file in files
        if (names := [name for name in modules_imported(file.read_text()) if of_a_test(name)])
    }
    assert found == {}
