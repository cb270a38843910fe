"""The way of an arxiv store and run through a real S3 server, as a user goes it."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from datamodules.storage.object_store import PATIENCE_VARIABLE
from lightning_apps import evaluate, prepare, train
from tests.fakes.s3_server import BUCKET
from tests.tiny.tiny_runs import ARXIV, PAPERS

STORE = f"s3://{BUCKET}/stores/papers"


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run a command as from the command line; returns exit code, stdout and stderr."""

    def run(command, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [command.__name__, *arguments])
        code = 0
        try:
            command.main()
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def stores(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("tokens.bin"))


@pytest.mark.numeric
def test_prepare_upload_delete_download_train_upload_evaluate(s3, call, tmp_path):
    code, out, _ = call(prepare, *ARXIV, f"data.store={STORE}")
    assert code == 0
    assert "66 documents" in out
    assert {f"stores/papers/{name}" for name in ("COMPLETE", "tokens.bin", "index.bin", "manifest.json")} <= set(
        s3.objects()
    )
    (first,) = stores(tmp_path / ".cache")
    tokens = (first / "tokens.bin").read_bytes()
    shutil.rmtree(tmp_path / ".cache")

    # the documents are gone, too: the store alone is enough
    words = [word for word in ARXIV if not word.startswith(("data.path", "data.tokenizer"))]
    bucket = f"s3://{BUCKET}/runs"
    code, out, err = call(train, *words, f"data.path={STORE}", f"run.upload={bucket}", "run.name=remote")
    assert code == 0, err
    (second,) = stores(tmp_path / ".cache")
    assert second != first
    assert (second / "tokens.bin").read_bytes() == tokens
    summary = json.loads((tmp_path / "outputs/arxiv/remote/summary.json").read_text())
    assert s3.objects("runs/arxiv/remote/COMPLETE") == ["runs/arxiv/remote/COMPLETE"]

    shutil.rmtree(tmp_path / "outputs")
    code, out, err = call(evaluate, f"run={bucket}/arxiv/remote", "split=test", "metrics=in_context")
    assert code == 0, err
    (found,) = (tmp_path / ".cache" / "runs").rglob("evaluations/test-best/metrics.json")
    for name, value in json.loads(found.read_text())["metrics"].items():
        assert value == summary["metrics"][name]


def test_a_store_that_is_there_is_fetched_and_not_made_again(s3, call, tmp_path, monkeypatch):
    assert call(prepare, *ARXIV, f"data.store={STORE}")[0] == 0
    shutil.rmtree(tmp_path / ".cache")
    monkeypatch.setattr("datamodules.corpus.prepared_store.write_store", None)  # would be called
    assert call(prepare, *ARXIV, f"data.store={STORE}")[0] == 0
    assert len(stores(tmp_path / ".cache")) == 1
    shutil.rmtree(tmp_path / ".cache")
    code, _, err = call(prepare, *ARXIV, f"data.store={STORE}", "data.full_dataset=false")
    assert code == 2
    assert "holds a store prepared otherwise (max_documents_per_split differ)" in err
    assert err.count("\n") == 1


def test_documents_are_read_from_a_prefix(s3, call, tmp_path):
    for split in ("train", "validation", "test"):
        target = s3.path(f"sources/papers/{split}.jsonl")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PAPERS / f"{split}.jsonl", target)
    assert call(prepare, *ARXIV)[0] == 0
    (local,) = stores(tmp_path / ".cache")
    expected = (local / "tokens.bin").read_bytes()
    shutil.rmtree(tmp_path / ".cache")
    code, _, err = call(prepare, *ARXIV, f"data.path=s3://{BUCKET}/sources/papers")
    assert code == 0, err
    (remote,) = stores(tmp_path / ".cache")
    assert (remote / "tokens.bin").read_bytes() == expected


def test_nothing_half_is_used(s3, call, tmp_path):
    assert call(prepare, *ARXIV, f"data.store={STORE}")[0] == 0
    shutil.rmtree(tmp_path / ".cache")
    whole = s3.path("stores/papers/tokens.bin").read_bytes()
    s3.path("stores/papers/tokens.bin").write_bytes(whole[:-4])
    for key in ("data.path", "data.store"):
        code, _, err = call(prepare, *ARXIV, f"{key}={STORE}")
        assert code == 2
        assert "tokens.bin" in err
        assert err.count("error:") == 1
        assert stores(tmp_path / ".cache") == []
    s3.path("stores/papers/tokens.bin").write_bytes(whole)
    s3.path("stores/papers/COMPLETE").unlink()
    code, _, err = call(prepare, *ARXIV, f"data.path={STORE}")
    assert code == 2
    assert "COMPLETE" in err
    assert stores(tmp_path / ".cache") == []
    # an upload that was interrupted is made again and finished
    assert call(prepare, *ARXIV, f"data.store={STORE}")[0] == 0
    assert s3.path("stores/papers/COMPLETE").is_file()


def test_wrong_credentials_are_one_line(s3, call, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-not-to-be-shown")
    code, out, err = call(prepare, *ARXIV, f"data.store={STORE}")
    assert code == 2
    assert err.count("\n") == 1
    assert "credentials" in err.lower() or "AWS_SECRET_ACCESS_KEY" in err
    assert "wrong-and-not-to-be-shown" not in out + err


def test_a_dead_server_is_one_line_and_the_store_stays(s3, call, tmp_path, monkeypatch):
    s3.stop()
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    code, _, err = call(prepare, *ARXIV, f"data.store={STORE}")
    assert code in (1, 2)
    assert s3.endpoint in err or "out of reach" in err
    assert err.strip().splitlines()[-1].startswith("error:")


def test_a_folder_is_no_shared_store(call, tmp_path):
    code, _, err = call(prepare, *ARXIV, f"data.store={tmp_path}")
    assert code == 2
    assert "expected s3://bucket/prefix" in err
