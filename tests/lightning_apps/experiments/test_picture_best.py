"""Pictures are drawn before the checkpoint of the same evaluation is saved, and mark it all the same if it is best."""

from types import SimpleNamespace

import pytest

from lightning_apps.callbacks.checkpoints import RunCheckpoints
from lightning_apps.experiments import classification_picture_callback as classification_picture
from lightning_apps.experiments.arxiv import picture_callback as arxiv_picture
from lightning_apps.experiments.arxiv.in_context import InContextLoss
from lightning_apps.experiments.gsm8k import picture_callback as gsm8k_picture
from lightning_apps.experiments.location import picture_callback as location_picture
from lightning_apps.run_files.directory import RunDirectory

PICTURES = {
    "draw_classification_summary": classification_picture.ClassificationPicture,
    "draw_gsm8k_summary": gsm8k_picture.Gsm8kPicture,
    "draw_arxiv_summary": arxiv_picture.ArxivPicture,
    "draw_location_summary": location_picture.LocationPicture,
}
MODULES = [classification_picture, gsm8k_picture, arxiv_picture, location_picture]


@pytest.mark.parametrize(("draw", "module"), list(zip(PICTURES, MODULES, strict=True)))
@pytest.mark.parametrize(("value", "marked"), [(0.9, 30), (0.7, 20)])
def test_the_best_evaluation_is_marked_when_it_is_the_last_one_too(draw, module, value, marked, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, draw, lambda *_, **given: drawn.append(given["best_step"]))
    checkpoints = RunCheckpoints.__new__(RunCheckpoints)
    checkpoints.monitor, checkpoints.mode, checkpoints.best_value, checkpoints.best_step = "val/f1", "max", 0.8, 20
    in_context = InContextLoss.__new__(InContextLoss)
    in_context.last = ({}, {})
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    directory.metrics.write_text("step\n30\n")
    directory.predictions.write_text("")
    picture = PICTURES[draw](run_directory=directory)
    picture.references, picture.background = {"": 0.0}, ((), ())
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        is_global_zero=True,
        callbacks=[in_context, checkpoints],
        callback_metrics={"val/f1": value},
        global_step=30,
        datamodule=SimpleNamespace(label_names=["a", "b"]),
    )
    picture.on_validation_end(trainer, None)
    assert drawn == [marked]
