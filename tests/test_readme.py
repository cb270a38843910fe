"""What README.md and the pages of docs/ say exists: commands, settings, files, targets, links, messages."""

import ast
import importlib.util
import re
import runpy
import shlex
import tomllib
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

# the commands' modules register the types of their settings
from lightning_apps import (
    doctor,
    evaluate,
    explain,
    export,
    generate,
    plan,
    predict,
    prepare,
    replay,
    report,
    train,
    upload,
    verify,
)
from lightning_apps.config.checks import check_config
from lightning_apps.config.command_settings import OUTPUTS
from lightning_apps.config.composition import CONF, options, plain
from lightning_apps.config.overrides import quote_value, run_name
from lightning_apps.errors import ConfigError
from lightning_apps.sweeps.grid import corners, read_axis

ROOT = CONF.parent
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    if page.name != "config.md"  # written by a program, which config/test_reference.py looks after
}
README = PAGES["README.md"]
WITH_CONFIG = {module.__name__.rpartition(".")[2] for module in (train, prepare, doctor, plan, verify)}
"""Commands whose settings are those of conf/config.yaml; each other one has a file in conf/command."""
COMMANDS = WITH_CONFIG | {
    module.__name__.rpartition(".")[2]
    for module in (evaluate, explain, export, generate, predict, replay, report, upload)
}


def commands_of(page):
    """Name and arguments of each command line of the project, continued lines joined.

    In blocks behind a pipe, variables, torchrun or srun too, and in the lines of a page within backquotes.
    """
    command = r"-m lightning_apps\.(\w+) ?(.*)$"
    blocks = re.findall(rf"^(?!#)[^`\n]*?{command}", page.replace("\\\n", ""), flags=re.MULTILINE)
    return blocks + [match.groups() for code in code_of(page) if (match := re.match(f"python {command}", code))]


def code_of(page):
    """What stands in backquotes within the lines of a page."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


OWN_FILES = {name for name, page in PAGES.items() if any("--config-dir" in words for _, words in commands_of(page))}
"""Pages that make files of their own; a test of its own follows each of them to the letter."""
PICTURES = runpy.run_path(str(ROOT / ".ci/pictures"))["PICTURES"]
FOLLOWED = "docs/own-experiment.md"
"""Of the others with files of their own, these lines alone are followed: --config-dir, trust=."""
FOUND = sorted(
    {
        (command, words)
        for name, page in PAGES.items()
        for command, words in (commands_of(page) if name != FOLLOWED else ())
        if "--config-dir" not in words and "trust=" not in words
    }
    | {("train", picture.overrides.format(data="data")) for picture in PICTURES.values()}
)


def first_of(word):
    """The override with its first value, where it sweeps over several."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        axis = read_axis(word, GlobalHydra.instance().config_loader())
    return word if axis is None else corners({axis.key: axis})[0].overrides[0]


def check_command(command, arguments):
    """Compose what a command line says; a line that composes a run is checked as the command would."""
    words = [word for word in shlex.split(arguments) if word not in ("--cfg", "job")]
    if command in WITH_CONFIG:  # these take `format=` off the line themselves
        words = [word for word in words if word not in [f"format={output}" for output in OUTPUTS]]
    is_multirun = "--multirun" in words
    overrides = [quote_value(word, multirun=is_multirun) for word in words if not word.startswith("--")]
    if is_multirun:  # the first of each list is a job
        overrides = [first_of(word) for word in overrides]
    if command not in COMMANDS:
        raise ConfigError(f"there is no command {command}")
    folder, name = (CONF, "config") if command in WITH_CONFIG else (CONF / "command", command)
    with initialize_config_dir(version_base="1.3", config_dir=str(folder)):
        cfg = compose(name, overrides=overrides)
    if command in WITH_CONFIG and not cfg.sweep.grid:
        if cfg.run.name is None:
            OmegaConf.update(cfg, "run.name", run_name(overrides))
        check_config(plain(cfg))
    elif command not in WITH_CONFIG:
        plain(cfg)
        run = re.match(r"(?:outputs|s3://bucket/runs)/(\w+)/", str(cfg.get("run")))
        if run and run[1] not in options("experiment"):
            raise ConfigError(f"run={cfg.run}: there is no such experiment")


