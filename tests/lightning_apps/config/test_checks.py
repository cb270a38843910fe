import itertools
import json
import os
import subprocess
import sys
from functools import partial

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lightning_apps import train
from lightning_apps.config.binding import bind
from lightning_apps.config.checks import check_config
from lightning_apps.config.command_line import LIGHTNING_KEYS
from lightning_apps.config.composition import CONF, options, plain
from lightning_apps.errors import ConfigError
from tests.asserts.refusals import refusal

EXPERIMENTS, PRECISIONS, HARDWARE = options("experiment"), options("precision"), options("hardware")


PAIRS = [
    (experiment, PRECISIONS[(row + column) % len(PRECISIONS)], hardware)
    for row, experiment in enumerate(EXPERIMENTS)
    for column, hardware in enumerate(HARDWARE)
]
"""A square in which every pair of options of two groups stands, and a quarter of all combinations."""
IMPOSSIBLE = {("bf16_true", "mps"), *(("fp16_mixed", name) for name in ("cpu", "cpu_ddp", "cpu_fsdp", "fsdp"))}


@pytest.mark.parametrize(("experiment", "precision", "hardware"), PAIRS)
def test_every_pair_of_options_composes_binds_and_type_checks(experiment, precision, hardware, composed):
    config = composed(f"experiment={experiment}", f"precision={precision}", f"hardware={hardware}")
    assert config["experiment"] == experiment
    assert config["precision"]["name"] == precision  # the experiment does not win over the command line
    assert config["hardware"]["name"] == hardware
    if (precision, hardware) in IMPOSSIBLE:
        with pytest.raises(ConfigError, match=f"precision={precision}"):
            check_config(config)
    else:
        check_config(config)
    assert isinstance(bind("model", config["model"]), partial)


def test_no_pair_is_left_out():
    groups = [EXPERIMENTS, PRECISIONS, HARDWARE]
    for one, other in itertools.combinations(range(3), 2):
        assert {(row[one], row[other]) for row in PAIRS} == set(itertools.product(groups[one], groups[other]))


@pytest.mark.parametrize("group", ["model", "optimizer", "scheduler", "logger", "data", "trainer", "callbacks"])
def test_every_option_of_every_group_checks(group, composed):
    for option in options(group):
        # the experiment keeps a moving average of the weights, schedule-free training one of its own
        needed = ["callbacks.weight_average=null"] if option == "schedule_free" else []
        check_config(composed(f"{group}={option}", *needed))


def test_experiments_are_small_deltas():
    for name in EXPERIMENTS:
        lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
        assert len(lines) <= 40
        assert not any(line.startswith("  precision:") for line in lines)


