"""Rejection sampling: right solutions that a model draws to the training questions become training samples.

Source: Zelikman et al. 2022 (STaR, arXiv:2203.14465); distinct reasoning by its equations as in Yuan et al. 2023 (RFT,
arXiv:2308.01825).
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from datamodules.chat.files import Chat
from datamodules.chat.own_samples import OwnSamples
from datamodules.chat.rendering import ChatError, render_chat
from datamodules.gsm8k import Gsm8kDataModule
from datamodules.sampling.order import hash_key
from datamodules.storage.cache import fingerprint, prepared_folder
from datamodules.text.jsonl import read_jsonl, write_jsonl
from lightning_apps.experiments.experiment import Start
from lightning_apps.experiments.gsm8k.grading import grade, has_number
from lightning_apps.process.console import ProgressCount, say
from models.decoding.generation import Sampling, generate_answers

VERSION = 2
"""Raise it whenever something else is drawn, or kept, for the same settings."""
SOLUTIONS_A_PART = 512
"""Solutions that are written together: so many an interrupted run has to draw again."""
EQUATION = re.compile(r"[\d.,$%()+\-*/x×÷ ]*\d[\d.,$%()+\-*/x×÷ ]*=[ $]*-?[\d.,]*\d")
SIGNS = str.maketrans({"×": "*", "x": "*", "÷": "/", "$": None, ",": None, " ": None})


def add_own_samples(data: Gsm8kDataModule, start: Start) -> None:
    """Draw solutions to the training questions, where they are not in the cache, and add the right ones to the data.

    No question of the validation or test split is asked, nor a training question that stands there as well. What is
    drawn is a function of weights, question and seed; it is written in parts, so that who is interrupted goes on.

    Args:
        data: set up, with `data.source=own_samples`.
        start: the network that draws.
    """
    assert data.own_samples is not None
    options = data.own_samples
    assert data.folder is not None
    net = start.build_net()
    drawn_with = {
        "version": VERSION,
        "data": data.folder.name,
        "model": model_digest(net),
        "autocast": str(start.autocast),
        **{name: options[name] for name in ("num_samples", "temperature", "top_p", "seed", "max_new_tokens")},
    }
    questions = questions_to_ask(data)
    size = max(1, SOLUTIONS_A_PART // options["num_samples"])
    parts = [questions[first : first + size] for first in range(0, len(questions), size)]

    def write(folder: Path) -> Mapping[str, Any]:
        say(f"drawing {options['num_samples']} solutions to each of {len(questions):,} training questions")
        progress = ProgressCount(len(questions) * options["num_samples"], name="drawing", units="solutions")
        drawn: dict[int, list[str | None]] = {}
        with contextlib.closing(progress):
            for part in parts:
                drawn |= _drawn_part(data, start, net, part, drawn_with, progress)
        chats, facts = keep_right(data, drawn, options=options)
        data.write_with_samples(folder, chats)
        return facts

    rows = [int(data.rows["train"][index]) for index in questions]
    kept_by = {name: options[name] for name in ("per_question", "with_given")}
    settings = {**drawn_with, **kept_by, "questions": fingerprint({"rows": rows})}
    data.add_samples(prepared_folder(data.cache_root, "gsm8k_own_samples", settings, write))


def _drawn_part(
    data: Gsm8kDataModule,
    start: Start,
    net: PreTrainedModel,
    questions: Sequence[int],
    drawn_with: Mapping[str, Any],
    progress: ProgressCount,
) -> dict[int, list[str | None]]:
    """Solutions to some questions, from the cache where they are there."""
    options = data.own_samples
    assert options is not None
    count, rows = options["num_samples"], [int(data.rows["train"][index]) for index in questions]
    before = progress.done

    def write(folder: Path) -> Mapping[str, Any]:
        prompts = [prompt for prompt in data.few_shot_prompts("train", 0, questions) for _ in range(count)]
        # by the row of the file: neither the number of questions nor their order changes what is drawn to one
        seeds = [hash_key(options["seed"], row, number) >> 1 for row in rows for number in range(count)]
        device = start.to_device(net).device.type
        with torch.autocast(device, dtype=start.autocast, enabled=start.autocast is not None):
            answers = generate_answers(
                net,
                prompts,
                max_new_tokens=options["max_new_tokens"],
                batch_size=options["batch_size"],
                pad_token_id=data.net_arguments["pad_token_id"],
                stop_token_ids=data.stop_token_ids,
                sampling=Sampling(options["temperature"], options["top_p"], seeds),
                on_answers=progress.add,
            )
        texts = [
            str(data.tokenizer.decode(answer.tokens, skip_special_tokens=True)) if answer.finished else None
            for answer in answers
        ]
        lines = ({"row": row, "solutions": texts[at * count : (at + 1) * count]} for at, row in enumerate(rows))
        write_jsonl(folder / "drawn.jsonl", lines)
        return {"solutions": len(texts)}

    folder = prepared_folder(data.cache_root, "gsm8k_drawn", {**drawn_with, "rows": rows}, write)
    progress.add(len(questions) * count - (progress.done - before))
    return {line["row"]: line["solutions"] for _, line in read_jsonl(folder / "drawn.jsonl")}


def questions_to_ask(data: Gsm8kDataModule) -> list[int]:
    """Training samples whose answer can be graded and whose question is neither in validation nor in the test file."""
    held_out = {_question(data.files["validation"].chat(row)) for row in data.rows["validation"].tolist()}
    if "test" in data.files:
        held_out |= {_question(data.files["test"].chat(row)) for row in range(len(data.files["test"]))}
    chats = ((index, data.chat("train", index)) for index in range(len(data.rows["train"])))
    return [index for index, chat in chats if has_number(chat) and _question(chat) not in held_out]


def _question(chat: Chat) -> tuple[str, ...]:
    return tuple(" ".join(message["content"].split()) for message in chat.messages[:-1] if message["role"] != "system")


def keep_right(
    data: Gsm8kDataModule, drawn: Mapping[int, Sequence[str | None]], *, options: OwnSamples
) -> tuple[list[Chat], dict[str, int]]:
    """Right solutions as chats, without those that a question has already, and counts.

    Args:
        data: whose train file has the questions.
        drawn: solutions by the row of their question; None is one that was cut.
        options: say how many of each question, and whether its given answer is one of them.
    """
    chats: list[Chat] = []
    num_right = num_solved = 0
    for row, solutions in drawn.items():
        given = data.files["train"].chat(row)
        reference = given.messages[-1]["content"]
        right = [text.strip() for text in solutions if text is not None and grade(text, reference).is_numeric]
        num_right += len(right)
        num_solved += bool(right)
        seen = {solution_key(reference)} if options["with_given"] else set()
        kept = 0
        for text in right:
            if (key := solution_key(text)) in seen or kept == options["per_question"]:
                continue
            seen.add(key)
            chat = Chat(
                [*given.messages[:-1], {"role": "assistant", "content": text}],
                given.gold,
                f"own sample {kept + 1} to {given.origin}",
            )
            try:  # a model may write what no answer can hold: the text of a special token
                render_chat(data.tokenizer, chat.messages)
            except ChatError:
                continue
            chats.append(chat)
            kept += 1
    num_drawn = sum(map(len, drawn.values()))
    facts = {
        "num_asked": len(drawn),
        "num_drawn": num_drawn,
        "num_right": num_right,
        "num_solved": num_solved,
        "num_kept": len(chats),
    }
    return chats, facts


def solution_key(text: str) -> tuple[str, ...]:
    """What two solutions share that reason alike: their equations in order; the words where there is no equation."""
    equations = [found[0].translate(SIGNS).strip(".") for found in EQUATION.finditer(text)]
    return tuple(equations) or (" ".join(text.lower().split()),)


def model_digest(net: PreTrainedModel) -> str:
    """Digest of what a network computes with: weights, settings, kind of attention; neither its name nor its place."""
    settings = net.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "architectures", "dtype"):
        settings.pop(name, None)
    settings["attention"] = net.config._attn_implementation
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, value in net.state_dict().items():
        digest.update(repr((name, tuple(value.shape), value.dtype)).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
