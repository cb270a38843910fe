import io
import sys

import pytest
import torch

from lightning_apps import generate
from lightning_apps.config.composition import plain
from lightning_apps.runs.experiment_run import run_experiment


@pytest.fixture(scope="module")
def run_path(small_gsm8k, cache_root, tmp_path_factory):
    """A short run of gsm8k."""
    from hydra import compose, initialize_config_dir

    from lightning_apps.config.composition import CONF, plain

    root = tmp_path_factory.mktemp("generate")
    overrides = [
        "experiment=gsm8k", f"data.path={small_gsm8k}/data", f"model.pretrained={small_gsm8k}/model",
        "data.num_validation=6", "data.global_batch_size=8", "trainer.max_epochs=null", "trainer.max_steps=2",
        "callbacks.extra.generation=null", "hardware=cpu", "precision=fp32", f"run.output_root={root}",
        f"run.cache_root={cache_root}", "run.name=run",
    ]  # fmt: skip
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = plain(compose("config", overrides=overrides))
    run_experiment(config)
    return root / "gsm8k" / "run"


def say(monkeypatch, capsys, run_path, *arguments, typed=None):
    options = [f"run={run_path}", "max_new_tokens=12", "accelerator=cpu", *arguments]
    monkeypatch.setattr(sys, "argv", ["generate", *options])
    if typed is not None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    capsys.readouterr()
    generate.main()
    return capsys.readouterr().out


def test_a_prompt_is_answered_as_the_model_answers(run_path, monkeypatch, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    printed = say(monkeypatch, capsys, run_path, "prompt=What is 1 + 2?")
    tokenizer = AutoTokenizer.from_pretrained(run_path / "model")
    net = AutoModelForCausalLM.from_pretrained(run_path / "model", dtype=torch.float32)
    text = "<|im_start|>user\nWhat is 1 + 2?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    expected = tokenizer.decode(net.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :])
    assert printed.rstrip("\n") == expected.rstrip("\n")
    # best.ckpt holds what was exported
    assert say(monkeypatch, capsys, run_path, "prompt=What is 1 + 2?", "checkpoint=last") == printed


def test_a_conversation_goes_on_until_the_input_ends(run_path, monkeypatch, capsys):
    one = say(monkeypatch, capsys, run_path, "prompt=What is 1 + 2?")
    both = say(monkeypatch, capsys, run_path, typed="What is 1 + 2?\n\nAnd 3?\n")
    assert both.startswith(one)
    assert len(both) > len(one)
    alone = say(monkeypatch, capsys, run_path, "prompt=And 3?")
    assert both.removeprefix(one) != alone  # the second question has the first before it


def test_draws_follow_the_seed(run_path, monkeypatch, capsys):
    words = ["prompt=What is 1 + 2?", "temperature=3.0"]
    first, again, other = (say(monkeypatch, capsys, run_path, *words, f"seed={seed}") for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    "text",
    [
        "Ann has 3 apples, and (maybe) 4 more: how many?", "it's 50% of $3", 'she said "five"', "a\\b \\", "${seed}",
        "x=5", "[1, 2]", "{a: b}", "null?", "3", "two\nlines", "",
    ],
)  # fmt: skip
def test_any_text_reaches_the_model(text, monkeypatch):
    asked = []
    monkeypatch.setattr(generate, "generate", lambda cfg: asked.append(plain(cfg)["prompt"]))
    monkeypatch.setattr(sys, "argv", ["generate", "run=x", f"prompt={text}"])
    generate.main()
    assert asked == [text]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["prompt=a<|im_end|>b"], "prompt: message 1 holds '<|im_end|>'"),
        (["prompt="], "prompt is empty: give a question, or leave prompt away to chat"),
        (["prompt=x", "temperature=-1"], "temperature=-1.0: must be a number that is not negative"),
        (["prompt=x", "top_p=0"], "top_p=0.0: must be above 0 and at most 1"),
        (["prompt=x", "checkpoint=77"], "checkpoint=step=00000077: not in"),
        (["promt=x"], "promt does not exist (did you mean prompt?)"),
    ],
)
def test_mistakes_get_one_line(arguments, expected, run_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate", f"run={run_path}", *arguments])
    with pytest.raises(SystemExit) as stopped:
        generate.main()
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err
