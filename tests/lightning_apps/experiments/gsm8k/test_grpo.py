"""GRPO: advantages and losses by hand and as trl has them, what a step draws, resuming to the bit."""

import math

import numpy as np
import pytest
import torch

import lightning_apps.experiments.gsm8k.grpo as grpo
from datamodules.sampling.packing import packed_batch
from datamodules.text.jsonl import write_jsonl
from lightning_apps.errors import ConfigError
from lightning_apps.experiments.gsm8k.grpo import answer_document, group_advantages, policy_losses
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs.experiment_run import run_experiment
from lightning_apps.verify import bits_that_differ
from models.decoding.generation import Answer, generate_answers
from models.language.causal_lm import target_log_probs
from tests.tiny.tiny_runs import directory_of

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def easy_data(tmp_path_factory):
    """Questions that a random model solves now and then: the answer to each is 2."""
    folder = tmp_path_factory.mktemp("easy")
    for name, first, count in (("train", 0, 40), ("test", 40, 4)):
        rows = [{"question": f"What is 2 + {at} - {at}?", "answer": "#### 2"} for at in range(first, first + count)]
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture
def config(composed, small_gsm8k, easy_data):
    def make(*overrides, name="run"):
        return composed(
            "experiment=gsm8k", "module=grpo", f"data.path={easy_data}", f"model.pretrained={small_gsm8k}/model",
            "data.num_validation=6", "data.global_batch_size=4", "data.device_batch_size=2", "data.max_length=160",
            "module.group_size=8", "module.max_new_tokens=16", "trainer.max_epochs=null", "trainer.max_steps=6",
            "trainer.evaluate_every=3", "callbacks.extra.generation.num_samples=4",
            "callbacks.extra.generation.max_new_tokens=4", "callbacks.extra.picture=null", "optimizer.lr=1e-2",
            "hardware=cpu", *overrides, name=name,
        )  # fmt: skip

    return make


def steps_of(directory):
    return [row for row in read_metrics(directory.metrics) if "train/loss" in row]


# ---------------------------------------------------------------------- by hand


def test_advantages_are_the_distance_from_the_mean_of_the_group():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert group_advantages(rewards, scale="none").tolist() == [
        [0.5, -0.5, -0.5, 0.5],
        [-0.25, -0.25, -0.25, 0.75],
        [0.0, 0.0, 0.0, 0.0],
    ]
    scaled = group_advantages(rewards, scale="group")
    first = 0.5 / (math.sqrt(1 / 3) + 1e-4)  # four times 0.5 squared, over three
    assert scaled[0].tolist() == pytest.approx([first, -first, -first, first], rel=1e-6)
    second = math.sqrt((3 * 0.25**2 + 0.75**2) / 3) + 1e-4
    assert scaled[1].tolist() == pytest.approx([-0.25 / second] * 3 + [0.75 / second], rel=1e-6)
    assert scaled[2].tolist() == [0.0] * 4


