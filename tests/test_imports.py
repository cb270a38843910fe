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


def is_there(name):
    """Whether a dotted name is a module of the tests, a folder of them, or a name in a module."""
    path = ROOT.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists() or path.parent.with_suffix(".py").exists()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from tests.lightning_apps.runs.test_resume import killed", True),
        ("def inside():\n    import tests.conftest as shared", True),
        ("from tests import conftest", True),
        ("from tests.asserts.killed_runs import killed", False),
        ("from lightning_apps.test_something import x", False),
    ],
)
def test_an_import_of_a_test_is_found(source, found):
    assert any(map(of_a_test, modules_imported(source))) == found


def test_what_tests_import_of_each_other_is_there():
    imported = {name for file in ROOT.rglob("*.py") for name in modules_imported(file.read_text())}
    assert "tests.asserts.killed_runs.killed" in imported
    assert [name for name in imported if name.startswith("tests.") and not is_there(name)] == []


def test_no_test_imports_from_a_test():
    files = sorted(ROOT.rglob("*.py"))
    assert Path(__file__) in files
    found = {
        str(file.relative_to(ROOT)): names
        for file in files
        if (names := [name for name in modules_imported(file.read_text()) if of_a_test(name)])
    }
    assert found == {}
