"""Group-relative policy optimization: a model learns from the grades of its own answers to the training questions.

Source: Shao et al. 2024 (GRPO, arXiv:2402.03300); the mean over all tokens of a step, and a clip range with two ends,
are those of DAPO (Yu et al. 2025, arXiv:2503.14476); advantages without the deviation those of Dr. GRPO (Liu et al.
2025, arXiv:2503.20783). Trl's GRPOTrainer with `loss_type="dapo"` computes the same advantages and losses.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import Unpack

from datamodules.contract import IGNORED, Batch, StepBatch
from datamodules.gsm8k import Gsm8kDataModule
from datamodules.sampling.order import hash_key
from datamodules.sampling.packing import Document, PackingCollator
from lightning_apps.errors import ConfigError
from lightning_apps.experiments.experiment import Parts
from lightning_apps.experiments.gsm8k.generation import decode
from lightning_apps.experiments.gsm8k.grading import grade, has_number
from lightning_apps.experiments.gsm8k.module import Gsm8kModule
from lightning_apps.training.optimizer_step import from_all_ranks
from lightning_apps.training.sharding import inside_forward, whole_weights
from models.decoding.generation import Answer, Sampling, generate_answers
from models.language.causal_lm import target_log_probs

STD_EPSILON = 1e-4
"""Added to the deviation of a group's rewards, as trl does."""