def test_losses_are_clipped_where_the_ratio_leaves_the_range_for_better_or_worse():
    ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5, 1.25])
    advantages = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    log_probs = ratios.log().requires_grad_()
    losses, divergence, is_clipped = policy_losses(
        log_probs, old=torch.zeros(6), advantages=advantages, epsilon_low=0.2, epsilon_high=0.3
    )
    assert losses.tolist() == pytest.approx([-2.0, -1.3, 1.5, -0.5, 0.8, -1.25])
    assert is_clipped.tolist() == [False, True, False, False, True, False]
    assert divergence.tolist() == [0.0] * 6
    (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    assert gradient.tolist() == pytest.approx([-2.0, 0.0, 1.5, -0.5, 0.0, -1.25])  # d ratio / d log p = ratio


def test_the_divergence_is_that_of_k3_and_its_gradient_has_no_bias():
    log_probs = torch.tensor([0.5, 0.25]).log().requires_grad_()
    losses, divergence, _ = policy_losses(
        log_probs, old=log_probs.detach(), advantages=torch.zeros(2), epsilon_low=0.2, epsilon_high=0.2,
        reference=torch.tensor([0.5, 0.5]).log(), kl_coefficient=0.1,
    )  # fmt: skip
    assert divergence.tolist() == pytest.approx([0.0, 2 - math.log(2) - 1])
    assert losses.tolist() == pytest.approx([0.0, 0.1 * (1 - math.log(2))])
    (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    assert gradient.tolist() == pytest.approx([0.0, -0.1 * math.log(2)])  # that of the divergence itself: - log r


def test_an_answer_is_trained_with_the_stop_token_that_ended_it():
    prompt = np.array([5, 6])
    whole = answer_document(prompt, Answer(torch.tensor([7, 8]), True, 2))
    assert (whole.ids.tolist(), whole.labels.tolist()) == ([5, 6, 7, 8, 2], [-100, -100, 7, 8, 2])
    cut = answer_document(prompt, Answer(torch.tensor([7, 8]), False))
    assert (cut.ids.tolist(), cut.labels.tolist()) == ([5, 6, 7, 8], [-100, -100, 7, 8])


# ---------------------------------------------------------------------- as trl has it


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "beta"), [("group", 0.04), ("none", 0.0)])
def test_advantages_and_loss_are_those_of_trl(scale, beta, small_gsm8k, tmp_path):
    """The same drawn tokens, rewards and weights in trl's GRPOTrainer and here; weights moved after the draw."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [{"prompt": [{"role": "user", "content": f"What is {'1 + ' * at}1?"}]} for at in range(1, 3)]
    net = AutoModelForCausalLM.from_pretrained(small_gsm8k / "model")
    reference = AutoModelForCausalLM.from_pretrained(small_gsm8k / "model")
    options = trl.GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=8, num_generations=4, max_completion_length=12, beta=beta,
        epsilon=0.2, epsilon_high=0.28, loss_type="dapo", scale_rewards=scale, num_iterations=2,
        steps_per_generation=1, temperature=0.8, report_to=[], use_cpu=True, bf16=False, seed=1,
    )  # fmt: skip

    def reward_of(text):
        return float(sum(map(ord, text)) % 3 == 0)

    def reward(completions, **_):
        return [reward_of(completion[0]["content"]) for completion in completions]

    trainer = trl.GRPOTrainer(
        model=net, reward_funcs=reward, args=options, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(small_gsm8k / "model"),
    )  # fmt: skip
    drawn = trainer._generate_and_score_completions([rows[at // 4] for at in range(8)])
    documents = []
    for number in range(8):
        prompt = drawn["prompt_ids"][number][drawn["prompt_mask"][number].bool()]
        completion = drawn["completion_ids"][number][drawn["completion_mask"][number].bool()]
        documents.append(answer_document(prompt.numpy(), Answer(completion, False)))
    texts = trainer.processing_class.batch_decode(drawn["completion_ids"], skip_special_tokens=True)
    rewards = torch.tensor([reward_of(text) for text in texts]).reshape(2, 4)
    assert rewards.std(dim=1).sum() > 0
    advantages = group_advantages(rewards, scale=scale).flatten()
    torch.testing.assert_close(advantages, drawn["advantages"])

    batch = packed_batch(documents)
    mask = drawn["completion_mask"].bool()
    with torch.no_grad():
        old = target_log_probs(net, batch, temperature=0.8)
        start = target_log_probs(reference, batch, temperature=0.8)
        torch.testing.assert_close(old, drawn["old_per_token_logps"][mask], rtol=0, atol=2e-5)
        if beta:
            torch.testing.assert_close(start, drawn["ref_per_token_logps"][mask], rtol=0, atol=2e-5)
        torch.manual_seed(0)
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    trainer.current_gradient_accumulation_steps = 1
    theirs = trainer._compute_loss(net.train(), drawn)
    theirs.backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    net.zero_grad()
    losses, _, is_clipped = policy_losses(
        target_log_probs(net, batch, temperature=0.8), old=old,
        advantages=advantages.repeat_interleave(mask.sum(1)), epsilon_low=0.2, epsilon_high=0.28,
        reference=start if beta else None, kl_coefficient=beta,
    )  # fmt: skip
    ours = losses.sum() / len(losses)
    ours.backward()
    assert 0 < is_clipped.sum() < len(losses)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)


# ---------------------------------------------------------------------- a run


def test_a_run_draws_groups_to_training_questions_alone_and_logs_what_they_are(config, monkeypatch):
    asked = []

    def draw(net, prompts, *, sampling=None, **options):
        if sampling is not None:
            assert len(set(sampling.seeds)) == len(prompts) == 4 * 8
            asked.append([tuple(prompt.tolist()) for prompt in prompts])
        return generate_answers(net, prompts, sampling=sampling, **options)

    monkeypatch.setattr(grpo, "generate_answers", draw)
    settings = config("trainer.max_steps=2", "trainer.evaluate_every=2")
    run_experiment(settings)
    rows = steps_of(directory_of(settings))
    assert len(rows) == len(asked) == 2
    for row, prompts in zip(rows, asked, strict=True):
        assert [len({*prompts[at : at + 8]}) for at in range(0, 32, 8)] == [1] * 4  # eight answers to each
        assert 0 < row["train/reward"] < 1
        assert row["train/reward_std"] > 0
        assert row["train/zero_advantage_ratio"] in (0, 0.25, 0.5, 0.75)
        assert 0 < row["train/answer_tokens_mean"] <= 16
        assert row["train/clipped_ratio"] == 0.0  # the policy that drew is the one that is trained
        assert "train/kl" not in row
    data = grpo_data(settings)
    held_out = {tuple(prompt.tolist()) for split in ("validation", "test") for prompt in data.prompts(split)}
    assert not held_out & {prompt for prompts in asked for prompt in prompts}


def grpo_data(settings):
    from lightning_apps.runs.build import build_datamodule

    return build_datamodule(settings)


def test_micro_batches_and_answers_that_are_left_out_change_no_loss(config):
    rows = {}
    for name, overrides in {
        "split": ["data.device_batch_size=1"],
        "whole": ["data.device_batch_size=null"],
        "all": ["data.device_batch_size=null", "module.kl_coefficient=1e-12"],  # feeds those without advantage too
        "grouped": ["data.batching=length_grouped"],
    }.items():
        settings = config("trainer.max_steps=2", "trainer.evaluate_every=never", *overrides, name=name)
        run_experiment(settings)
        rows[name] = steps_of(directory_of(settings))
    for name in ("split", "all", "grouped"):
        for one, other in zip(rows[name], rows["whole"], strict=True):
            assert one["train/loss"] == pytest.approx(other["train/loss"], abs=1e-5), name
            assert one["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=1e-3), name
    assert [row["train/tokens"] for row in rows["all"]] > [row["train/tokens"] for row in rows["whole"]]


@pytest.mark.slow
def test_a_compiled_run_draws_the_same_answers(config):
    rows = []
    for compiled in ("false", "true"):
        settings = config(
            "trainer.max_steps=1", "trainer.evaluate_every=never", f"hardware.compile={compiled}", name=compiled
        )
        run_experiment(settings)
        rows += steps_of(directory_of(settings))
    assert rows[0]["train/answer_tokens_mean"] == rows[1]["train/answer_tokens_mean"]
    assert rows[0]["train/reward"] == rows[1]["train/reward"] > 0
    assert rows[0]["train/grad_norm"] == pytest.approx(rows[1]["train/grad_norm"], rel=1e-4)


@pytest.mark.parametrize("stop", [2, 3])
def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_left_alone(config, monkeypatch, stop):
    """Stopped between two steps on the same answers, and at the end of such a pair."""
    options = ("module.inner_steps=2", "module.kl_coefficient=0.1", "trainer.save_every=1")
    whole = config(*options, name="whole")
    run_experiment(whole)
    rows = steps_of(directory_of(whole))
    assert [rows[at]["train/reward"] for at in (0, 2, 4)] == [rows[at]["train/reward"] for at in (1, 3, 5)]
    assert [row["train/clipped_ratio"] > 0 for row in rows[1::2]] != [False] * 3
    assert all(row["train/kl"] > 0 for row in rows[1:])
    stopped = config(*options, name="stopped")

    import lightning_apps.callbacks.step_log as step_log

    original = step_log.StepLog.on_train_batch_end

    class KilledError(Exception):
        pass

    def kill(self, trainer, *arguments):
        original(self, trainer, *arguments)
        if trainer.global_step == stop + 1:  # the checkpoint of the step before is there
            raise KilledError

    monkeypatch.setattr(step_log.StepLog, "on_train_batch_end", kill)
    with pytest.raises(KilledError):
        run_experiment(stopped)
    monkeypatch.setattr(step_log.StepLog, "on_train_batch_end", original)
    stopped["run"]["resume"] = "auto"
    run_experiment(stopped)
    assert bits_that_differ(directory_of(whole), directory_of(stopped)) == 0
    for one, other in zip(rows, steps_of(directory_of(stopped)), strict=True):
        assert (one["train/loss"], one["train/reward"]) == (other["train/loss"], other["train/reward"])


def test_a_step_whose_answers_are_all_alike_moves_nothing(config, monkeypatch):
    monkeypatch.setattr(grpo, "decode", lambda data, answer: "no number")
    settings = config("trainer.max_steps=1", "trainer.evaluate_every=never", "optimizer.weight_decay=0")
    run_experiment(settings)
    (row,) = steps_of(directory_of(settings))
    assert (row["train/loss"], row["train/grad_norm"], row["train/zero_advantage_ratio"]) == (0.0, 0.0, 1.0)


def test_an_epoch_asks_each_question_that_can_be_graded_once(config, tmp_path, monkeypatch):
    """However often its answers are trained on, and whatever else the file holds."""
    answers = ["#### 2", "#### 2", "#### Ann", "Ann."]
    rows = [{"question": f"What is 2 + {at} - {at}?", "answer": answers[at % 4]} for at in range(20)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    asked, draw = [], grpo.GrpoModule._draw

    def drawn(self, batch):
        asked.append([self._data.chat("train", index).messages[0]["content"] for index in batch.sample_ids.tolist()])
        return draw(self, batch)

    monkeypatch.setattr(grpo.GrpoModule, "_draw", drawn)
    summary = run_experiment(
        config(
            f"data.path={tmp_path}", "data.num_validation=1", "data.global_batch_size=3", "module.inner_steps=2",
            "trainer.max_steps=null", "trainer.max_epochs=1", "trainer.evaluate_every=never",
            "callbacks.extra.generation=null",
        )
    )  # fmt: skip
    questions = [question for batch in asked for question in batch]
    assert len(questions) == len(set(questions)) >= 9  # of ten that can be graded one may be the validation's
    assert {int(question.split()[-1].strip("?")) % 4 for question in questions} == {0, 1}
    assert len(asked) == -(-len(questions) // 3)
    assert summary["optimizer_steps"] == 2 * len(asked)


def test_what_cannot_be_graded_is_named(config, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"question": f"Who is {at}?", "answer": "Ann."} for at in range(20)])
    with pytest.raises(ConfigError, match="module=grpo: no training answer has a final number"):
        run_experiment(
            config(f"data.path={tmp_path}", "trainer.evaluate_every=never", "callbacks.extra.generation=null")
        )
