"""Damaged weights and small files of a run: one line, or made again; never measured as if nothing were."""

import base64
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from lightning_apps import evaluate as evaluate_command
from lightning_apps import generate as generate_command
from lightning_apps import report as report_command
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.directory import RunDirectory, read_config, read_summary, whole_summary
from lightning_apps.run_files.weights import (
    check_exported,
    load_checkpoint,
    load_exported,
    read_checkpoint,
    write_checksums,
)
from lightning_apps.runs.experiment_run import run_experiment
from tests.asserts.killed_runs import resumed
from tests.tiny.tiny_runs import LOCATION, directory_of

RUN = [*LOCATION, "trainer.max_steps=2", "callbacks.extra.picture=null"]


def flip_a_bit(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0x40
    path.write_bytes(content)


def checkpoint(path, module, **changes):
    torch.save({"state_dict": module.state_dict(), "global_step": 7, **changes}, path)
    return path


def test_a_whole_checkpoint(tmp_path):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    assert load_checkpoint(target, checkpoint(tmp_path / "best.ckpt", source)) == 7
    assert target.weight.equal(source.weight)


def test_damaged_checkpoints_are_one_line_that_names_the_whole_ones(tmp_path):
    module = nn.Linear(30, 20)
    checkpoint(tmp_path / "last.ckpt", module)
    path = checkpoint(tmp_path / "best.ckpt", module)
    whole = path.read_bytes()
    for damaged in (b"", b"\0" * len(whole), whole[: len(whole) // 2], b"[]"):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"best\.ckpt is damaged \(.*\); the checkpoints that are whole: last$"):
            read_checkpoint(path)
    path.write_bytes(whole)
    flip_a_bit(path, 0.4)
    with pytest.raises(ConfigError, match="is damaged") as error:
        load_checkpoint(module, path)
    assert "\n" not in str(error.value)
    torch.save([1, 2], path)
    with pytest.raises(ConfigError, match="is no checkpoint of a run"):
        read_checkpoint(path)


def test_weights_of_another_model_or_that_are_no_numbers(tmp_path):
    path = checkpoint(tmp_path / "best.ckpt", nn.Linear(3, 2))
    with pytest.raises(ConfigError, match=r"the weights of another model than config\.yaml describes \(size mismatch"):
        load_checkpoint(nn.Linear(4, 2), path)
    with pytest.raises(ConfigError, match=r"Missing key\(s\) in state_dict: \"0\.weight\"") as error:
        load_checkpoint(nn.Sequential(nn.Linear(3, 2)), path)
    assert "\n" not in str(error.value)
    broken = nn.Linear(3, 2)
    broken.bias.data[1] = float("nan")
    with pytest.raises(ConfigError, match=r"holds weights that are NaN or infinite \(bias\)"):
        load_checkpoint(nn.Linear(3, 2), checkpoint(path, broken))


def test_checksums_of_an_exported_model(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter" / "a").write_text("a")
    check_exported(tmp_path)  # an older export has none
    write_checksums(tmp_path)
    write_checksums(tmp_path)
    check_exported(tmp_path)
    assert set(json.loads((tmp_path / "checksums.json").read_text())) == {"config.json", "adapter/a"}
    (tmp_path / "adapter" / "a").write_text("b")
    with pytest.raises(ConfigError, match=r"adapter/a is damaged: its SHA-256 is not the one .*run\.resume=auto"):
        check_exported(tmp_path)
    (tmp_path / "adapter" / "a").unlink()
    with pytest.raises(ConfigError, match="adapter/a is missing"):
        check_exported(tmp_path)
    for content in ("", "[]", "\0\0"):
        (tmp_path / "checksums.json").write_text(content)
        with pytest.raises(ConfigError, match=r"checksums\.json is damaged"):
            check_exported(tmp_path)
    (tmp_path / "checksums.json").write_text('{"../../etc/passwd": "0"}')
    with pytest.raises(ConfigError, match="is missing"):
        check_exported(tmp_path)


def test_a_damaged_export_is_not_used_and_is_made_again(composed, capsys):
    config = composed(*RUN, name="export")
    run_experiment(config)
    directory = directory_of(config)
    file = directory.model / "model.safetensors"
    whole = {key: tensor.clone() for key, tensor in load_file(file).items()}  # load_file maps the file
    flip_a_bit(file, 0.9)
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged"):
        load_exported(AutoModelForCausalLM, directory.model)
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged"):
        generate_command.load_model(directory, read_config(directory), "best")
    summary = run_experiment(resumed(config))  # it was complete
    assert "model.safetensors is damaged: its SHA-256" in capsys.readouterr().err
    assert (summary["status"], summary["optimizer_steps"]) == ("completed", 2)
    assert all(load_file(file)[name].equal(tensor) for name, tensor in whole.items())
    load_exported(AutoModelForCausalLM, directory.model)

    (directory.model / "checksums.json").unlink()  # what an older export can tell
    name = "model.embed_tokens.weight"
    save_file({**whole, name: whole[name] * float("nan")}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"NaN or infinite \(model\.embed_tokens\.weight\)"):
        load_exported(AutoModelForCausalLM, directory.model)
    save_file({key: value for key, value in whole.items() if "mlp" not in key}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights \(model\.layers\.0\.mlp"):
        load_exported(AutoModelForCausalLM, directory.model)
    os.truncate(file, 5_000)
    with pytest.raises(ConfigError, match=r"model cannot be loaded \(.*run\.resume=auto exports it again") as error:
        load_exported(AutoModelForCausalLM, directory.model)
    assert "\n" not in str(error.value)


DAMAGED = ["", "{", "[1, 2]", "\0\0\0\0", "12", '"a"']


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_small_files_are_one_line(text, tmp_path):
    directory = RunDirectory(tmp_path)
    directory.config.write_text(text)
    directory.summary.write_text(text)
    for read, name in ((read_config, "config"), (read_summary, "summary")):
        with pytest.raises(ConfigError, match=rf"{name}\.(yaml|json) is (damaged|not)") as error:
            read(directory)
        assert "\n" not in str(error.value)
        assert "run.resume=auto" in str(error.value)
    assert whole_summary(directory) is None


def test_a_damaged_summary_does_not_block_resuming(composed):
    config = composed(*RUN, name="summary")
    expected = run_experiment(config)
    directory = directory_of(config)
    directory.summary.write_text('{"status": "compl')
    (page,) = report_command.report(command_config("report", run=str(directory.path)))
    assert "summary.json is damaged" in page.read_text()
    summary = run_experiment(resumed(config))
    assert (summary["status"], summary["optimizer_steps"]) == ("completed", 2)
    assert repr(summary["metrics"]) == repr(expected["metrics"])
    assert read_summary(directory)["optimizer_steps"] == 2


def command_config(command, **options):
    from hydra import compose, initialize_config_dir

    from lightning_apps.config.composition import CONF

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF / "command")):
        return compose(command, overrides=[f'{key}="{value}"' for key, value in options.items()])


def test_a_report_shows_no_file_from_elsewhere_and_can_be_written_elsewhere(composed, tmp_path):
    config = composed(*RUN, name="page")
    run_experiment(config)
    directory = directory_of(config)
    (tmp_path / "secret.png").write_bytes(b"a secret that lies elsewhere")
    directory.picture.unlink(missing_ok=True)
    directory.picture.symlink_to(tmp_path / "secret.png")
    options = {"run": str(directory.path), "out": str(tmp_path / "pages")}
    (page,) = report_command.report(command_config("report", **options))
    assert page == tmp_path / "pages" / "report.html"
    text = page.read_text()
    assert base64.b64encode(b"a secret that").decode()[:12] not in text
    evaluate_command.evaluate(command_config("evaluate", **options))
    assert (tmp_path / "pages" / "validation-best" / "metrics.json").is_file()
    assert not directory.evaluations.exists()


def test_a_flipped_bit_in_the_best_checkpoint_is_not_measured(composed):
    config = composed(*RUN, name="flipped")
    run_experiment(config)
    directory = directory_of(config)
    flip_a_bit(directory.checkpoint("best"))
    with pytest.raises(ConfigError, match=r"best\.ckpt is damaged \(checksum of .* is wrong\)"):
        evaluate_command.evaluate(command_config("evaluate", run=str(directory.path)))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_no_run_chooses_code_of_the_hub(key, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", key: "someone/kernel"}))
    with pytest.raises(ConfigError, match=rf"config\.json: {key}='someone/kernel' names code of the hub"):
        load_exported(AutoModelForCausalLM, tmp_path)
