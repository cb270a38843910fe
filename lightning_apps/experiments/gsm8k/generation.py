"""Graded generation of `gsm8k`: ask the questions, grade the answers, keep every one of them."""

import contextlib
import time
from collections.abc import Sequence
from typing import Annotated, Any

import lightning as L
import torch
from annotated_types import Ge, Gt, Le
from typing_extensions import TypedDict  # pydantic refuses typing's before Python 3.12

from datamodules.gsm8k import Gsm8kDataModule, Split
from datamodules.sampling.order import hash_key
from lightning_apps.callbacks.gather import gather_in_order
from lightning_apps.errors import ConfigError
from lightning_apps.experiments.evaluation import Evaluation, heading, log_metrics
from lightning_apps.experiments.gsm8k.grading import (
    Grade,
    accuracy_metrics,
    grade,
    has_number,
    majority_answer,
    number_text,
    numeric_answer,
)
from lightning_apps.experiments.repeated_answers import is_repeating
from lightning_apps.process.console import ProgressCount, say
from lightning_apps.run_files.directory import RunDirectory
from models.decoding.generation import Answer, Sampling, generate_answers


class SelfConsistency(TypedDict):
    """Several drawn answers to each question, of which the most common number counts (Wang et al. 2023).

    Attributes:
        num_samples: answers to each question.
        temperature: logits are divided by it before a token is drawn; above 0.
        top_p: tokens are drawn from the most probable ones that together reach this probability; 1 keeps all.
    """

    num_samples: Annotated[int, Ge(1)]
    temperature: Annotated[float, Gt(0)]
    top_p: Annotated[float, Gt(0), Le(1)]


