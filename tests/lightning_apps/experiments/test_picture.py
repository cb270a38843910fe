"""One callback draws for all: each experiment gets the files of the run, and the best evaluation of the checkpoints."""

import json
from types import SimpleNamespace

import pytest

from datamodules.text.jsonl import write_jsonl
from lightning_apps.experiments import classification_picture_callback as classification
from lightning_apps.experiments.arxiv import picture_callback as arxiv
from lightning_apps.experiments.arxiv.in_context import InContextLoss
from lightning_apps.experiments.gsm8k import picture_callback as gsm8k
from lightning_apps.experiments.location import picture_callback as location
from lightning_apps.experiments.picture import RunPicture
from lightning_apps.run_files.directory import RunDirectory

ROWS, PREDICTIONS = [{"step": 1500, "val/loss": 0.5}], [{"input": "a\u2028b"}]
BACKGROUND = ((), ())
PICTURES = {
    "imdb": (classification, classification.ClassificationPicture, "draw_classification_summary",
             {"predictions": PREDICTIONS, "label_names": ["a", "b"], "references": {"majority": {}},
              "title": "imdb / a: step 1500"}),
    "gsm8k": (gsm8k, gsm8k.Gsm8kPicture, "draw_gsm8k_summary",
              {"predictions": PREDICTIONS, "title": "gsm8k / a: step 1500"}),
    "arxiv": (arxiv, arxiv.ArxivPicture, "draw_arxiv_summary",
              {"windows": "windows", "measured": "measured", "title": "arxiv / a: step 1,500"}),
    "location": (location, location.LocationPicture, "draw_location_summary",
                 {"predictions": PREDICTIONS, "background": BACKGROUND, "references": {"chance": 1.0},
                  "title": "location / a: step 1500"}),
}  # fmt: skip


@pytest.fixture
def trainer():
    in_context = InContextLoss.__new__(InContextLoss)
    in_context.last = ("windows", "measured")
    data = SimpleNamespace(label_names=["a", "b"])
    return SimpleNamespace(is_global_zero=True, callbacks=[in_context], global_step=1500, datamodule=data)


def directory_with_files(path):
    directory = RunDirectory(path)
    write_jsonl(directory.predictions, PREDICTIONS)
    directory.metrics.write_text("step,val/loss\n1500,0.5\n")
    directory.baselines.write_text(json.dumps({"validation": {"majority": {}}}))
    return directory


@pytest.mark.parametrize("experiment", PICTURES)
@pytest.mark.parametrize("best_step", [1500, 1000, None])
def test_each_picture_gets_what_the_run_has(experiment, best_step, trainer, tmp_path, monkeypatch):
    module, kind, draw, expected = PICTURES[experiment]
    drawn = []
    monkeypatch.setattr(module, draw, lambda path, **given: drawn.append((path, given)))
    directory = directory_with_files(tmp_path / experiment / "a")
    picture = kind(run_directory=directory)
    if isinstance(picture, location.LocationPicture):
        picture.references, picture.background = {"chance": 1.0}, BACKGROUND
    picture.on_evaluation_saved(trainer, None, best_step)
    assert drawn == [(directory.picture, {"rows": ROWS, "best_step": best_step, **expected})]
    trainer.is_global_zero = False
    picture.on_evaluation_saved(trainer, None, best_step)
    assert len(drawn) == 1


def test_files_that_a_run_does_not_have_are_empty(trainer, tmp_path):
    class Picture(RunPicture):
        def draw(self, inputs):
            self.drawn = inputs

    directory = RunDirectory(tmp_path / "sixth" / "run")
    directory.path.mkdir(parents=True)
    directory.metrics.write_text("step\n")
    picture = Picture(run_directory=directory)
    picture.on_evaluation_saved(trainer, None, None)
    inputs = picture.drawn
    assert (inputs.rows, inputs.predictions, inputs.baselines, inputs.title) == ([], [], {}, "sixth / run: step 1500")


def test_a_picture_without_measured_losses_is_not_drawn(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(arxiv, "draw_arxiv_summary", lambda *_, **__: pytest.fail("drawn"))
    trainer.callbacks = []
    arxiv.ArxivPicture(run_directory=directory_with_files(tmp_path / "arxiv" / "a")).draw(
        SimpleNamespace(trainer=trainer)
    )