@pytest.mark.parametrize(("command", "arguments"), FOUND)
def test_every_command_composes_and_checks(command, arguments):
    check_command(command, arguments)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("trian", "experiment=location"),
        ("train", "experiment=location model.hiden_size=64"),
        ("train", "experiment=location module.label_smoothing=2.0"),
        ("train", "--multirun experiment=nowhere,location"),
        ("evaluate", "run=outputs/location/default splitt=test"),
        ("evaluate", "run=outputs/nowhere/default"),
    ],
)
def test_a_wrong_command_is_found(command, arguments):
    with pytest.raises(Exception, match=r"trian|hiden_size|label_smoothing|nowhere|splitt"):
        check_command(command, arguments)


def test_the_readme_shows_the_commands():
    assert len(README.splitlines()) <= 120
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("train", "test"):
        assert f"make {target} " in README
        assert re.search(rf"^{target}:.*##", makefile, flags=re.MULTILINE)
    shown = {command for command, _ in commands_of(README)}
    assert {"train", "evaluate", "predict", "explain", "replay", "verify", "doctor"} <= shown


def test_every_picture_can_be_made_again():
    assert {f"{name}.png" for name in PICTURES} == {path.name for path in (ROOT / "docs").glob("*.png")}
    shown = {link for page in PAGES.values() for link in re.findall(r"\(([^()]*?)(?:docs/)?(\w+)\.png\)", page)}
    assert {name for _, name in shown} == set(PICTURES)


# ---------------------------------------------------------------------- settings, files, targets and links in prose


OTHER_CHOICES = (["sweep=grid", "sweep.name=rates"], ["experiment=gsm8k", "module=grpo"])
"""Of groups that bring keys of their own."""


@cache
def configurations():
    """The five experiments, and a sweep."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        choices = [[f"experiment={name}"] for name in options("experiment")]
        return [compose("config", overrides=words) for words in [*choices, *OTHER_CHOICES]]


def has_key(config, key):
    """Whether a configuration has a key; below null, a list, or an empty mapping anything may stand."""
    node = config
    for part in key.split("."):
        if node is None or OmegaConf.is_list(node) or (OmegaConf.is_dict(node) and not node):
            return True
        if not OmegaConf.is_dict(node) or part not in node:
            return False
        node = node.get(part) if not OmegaConf.is_missing(node, part) else None
    return True


def unknown_keys(page):
    """Settings such as `trainer.max_steps=5` that no experiment has."""
    sections = "model|data|optimizer|scheduler|precision|hardware|trainer|callbacks|logger|run|sweep|module"
    for code in code_of(page):
        found = re.match(rf"((?:{sections})(?:\.(?!(?:py|json|log|onnx)$)[a-z_0-9]+)+)(?:=|$)", code)
        if found and not any(has_key(config, found[1]) for config in configurations()):
            yield found[1]


def unknown_files(page):
    """Source files that are nowhere in the tree; `runs/build.py` is found under lightning_apps/."""
    there = [f"/{path.relative_to(ROOT)}" for path in source_files()]
    for code in code_of(page):
        is_file = "/" in code and re.fullmatch(r"[\w/]+\.(?:py|yaml|md|toml)", code)
        if is_file and not any(path.endswith(f"/{code}") for path in there):
            yield code


@cache
def source_files():
    folders = ("conf", "lightning_apps", "datamodules", "models", "tests", "benchmarks", "docs")
    return [path for folder in folders for path in (ROOT / folder).rglob("*.*")]


def broken_links(name, page):
    """Relative links that lead to no file."""
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        if "://" not in link and not (ROOT / name).parent.joinpath(link).exists():
            yield link


def unknown_programs(page):
    """Targets of make and modules of benchmarks that do not exist."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", page, flags=re.MULTILINE):
        if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE):
            yield f"make {target}"
    for module in re.findall(r"python -m (benchmarks\.\w+)", page):
        if importlib.util.find_spec(module) is None:
            yield module
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in re.findall(r"lightning-apps\[(\w+)\]", page):
        if extra not in project["optional-dependencies"]:
            yield f"lightning-apps[{extra}]"
    for script in re.findall(r"\blightning-apps-\w+", page):
        if script not in project["scripts"]:
            yield script


