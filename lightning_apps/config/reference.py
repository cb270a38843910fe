"""Write docs/config.md: every group, option and key of conf/, with type, default and meaning.

  python -m lightning_apps.config.reference

A key's meaning is its sentence in the docstring of what the value goes to, or else the comment beside it in conf/.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import get_original_bases, get_type_hints, is_typeddict

from lightning_apps.config.binding import OPTIONAL_CALLBACKS, RUNTIME_ARGUMENTS, parameters_of, target
from lightning_apps.config.command_settings import SETTINGS
from lightning_apps.config.composition import CONF
from lightning_apps.config.help_page import HIDDEN, bases, comments
from lightning_apps.config.schema import RootConfig
from lightning_apps.config.value_checks import allowed_type

PAGE = CONF.parent / "docs" / "config.md"
SWEEP = "lightning_apps.sweeps.grid.SweepSettings"
"""By name, as every target: sweeps stand above the configuration."""
PRESETS = ("experiment", "module")
"""Groups whose options set keys of any section."""
OURS = ("lightning_apps", "datamodules", "models")
HEAD = """# Configuration

Every group, option and key. `make config-docs` writes this page from the types in the code, the docstrings of the
constructors and the comments in `conf/`; a test fails where it is not what that writes. Choose an option with
`group=option`, set a key with `group.key=value`; `--help` shows the same beside the values that your words make.
The default `???` is none: the key must be given; `${...}` takes another key's value.
"""


class Row(NamedTuple):
    """One key: its name below the section, type, default and meaning."""

    key: str
    kind: str
    default: str
    meaning: str


def merged(path: Path) -> dict[str, Any]:
    """The content of an option's file over those that it builds on."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    values: dict[str, Any] = {}
    for base in bases(path, content):
        values = over(values, merged(base))
    return over(values, {key: value for key, value in content.items() if key not in ("defaults", "hydra")})


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one, in which the second wins."""
    both = {key: over(below[key], value) for key, value in above.items() if _are_mappings(below.get(key), value)}
    return {**below, **above, **both}


def _are_mappings(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def kind_in_words(annotation: Any) -> str:
    """A type with its range as a reader sees it: `int >= 1 or null`, `stop, skip or off`."""
    annotation = allowed_type(annotation).kind
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        signs = {Ge: ">=", Gt: ">", Le: "<=", Lt: "<"}
        bounds = [
            f"{sign} {vars_of(entry)}" for entry in parts[1:] for kind, sign in signs.items() if isinstance(entry, kind)
        ]
        return " ".join([kind_in_words(parts[0]), ", ".join(bounds)]).strip()
    if origin in (Union, UnionType):
        return " or ".join(kind_in_words(part) for part in parts)
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin in (list, tuple):
        return f"list of {kind_in_words(parts[0])}"
    if origin is dict or is_typeddict(annotation) or dataclasses.is_dataclass(annotation):
        return "keys"
    if annotation in (Any, inspect.Parameter.empty):
        return "any"
    names = {NoneType: "null", str: "text", bool: "true or false"}
    return names[annotation] if annotation in names else str(getattr(annotation, "__name__", "any"))


def vars_of(bound: Any) -> Any:
    """The number of a Ge, Gt, Le or Lt."""
    return (
        next(iter(vars(bound).values())) if hasattr(bound, "__dict__") else getattr(bound, type(bound).__name__.lower())
    )


def sentences(kind: Any) -> dict[str, str]:
    """What the docstring of a callable, TypedDict or dataclass says of each argument, those of its bases included."""
    found: dict[str, str] = {}
    for options in [] if has_fields(kind) else fields_of_options(kind):
        found |= sentences(options)
    if is_typeddict(kind):  # whose bases are no classes above it
        for base in get_original_bases(kind):
            found |= sentences(base) if is_typeddict(base) else {}
    for base in reversed(inspect.getmro(kind) if inspect.isclass(kind) else (kind,)):
        if base.__module__.partition(".")[0] not in OURS:  # other libraries' sentences are theirs
            continue
        text = inspect.cleandoc(base.__doc__ or "")
        for section in re.findall(r"^(?:Args|Attributes):\n((?:(?: .*)?\n?)*)", text, flags=re.MULTILINE):
            for name, sentence in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE):
                found[name] = " ".join(sentence.split())
    return found


def fields_of(kind: Any) -> dict[str, Any]:
    """Names and types of what a callable, TypedDict or dataclass takes."""
    if has_fields(kind):
        return dict(get_type_hints(kind, include_extras=True))
    return {name: parameter.annotation for name, parameter in parameters_of(kind)[0].items()}


def has_fields(kind: Any) -> bool:
    """Whether this is a TypedDict or a dataclass."""
    return is_typeddict(kind) or (inspect.isclass(kind) and dataclasses.is_dataclass(kind))


def typed_part(annotation: Any) -> Any:
    """The TypedDict or dataclass in a type, where there is one."""
    return next((part for part in (annotation, *get_args(annotation)) if has_fields(part)), None)


def rows(
    values: Mapping[str, Any], kind: Any, notes: Mapping[tuple[str, ...], str], place: tuple[str, ...]
) -> Iterator[Row]:
    """The keys of a section, those below it too.

    Args:
        values: of the section.
        kind: what takes them; None where nothing says their types.
        notes: comments by full key.
        place: the section's own keys.
    """
    fields = fields_of(kind) if kind is not None else {}
    said = sentences(kind) if kind is not None else {}
    for name, value in values.items():
        if name == "_target_":
            continue
        here = (*place, name)
        if _has_target(value):
            yield from rows(value, target(".".join(here), value), notes, here)
            continue
        part = typed_part(fields.get(name))
        is_explained_below = any(note[: len(here)] == here for note in notes if len(note) > len(here))
        if isinstance(value, Mapping) and (
            part is not None or is_explained_below or any(map(_has_target, value.values()))
        ):
            yield from rows(value, part, notes, here)
            continue
        meaning = said.get(name, "").rstrip(".") or notes.get(here, "")
        yield Row(".".join(here), kind_in_words(fields.get(name, Any)), shown(value), meaning)


def _has_target(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def fields_of_options(call: Any) -> list[Any]:
    """The TypedDicts of `**options: Unpack[Options]`."""
    annotations = [parameter.annotation for parameter in inspect.signature(call, eval_str=True).parameters.values()]
    return [part for annotation in annotations for part in get_args(annotation) if is_typeddict(part)]


def shown(value: Any) -> str:
    """A value as one types it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def table(found: list[Row]) -> str:
    """Rows as a table of Markdown."""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, kind, default, meaning in found:
        cells = [f"`{key}`", kind, f"`{default}`", meaning]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def typed(group: str, values: Mapping[str, Any]) -> Any:
    """What takes the values of an option: its target, or the dataclass of its section; None where neither is there."""
    if "_target_" in values or group == "sweep":
        return target(group, values if group != "sweep" else {"_target_": SWEEP})
    kind = get_type_hints(RootConfig, include_extras=True)[group]
    return kind if inspect.isclass(kind) and get_origin(kind) is None else None


