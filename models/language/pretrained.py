"""Pretrained causal language models: by folder, by name on Hugging Face, or out of a .gguf file."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, modeling_gguf_pytorch_utils

from models.adapters import Lora, add_adapters
from models.from_data import FromData
from models.kernels.packed_attention import supports_packed_attention, use_packed_attention

Attention = Literal["auto", "packed", "sdpa", "eager", "flash_attention_2"]


def pretrained_chat_lm(
    *,
    vocab_size: FromData[int],
    pad_token_id: FromData[int],
    eos_token_id: FromData[int],
    gguf: FromData[str | None],
    pretrained: str,
    package: str | None,
    attention: Attention,
    quantize: Literal["4bit"] | None,
    lora: Lora,
) -> PreTrainedModel:
    """A causal language model with its pretrained weights in float32.

    Args:
        vocab_size: tokens of the tokenizer; the embedding must have at least as many rows.
        pad_token_id: stored for generation.
        eos_token_id: stored for generation, ends an answer.
        gguf: the .gguf file that the tokenizer came from, where it came from one; the weights come from there too.
        pretrained: folder, .gguf file, or name on Hugging Face.
        package: installed package that carries a .gguf file, for where Hugging Face has nothing; the data module looks
            into it, and `gguf` says what it found.
        attention: `auto` takes `packed` (see packed_attention) where the architecture allows, else `sdpa`.
        quantize: `4bit` keeps the frozen weights in 4 bits (QLoRA, Dettmers et al. 2023); needs bitsandbytes and a GPU.
        lora: adapters; rank 0 trains all weights.

    Raises:
        ValueError: the weights cannot be had, or the model does not fit tokenizer or settings.
    """
    # a path given as `pretrained` is the tokenizer's too, unless data.tokenizer names another one
    path = Path(pretrained).expanduser()
    if gguf is None and path.suffix == ".gguf":
        gguf = str(path)
    options: dict[str, Any] = {"dtype": torch.float32}  # transformers 5 would keep the type of the file
    if quantize is not None:
        options["quantization_config"] = _four_bits(lora)
    try:
        if gguf is not None:
            net = _from_gguf(Path(gguf))
        else:
            name = str(path) if path.is_dir() else pretrained
            net = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, **options)  # never unpickle
    except (OSError, ImportError, KeyError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"model.pretrained={pretrained}: the weights cannot be loaded ({reason}); go online, or name a folder in "
            "Hugging Face layout with safetensors, or a .gguf file"
        ) from error
    embedding: Any = net.get_input_embeddings()
    rows = embedding.weight.shape[0]
    if vocab_size > rows:
        raise ValueError(
            f"the tokenizer has {vocab_size:,} tokens, the embedding of model.pretrained={pretrained} {rows:,} rows: "
            "use the model's own tokenizer (data.tokenizer=${model.pretrained})"
        )
    for settings in (net.config, net.generation_config):
        settings.pad_token_id = pad_token_id
        settings.eos_token_id = eos_token_id
    # what a model card recommends for chatting (sampling, penalties) is not what is measured here
    net.generation_config = type(net.generation_config)(pad_token_id=pad_token_id, eos_token_id=eos_token_id)
    choose_attention(net, attention)
    if lora["rank"]:
        add_adapters(net, lora)
    return net


def choose_attention(net: PreTrainedModel, attention: Attention) -> None:
    """Set how a model attends; `auto` takes `packed` where the architecture allows, else `sdpa`.

    Raises:
        ValueError: the architecture or this machine cannot do it.
    """
    if attention == "auto":
        attention = "packed" if supports_packed_attention(net) else "sdpa"
    if attention == "packed":
        if not supports_packed_attention(net):
            raise ValueError(
                f"model.attention=packed does not know {net.config.model_type} models or layers with a sliding "
                "window; choose model.attention=auto or sdpa"
            )
        use_packed_attention(net)
        return
    try:
        net.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"model.attention={attention}: {reason}; choose model.attention=auto") from error


def _from_gguf(file: Path) -> PreTrainedModel:
    # transformers' own switch does not reach this bar, which fills log files: show it to terminals only
    modeling_gguf_pytorch_utils.tqdm = partial(tqdm, disable=None)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = loaded.config
    # the file's config says that its weights are quantized; those in memory are not, and could not be saved with it
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    net: PreTrainedModel = type(loaded)(config)
    net.load_state_dict(loaded.state_dict())
    return net


def _four_bits(lora: Lora) -> Any:
    if not lora["rank"]:
        raise ValueError("model.quantize=4bit freezes the weights: give adapters to train, model.lora.rank=16")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ValueError("model.quantize=4bit needs the package bitsandbytes: pip install bitsandbytes") from error
    if not torch.cuda.is_available():
        raise ValueError("model.quantize=4bit needs a GPU; set model.quantize=null for LoRA on full weights")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