@cache
def texts_of_the_program():
    """Every piece of text in our sources, such as those between the values of a message."""
    files = [path for path in source_files() if path.suffix == ".py" and "tests" not in path.parts]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    values = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return "\0".join(
        value if isinstance(value, str) else value.decode(errors="replace")
        for value in values
        if isinstance(value, str | bytes)
    )


def unsaid_messages(page):
    """Messages in a table of troubles that no source has; `...` stands for any value."""
    for table in re.findall(r"^\| what happens \| what the program says \|.*\n((?:\|.*\n)+)", page, flags=re.MULTILINE):
        for message in [code for row in table.splitlines() for code in re.findall(r"`([^`]+)`", row.split(" | ")[1])]:
            for piece in message.removeprefix("notice: ").removeprefix("warning: ").split("..."):
                if piece.strip() not in texts_of_the_program():
                    yield piece.strip()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer.lr", "missing EQUAL"),
        ("3e-3", "LexerNoViableAltException"),
        ("seed=range(0,3", "no viable alternative at input"),
        ("optimizer.lr=1e-3,3e-3", "Ambiguous value for argument"),
    ],
)
def test_hydra_says_what_the_troubles_quote(word, said):
    assert f"“{said}”" in PAGES["docs/troubles.md"]
    with (
        initialize_config_dir(version_base="1.3", config_dir=str(CONF)),
        pytest.raises(HydraException) as error,
    ):
        compose("config", overrides=[word])
    assert said in str(error.value)


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_is_there(name):
    page = PAGES[name]
    found = [*unknown_keys(page), *broken_links(name, page), *unknown_programs(page), *unsaid_messages(page)]
    assert found + ([] if name in OWN_FILES else [*unknown_files(page)]) == []


def test_the_files_that_comments_of_conf_name_are_there():
    comments = re.findall(r"#(.*)", "\n".join(file.read_text(encoding="utf-8") for file in CONF.rglob("*.yaml")))
    named = re.findall(r"\b[\w/]+/\w+\.(?:py|md)\b", "\n".join(comments))
    assert named
    assert list(unknown_files(" ".join(f"`{file}`" for file in named))) == []


def test_what_is_not_there_is_found():
    page = "`trainer.max_step=5` and `trainer.max_steps`, `runs/biuld.py`, [here](docs/nowhere.md), `make trian`"
    assert list(unknown_keys(page)) == ["trainer.max_step"]
    assert list(unknown_files(page)) == ["runs/biuld.py"]
    assert list(broken_links("README.md", page)) == ["docs/nowhere.md"]
    assert list(unknown_programs(f"{page}, lightning-apps[slrum]")) == ["make trian", "lightning-apps[slrum]"]
    line = "torchrun --nnodes=2 \\\n  -m lightning_apps.train a=1"
    assert commands_of(f"`python -m lightning_apps.plan b=2`\n\n```bash\n# c\n{line}\n```\n") == [
        ("train", "a=1"),
        ("plan", "b=2"),
    ]
    row = "| all frozen | `nothing is trainable: ...; melt some part`, `freeze less` | unfreeze |"
    table = f"| what happens | what the program says | what to do |\n| --- | --- | --- |\n{row}\n"
    assert list(unsaid_messages(table)) == ["; melt some part", "freeze less"]