def height(path: Path) -> int:
    """How many options of its folder an option stands on."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return max((1 + height(base) for base in bases(path, content) if base.parent == path.parent), default=0)


def options_of(group: str) -> list[str]:
    """A group: one table for all options of one constructor, and what each option sets otherwise."""
    made: dict[str, tuple[list[str], list[Row]]] = {}
    added: list[str] = []
    for path in sorted((CONF / group).glob("*.yaml"), key=lambda path: (height(path), path.name)):
        values = merged(path)
        found = list(rows(values, typed(group, values), comments(path, (group,)), (group,)))
        extra = [row for row in found if row.key.startswith("callbacks.extra.")]
        found = [row for row in found if row not in extra]
        added += [f"`callbacks={path.stem}` adds:", table(extra)] if extra else []
        texts, first = made.setdefault(str(values.get("_target_", group)), ([], []))
        there = {row.key: row.default for row in first}
        other = [f"`{row.key}={row.default}`" for row in found if there.get(row.key, row.default) != row.default]
        first += [row for row in found if row.key not in there]
        texts.append(f"- **{path.stem}**{head_of(path)}{': ' * bool(other)}{', '.join(other)}")
    sections = []
    for call, (texts, found) in made.items():
        sections.append("\n".join(texts))
        sections += [f"Made by `{call}`:"] if call != group else []
        sections += [table(found)] if found else []
    return sections + added


def head_of(path: Path) -> str:
    """The comment at the head of an option's file, in brackets."""
    text = path.read_text(encoding="utf-8")
    lines = [
        line[2:] for line in text.split("\n\n")[0].splitlines() if line.startswith("# ") and "@package" not in line
    ]
    return f" ({' '.join(lines).rstrip('.')})" if lines else ""


def presets(group: str) -> list[str]:
    """Options that set keys of any section: what each chooses and sets, and the keys of its module."""
    sections = []
    for path in sorted((CONF / group).glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        defaults = [base for base in content.get("defaults", []) if isinstance(base, dict)]
        chosen = [f"{key.partition('/')[2]}={option}" for base in defaults for key, option in base.items()]
        own = ("defaults", "experiment", "module", *HIDDEN)
        chosen += [f"{key}={shown(value)}" for key, value in leaves(content) if key.partition(".")[0] not in own]
        words = f": {', '.join(f'`{word}`' for word in chosen)}" if chosen else ""
        sections.append(f"**{path.stem}**{head_of(path)}{words}")
        if "module" in content:
            kind = target("module", content["module"])
            found = list(rows(content["module"], kind, comments(path, ()), ("module",)))
            sections += [table(found)] if found else []
    return sections


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Full keys and values of a nested mapping."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def optional_callbacks() -> Iterator[Row]:
    """The arguments of the callbacks that are null or a mapping, as far as their own docstring names them."""
    for name, path in OPTIONAL_CALLBACKS.items():
        kind = target(name, {"_target_": path})
        parameters, _ = parameters_of(kind)
        for argument, sentence in sentences(kind).items():
            if argument in parameters and argument not in RUNTIME_ARGUMENTS["callbacks"]:
                default = parameters[argument].default
                text = "???" if default is inspect.Parameter.empty else shown(default)
                annotation = parameters[argument].annotation
                yield Row(f"callbacks.{name}.{argument}", kind_in_words(annotation), text, sentence.split(". ")[0])


def page() -> str:
    """The whole page."""
    root = {
        "experiment": "location",
        **merged(CONF / "config.yaml"),
        "verify": [],
        "verify_files": None,
        "verify_same": {},
    }
    sections = [
        HEAD.strip(),
        "## Root keys",
        table(list(rows(root, RootConfig, comments(CONF / "config.yaml", ()), ()))),
    ]
    for group in sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "command"):
        sections += [f"## {group}", *(presets(group) if group in PRESETS else options_of(group))]
        sections += ["Where they are on:", table(list(optional_callbacks()))] if group == "callbacks" else []
    sections.append("## Commands that start from a run")
    for command, kind in SETTINGS.items():
        path = CONF / "command" / f"{command}.yaml"
        found = rows(merged(path), kind, comments(path, ()), ())
        sections += [f"### {command}", table(list(found))]
    return "\n\n".join(sections) + "\n"


def main() -> None:
    """Entry point."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
