"""What doctor proves of a module on one small batch: loss, gradients, repeatability, learning, generation."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.contract import AnswersPrompts, Batch, ExperimentData, LabelledData
from datamodules.sampling.step_batches import labels_are_tokens, step_batch, tokens_fed
from lightning_apps.config.optimizer_checks import is_schedule_free
from lightning_apps.experiments.experiment import Experiment
from lightning_apps.runs.banner import parameters_by_part
from lightning_apps.runs.doctor.data import spread
from lightning_apps.runs.doctor.finding import MORE, Finding, judged
from models.decoding.generation import generate_answers

Config = Mapping[str, Any]

MOST_SAMPLES = 4
CANDIDATES = 48
"""Training samples, evenly spread, of which the shortest are tried."""
STEP_FLOPS = 40e9
"""A step may take about a second: samples are cut, then left out, until it needs no more than that."""
FEWEST_TOKENS = 16
"""Of a sample that is cut."""
OWN_STEPS, PLAIN_STEPS = 10, 20
"""Optimizer steps at most: with the run's own optimizer at its peak rate, then with plain Adam."""
BUDGET_S = 6.0
"""Seconds of CPU for all of these steps; half of them for the first kind."""
LEARNED, STARTED = 0.5, 0.9
"""Shares of the first loss: below one a batch is learned; below the other its loss falls."""
DIVERGED = 2.0
"""Times the first loss, and a tenth of a nat."""
FAR, ODD = 2.5, 1.75
"""Times the loss of guessing; one or two samples scatter by half of it."""
NEW_TOKENS = 8


@dataclass(frozen=True)
class Tried:
    """The batch that everything is tried on.

    Attributes:
        batch: as the collator would make it.
        words: what it is.
        longest: the longest of the samples that were looked at, cut too: it has a second chunk, where any has.
    """

    batch: Batch
    words: str
    longest: Batch


def check_network(config: Config, module: Experiment, data: ExperimentData) -> list[Finding]:
    """All checks of this file, in one forward and backward pass after another; the module is used up."""
    tried = small_batch(module, data)
    learning = _Learning(config, module, tried)
    learning.try_out()
    return [
        parameters(module),
        known_tokens(module, tried),
        first_loss(config, module, data, tried, learning.first_loss),
        *repeatable(config, module, tried),
        learning.gradients(),
        *learning.findings(),
    ]


def parameters(module: Experiment) -> Finding:
    """Parameters by part; something must be trained."""
    parts = parameters_by_part(module) or {
        name: {
            "total": sum(entry.numel() for entry in part.parameters()),
            "trainable": sum(entry.numel() for entry in part.parameters() if entry.requires_grad),
        }
        for name, part in module.net.named_children()
    }
    shown = ", ".join(
        f"{name} {part['total']:,}{'' if part['trainable'] else ' (frozen)'}"
        for name, part in parts.items()
        if part["total"]
    )
    total = sum(entry.numel() for entry in module.net.parameters())
    trained = sum(entry.numel() for entry in module.net.parameters() if entry.requires_grad)
    return judged("model", "something is trained", f"{trained:,} of {total:,} parameters: {shown}", red=not trained,
                  remedy="optimizer.freeze=[]")  # fmt: skip


# ---------------------------------------------------------------------- the batch


