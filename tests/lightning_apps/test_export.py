import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lightning_apps import export
from lightning_apps.runs.experiment_run import run_experiment
from tests.fakes.hub_server import hub  # noqa: F401 (a fixture)
from tests.tiny.tiny_runs import IMDB, IMDB_DATA, LOCATION, directory_of


@pytest.fixture(scope="module")
def run_path(small_gsm8k, cache_root, tmp_path_factory):
    """A short run of gsm8k with adapters."""
    from hydra import compose, initialize_config_dir

    from lightning_apps.config.composition import CONF, plain

    root = tmp_path_factory.mktemp("export")
    overrides = [
        "experiment=gsm8k", f"data.path={small_gsm8k}/data", f"model.pretrained={small_gsm8k}/model",
        "data.num_validation=6", "data.global_batch_size=8", "trainer.max_epochs=null", "trainer.max_steps=2",
        "callbacks.extra.generation=null", "model.lora.rank=2", "optimizer.lr=0.01", "hardware=cpu", "precision=fp32",
        f"run.output_root={root}", f"run.cache_root={cache_root}", "run.name=run",
    ]  # fmt: skip
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        run_experiment(plain(compose("config", overrides=overrides)))
    return root / "gsm8k" / "run"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def call(monkeypatch, capsys, run_path):
    def called(*words):
        monkeypatch.setattr(sys, "argv", ["export", f"run={run_path}", *words])
        code = 0
        try:
            export.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return called


def test_merged_weights_load_by_themselves_and_bring_their_card(call, run_path, tmp_path):
    code, said, _ = call(f"to={tmp_path}/shared/model")
    assert code == 0
    assert said.splitlines()[0].startswith("loaded again: 21 tensors are those of")
    assert said.splitlines()[-1] == f"exported  {tmp_path}/shared/model"
    assert names(tmp_path / "shared") == ["model"]  # nothing is left beside it
    assert names(tmp_path / "shared" / "model") == [
        "README.md", "chat_template.jinja", "checksums.json", "config.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    found, own = (
        AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        for place in (tmp_path / "shared" / "model", run_path / "model")
    )
    ids = torch.arange(9)[None]
    assert torch.equal(found(ids).logits, own(ids).logits)
    # the run has the same card beside its weights
    card = (tmp_path / "shared" / "model" / "README.md").read_text()
    assert (run_path / "model" / "README.md").read_text() == card


def test_adapters_alone_go_onto_the_base(call, run_path, small_gsm8k, tmp_path):
    from peft import PeftModel

    assert call(f"to={tmp_path}/model", "adapters=kept")[0] == 0
    assert not (tmp_path / "model" / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(small_gsm8k / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "model")
    merged = AutoModelForCausalLM.from_pretrained(run_path / "model", dtype=torch.float32)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)  # sums in another order
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == 76
    card = (tmp_path / "model" / "README.md").read_text()
    assert 'model = PeftModel.from_pretrained(base, ".")' in card


def test_adapters_of_a_classifier_bring_its_head_and_the_code_of_their_card_loads_them(
    call, composed, tmp_path, monkeypatch
):
    """On weights of an installed package, whose path is another on each machine, and without a head."""
    base = composed(*IMDB, name="base")
    run_experiment(base)
    package = tmp_path / "site" / "tiny_weights"
    shutil.copytree(directory_of(base).model, package / "model")
    (package / "__init__.py").touch()
    headless = AutoModel.from_pretrained(package / "model", add_pooling_layer=False)
    headless.save_pretrained(package / "model")
    monkeypatch.syspath_prepend(tmp_path / "site")
    tuned = composed(
        *IMDB_DATA, "model=minilm", "model.pretrained=package:tiny_weights/model", "model.lora.rank=2",
        "data.max_length=32", "optimizer.lr=0.01", "trainer.max_steps=4", "trainer.evaluate_every=2", "hardware=cpu",
        name="tuned",
    )  # fmt: skip
    run_experiment(tuned)
    run, shared = directory_of(tuned), tmp_path / "shared"
    assert call(f"run={run.path}", f"to={shared}", "adapters=kept")[0] == 0
    settings = json.loads((shared / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "package:tiny_weights/model"
    assert settings["task_type"] == "SEQ_CLS"
    assert str(tmp_path) not in (shared / "README.md").read_text().partition("## Results")[0]
    monkeypatch.chdir(shared)
    loaded = {}
    exec((shared / "README.md").read_text().partition("```python\n")[2].partition("```")[0], loaded)
    merged = AutoModelForSequenceClassification.from_pretrained(run.model, dtype=torch.float32)
    ids = torch.arange(5, 14)[None]
    with torch.no_grad():
        found = loaded["model"].eval()(ids).logits
        torch.testing.assert_close(found, merged(ids).logits, rtol=1e-4, atol=1e-4)  # sums in another order
    assert loaded["model"].config.id2label == {0: "negative", 1: "positive"}
    settings = json.loads((run.model / "adapter" / "adapter_config.json").read_text())
    (run.model / "adapter" / "adapter_config.json").write_text(json.dumps({**settings, "modules_to_save": None}))
    code, _, said = call(f"run={run.path}", f"to={tmp_path}/x", "adapters=kept")
    assert (code, said) == (
        2,
        f"error: adapters=kept: run={run.path} is of an older version, which kept the adapters without the head that "
        "was trained with them; take adapters=merged\n",
    )


def test_onnx_computes_what_the_model_does_and_tells_no_paths(call, tmp_path):
    import onnxruntime

    code, said, _ = call(f"to={tmp_path}/model", "onnx=true")
    assert code == 0
    assert said.splitlines()[1].startswith("model.onnx: logits of other shapes within ")
    file = tmp_path / "model" / "model.onnx"
    assert "model.onnx" in json.loads((file.parent / "checksums.json").read_text())
    assert not any(word in file.read_bytes() for word in (b"/lightning_apps/", b"/site-packages/", b".py"))
    session = onnxruntime.InferenceSession(file)
    assert [entry.name for entry in session.get_inputs()] == ["input_ids", "attention_mask"]
    net = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32)
    ids = torch.arange(1, 46).view(5, 9)
    found = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), net(ids).logits, rtol=1e-4, atol=1e-4)  # other kernels