class GrpoModule(Gsm8kModule):
    """Trains on answers that the model draws anew: before a step, or before every `inner_steps`-th one.

    A batch of the loader names the questions of a step; here it becomes `group_size` drawn answers to each, graded by
    their numbers, with their advantages. Draws are a function of weights, seed, step and question, so that a resumed
    run draws the same. Evaluations take the loss of supervised training.

    Args:
        group_size: answers drawn to each question; they are compared with each other.
        scale_rewards: what a reward's distance from the mean of its group is divided by: `group`, the group's standard
            deviation, or `none`.
        epsilon_low: the ratio of new to old probability counts down to 1 minus this.
        epsilon_high: the ratio counts up to 1 plus this.
        kl_coefficient: weight of the divergence from the model that the run started from, by the estimator k3; above 0
            that model is kept in memory too.
        inner_steps: optimizer steps on the same answers.
        temperature: logits are divided by it, when tokens are drawn and when they are trained.
        top_p: tokens are drawn from the most probable ones that together reach this probability; 1 keeps all.
        max_new_tokens: longest answer, stop token included.
        batch_size: answers in progress at once.
        **parts: see Parts.
    """

    def __init__(
        self,
        *,
        group_size: Annotated[int, Ge(2)],
        scale_rewards: Literal["group", "none"],
        epsilon_low: Annotated[float, Gt(0), Lt(1)],
        epsilon_high: Annotated[float, Gt(0)],
        kl_coefficient: Annotated[float, Ge(0)],
        inner_steps: Annotated[int, Ge(1)],
        temperature: Annotated[float, Gt(0)],
        top_p: Annotated[float, Gt(0), Le(1)],
        max_new_tokens: Annotated[int, Ge(1)],
        batch_size: Annotated[int, Ge(1)],
        **parts: Unpack[Parts],
    ) -> None:
        super().__init__(label_smoothing=0.0, **parts)
        self.group_size = group_size
        self.scale_rewards = scale_rewards
        self.epsilon_low, self.epsilon_high = epsilon_low, epsilon_high
        self.kl_coefficient = kl_coefficient
        self.inner_steps = inner_steps
        self.temperature, self.top_p = temperature, top_p
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self._reference: list[PreTrainedModel] = []  # in a list: neither trained nor saved
        self._answers: StepBatch | None = None  # those of the steps under way
        self._of_answers: dict[str, float] = {}  # what is logged of them
        self._of_step = torch.zeros(2)  # divergence and clipped tokens, summed

    # ------------------------------------------------------------------ the loss

    def loss_sum(self, batch: Batch) -> tuple[Tensor, int]:
        """Loss summed over the tokens of answers, and their number; without advantages that of supervised training."""
        if "advantages" not in batch:
            return super().loss_sum(batch)
        log_probs = self._log_probs(self.net, batch)
        losses, divergence, is_clipped = policy_losses(
            log_probs,
            old=batch.get("old_log_probs", log_probs.detach()),
            advantages=batch["advantages"],
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            reference=batch.get("reference_log_probs"),
            kl_coefficient=self.kl_coefficient,
        )
        self._of_step = self._of_step.to(losses.device) + torch.stack([divergence.sum(), is_clipped.sum()]).detach()
        return losses.sum(), len(losses)

    def _log_probs(self, net: PreTrainedModel, batch: Batch) -> Tensor:
        return target_log_probs(
            net, batch, shared_prefix_length=batch["shared_prefix_length"], temperature=self.temperature
        )

    # ------------------------------------------------------------------ answers in place of the data's

    @classmethod
    def select_data(cls, data: Gsm8kDataModule) -> None:
        """Ask no question whose answers cannot be graded.

        Raises:
            ValueError: there is no other.
        """
        if not data.keep_given(has_number, else_said="have no final number behind ####: module=grpo does not ask them"):
            raise ValueError("module=grpo: no training answer has a final number behind ####, so nothing can be graded")

    def on_train_start(self) -> None:
        """Refuse what cannot work, and keep the model that the run starts from where the loss needs it.

        Raises:
            ConfigError: a step of several is asked of several devices.
        """
        trainer = self.trainer
        if self.inner_steps > 1 and trainer.world_size > 1:
            raise ConfigError(
                f"module.inner_steps={self.inner_steps}: a checkpoint holds the answers of one device; choose "
                "module.inner_steps=1, or hardware.devices=1"
            )
        if self.kl_coefficient > 0 and not self._reference:
            self._reference = [self.build_net().to(self.device).eval().requires_grad_(False)]  # type: ignore[arg-type]

    @property
    def _data(self) -> Gsm8kDataModule:
        data: Gsm8kDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Put drawn answers in the place of a training batch, before anything looks at it."""
        if not isinstance(batch, StepBatch):
            return batch
        self._of_step = torch.zeros(2)
        if self._answers is None or self.trainer.global_step % self.inner_steps == 0:
            self._answers = self._draw(batch)
        return self._answers

    def _draw(self, batch: StepBatch) -> StepBatch:
        data, step, started = self._data, self.trainer.global_step, time.perf_counter()
        questions = batch.sample_ids.tolist()
        prompts = data.few_shot_prompts("train", 0, questions)
        size = self.group_size
        seeds = [
            hash_key(data.seed, step, int(data.rows["train"][index]), number) >> 1
            for index in questions
            for number in range(size)
        ]
        with self.trainer.precision_plugin.val_step_context(), whole_weights(self.net):
            answers = generate_answers(
                self.net,
                [prompt for prompt in prompts for _ in range(size)],
                max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size,
                pad_token_id=data.net_arguments["pad_token_id"],
                stop_token_ids=data.stop_token_ids,
                sampling=Sampling(self.temperature, self.top_p, seeds),
            )
        references = [data.chat("train", index).messages[-1]["content"] for index in questions]
        rewards = torch.tensor(
            [float(grade(decode(data, answer), references[at // size]).is_numeric) for at, answer in enumerate(answers)]
        ).reshape(len(questions), size)
        advantages = group_advantages(rewards, scale=self.scale_rewards)
        self._of_answers = {**self._statistics(rewards, answers), "drawing_s": time.perf_counter() - started}
        documents = [answer_document(prompts[at // size].numpy(), answer) for at, answer in enumerate(answers)]
        return self._step_batch(batch, questions, documents, advantages.flatten())

    def _step_batch(
        self, batch: StepBatch, questions: Sequence[int], documents: Sequence[Document], advantages: Tensor
    ) -> StepBatch:
        """Documents of answers packed as the data are, with what the loss takes besides for each target token.

        Without a divergence to measure, answers without an advantage have no gradient: they are counted, not computed.
        """
        data = self._data
        num_targets = np.array([(document.labels != IGNORED).sum() for document in documents], dtype=np.int64)
        matters = np.flatnonzero((advantages != 0).numpy() | (self.kl_coefficient > 0))
        collate = PackingCollator(
            lambda numbers: [documents[number] for number in numbers],
            max_length=max([data.max_length, *(len(document.ids) for document in documents)]),
            rows_per_micro_batch=data.device_batch_size,
            shared_prefix_length=data.shared_prefix_length,
        )
        packed = collate((0, matters))
        for part in packed.micro_batches:
            numbers = part["sample_ids"].numpy()
            part["advantages"] = advantages[numbers].repeat_interleave(torch.from_numpy(num_targets[numbers]))
            part["sample_ids"] = torch.tensor([questions[number // self.group_size] for number in numbers])
        total = int(num_targets.sum())
        step = dataclasses.replace(packed, sample_ids=batch.sample_ids, num_targets=total, weight_sum=float(total))
        self._remember_probabilities(step)
        return step

    @torch.no_grad()
    def _remember_probabilities(self, step: StepBatch) -> None:
        """What the policy that drew, and the one that the run started from, give to each token."""
        nets = {"old_log_probs": self.net} if self.inner_steps > 1 else {}
        nets |= dict(zip(["reference_log_probs"], self._reference, strict=False))
        for number, part in enumerate(step.micro_batches):
            if not nets:
                break
            step.micro_batches[number] = part = self.trainer.strategy.batch_to_device(part)
            with self.trainer.precision_plugin.forward_context():
                part |= {name: inside_forward(net, self._log_probs, net, part) for name, net in nets.items()}

    # ------------------------------------------------------------------ what is logged, what is saved

    def _statistics(self, rewards: Tensor, answers: Sequence[Answer]) -> dict[str, float]:
        """Of the answers of all ranks; means over answers, or over groups."""
        deviations = rewards.std(dim=1)
        sums = [
            float(rewards.sum()),
            float(sum(len(answer.tokens) for answer in answers)),
            float(sum(not answer.finished for answer in answers)),
            float(len(answers)),
            float(deviations.sum()),
            float((deviations == 0).sum()),
            float(len(rewards)),
        ]
        if self.trainer.world_size > 1:
            sums = from_all_ranks(sums).sum(dim=0).tolist()
        reward, tokens, truncated, count, deviation, equal, groups = sums
        count, groups = max(count, 1.0), max(groups, 1.0)
        return {
            "reward": reward / count,
            "reward_std": deviation / groups,
            "zero_advantage_ratio": equal / groups,
            "answer_tokens_mean": tokens / count,
            "truncated_ratio": truncated / count,
        }

    def step_metrics(self) -> dict[str, Tensor | float]:
        """Rewards and lengths of the answers; divergence, and share of clipped tokens, over all tokens of the step."""
        sums: Tensor = self._of_step
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        divergence, clipped = sums / max(self.step_result["num_targets"], 1)
        return {**self._of_answers, "clipped_ratio": clipped, **({"kl": divergence} if self._reference else {})}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Between two steps on the same answers, keep these."""
        super().on_save_checkpoint(checkpoint)
        if self._answers is not None and self.trainer.global_step % self.inner_steps:
            fields = {**vars(self._answers), "sample_ids": torch.from_numpy(self._answers.sample_ids)}
            checkpoint["grpo_answers"] = {"batch": fields, "logged": self._of_answers}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the answers that were kept."""
        if kept := checkpoint.get("grpo_answers"):
            self._answers = StepBatch(**{**kept["batch"], "sample_ids": kept["batch"]["sample_ids"].numpy()})
            self._of_answers = kept["logged"]


def group_advantages(rewards: Tensor, *, scale: Literal["group", "none"]) -> Tensor:
    """How much better than the mean of its group each answer is.

    Args:
        rewards: (questions, group_size).
        scale: `group` divides by the group's standard deviation (of a sample, n - 1) plus STD_EPSILON.

    Returns:
        (questions, group_size); 0 throughout a group whose rewards are all alike.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + STD_EPSILON) if scale == "group" else centred