def small_batch(module: Experiment, data: ExperimentData) -> Tried:
    """A few short training samples, of several classes where there are such, cut where the model is large."""
    chosen = spread(data.num_train_samples, CANDIDATES)
    fed = [tokens_fed(_read(data, one)) for one in np.split(chosen, len(chosen))]
    order = chosen[np.argsort(fed, kind="stable")]
    longest = order[-1:]
    if isinstance(data, LabelledData) and data.labels("train").ndim == 1:  # one of each class first
        labels = data.labels("train")[order]
        _, firsts = np.unique(labels, return_index=True)
        rest = np.setdiff1d(np.arange(len(order)), firsts)
        order = order[np.concatenate([np.sort(firsts), rest])]
    looked_up, projects = module.net.get_input_embeddings(), module.net.get_output_embeddings()
    multiplied = sum(entry.numel() for entry in module.net.parameters())
    if isinstance(looked_up, nn.Embedding) and (projects is None or projects.weight is not looked_up.weight):
        multiplied -= looked_up.weight.numel()
    most_tokens = max(FEWEST_TOKENS * MOST_SAMPLES, int(STEP_FLOPS / (6 * max(multiplied, 1))))
    count = min(MOST_SAMPLES, len(order))
    batch = _cut(_read(data, order[:count]), most_tokens)
    while count > 1 and "input_ids" in batch and batch["input_ids"].numel() > most_tokens:
        count -= 1
        batch = _cut(_read(data, order[:count]), most_tokens)
    made = step_batch([batch], order[:count], weigh=module.weigh)
    ids = ", ".join(map(str, order[:count].tolist()))
    length = f" of {batch['input_ids'].shape[1]:,} tokens" if "input_ids" in batch else ""
    other = step_batch([_cut(_read(data, longest), most_tokens)], longest, weigh=module.weigh)
    return Tried(made.micro_batches[0], f"training samples {ids}{length}", other.micro_batches[0])


def _read(data: ExperimentData, indices: Any) -> Batch:
    return data.training_batch(np.zeros_like(indices), indices)