AFTER_CHECKS = [
    (["optimizer.groups=[{pattern:encoder}]"], ["groups[0].pattern='encoder' finds no parameter", "nearest names"]),
    (["optimizer.freeze=['layers.(']"], ["optimizer.freeze[0]='layers.('", "no regular expression"]),
    (["optimizer.freeze=['.']"], ["optimizer.freeze=['.'] leaves nothing to train"]),
    (["optimizer.unfreeze=[{pattern:embed,at_step:99999}]"], ["unfreeze[0].at_step=99999", "optimizer steps"]),
    (
        ["optimizer.unfreeze=[{pattern:.,at_step:5}]"],
        ["optimizer.unfreeze leaves nothing to train in the first step"],
    ),
    (
        ["optimizer.freeze=[embed]", "optimizer.unfreeze=[{pattern:embed,at_step:5}]"],
        ["optimizer.unfreeze[0].pattern='embed'", "optimizer.freeze keeps frozen"],
    ),
    (["scheduler.warmup_steps=99999"], ["scheduler.warmup_steps=99999", "shorter than the run"]),
    (["run.resume=auto", "run.overwrite=true"], ["run.resume", "run.overwrite", "exclude each other"]),
    (["run.resume=nowhere"], ["checkpoint=nowhere", "there are: none"]),
    (["data.countries=[XX]"], ["data.countries: there is no 'XX'"]),
]
"""Mistakes that only the data, the network or the run's folder show."""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fast_dev_run=true"], ["fast_dev_run does not exist (did you mean trainer.fast_dev_run?)"]),
        (["max_step=3"], ["max_step does not exist (did you mean trainer.max_steps?)"]),
        (["trainer.lr=1"], ["trainer.lr does not exist (did you mean optimizer.lr?); trainer has: "]),
        (["trainr.max_steps=3"], ["trainr.max_steps does not exist (did you mean trainer.max_steps?)"]),
        (["name=x"], ["(did you mean precision.name or hardware.name or run.name?)"]),
        (["callbacks.guards.non_finite=False"], ["allowed are stop, skip, off; in a YAML file off must be quoted"]),
        (["model.hiden_size=64"], ["model.hiden_size does not exist", "did you mean hidden_size?"]),
        (["trainer.max_step=64"], ["trainer.max_step does not exist", "did you mean max_steps?", "max_epochs"]),
        (["modle=64"], ["modle does not exist", "the root has: experiment, seed"]),
        (["model=qwen2_tny"], ["model=qwen2_tny", "did you mean qwen2_tiny?", "allowed: bert_tiny, distilbert, "]),
        (["experiment=locaton"], ["experiment=locaton", "did you mean location?"]),
        (["seed=abc"], ["seed", "'abc'", "Integer"]),
        (["seed=-1"], ["seed=-1", "between 0 and 2**32 - 1"]),
        (["trainer.max_steps=2.5"], ["trainer.max_steps", "2.5"]),
        (["model.hidden_size=abc"], ["model.hidden_size='abc'", "expected int"]),
        (["model.hidden_size=64.0"], ["model.hidden_size=64.0", "expected int"]),
        (["+model.widht=3"], ["model.widht does not exist", "allowed: hidden_size"]),
        (["data.id_scheme=spacial"], ["data.id_scheme='spacial'", "allowed are spatial, random"]),
        (["model.hidden_size=66"], ["model.hidden_size=66", "not a multiple of model.num_attention_heads=4"]),
        (["model.num_attention_heads=0"], ["model.num_attention_heads=0", "at least 1"]),
        (["data.global_batch_size=0"], ["data.global_batch_size=0", "at least 1"]),
        (["data.device_batch_size=65"], ["data.device_batch_size=65", "data.global_batch_size=64"]),
        (["optimizer.betas=0.9"], ["optimizer.betas=0.9", "list"]),
        (["optimizer.betas=[0.9]"], ["optimizer.betas=[0.9]", "give two"]),
        (["optimizer.lr=-1"], ["optimizer.lr=-1", "not negative"]),
        (["optimizer.layer_decay=1.5"], ["optimizer.layer_decay=1.5", "at most 1, or null"]),
        (["optimizer.groups=[{pattern:norm,wieght_decay:0}]"], ["optimizer.groups[0].wieght_decay", "weight_decay?"]),
        (["optimizer.groups=[{pattern:norm,lr:abc}]"], ["optimizer.groups=", "(at groups[0].lr)", "list[GroupRule]"]),
        (["optimizer.groups=[{lr:1e-3}]"], ["field required (at groups[0].pattern)"]),
        (["optimizer.freeze=embed"], ["optimizer.freeze='embed'", "valid list"]),
        (["optimizer.unfreeze=[{pattern:embed}]"], ["field required (at unfreeze[0].at_step)"]),
        (["optimizer=schedule_free"], ["callbacks.weight_average=null"]),
        (["optimizer=schedule_free", "scheduler=cosine"], ["scheduler=cosine", "scheduler=constant"]),
        (
            ["optimizer=schedule_free", "callbacks.weight_average=null", "precision=bf16_true"],
            ["precision=bf16_true", "precision=bf16_mixed"],
        ),
        (["callbacks.reduce_on_plateau={factor:2.0,patience:1}"], ["reduce_on_plateau.factor=2.0", "between 0 and 1"]),
        (["callbacks.reduce_on_plateau={factor:0.5}"], ["callbacks.reduce_on_plateau.patience is missing"]),
        (["callbacks.reduce_on_plateau={factr:0.5,patience:1}"], ["reduce_on_plateau.factr does not exist", "factor?"]),
        (["callbacks.early_stopping=5"], ["callbacks.early_stopping=5", "or null"]),
        (["callbacks.early_stopping={patience:abc}"], ["callbacks.early_stopping.patience='abc'", "expected int"]),
        (["callbacks.weight_average={decay:2}"], ["callbacks.weight_average.decay=2", "between 0 and 1"]),
        (["module.label_smoothing=1.0"], ["module.label_smoothing=1.0", "below 1"]),
        (["callbacks.checkpoints.monitor=test/loss"], ["callbacks.checkpoints.monitor", "val/ metrics only"]),
        (["callbacks.checkpoints.mode=lowest"], ["callbacks.checkpoints.mode='lowest'", "min, max"]),
        (["callbacks.checkpoints.write=later"], ["callbacks.checkpoints.write='later'", "foreground, background"]),
        (
            ["callbacks.checkpoints.layout=sharded", "hardware=cpu"],
            ["callbacks.checkpoints.layout=sharded", "hardware.strategy=auto holds no shards", "hardware=fsdp"],
        ),
        (["callbacks.extra.generation._target_=lightning_apps.x.Y"], ["_target_", "cannot be imported"]),
        (["run.name=../../x"], ["run.name='../../x'", "no slashes"]),
        (["run.upload=outputs/x"], ["run.upload: 'outputs/x'", "s3://bucket/prefix"]),
        (["run.upload=s3://me:pa55@bucket/x"], ["run.upload: ", "AWS_ACCESS_KEY_ID"]),
        (["precision=fp16_mixed", "hardware=cpu"], ["precision=fp16_mixed needs a GPU", "bf16_mixed"]),
        (["hardware.accelerator=tpu"], ["hardware.accelerator='tpu'", "auto, gpu, mps, cpu"]),
        (["hardware.strategy=ddp_fork"], ["hardware.strategy=ddp_fork: its processes are copies", "hardware=ddp"]),
        (["hardware.strategy=ddp_notebook_find_unused_parameters_true"], ["one writer a file", "hardware=ddp"]),
        (
            ["hardware.strategy=ddp_spawn"],
            ["hardware.strategy=ddp_spawn: its processes are copies", "one writer a file"],
        ),
        (["hardware.strategy=deepspeed_stage_3_offload"], ["not those of one process (exact loss)", "hardware=fsdp"]),
        (["hardware.strategy=fsdp"], ["FSDP1", "whole norms", "hardware.strategy=fsdp2"]),
        (["hardware.strategy=fsdp_cpu_offload"], ["FSDP1", "hardware=fsdp"]),
        (["hardware.strategy=xla"], ["needs a TPU", "hardware=gpu"]),
        (["hardware.strategy=nonsense"], ["hardware.strategy='nonsense': allowed are auto, ddp", "fsdp2"]),
        (["hardware=cpu_fsdp", "precision=fp16_mixed"], ["precision=fp16_mixed", "bf16_mixed"]),
        (["hardware=fsdp", "precision=fp16_mixed"], ["precision=fp16_mixed", "hardware.strategy=fsdp2"]),
        (["hardware=cpu_fsdp", "hardware.compile=true"], ["hardware.compile=true", "set it to false"]),
        (["a=[b"], ["override_grammar"]),
    ],
)
def test_mistakes_get_one_clear_line(arguments, expected):
    line = refusal(arguments)
    assert line is not None
    assert "\n" not in line
    assert "pa55" not in line
    for part in expected:
        assert part in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["modle=64"], ["modle does not exist", "the root has: experiment, seed"]),
        (["a=[b"], ["override_grammar"]),
        (["optimizer.betas=[0.9]"], ["optimizer.betas=[0.9]", "give two"]),
        (["run.upload=s3://me:pa55@bucket/x"], ["run.upload: ", "AWS_ACCESS_KEY_ID"]),
        (["experiment=location", "experiment=imdb"], ["experiment=imdb experiment=location: give one experiment"]),
        *AFTER_CHECKS,
    ],
)
def test_mistakes_end_the_command_and_nothing_is_written(arguments, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in out + err
    assert "pa55" not in out + err
    for part in expected:
        assert part in err
    # a warmup in steps and patterns can only be judged once the data are prepared; what was prepared is kept
    assert {path.name for path in tmp_path.iterdir()} <= {".cache"}
    if not any(word in err for word in ("warmup_steps", "finds", "leaves", "unfreeze[0].at_step=", "no regular")):
        assert list(tmp_path.iterdir()) == []


BEFORE_TORCH = {
    "trainer.evaluate_every=null": "trainer.evaluate_every=None: allowed are optimizer steps, a fraction of the run below "  # noqa: E501
    "1, epoch, never",
    "trainer.evaluate_every=[]": "trainer.evaluate_every=[]: allowed are optimizer steps, a fraction of the run below 1, "  # noqa: E501
    "epoch, never",
    "trainer.evaluate_every=nan": "trainer.evaluate_every=nan: allowed are optimizer steps, a fraction of the run below "  # noqa: E501
    "1, epoch, never",
    "trainer.evaluate_every=1.5": "trainer.evaluate_every=1.5: allowed are optimizer steps, a fraction of the run below "  # noqa: E501
    "1, epoch, never",
    "hardware.devices=0": "hardware.devices=0: must be at least 1",
    "hardware.num_threads=0": "hardware.num_threads=0: must be at least 1, or null",
    "hardware.num_threads=-1": "hardware.num_threads=-1: must be at least 1, or null",
    "hardware.strategy=spam": "hardware.strategy='spam': allowed are auto, ddp, ddp_find_unused_parameters_false, "
    "ddp_find_unused_parameters_true, fsdp2",
    "precision.lightning=''": "precision.lightning='': allowed are auto, 32-true, 16-mixed, bf16-mixed, bf16-true, "
    "16-true, 64-true; precision= chooses one",
    "trainer=[[]]": "trainer=[[]]: name one of the options of trainer: default",
    "scheduler=null": "scheduler=null: name one of the options of scheduler: constant, cosine, linear, one_cycle, "
    "warmup_stable_decay",
    "trainer=null": "trainer=null: name one of the options of trainer: default",
    "callbacks=null": "callbacks=null: name one of the options of callbacks: arxiv, classification, default, gsm8k, "
    "location, rating",
    "logger=null": "logger=null: name one of the options of logger: csv, mlflow, tensorboard, trackio, wandb; to leave "
    "the group away write ~logger",
    "callbacks.guards=null": "callbacks.guards cannot be null; set what it holds (non_finite, token_ids, loss_spike, "
    "loss_spike_sigmas, collapsed_generator, collapsed_after): callbacks.guards.non_finite=<value>",
    "callbacks.checkpoints=null": "callbacks.checkpoints cannot be null; set what it holds (monitor, mode, keep, "
    "loss_ratio, write, layout): callbacks.checkpoints.monitor=<value>",
    "experiment=gsm8k callbacks.extra=null": "callbacks.extra cannot be null; set what it holds (generation, picture): "
    "callbacks.extra.generation=null",
    "callbacks=default callbacks.extra=null": "callbacks.extra cannot be null; leave the word away, it holds nothing "
    "here",
    "trainer.log_every=null": "trainer.log_every cannot be null; give it a value",
    "~module": "module: this experiment has no choice of module; leave the word away, or choose another experiment",
    "module=grpo": "module: this experiment has no choice of module; leave the word away, or choose another experiment",
    "experiment=gsm8k ~module": "module is missing: give it on the command line, module=...",
    "run.name=???": "run.name is missing: give it on the command line, run.name=<value>",
    f"run.name={'a' * 300}": "run.name=aaaaaaaaaaaaaaaaaaaa...: 300 characters; at most 200 make the name of a folder",
    "callbacks.extra.picture=5": "callbacks.extra.picture=5: give its settings, or null or false to switch it off",
    "run.name=a/b": "run.name='a/b': use letters, digits and . _ = , + - (no slashes), starting with one",
    "trainer.max_steps=0": "trainer.max_steps=0: must be at least 1, or null",
    "callbacks.checkpoints.monitor=train/loss": "callbacks.checkpoints.monitor='train/loss': selection looks at val/ "
    "metrics only",
    "callbacks.checkpoints.mode=most": "callbacks.checkpoints.mode='most': allowed are min, max",
    "callbacks.guards.non_finite=maybe": "callbacks.guards.non_finite='maybe': allowed are stop, skip, off",
    "hardware=cpu precision=fp16_mixed": "precision=fp16_mixed needs a GPU; on a CPU choose precision=fp32 or "
    "bf16_mixed",
    "hardware.worker_start_method=thread": "hardware.worker_start_method='thread': allowed are fork, spawn, "
    "forkserver, or null for Python's choice",
    "trainer.fast_dev_run=0": "trainer.fast_dev_run=0: allowed are false, true, or a number of steps, at least 1",
    "trainer.limit_val_batches=1.5": "trainer.limit_val_batches=1.5: give a number of batches, or a share of them between "  # noqa: E501
    "0.0 and 1.0, or null for all",
    "trainer.limit_train_batches=-1": "trainer.limit_train_batches=-1: give a number of batches, or a share of them "
    "between 0.0 and 1.0, or null for all; a run without training is lightning_apps.evaluate",
    "trainer.overfit_batches=null": "trainer.overfit_batches=None: give a number of batches, or a share of them between "  # noqa: E501
    "0.0 and 1.0; 0 is off",
    "trainer.profiler=simpel": "trainer.profiler='simpel' (did you mean simple?): allowed are phases, simple, advanced, pytorch, "  # noqa: E501
    "or null",
    "trainer.gradient_clip_val=1": "trainer.gradient_clip_val does not exist; what Lightning calls gradient_clip_val is "  # noqa: E501
    "trainer.clip_norm here",
    "+trainer.accelerator=gpu": "trainer.accelerator does not exist; what Lightning calls accelerator is "
    "hardware.accelerator, which hardware= chooses, here",
}
"""Command lines, and the whole line that answers them before torch is there."""


def test_mistakes_of_values_are_answered_before_torch_is_imported(tmp_path):
    code = (
        "import json, sys\n"
        "from tests.asserts.refusals import refusal\n"
        "answers = {line: [refusal(line.split()), 'torch' in sys.modules] for line in json.load(sys.stdin)}\n"
        "print(json.dumps(answers))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(list(BEFORE_TORCH)),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CONF.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {line: [message, False] for line, message in BEFORE_TORCH.items()}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.attention_dropout=1"], "model.attention_dropout=1: must be at least 0 and below 1"),
        (
            ["experiment=arxiv", "model.hidden_act=x"],
            "model.hidden_act='x': there is no such activation; such are gelu, gelu_new, relu, silu, tanh",
        ),
        (
            ["experiment=arxiv", "callbacks.extra.in_context.num_resamples=-1"],
            "callbacks.extra.in_context.num_resamples=-1: must be at least 1",
        ),
        (
            ["model.num_key_value_heads=3"],
            "model.num_attention_heads=4 is not a multiple of model.num_key_value_heads=3",
        ),
        (["module.label_smoothing=-0.1"], "module.label_smoothing=-0.1: must be at least 0 and below 1"),
        (["scheduler.floor=2"], "scheduler.floor=2: must lie between 0 and 1"),
        (["optimizer.betas=[0.9,1.0]"], "optimizer.betas=[0.9, 1.0]: must be at least 0 and below 1 (at betas[1])"),
        (["optimizer.lr=inf"], "optimizer.lr=inf: must be a finite number"),
        (
            ["experiment=imdb", "data.multi_label=true", "data.label_separator=''"],
            "data.label_separator='': name what stands between two labels, such as |",
        ),
    ],
)
def test_ranges_stand_beside_the_constructors(overrides, message, composed):
    with pytest.raises(ConfigError) as caught:
        check_config(composed(*overrides))
    assert str(caught.value) == message


def test_false_switches_a_callback_off(composed):
    check_config(composed("callbacks.extra.picture=false"))


def test_what_lightning_calls_otherwise_names_keys_that_there_are(composed):
    config = composed()
    for words in LIGHTNING_KEYS.values():
        key = words.split("=")[0].split(",")[0].split(" ")[0]
        node = config
        for part in key.split("."):
            assert part in node, words
            node = node[part]


def test_composing_and_help_need_no_torch():
    code = (
        "import sys, lightning_apps.train, lightning_apps.evaluate\n"
        "heavy = {'torch', 'transformers', 'lightning', 'pydantic', 'numpy', 's3fs', 'botocore'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_help_and_cfg_job_answer(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 0
    assert "precision: auto, bf16_mixed, bf16_true, fp16_mixed, fp32" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["train", "--cfg", "job", "seed=7"])
    train.main()
    assert OmegaConf.create(capsys.readouterr().out).seed == 7


def test_the_saved_configuration_composes_again(composed, tmp_path):
    config = composed("model.hidden_size=64")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    with initialize_config_dir(version_base="1.3", config_dir=str(tmp_path)):
        again = plain(compose("config"))
    assert again == config
    check_config(again)