def policy_losses(
    log_probs: Tensor,
    *,
    old: Tensor,
    advantages: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    reference: Tensor | None = None,
    kl_coefficient: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped loss of each token, with the divergence from a reference.

    Args:
        log_probs: (n,) of the tokens under the policy that is trained.
        old: (n,) under the policy that drew them.
        advantages: (n,) of their answers.
        epsilon_low: see GrpoModule.
        epsilon_high: see GrpoModule.
        reference: (n,) under the policy to stay near; None for none.
        kl_coefficient: weight of the divergence.

    Returns:
        Losses (n,); divergence (n,), 0 without a reference, by the estimator k3 = r - log r - 1 with r the reference's
        probability over the policy's (Schulman 2020), which is never negative; whether clipping (n,) took the gradient.
        In the loss the divergence is weighted by the ratio (DeepSeek-V3.2, arXiv:2512.02556), as in trl.
    """
    ratio = torch.exp(log_probs - old)
    clipped = torch.clamp(ratio, 1 - epsilon_low, 1 + epsilon_high)
    losses = -torch.minimum(ratio * advantages, clipped * advantages)
    is_clipped = ((ratio < 1 - epsilon_low) & (advantages < 0)) | ((ratio > 1 + epsilon_high) & (advantages > 0))
    if reference is None:
        return losses, torch.zeros_like(losses), is_clipped
    log_r = reference - log_probs
    divergence = torch.exp(log_r) - log_r - 1
    # the ratio is 1 where the policy has not moved; with it the gradient is that of the divergence, without it another
    return losses + kl_coefficient * ratio * divergence, divergence, is_clipped


def answer_document(prompt: np.ndarray, answer: Answer) -> Document:
    """A prompt (length,) and a drawn answer, the stop token that ended it included, of which the answer is trained."""
    stop = [] if answer.stop_token_id is None else [answer.stop_token_id]
    ids = np.concatenate([prompt, answer.tokens.numpy(), np.array(stop, dtype=np.int64)])
    labels = np.where(np.arange(len(ids)) < len(prompt), IGNORED, ids)
    return Document(ids, labels)
