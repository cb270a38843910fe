"""Classify texts with the best weights of a run, one JSON object a line, in the order of the input.

  python -m lightning_apps.predict run=outputs/imdb/default input=reviews.jsonl
  echo "a film to remember" | python -m lightning_apps.predict run=outputs/imdb/default input=-

Every line gives: line (where the text was), label, probability of that label, probabilities of all, and the id of the
input where it has one.
"""

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import mkstemp
from typing import Any, BinaryIO, TextIO

from omegaconf import DictConfig

from lightning_apps.config.binding import bind, target
from lightning_apps.config.command_line import run_command
from lightning_apps.config.command_settings import settings_of
from lightning_apps.config.composition import CONF
from lightning_apps.config.open_run import open_run
from lightning_apps.errors import ConfigError, did_you_mean
from lightning_apps.run_files.directory import RunDirectory

ENDINGS = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
"""Formats by the ending of a file's name; of any other the first line decides, as of standard input."""
BATCHES_AHEAD = 8
"""So many batches of texts are read, sorted by length, and put back in order: that bounds the memory."""


@dataclass(frozen=True)
class InputText:
    """One text, the line it was on (1 is the first), and its id where it has one."""

    line: int
    text: str
    id: Any = None


def read_texts(lines: Iterable[bytes], source: str, *, kind: str, text_column: str) -> Iterator[InputText]:
    """Texts of a stream of lines; blank lines are passed over.

    Args:
        lines: of bytes, with their ends.
        source: name of the stream, for messages.
        kind: `jsonl`, `text`, or `auto`: jsonl where the first line that is not blank begins with a brace.
        text_column: field of the text in jsonl.

    Raises:
        ConfigError: a line is not UTF-8, no JSON object, or has no text, naming the line.
    """
    from datamodules.text.jsonl import decoded_lines, json_object, line_place

    try:
        for number, line in enumerate(decoded_lines(lines, source), start=1):
            if not line.strip():
                continue
            if kind == "auto":
                kind = "jsonl" if line.lstrip().startswith("{") else "text"
            if kind == "text":
                yield InputText(number, line.rstrip("\r\n"))
                continue
            record = json_object(line, source, number)
            yield text_of(record, line_place(source, number), number, text_column)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def read_table(path: Path, *, kind: str, text_column: str) -> Iterator[InputText]:
    """Texts of a csv or parquet file, by the readers of training.

    Args:
        path: of the file.
        kind: `csv` or `parquet`.
        text_column: field of the text.

    Raises:
        ConfigError: the file is damaged or has no such field, naming the line or row.
    """
    from datamodules.labelled.texts import read_csv, read_parquet

    records = (read_csv if kind == "csv" else read_parquet)(path, {text_column, "id"})
    unit = "line" if kind == "csv" else "row"
    try:
        for number, record in records:
            yield text_of(record, f"{path.name}, {unit} {number:,}", number, text_column)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def text_of(record: Mapping[str, Any], where: str, number: int, text_column: str) -> InputText:
    """The text of a record, and its id where it has one.

    Raises:
        ConfigError: it has no such field, or something else is in it.
    """
    if text_column not in record:
        hint = did_you_mean(text_column, list(record))
        raise ConfigError(
            f"{where}: there is no field {text_column!r}{hint}; it has {', '.join(map(str, record)) or 'none'}; name "
            "the right one with text_column=..."
        )
    text = record[text_column]
    if not isinstance(text, str):
        raise ConfigError(f"{where}: {text_column} is not a text")
    return InputText(number, text, record.get("id"))


@contextmanager
def written_aside(path: Path) -> Iterator[TextIO]:
    """A file to write `path` with: it takes its name when all is written, and what was there stays until then.

    Raises:
        ConfigError: it cannot be written there.
    """
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe, /dev/null
        with path.open("w", encoding="utf-8") as stream:
            yield stream
        return
    path = path.resolve()
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        mode = path.stat().st_mode & 0o777 if path.exists() else None
        number, name = mkstemp(dir=path.parent, prefix=".predict-")
    except OSError as error:
        raise ConfigError(f"output={path}: cannot be written ({error.strerror or error}); name another file") from error
    aside = Path(name)
    try:
        with open(number, "w", encoding="utf-8") as file:  # noqa: PTH123 (a number, not a path)
            yield file
        if mode is None:
            os.umask(umask := os.umask(0))
            mode = 0o666 & ~umask
        aside.chmod(mode)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def predict(cfg: DictConfig) -> None:
    """Classify the texts of a file or of standard input and write one JSON object a line.

    Raises:
        ConfigError: the run is not a finished classification run, or the input is wrong.
    """
    from datamodules.text.jsonl import json_line

    options = settings_of("predict", cfg)
    directory, config = open_run(options["run"], trust=options.get("trust"))
    path = Path(options["input"])
    if options["input"] != "-" and not path.is_file():
        raise ConfigError(f"input={path}: there is no such file; - reads standard input")
    kind = ENDINGS.get(path.suffix.lower(), "auto") if options["format"] == "auto" else options["format"]
    if options["input"] == "-" and kind in ("csv", "parquet"):
        raise ConfigError(f"format={kind}: standard input is read as jsonl or text; name a file, input=FILE")
    column = options["text_column"] or config["data"].get("text_column", "text")
    with ExitStack() as files:
        out: TextIO = sys.stdout
        if options["output"] != "-":
            out = files.enter_context(written_aside(Path(options["output"])))
        classifier = Classifier(directory, config, options["accelerator"])
        if kind in ("csv", "parquet"):
            texts = read_table(path, kind=kind, text_column=column)
        else:
            lines: BinaryIO = sys.stdin.buffer if options["input"] == "-" else files.enter_context(path.open("rb"))
            source = "standard input" if options["input"] == "-" else path.name
            texts = read_texts(lines, source, kind=kind, text_column=column)
        try:
            for answer in classifier.answers(texts, options["batch_size"]):
                out.write(json_line(answer))
            out.flush()
        except BrokenPipeError:  # who reads has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if classifier.num_cut:
        print(
            f"{classifier.num_cut:,} of {classifier.num_texts:,} texts are longer than {classifier.limit} and were cut "
            "as in training",
            file=sys.stderr,
        )


