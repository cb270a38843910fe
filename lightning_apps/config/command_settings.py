"""Types of the settings of the commands that start from a run; values, and what each means, are in conf/command/."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, Predicate
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from lightning_apps.config.composition import plain
from lightning_apps.config.value_checks import Allowed, check_fields
from lightning_apps.errors import ConfigError, did_you_mean
from models.ranges import Count, NotNegative

Natural = Annotated[int, Ge(0)]
Split = Annotated[str, Allowed(Literal["validation", "test", "train"])]
Device = Literal["auto", "cpu", "gpu", "mps"]
Accelerator = Annotated[str, Allowed(Device)]
AcceleratorOfRun = Annotated[str | None, Allowed(Device | None)]
OddFrom3 = Annotated[
    int,
    Allowed(
        Annotated[int, Ge(3), Predicate(lambda value: value % 2 == 1)],
        "must be an odd number from 3 (ends and middles of stretches)",
    ),
]


@dataclass(kw_only=True)
class ModelConfig:
    """What to measure in place of the run's own weights."""

    pretrained: str | None


@dataclass(kw_only=True)
class EvaluateConfig:
    """Settings of evaluate."""

    run: str
    split: Split
    checkpoint: str
    compare: str | None
    metrics: Any
    model: ModelConfig
    accelerator: AcceleratorOfRun
    trust: Any
    out: str | None


@dataclass(kw_only=True)
class PredictConfig:
    """Settings of predict."""

    run: str
    input: str
    output: str
    format: Annotated[str, Allowed(Literal["auto", "jsonl", "csv", "parquet", "text"])]
    text_column: str | None
    batch_size: Count
    accelerator: Accelerator
    trust: Any


@dataclass(kw_only=True)
class GenerateConfig:
    """Settings of generate."""

    run: str
    prompt: str | None
    system_prompt: str | None
    checkpoint: str
    max_new_tokens: Count
    temperature: NotNegative
    top_p: Annotated[float, Gt(0), Le(1)]
    seed: int
    accelerator: Accelerator
    trust: Any


@dataclass(kw_only=True)
class FaithfulnessConfig:
    """Deletion and insertion curves."""

    max_documents: Natural | None
    unit: Annotated[str, Allowed(Literal["sentence", "word"])]
    fractions: list[Annotated[float, Gt(0), Lt(1)]]


@dataclass(kw_only=True)
class PageConfig:
    """What bounds the page."""

    words: Count
    megabytes: NotNegative


@dataclass(kw_only=True)
class ExplainConfig:
    """Settings of explain."""

    run: str
    split: Split
    input: str | None
    ids: Any
    max_documents: Count | None
    target: str
    methods: Annotated[list[str], Allowed(list[Literal["chunk_attention", "integrated_gradients", "occlusion"]])]
    steps: OddFrom3
    tolerance: NotNegative
    max_steps: int
    max_sentences: Count
    faithfulness: FaithfulnessConfig
    checks: Annotated[float, Ge(0), Le(1)]
    page: PageConfig
    micro_chunks: Count
    seed: int
    accelerator: Accelerator
    trust: Any


@dataclass(kw_only=True)
class ReplayConfig:
    """Settings of replay."""

    run: str | None
    step: int | None
    crash_dump: str | None
    num_texts: Natural
    accelerator: AcceleratorOfRun
    trust: Any


@dataclass(kw_only=True)
class ReportConfig:
    """Settings of report."""

    sweep: str | None
    run: Any
    out: str | None
    output_root: str


@dataclass(kw_only=True)
class UploadConfig:
    """Settings of upload."""

    run: str
    to: str | None


@dataclass(kw_only=True)
class ExportConfig:
    """Settings of export."""

    run: str
    to: str
    adapters: Annotated[str, Allowed(Literal["merged", "kept"])]
    onnx: bool
    private: bool
    trust: Any


SETTINGS: Mapping[str, type] = {
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "generate": GenerateConfig,
    "explain": ExplainConfig,
    "replay": ReplayConfig,
    "report": ReportConfig,
    "upload": UploadConfig,
    "export": ExportConfig,
}
"""By the command's name, which is its file's in conf/command too."""

for _name, _settings in SETTINGS.items():
    ConfigStore.instance().store(name=f"{_name}_schema", node=_settings)


OUTPUTS = ("text", "json")
"""What `format=` may be, of the commands that take the configuration of a run."""


def take_format() -> str:
    """The value of `format=`, taken off the command line: it is a word of the command and no setting of a run."""
    words = [word for word in sys.argv[1:] if word.startswith("format=")]
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in words]
    return words[-1].partition("=")[2] if words else OUTPUTS[0]


def check_format(output: str) -> None:
    """Refuse a format that there is not.

    Raises:
        ConfigError: it is none of OUTPUTS.
    """
    if output not in OUTPUTS:
        raise ConfigError(f"format={output}{did_you_mean(output, list(OUTPUTS))}: allowed are {', '.join(OUTPUTS)}")


def settings_of(command: str, cfg: DictConfig) -> dict[str, Any]:
    """The settings of a command as plain values, each of its type and inside its range.

    Raises:
        ConfigError: one is missing, or is not.
    """
    settings = plain(cfg)
    check_fields("", settings, SETTINGS[command])
    return settings