def _cut(batch: Batch, most: int) -> Batch:
    """The first columns of a batch of rows, if a target stays; packed samples stay as they are."""
    ids = batch.get("input_ids")
    if ids is None or ids.numel() <= most or "borders" in batch:
        return batch
    length = max(FEWEST_TOKENS, most // len(ids))
    is_cut = {
        name: value[:, :length] if isinstance(value, Tensor) and value.shape[:2] == ids.shape else value
        for name, value in batch.items()
    }
    if "num_tokens" in batch:
        is_cut["num_tokens"] = is_cut["input_ids"].numel()
    if "chunk_lengths" in batch:
        is_cut["chunk_lengths"] = [min(size, length) for size in batch["chunk_lengths"]]
    return is_cut if not labels_are_tokens(is_cut) or bool((is_cut["labels"][:, 1:] >= 0).any()) else batch


# ---------------------------------------------------------------------- loss


def loss_of(module: Experiment, batch: Batch) -> Tensor:
    """Mean loss () of a batch over its targets or their weights."""
    loss, count = module.loss_sum(batch)
    return loss / count


def known_tokens(module: Experiment, tried: Tried) -> Finding:
    """Whether the network has a row for each token."""
    size, ids = module.vocab_size, tried.batch.get("input_ids")
    if size is None or ids is None:
        return judged("model", "every token is in the vocabulary", "the network looks up no tokens")
    highest = int(ids.max())
    return judged("model", "every token is in the vocabulary", f"ids up to {highest:,} of {size:,} in {tried.words}",
                  red=highest >= size, remedy="data.tokenizer=<that of the model>")  # fmt: skip


def guessing(module: Experiment, data: ExperimentData, batch: Batch) -> tuple[float, str] | None:
    """Loss of an even guess in nats, and what it is; None where the loss is of another kind."""
    if isinstance(data, LabelledData):
        count = 2 if data.multi_label else len(data.label_names)
        return math.log(count), f"ln({count} classes)"
    if labels_are_tokens(batch) and module.vocab_size is not None:
        return math.log(module.vocab_size), f"ln({module.vocab_size:,} tokens)"
    return None


def first_loss(config: Config, module: Experiment, data: ExperimentData, tried: Tried, loss: float) -> Finding:
    """The loss before any step against that of guessing: far above it, something is wrong with weights or labels."""
    claim, guess = "the first loss is not worse than guessing", guessing(module, data, tried.batch)
    if guess is None:
        counted = f"{loss:.3g}; no guess is known for this kind of loss"
        return judged("model", claim, counted, red=not math.isfinite(loss), remedy="trainer.detect_anomaly=true")
    value, words = guess
    known = config["model"].get("pretrained") is not None
    low = not known and loss < value / 2
    return judged(
        "model",
        claim if not low else "a network of random weights knows no answer",
        f"{loss:.3g}, guessing is {value:.3g} = {words}; {tried.words}",
        red=not loss <= FAR * value,
        yellow=loss > ODD * value or low,
        remedy=MORE if not known else "model.revision=null data.tokenizer=<that of the model>",
    )


def repeatable(config: Config, module: Experiment, tried: Tried) -> list[Finding]:
    """The same batch twice: as an evaluation reads it, and as training does with the same seed."""
    found = []
    dropouts = " ".join(f"model.{name}=0.0" for name in config["model"] if "dropout" in name)
    for training in (False, True):
        module.train(training)
        losses = []
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for attempt in range(2):
                torch.manual_seed(0 if training else attempt)
                losses.append(float(loss_of(module, tried.batch)))
        equal = losses[0] == losses[1] or all(math.isnan(loss) for loss in losses)
        claim = "the same seed gives the same training loss" if training else "an evaluation draws nothing"
        found.append(
            judged(
                "model",
                claim,
                f"{losses[0]!r} and {losses[1]!r}" if not equal else f"{losses[0]:.6g} twice",
                red=not equal,
                remedy="hardware.deterministic=true" if training else dropouts or MORE,
            )
        )
    return found


# ---------------------------------------------------------------------- learning


class _Learning:
    """Some steps on one batch, without dropout: first those of the run's own optimizer, then those of plain Adam."""

    def __init__(self, config: Config, module: Experiment, tried: Tried) -> None:
        self.config, self.module, self.tried = config, module, tried
        self.losses: dict[str, list[float]] = {}
        named = {name: entry for name, entry in module.net.named_parameters() if entry.requires_grad}
        self.trained = named
        self.silent = dict.fromkeys(named, "none")
        """Parameters that no gradient has reached: `none`, or `zero` where all of it was 0."""
        self.first_loss = math.nan

    def try_out(self) -> None:
        """Make the steps."""
        self.module.eval()
        with torch.no_grad():
            self.first_loss = float(loss_of(self.module, self.tried.batch))
        if not self.trained:
            return
        self.started = time.process_time()
        own = self.module.build_optimizer(self.module.net)
        self.losses["own"] = self._steps(own, OWN_STEPS, BUDGET_S / 2)
        if is_schedule_free(self.config):
            own.eval()  # type: ignore[attr-defined]
        if not self.learned and not self.diverged:
            rate = 3e-3 if self.config["model"].get("pretrained") is None else 1e-4
            plain = torch.optim.Adam(self.trained.values(), lr=rate)
            self.losses["plain"] = self._steps(plain, PLAIN_STEPS, BUDGET_S)
        if self.silent:
            self.module.zero_grad()
            loss_of(self.module, self.tried.longest).backward()
            self._listen()

    def _steps(self, optimizer: Any, most: int, until_s: float) -> list[float]:
        """Losses before each step and after the last one; no step begins after so many seconds of CPU."""
        losses: list[float] = []
        for _ in range(most):
            loss = loss_of(self.module, self.tried.batch)
            losses.append(float(loss.detach()))
            late = time.process_time() - self.started > until_s
            if late or not loss.requires_grad or not LEARNED * self.first_loss <= losses[-1] < math.inf:
                return losses
            optimizer.zero_grad()
            loss.backward()
            self._listen()
            nn.utils.clip_grad_norm_(self.trained.values(), self.config["trainer"]["clip_norm"] or math.inf)
            optimizer.step()
        with torch.no_grad():
            losses.append(float(loss_of(self.module, self.tried.batch)))
        return losses

    def _listen(self) -> None:
        for name in list(self.silent):
            gradient = self.trained[name].grad
            if gradient is not None:
                if bool(gradient.any()):
                    del self.silent[name]
                else:
                    self.silent[name] = "zero"

    @property
    def last(self) -> float:
        return next(reversed(self.losses.values()))[-1] if self.losses else math.nan

    @property
    def learned(self) -> bool:
        return self.last < LEARNED * self.first_loss

    @property
    def diverged(self) -> bool:
        losses = self.losses.get("own") or [math.nan]
        return not all(loss <= DIVERGED * self.first_loss + 0.1 for loss in losses)

    def gradients(self) -> Finding:
        """Whether each trainable parameter got a gradient in some step."""
        cut_off = [name for name, kind in self.silent.items() if kind == "none"]
        silent = [name for name, kind in self.silent.items() if kind == "zero"]
        counted = f"{len(self.trained) - len(self.silent):,} of {len(self.trained):,} trainable tensors got one"
        if cut_off:
            counted += f"; none: {', '.join(cut_off[:5])}" + (f" and {len(cut_off) - 5} more" if cut_off[5:] else "")
        if silent:
            counted += f"; only zeros: {', '.join(silent[:5])}" + (f" and {len(silent) - 5} more" if silent[5:] else "")
        names = ",".join(f'"^{name}$"' for name in [*cut_off, *silent][:5])
        return judged(
            "model",
            "a gradient reaches every trainable parameter",
            counted,
            red=bool(cut_off),
            yellow=bool(silent),
            remedy=f"'optimizer.freeze=[{names}]'",
        )

    def findings(self) -> list[Finding]:
        """Whether the batch is learned, and the run's own rate does not blow it up."""
        if not self.losses:
            return []
        rate, own = self.config["optimizer"]["lr"], self.losses["own"]
        steps = sum(len(losses) - 1 for losses in self.losses.values())
        how = f"{len(own) - 1} steps of the run's optimizer at its peak rate {rate:g}"
        found = [
            judged(
                "model",
                "the peak learning rate does not blow the loss up",
                f"{self.first_loss:.3g} became {own[-1]:.3g}, at most {max(own):.3g}, in {how}",
                red=self.diverged,
                remedy=f"optimizer.lr={rate / 100:g}",
            )
        ]
        if self.diverged:
            return found
        short = steps < OWN_STEPS + PLAIN_STEPS and not self.learned
        falls = self.last < STARTED * self.first_loss
        return [
            *found,
            judged(
                "model",
                "one batch can be learned by heart",
                f"loss {self.first_loss:.3g} became {self.last:.3g} in {steps} steps ({how}"
                + (f", then {len(self.losses['plain']) - 1} of Adam" if "plain" in self.losses else "")
                + (f"; {BUDGET_S:g} s of CPU were up" if short else "")
                + f"); {self.tried.words}",
                red=not falls and not short,
                yellow=not self.learned and not (short and falls),
                remedy="python -m lightning_apps.train trainer.overfit_batches=1 trainer.max_steps=200 "
                "trainer.evaluate_every=0.5",
            ),
        ]


# ---------------------------------------------------------------------- generation


def check_generation(module: Experiment, data: ExperimentData) -> list[Finding]:
    """Greedy answers to prompts of unequal lengths, together and one by one; nothing where nothing is generated."""
    tokenizer = data.tokenizer
    if not isinstance(data, AnswersPrompts) or tokenizer is None:
        return []
    prompts = sorted(data.prompts("validation")[:CANDIDATES], key=len)[:MOST_SAMPLES]
    prompts = [prompt[number % 3 :] for number, prompt in enumerate(prompts)]
    ending, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    options: dict[str, Any] = {
        "max_new_tokens": NEW_TOKENS,
        "pad_token_id": ending if padding is None else padding,
        "stop_token_ids": [ending],
    }
    many, one = (generate_answers(module.net, prompts, batch_size=size, **options) for size in (MOST_SAMPLES, 1))
    different = sum(not first.tokens.equal(second.tokens) for first, second in zip(many, one, strict=True))
    return [
        judged(
            "generation",
            "a batch of prompts is answered as each alone",
            f"{different} of {len(prompts)} greedy answers of {NEW_TOKENS} tokens differ between batch and one by one",
            red=different > 1,
            yellow=different == 1,
            remedy="callbacks.extra.generation.batch_size=1",
        )
    ]
