"""Low-rank adapters inside a network: put in, merged into its weights, saved beside it."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from typing_extensions import TypedDict  # pydantic refuses typing's before Python 3.12

from models.ranges import Dropout, Positive


class Lora(TypedDict):
    """Settings of low-rank adapters.

    Attributes:
        rank: rank of the update; 0 trains the whole model instead.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapters' input.
        target_modules: names of the linear layers to adapt, or `all-linear` for all but the output projection.
        dora: also learn the size of each output's weights (Liu et al. 2024).
    """

    rank: Annotated[int, Ge(0)]
    alpha: Positive
    dropout: Dropout
    target_modules: str | list[str]
    dora: bool


def add_adapters(
    net: PreTrainedModel,
    lora: Lora,
    *,
    task_type: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM",
    saved_whole: Sequence[str] = (),
) -> None:
    """Put adapters into the net's linear layers (Hu et al. 2022) and freeze all else; the net keeps its class.

    The adapters' update is zero at first, so the net computes what it did.

    Args:
        net: where to.
        lora: settings of the adapters.
        task_type: what the net is to peft.
        saved_whole: names of modules that save_adapters writes too, as the base need not have them.

    Raises:
        ValueError: a setting is out of range, or no layer has such a name.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if lora["rank"] < 0 or lora["alpha"] <= 0 or not 0 <= lora["dropout"] < 1:
        raise ValueError(
            f"model.lora: rank={lora['rank']} must be at least 0 (0 = off), alpha={lora['alpha']} positive, "
            f"dropout={lora['dropout']} at least 0 and below 1"
        )
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],  # type: ignore[arg-type] # a ratio need not be whole
        lora_dropout=lora["dropout"],
        target_modules=lora["target_modules"],
        use_dora=lora["dora"],
        task_type=task_type,
    )
    # peft keeps the adapters of bf16 weights in float32, as optimizers need them
    inject_adapter_in_model(config, net)
    # only now: peft would put copies of them under other names into the net
    config.modules_to_save = list(saved_whole) or None


def has_adapters(net: nn.Module) -> bool:
    """Whether add_adapters was called."""
    return hasattr(net, "peft_config")


def merged_copy(net: PreTrainedModel) -> PreTrainedModel:
    """A copy whose weights hold the adapters' update, without adapters; the net stays as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(net)
    for name, part in list(merged.named_modules()):
        if isinstance(part, BaseTunerLayer):
            part.merge(safe_merge=True)
            parent, _, last = name.rpartition(".")
            setattr(merged.get_submodule(parent), last, part.get_base_layer())
    merged.__dict__.pop("peft_config", None)
    return merged


def save_adapters(net: PreTrainedModel, folder: Path, base: str) -> None:
    """Write adapter_model.safetensors and adapter_config.json, as peft's PeftModel.from_pretrained reads them.

    Args:
        net: a model that add_adapters was called on.
        folder: to write into; made if need be.
        base: name or folder of the model that the adapters belong to.
    """
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    holder: Any = net
    settings = holder.peft_config["default"]
    state = get_peft_model_state_dict(net, adapter_name="default")
    whole = tuple(settings.modules_to_save or ())
    for name, part in net.named_modules():
        if name.endswith(whole):  # as peft finds them
            state |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
    # peft's own wrapper stands around the net when they are read
    tensors = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    values = {**settings.to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(values, indent=2, sort_keys=True, default=_plain) + "\n")


def _plain(value: object) -> object:
    """A set as a list, an enumeration as its value, anything else that JSON lacks as text."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))