class Classifier:
    """The exported model of a run, with the tokenization that trained it.

    Args:
        directory: of the run.
        config: of the run; its data settings say how texts are cut, the data themselves are not needed.
        accelerator: auto, cpu, gpu or mps.

    Attributes:
        num_texts: texts answered for so far.
        num_cut: those of them that were cut.
        limit: what they were longer than, in words; None where the data cut nothing.

    Raises:
        ConfigError: the run has no exported model, or does not classify.
    """

    def __init__(self, directory: RunDirectory, config: dict[str, Any], accelerator: str) -> None:
        from lightning_apps.process.allocator import keep_freed_memory

        keep_freed_memory()
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from datamodules.contract import CutsTexts, ReadsTexts
        from lightning_apps.run_files.weights import load_exported
        from lightning_apps.runs.build import available_accelerator, quiet_libraries
        from lightning_apps.runs.preflight import within_positions

        quiet_libraries()
        if not isinstance(bind("data", config["data"])(), ReadsTexts):
            raise ConfigError(f"run={directory.path}: experiment {config['experiment']} does not classify texts")
        if not (directory.model / "config.json").is_file():
            raise ConfigError(
                f"run={directory.path} has no model/ yet: it was not finished; continue it with run.resume=auto"
            )
        target("model", config["model"])  # registers architectures of our own with transformers
        self.device = torch.device({"gpu": "cuda"}.get(name := available_accelerator(accelerator), name))
        net = load_exported(AutoModelForSequenceClassification, directory.model)
        self.tokenizer = AutoTokenizer.from_pretrained(directory.model)
        self.net: Any = net.to(self.device).eval()
        # training texts may all have been shorter than the setting allows
        self.data = bind("data", within_positions(config["data"], net))()
        self.cuts = self.data if isinstance(self.data, CutsTexts) else None
        self.num_texts = self.num_cut = 0
        self.limit = None if self.cuts is None else self.cuts.length_limit
        self.multi_label = net.config.problem_type == "multi_label_classification"
        self.label_names = [net.config.id2label[number] for number in range(net.config.num_labels)]

    def answers(self, texts: Iterable[InputText], batch_size: int) -> Iterator[dict[str, Any]]:
        """What the model says of each text, in their order; memory does not grow with their number."""
        source = iter(texts)
        while block := list(islice(source, BATCHES_AHEAD * batch_size)):
            # the number of characters tells the number of tokens well enough to keep padding small
            order = sorted(range(len(block)), key=lambda row: len(block[row].text))
            rows: dict[int, list[float]] = {}
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                rows |= dict(zip(chosen, self.probabilities([block[row].text for row in chosen]), strict=True))
            for row, text in enumerate(block):
                yield self._answer(text, rows[row])

    def probabilities(self, texts: list[str]) -> list[list[float]]:
        """Probabilities (len(texts), classes)."""
        import torch
        from lightning.fabric.utilities import move_data_to_device

        from lightning_apps.experiments.classification_metrics import probabilities_of

        batch = self.data.text_batch(texts, self.tokenizer)
        self.num_texts += len(texts)
        if self.cuts is not None:
            self.num_cut += self.cuts.num_cut(texts, batch, self.tokenizer)
        with torch.inference_mode():
            logits = self.net(**move_data_to_device(batch, self.device)).logits
        found: list[list[float]] = probabilities_of(logits.cpu(), multi_label=self.multi_label).tolist()
        return found

    def _answer(self, text: InputText, probabilities: list[float]) -> dict[str, Any]:
        from lightning_apps.experiments.classification_metrics import PREDICTED

        named = {name: round(value, 6) for name, value in zip(self.label_names, probabilities, strict=True)}
        answer: dict[str, Any] = {"line": text.line} | ({} if text.id is None else {"id": text.id})
        if self.multi_label:
            labels = [name for name, value in zip(self.label_names, probabilities, strict=True) if value >= PREDICTED]
            return {**answer, "labels": labels, "probabilities": named}
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        label = self.label_names[best]
        return {**answer, "label": label, "probability": named[label], "probabilities": named}


def main() -> Any:
    """Entry point."""
    return run_command(predict, config_path=CONF / "command", config_name="predict")


if __name__ == "__main__":
    main()
