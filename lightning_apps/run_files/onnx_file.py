"""Exported weights as one ONNX file, written by torch, and compared with the model under ONNX Runtime."""

import importlib.util
import inspect
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_apps.errors import ConfigError, first_line

ONNX = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3
"""Of the largest logit: other kernels add in another order, and layers add to it; a wrong mask is off by far more."""
LARGEST_FILE = 2**30
"""Bytes of weights from which on they lie beside the file: one message of protobuf holds 2 GiB."""


class Logits(nn.Module):
    """What the file computes.

    Args:
        net: a model of transformers that takes token ids and a mask.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.options = {"use_cache": False} if getattr(net.config, "use_cache", False) else {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits of token ids (rows, length), int64, 1 in the mask where there is a token and 0 behind it, int64."""
        logits: Tensor = self.net(input_ids=input_ids, attention_mask=attention_mask, **self.options).logits
        return logits


def check_onnx(net: Any = None) -> None:
    """Refuse where nothing can be written: packages are missing, or a model takes more than token ids.

    Raises:
        ConfigError: saying what to do.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"onnx=true needs {', '.join(missing)}: pip install 'lightning-apps[onnx]'")
    takes = {} if net is None else inspect.signature(net.forward).parameters
    if "chunk_counts" in takes:
        raise ConfigError(
            f"onnx=true: {type(net).__name__} reads chunks of documents, and an ONNX file takes token ids alone; "
            "take onnx=false"
        )


def write_onnx(net: Any, folder: Path) -> str:
    """Write `model.onnx` for any number of rows of any length, and compare it with the model; says how they compare.

    Inputs `input_ids` and `attention_mask` (rows, length), int64; output `logits`, float32: (rows, length, words) of a
    language model, (rows, classes) of a classifier.

    Args:
        net: the exported model, float32.
        folder: where to.

    Raises:
        ConfigError: torch cannot express the model, or the file computes something else.
    """
    check_onnx(net)
    logits = Logits(net.eval())
    positions = int(getattr(net.config, "max_position_embeddings", None) or 2**16)
    rows, length = torch.export.Dim("rows", min=1, max=2**16), torch.export.Dim("length", min=1, max=positions)
    dynamic = {0: rows, 1: length}
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # it counts what it does not need
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                logits, _some_tokens(net, rows=2, length=min(7, positions)), dynamo=True, verbose=False,
                input_names=["input_ids", "attention_mask"], output_names=["logits"],
                dynamic_shapes=(dynamic, dynamic),
            )  # fmt: skip
    except Exception as error:  # whatever an architecture makes of torch.export
        raise ConfigError(
            f"onnx=true: torch cannot export {type(net).__name__} ({first_line(error.__cause__ or error)}); take "
            "onnx=false"
        ) from error
    finally:
        quiet.setLevel(level)
    assert program is not None  # of exports without a file
    _forget_where(program)
    size = sum(parameter.nbytes for parameter in net.parameters())
    try:
        program.save(folder / ONNX, external_data=size > LARGEST_FILE)
        difference = _largest_difference(logits, folder, positions)
    except ConfigError:
        raise
    except Exception as error:  # a full disk, or what ONNX Runtime itself refuses
        raise ConfigError(f"onnx=true: {ONNX} cannot be made ({first_line(error)}); take onnx=false") from error
    return f"{ONNX}: logits of other shapes within {difference:.1e} of the model's"


def _some_tokens(net: Any, *, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Drawn token ids and a mask (rows, length), the first row shorter than the others."""
    source = torch.Generator().manual_seed(rows * length)
    ids = torch.randint(int(net.config.vocab_size), (rows, length), generator=source)
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[0, (length + 1) // 2 :] = 0
    return ids, mask


def _forget_where(program: Any) -> None:
    """Take the stack traces off the file, which tell paths of the machine that wrote it."""
    graphs = [program.model.graph, *program.model.functions.values()]
    for holder in [program.model, *graphs, *(node for graph in graphs for node in graph.all_nodes())]:
        holder.metadata_props.clear()


def _largest_difference(logits: Logits, folder: Path, positions: int) -> float:
    """Largest difference of a logit between file and model, of the largest logit; where there are tokens.

    Raises:
        ConfigError: it is no rounding.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / ONNX, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for rows, length in ((1, 1), (3, min(11, positions))):
        ids, mask = _some_tokens(logits.net, rows=rows, length=length)
        found = torch.from_numpy(session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0])
        with torch.no_grad():
            wanted = logits(ids, mask)
        if wanted.ndim == 3:
            found, wanted = found[mask.bool()], wanted[mask.bool()]
        largest = max(largest, float((found - wanted).abs().max() / wanted.abs().max()))
    if not largest <= TOLERANCE:
        raise ConfigError(
            f"onnx=true: {ONNX} differs from the model by {largest:.1e} of the largest logit; take onnx=false"
        )
    return largest
