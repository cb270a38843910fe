"""Talk with the model of a run; its answer appears as it is made.

python -m lightning_apps.generate run=outputs/gsm8k/default prompt="Ann has 3 apples and buys 4. How many now?"
python -m lightning_apps.generate run=outputs/gsm8k/default
"""

import re
import sys
from typing import Any

from omegaconf import DictConfig

from lightning_apps.config.command_line import run_command
from lightning_apps.config.command_settings import settings_of
from lightning_apps.config.composition import CONF
from lightning_apps.config.open_run import open_run
from lightning_apps.config.overrides import quoted
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.directory import RunDirectory


def generate(cfg: DictConfig) -> list[str]:
    """Answer one prompt, or every line that is typed until the end of the input; returns the answers.

    Raises:
        ConfigError: no such run or checkpoint, a setting out of range, or a prompt that the chat template refuses.
    """
    options = settings_of("generate", cfg)
    if options["prompt"] is not None and not options["prompt"].strip():
        raise ConfigError("prompt is empty: give a question, or leave prompt away to chat")
    directory, config = open_run(options["run"], trust=options.get("trust"))

    import torch

    from datamodules.chat.rendering import ChatError
    from lightning_apps.runs.build import available_accelerator, quiet_libraries

    quiet_libraries()
    device = {"gpu": "cuda"}.get(name := available_accelerator(options["accelerator"]), name)
    net, tokenizer = load_model(directory, config, options["checkpoint"])
    net.to(device).eval()
    torch.manual_seed(options["seed"])
    system = [] if options["system_prompt"] is None else [{"role": "system", "content": options["system_prompt"]}]
    history: list[dict[str, str]] = list(system)
    answers: list[str] = []
    interactive = options["prompt"] is None
    while True:
        prompt = ask() if interactive else options["prompt"]
        if prompt is None:
            return answers
        try:
            ids, stops = encode(tokenizer, [*history, {"role": "user", "content": prompt}])
        except ChatError as error:
            if not interactive:
                raise ConfigError(f"prompt: {error}") from error
            print(f"({error})")
            continue
        answers.append(stream(net, tokenizer, ids, stops, options))
        if not interactive:
            return answers
        history += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answers[-1] or "..."}]


def load_model(directory: RunDirectory, config: dict[str, Any], checkpoint: str) -> tuple[Any, Any]:
    """Network and tokenizer of a run: the exported ones for `best`, else built anew around the checkpoint.

    Raises:
        ConfigError: there is no such checkpoint, or the experiment's model generates no text.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin

    from lightning_apps.reports.model_card import auto_class_of
    from lightning_apps.run_files.weights import load_checkpoint, load_exported

    if checkpoint == "best" and (directory.model / "config.json").is_file():
        if auto_class_of(directory.model) == "AutoModelForSequenceClassification":
            raise ConfigError(f"run={directory.path}: its model generates no text; predict says which label a text has")
        try:
            net: Any = load_exported(AutoModelForCausalLM, directory.model)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"run={directory.path}: its model generates no text") from error
        return net, AutoTokenizer.from_pretrained(directory.model)
    path = directory.checkpoint(checkpoint)
    from lightning_apps.runs.build import build_datamodule, build_module, build_plan

    datamodule = build_datamodule(config, completed=False)
    module: Any = build_module(config, datamodule, build_plan(config, datamodule, trains=False))
    load_checkpoint(module, path)
    if not isinstance(module.net, GenerationMixin):
        raise ConfigError(f"run={directory.path}: its model generates no text")
    return module.net, datamodule.tokenizer


def encode(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Prompt tokens, and the tokens that end an answer; without a chat template the last message as it is.

    Raises:
        ChatError: the chat template refuses the messages.
    """
    from datamodules.chat.rendering import encode_chats, encode_prompt, render_chat
    from datamodules.text.plain_text import tokenize_plain

    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    if not tokenizer.chat_template:
        return tokenize_plain([messages[-1]["content"]], tokenizer)["input_ids"][0], own
    # the stop token is what the template writes behind an answer
    answered = render_chat(tokenizer, [*messages, {"role": "assistant", "content": "answer"}])
    (whole,) = encode_chats(tokenizer, [answered])
    return encode_prompt(tokenizer, messages), list(dict.fromkeys([whole.ids[-1], *own]))


def ask() -> str | None:
    """The next line that is not empty; None at the end of the input."""
    while True:
        try:
            line = input("\nyou> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        if line:
            return line


def stream(net: Any, tokenizer: Any, ids: list[int], stops: list[int], options: dict[str, Any]) -> str:
    """Print an answer while it is made; returns it."""
    import torch
    from transformers import GenerationConfig, TextStreamer

    settings = GenerationConfig(
        max_new_tokens=options["max_new_tokens"], pad_token_id=tokenizer.pad_token_id, eos_token_id=stops
    )
    if options["temperature"] > 0:
        settings.update(do_sample=True, temperature=options["temperature"], top_p=options["top_p"], top_k=0)
    prompt = torch.tensor([ids], device=net.device)
    with torch.inference_mode():
        produced = net.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=settings,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
    text: str = tokenizer.decode(produced[0, len(ids) :], skip_special_tokens=True)
    return text


def quote_text(argument: str) -> str:
    """`prompt=` and `system_prompt=` with their text in quotes, so that Hydra's grammar does not look into it."""
    key, _, text = argument.partition("=")
    if key not in ("prompt", "system_prompt") or text == "null" or re.fullmatch(r"(['\"]).*\1", text, re.DOTALL):
        return argument
    return f"{key}={quoted(text).replace('${', chr(92) + '${')}"


def main() -> Any:
    """Entry point."""
    sys.argv[1:] = map(quote_text, sys.argv[1:])
    return run_command(generate, config_path=CONF / "command", config_name="generate")


if __name__ == "__main__":
    main()
