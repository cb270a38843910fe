"""Imports between folders point downwards in the drawing of docs/architecture.md."""

import ast
import re

import pytest

from lightning_apps.config.composition import CONF

ROOT = CONF.parent
PACKAGES = ("lightning_apps", "datamodules", "models")
HERE = "*.py"
"""In the drawing: the files of a package that are in none of its folders."""
FREE = "lightning_apps.errors"
"""The one module that every folder of its package may import."""


def drawn_levels(page):
    """Package -> {folder: height}, the top of the drawing being the highest; `*.py` is the package itself."""
    (drawing,) = re.findall(r"^```text\n(lightning_apps/\n.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    levels, package = {}, ""
    for height, line in enumerate(reversed(drawing.splitlines())):
        words = line.partition("#")[0].split()
        if line.startswith(" "):
            levels |= {word.rstrip("/").replace("/", "."): height for word in words}
        else:
            (package,) = words
            yield package.rstrip("/"), levels
            levels = {}


def folder_of(module, modules):
    """Folder of a module within its package, `*.py` for the package itself."""
    parents = module.split(".")[1:] if f"{module}.__init__" in modules else module.split(".")[1:-1]
    return ".".join(parents) or HERE


def imported(source, modules):
    """Our modules and packages that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [
                whole if (whole := f"{node.module}.{name.name}") in modules or f"{whole}.__init__" in modules
                else str(node.module)
                for name in node.names
            ]  # fmt: skip
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


def against_the_order(modules, levels):
    """Imports that the drawing forbids, `importing -> imported`.

    Args:
        modules: source of each module by its dotted name; a package's ends in `.__init__`.
        levels: of drawn_levels, by package.
    """
    for module, source in modules.items():
        package, here = module.split(".")[0], folder_of(module, modules)
        for name in imported(source, modules):
            other = name.split(".")[0]
            if package == other:
                there = folder_of(name, modules)
                allowed = name == FREE or here == there or levels[package][here] > levels[package][there]
            else:
                allowed = package == "lightning_apps"
            if not allowed or module == FREE:
                yield f"{module} -> {name}"


LEVELS = dict(drawn_levels((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")))
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts): file.read_text(encoding="utf-8")
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
}


def test_the_drawing_has_every_folder_and_no_other():
    there = {package: set() for package in PACKAGES}
    for module in MODULES:
        there[module.split(".")[0]].add(folder_of(module, MODULES))
    assert {package: set(folders) for package, folders in LEVELS.items()} == there


def test_imports_point_downwards():
    assert list(against_the_order(MODULES, LEVELS)) == []


@pytest.mark.parametrize(
    ("module", "source", "forbidden"),
    [
        ("lightning_apps.training.plan", "from lightning_apps.callbacks.guards import Guards", True),
        ("lightning_apps.training.plan", "def f():\n    import lightning_apps.runs.build", True),
        ("lightning_apps.training.plan", "from lightning_apps import train", True),
        ("lightning_apps.experiments.imdb.module", "from lightning_apps.experiments.gsm8k import grading", True),
        ("lightning_apps.experiments.baselines", "from lightning_apps.experiments.imdb import module", True),
        ("lightning_apps.sweeps.grid", "from lightning_apps.explanations import run", True),
        ("lightning_apps.errors", "from lightning_apps.process.console import say", True),
        ("datamodules.contract", "from lightning_apps.errors import ConfigError", True),
        ("datamodules.contract", "import models.ranges", True),
        ("models.kernels.attention", "from models.language import causal_lm", True),
        ("lightning_apps.training.plan", "from lightning_apps.errors import ConfigError", False),
        ("lightning_apps.training.plan", "from datamodules import contract", False),
        ("lightning_apps.training.plan", "from lightning_apps.training import clipping", False),
        ("lightning_apps.experiments.imdb.module", "from lightning_apps.experiments import experiment", False),
        ("lightning_apps.train", "from lightning_apps.runs.build import bind_data\nimport torch", False),
    ],
)
def test_a_forbidden_import_is_found(module, source, forbidden):
    alone = dict.fromkeys(MODULES, "") | {module: source}
    assert bool(list(against_the_order(alone, LEVELS))) == forbidden