def test_mistakes_cost_one_line_and_leave_nothing(call, composed, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    for words, expected in (
        ([f"to={tmp_path}/taken"], "is there already; name a folder that is new or empty"),
        (["to=hf://a/b/c"], "to=hf://a/b/c: Repo id must be"),
        ([f"to={tmp_path}/x", "onnx=true", "adapters=kept"], "a file holds whole weights; take adapters=merged"),
        ([f"to={tmp_path}/x", "adapters=none"], "adapters='none': allowed are merged, kept"),
        ([f"to={tmp_path}/x", f"run={tmp_path}"], "no run is there"),
    ):
        code, _, said = call(*words)
        assert (code, said.count("\n")) == (2, 1)
        assert expected in said
    assert names(tmp_path / "taken") == ["mine.txt"]
    assert names(tmp_path) == ["taken"]
    config = composed(*LOCATION, "trainer.max_steps=1", name="plain")
    run_experiment(config)
    code, _, said = call(f"run={directory_of(config).path}", f"to={tmp_path}/x", "adapters=kept")
    assert code == 2
    assert said.endswith("trained no adapters; take adapters=merged\n")


def test_a_place_that_cannot_be_replaced_is_refused_before_anything_is_done(call, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "gather", lambda *_, **__: pytest.fail("work was done"))
    monkeypatch.chdir(tmp_path)
    assert call("to=.")[::2] == (2, "error: to=.: this folder cannot be replaced; name one that is new\n")
    (tmp_path / "file").touch()
    assert call("to=file/x")[::2] == (
        2,
        f"error: {tmp_path}/file/x cannot be made: {tmp_path}/file is a file; name another place with to=...\n",
    )
    assert call("to=file")[::2] == (2, "error: to=file is there already; name a folder that is new or empty\n")
    assert names(tmp_path) == ["file"]


def test_a_link_to_an_empty_folder_stays_and_leads_to_the_model(call, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert call(f"to={tmp_path}/link")[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["link", "real"]
    assert (tmp_path / "real" / "model.safetensors").is_file()


def test_damaged_weights_and_links_out_of_the_run_are_not_passed_on(call, composed, tmp_path):
    config = composed(*LOCATION, "trainer.max_steps=1", name="damaged")
    run_experiment(config)
    model = directory_of(config).model
    (tmp_path / "secret").write_text("mine")
    (model / "notes.txt").symlink_to(tmp_path / "secret")
    code, _, said = call(f"run={model.parent}", f"to={tmp_path}/x")
    assert code == 2
    assert "notes.txt is a link that leads out of the run; it is not exported" in said
    (model / "notes.txt").unlink()
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    code, _, said = call(f"run={model.parent}", f"to={tmp_path}/x")
    assert code == 2
    assert "model.safetensors is damaged: its SHA-256 is not the one it was exported with" in said
    assert not (tmp_path / "x").exists()


def test_several_at_once_leave_no_files_of_hydra(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c,d").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "c,d"))
    assert call(f"to={tmp_path}/a,{tmp_path}/b", "--multirun")[0] == 0
    assert names(tmp_path) == ["a", "b", "c,d"]


@pytest.mark.slow
def test_to_a_hub_and_an_object_store(hub, s3, call, run_path, tmp_path, monkeypatch):  # noqa: F811
    """huggingface_hub reads its environment where it is imported: a process of its own."""

    def command(token):
        env = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
        }  # fmt: skip
        words = [f"run={run_path}", "to=hf://me/sums"]
        return subprocess.run(
            [sys.executable, "-m", "lightning_apps.export", *words], env=env, capture_output=True, text=True
        )

    refused = command("hf_wrong")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "HF_TOKEN gives a token that may write" in refused.stderr
    done = command(hub.token)
    assert done.stdout.splitlines()[-1] == f"exported  {hub.url}/me/sums"
    there = hub.repository("models", "me/sums")
    found, own = (load_file(folder / "model.safetensors") for folder in (there, run_path / "model"))
    assert found.keys() == own.keys()
    assert all(torch.equal(found[key], own[key]) for key in own)
    assert "# gsm8k/run" in (there / "README.md").read_text().splitlines()
    for key, value in s3.environment.items():
        monkeypatch.setenv(key, value)
    code, said, _ = call("to=s3://bucket/models/sums")
    assert (code, said.splitlines()[-1]) == (0, "exported  s3://bucket/models/sums")
    assert (s3.folder / "bucket" / "models" / "sums" / "COMPLETE").is_file()
