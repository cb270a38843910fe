"""What `precision=auto` stands for on this machine: a run, and all that looks at one, knows bf16_mixed or fp32."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_apps.config.composition import CONF
from lightning_apps.config.schema import PrecisionConfig
from lightning_apps.config.value_checks import check_fields
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.directory import RunDirectory, locate_run, read_config
from lightning_apps.runs.build import available_accelerator, set_threads
from models.flops import measure_peak_flops

Config = Mapping[str, Any]

WIDE = 256
"""Hidden size from which products outweigh the casts around them: these cost by the element, a product by the element
times the width. A judgement, not a measurement: the narrowest network for which bf16 was seen to pay has 384 (MiniLM on
an AMD EPYC: 32 % of its peak in bf16, which is more than all of that in float32); nobody looked for where it turns."""
FASTER = 2.0
"""How much faster than in float32 a CPU must multiply in bf16, since only products gain from it."""


def settle_precision(config: Config) -> tuple[dict[str, Any], str | None]:
    """Put bf16_mixed or fp32 in the place of `auto`; a run that goes on keeps what it was started with.

    Args:
        config: checked.

    Returns:
        The configuration with a definite precision; and where that was chosen here, what was, why, and how to undo it.

    Raises:
        ConfigError: the configuration of the run that goes on is wrong.
    """
    set_threads(config)  # what is measured is the speed of the run's threads
    known = {option["lightning"]: option for option in _options()}
    precision = config["precision"]
    if precision["lightning"] != "auto":
        if precision["name"] == "auto":  # precision.lightning=64-true by itself; some of these no option has
            precision = known.get(precision["lightning"], {**precision, "name": precision["lightning"]})
        return {**config, "precision": precision}, None
    if (saved := _saved_precision(config)) is not None:
        return {**config, "precision": saved}, None
    takes_bf16, why = choose_bf16(config, accelerator := _accelerator(config))
    chosen = "bf16_mixed" if takes_bf16 else "fp32"
    other = "fp32" if takes_bf16 else "bf16_mixed" if accelerator == "cpu" else "fp16_mixed"
    (option,) = (option for option in known.values() if option["name"] == chosen)
    return {**config, "precision": option}, f"{chosen}: {why} (precision={other} undoes it)"


def choose_bf16(config: Config, accelerator: str) -> tuple[bool, str]:
    """Whether bf16 pays on this machine, and why; what is known without a measurement comes first.

    All processes of a run must choose alike: on a GPU what it can do decides, and several processes on CPUs, which
    would disturb each other's measurement, stay with float32.

    Args:
        config: of the run.
        accelerator: gpu, mps or cpu; absent where the one that was asked for is not here.
    """
    hardware, model = config["hardware"], config["model"]
    if accelerator == "gpu":
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
        can = "multiplies bf16 many times faster than float32" if has_units else "has no units for bf16"
        return has_units, f"{torch.cuda.get_device_name()} {can}"
    if accelerator == "absent":  # plan and prepare go on without it
        return False, f"there is no {hardware['accelerator']} here to look at"
    if accelerator == "mps":
        return False, "on Apple's GPU bf16 was never measured"
    hidden_size = model.get("hidden_size")
    if hidden_size is None and model.get("pretrained") is None:
        return False, "nothing says how wide the network will be (model.hidden_size)"
    if hidden_size is not None and hidden_size < WIDE:  # pretrained ones that anybody publishes are wider
        return False, f"model.hidden_size={hidden_size} is below {WIDE}, where casts cost more than bf16 saves"
    if hardware["devices"] * hardware.get("num_nodes", 1) > 1:
        return False, "with several processes on CPUs the speed of bf16 is not measured"
    if not cpu_has_bf16_units():
        return False, "this CPU has no units for bf16"
    speed = bf16_speed()
    return speed >= FASTER, f"this CPU multiplies bf16 at {speed:.1f} times the speed of float32"


def cpu_has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 matrices natively (AVX-512 BF16, AMX, or ARM's BF16)."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("amx_tile") or found.get("bf16"))


def bf16_speed() -> float:
    """How fast this CPU multiplies bf16 matrices, in units of its speed in float32; measured once in a process.

    Flags do not tell: with AVX-512 BF16 an AMD EPYC was measured at 4 to 5, an Intel Xeon without AMX at 0.5 (LOG.md).
    """
    cpu = torch.device("cpu")
    return measure_peak_flops(cpu, torch.bfloat16) / measure_peak_flops(cpu, torch.float32)


def _accelerator(config: Config) -> str:
    try:
        return available_accelerator(config["hardware"]["accelerator"])
    except ConfigError:
        return "absent"


def _options() -> list[dict[str, str]]:
    """The options of the group that name a definite precision."""
    found = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((CONF / "precision").glob("*.yaml"))]
    return [option for option in found if option["lightning"] != "auto"]


def _saved_precision(config: Config) -> dict[str, Any] | None:
    """That of the run which goes on, or whose checkpoint another run goes on from; None where a run begins."""
    resumed = config["run"]["resume"]
    if resumed is None:
        return None
    directories = [locate_run(config["run"], config["experiment"])]
    if resumed.endswith(".ckpt"):
        other = RunDirectory(Path(resumed).absolute().parents[1])
        if other.checkpoints == Path(resumed).absolute().parent:  # else what lies there is of something else
            directories.append(other)
    for directory in directories:
        if not directory.config.is_file():
            continue
        saved = read_config(directory).get("precision")
        if isinstance(saved, dict) and {"name", "lightning"} <= saved.keys() and saved["lightning"] != "auto":
            check_fields("precision", saved, PrecisionConfig)
            return saved
    return None