class Gsm8kGeneration(Evaluation):
    """Asks questions after each evaluation and logs accuracies with their 95 % intervals.

    While training, the first `num_samples` questions are asked; at the end, on the test split and by the evaluate
    command, all of them.

    Args:
        run_directory: whose predictions.jsonl takes every question, output, extracted answer and verdict.
        num_samples: validation questions asked while training; None asks all.
        batch_size: answers in progress at once.
        max_new_tokens: longest answer.
        num_shots: worked examples before each question, earlier turns of the chat.
        self_consistency: None for one greedy answer only.
        num_examples: answers to print.
    """

    needs = Gsm8kDataModule

    def __init__(
        self,
        *,
        run_directory: RunDirectory,
        num_samples: Annotated[int, Ge(1)] | None,
        batch_size: Annotated[int, Ge(1)],
        max_new_tokens: Annotated[int, Ge(1)],
        num_shots: Annotated[int, Ge(0)],
        self_consistency: SelfConsistency | None,
        num_examples: Annotated[int, Ge(0)],
    ) -> None:
        super().__init__(run_directory=run_directory)
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.num_shots = num_shots
        self.self_consistency = self_consistency
        self.num_examples = num_examples
        self._is_run = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on validations ask `num_samples`, the second one of best.ckpt included: they must be equal."""
        self._is_run = True

    def evaluation_metrics(self, data: Gsm8kDataModule) -> set[str]:
        """Names of what an evaluation logs, without the split: those of one made-up answer."""
        row = prediction_row([{"role": "assistant", "content": "#### 1"}], "", Answer(torch.zeros(1), True))
        return set(summarize([row if self.self_consistency is None else {**row, **voted([""], "#### 1")}]))

    def evaluate(self, trainer: L.Trainer, pl_module: Any, data: Any, split: Split, prefix: str) -> None:
        """Ask questions of a split: `num_samples` in the validations of a run, else all."""
        limit = self.num_samples if self._is_run and prefix == "val" else None
        questions = gradable(data, split)[:limit]
        if not questions:
            raise ConfigError(
                f"the {split} split has no answer with a final number behind ####, so nothing can be graded; "
                "set callbacks.extra.generation=null"
            )
        share = questions[trainer.global_rank :: trainer.world_size]
        started = time.perf_counter()
        rows = gather_in_order(self._rows(trainer, pl_module, data, split, share), len(questions), trainer.world_size)
        elapsed_s = time.perf_counter() - started
        metrics = summarize(rows)
        log_metrics(pl_module, prefix, metrics)
        if trainer.is_global_zero:
            self._report(trainer, prefix, metrics, rows, elapsed_s)

    def _rows(
        self, trainer: L.Trainer, pl_module: Any, data: Gsm8kDataModule, split: Split, questions: Sequence[int]
    ) -> list[dict[str, Any]]:
        prompts = data.few_shot_prompts(split, self.num_shots, questions)
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            "pad_token_id": data.tokenizer.pad_token_id,
            "stop_token_ids": data.stop_token_ids,
        }
        drawn: list[Answer] = []
        with contextlib.ExitStack() as stack:
            if split == "test" or not self._is_run:  # while training, a bar is there already
                total = len(prompts) * (1 + (self.self_consistency or {"num_samples": 0})["num_samples"])
                progress = ProgressCount(total, name=f"{split} questions", units="answers")
                options["on_answers"] = stack.enter_context(contextlib.closing(progress)).add
            stack.enter_context(trainer.precision_plugin.val_step_context())
            answers = generate_answers(pl_module.net, prompts, **options)
            if (voting := self.self_consistency) is not None:
                count = voting["num_samples"]
                # a draw depends on its question and number alone: neither on the batch nor on other questions
                seeds = [hash_key(data.seed, index, number) >> 1 for index in questions for number in range(count)]
                sampling = Sampling(voting["temperature"], voting["top_p"], seeds)
                repeated = [prompt for prompt in prompts for _ in range(count)]
                drawn = generate_answers(pl_module.net, repeated, sampling=sampling, **options)
        rows = []
        for number, (index, answer) in enumerate(zip(questions, answers, strict=True)):
            chat = data.chat(split, index)
            output = decode(data, answer)
            row = prediction_row(chat.messages, output, answer)
            if self.self_consistency is not None:
                count = self.self_consistency["num_samples"]
                samples = [decode(data, entry) for entry in drawn[number * count : (number + 1) * count]]
                row |= voted(samples, chat.messages[-1]["content"])
            rows.append({"index": int(data.rows[split][index]), **row})
        return rows

    def _report(
        self, trainer: L.Trainer, prefix: str, metrics: dict[str, float], rows: list[dict[str, Any]], elapsed_s: float
    ) -> None:
        self.write_predictions(rows)
        accuracies = ", ".join(
            f"{name.removeprefix('accuracy_')} {metrics[name]:.1%} "
            f"({metrics[name + '_low']:.1%} to {metrics[name + '_high']:.1%})"
            for name in metrics
            if f"{name}_low" in metrics
        )
        say(
            f"{heading(trainer, prefix)}; right of {len(rows):,} questions (95 % intervals): {accuracies}; "
            f"no answer {metrics['no_answer_ratio']:.1%}, "
            f"truncated {metrics['truncated_ratio']:.1%}, collapsed {metrics['collapsed_ratio']:.1%}; "
            f"{len(rows) / elapsed_s:.2f} answers/s"
        )
        for row in rows[: self.num_examples]:
            verdict = "right" if row["score"] else f"wrong, it is {row['target']}"
            say(f"    {row['input']}\n      {row['output'].strip()}\n      -> {row['answer_numeric']}: {verdict}")


def gradable(data: Gsm8kDataModule, split: Split) -> list[int]:
    """Samples of a split that have a final number to grade against."""
    return [index for index in data.evaluated(split).tolist() if has_number(data.chat(split, index))]


def decode(data: Gsm8kDataModule, answer: Answer) -> str:
    """An answer as text."""
    text = data.tokenizer.decode(answer.tokens, skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def prediction_row(messages: Sequence[dict[str, str]], output: str, answer: Answer) -> dict[str, Any]:
    """What predictions.jsonl says of one greedy answer; `score` is whether its number is right."""
    reference = messages[-1]["content"]
    graded: Grade = grade(output, reference)
    gold = numeric_answer(reference)
    return {
        "input": messages[-2]["content"] if len(messages) > 1 else "",
        "target": None if gold is None else number_text(gold),
        "reference": reference,
        "output": output,
        "score": graded.is_numeric,
        "answer_numeric": graded.numeric,
        "answer_lmeval_strict": graded.strict,
        "answer_lmeval_flexible": graded.flexible,
        "right_numeric": graded.is_numeric,
        "right_lmeval_strict": graded.is_strict,
        "right_lmeval_flexible": graded.is_flexible,
        "num_tokens": len(answer.tokens),
        "truncated": not answer.finished,
        "collapsed": is_repeating(answer.tokens),
    }


def voted(samples: Sequence[str], reference: str) -> dict[str, Any]:
    """The drawn answers, the number most of them agree on, and whether it is right."""
    winner, gold = majority_answer(samples), numeric_answer(reference)
    right = [numeric_answer(sample) == gold for sample in samples]
    return {
        "samples": list(samples),
        "answer_self_consistency": None if winner is None else number_text(winner),
        "right_self_consistency": winner is not None and winner == gold,
        "right_samples": sum(right) / len(right),
    }


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Accuracies with intervals, and how outputs went wrong."""
    names = [
        name
        for name in ("numeric", "lmeval_strict", "lmeval_flexible", "self_consistency")
        if f"right_{name}" in rows[0]
    ]
    metrics = accuracy_metrics({name: [row[f"right_{name}"] for row in rows] for name in names})
    count = len(rows)
    metrics |= {
        "no_answer_ratio": sum(row["answer_numeric"] is None for row in rows) / count,
        "truncated_ratio": sum(row["truncated"] for row in rows) / count,
        "collapsed_ratio": sum(row["collapsed"] for row in rows) / count,
        "answer_tokens_mean": sum(row["num_tokens"] for row in rows) / count,
    }
    if "right_samples" in rows[0]:
        metrics["accuracy_of_samples"] = sum(row["right_samples"] for row in rows) / count
    return metrics
