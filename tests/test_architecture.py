"""docs/architecture.md is true: imports point downwards in its drawing, its tables name who acts at which hook."""

import ast
import re

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from lightning_apps.callbacks.run_upload import RunUpload
from lightning_apps.config.composition import CONF, plain
from lightning_apps.experiments.arxiv.in_context import InContextLoss
from lightning_apps.experiments.classification_evaluation import ClassificationEvaluation
from lightning_apps.process.safe_stop import SafeStop
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.runs.build import build_callbacks
from tests.tiny.plans import plan

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


PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LEVELS = dict(drawn_levels(PAGE))
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


# ---------------------------------------------------------------------- who acts at which hook

EVALUATIONS = {
    "on_validation_epoch_start": [ClassificationEvaluation],
    "on_validation_batch_end": [ClassificationEvaluation, InContextLoss],
}
"""Where the page names callbacks of an experiment, and not "the experiment's evaluation"."""


ALL_OF_THEM = (
    "experiment=location", "optimizer=schedule_free", "optimizer.unfreeze=[{pattern:layers,at_step:1}]",
    "callbacks.early_stopping={patience:5}", "callbacks.reduce_on_plateau={factor:0.5,patience:3}",
    "hardware.find_device_batch_size=true",
)  # fmt: skip
"""Every callback is on, whether or not they go together."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Classes of the callbacks in the order in which Lightning calls them."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = plain(compose("config", overrides=[*ALL_OF_THEM, "run.name=all"]))
    directory = RunDirectory(tmp_path_factory.mktemp("run"))
    callbacks = build_callbacks(config, directory, plan(max_steps=4), SafeStop(None))
    # as run_experiment and Lightning do
    callbacks.append(RunUpload(directory=directory, to="s3://bucket/runs", experiment="location", name="all"))
    callbacks.sort(key=lambda callback: isinstance(callback, Checkpoint))
    return [type(callback) for callback in callbacks]


def acting(callback, hook):
    """Whether a class of callbacks, or one of Lightning's that it extends, does something at a hook."""
    kinds = callback.__mro__[: callback.__mro__.index(L.Callback)]
    return any(hook in vars(kind) for kind in kinds)


def test_the_order_of_callbacks_is_the_one_that_is_built(kinds):
    (block,) = re.findall(r"^```text\n(StepClock .*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    listed = re.findall(r"\b[A-Z][a-z]+[A-Z]\w+|Guards", block)
    built = [kind.__name__ for kind in kinds if ".experiments." not in kind.__module__]
    assert [name for name in listed if name != "SelfKill"] == built


def named(page, hook):
    """Names in the second column of a table, in the rows of a hook and in those below it that name no other moment."""
    rows = re.findall(r"^\| (.*?) ?\| (.*?) ?\| .*\|$", page, flags=re.MULTILINE)
    moment = ""
    for first, second in rows:
        moment = first or moment
        if moment == ("each batch" if hook == "on_validation_batch_end" else f"`{hook}`"):
            yield from re.findall(r"`([A-Z]\w+)`", second)


@pytest.mark.parametrize(
    "hook",
    [
        "on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end", "on_validation_start",
        "on_validation_epoch_start", "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end",
    ],
)  # fmt: skip
def test_the_tables_name_who_acts_at_a_hook_in_their_order(hook, kinds):
    general = [kind for kind in kinds if ".experiments." not in kind.__module__ and not issubclass(kind, ProgressBar)]
    acts = [kind.__name__ for kind in (*EVALUATIONS.get(hook, []), *general) if acting(kind, hook)]
    assert acts
    assert [name for name in named(PAGE, hook) if name != "RunProgress"] == acts
