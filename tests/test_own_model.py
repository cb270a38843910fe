"""docs/own-model.md, followed to the letter: its two files in an empty folder, its commands as real processes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.asserts.patience import PATIENCE_S

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
SMALL = ["data.num_validation=8", "data.global_batch_size=16", "trainer.max_epochs=null", "trainer.max_steps=4",
         "trainer.evaluate_every=2", "callbacks.extra.picture=null", "hardware=cpu"]  # fmt: skip


@pytest.mark.slow
def test_an_architecture_of_ones_own(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (values,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    commands = re.findall(r"^python (-m lightning_apps.*(?:--config-dir|trust=).*)$", PAGE, re.MULTILINE)
    for name, text in {"decoders.py": code, "conf/model/llama_tiny.yaml": values}.items():
        assert f"`{name}`" in PAGE
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for command, more in zip(commands, [SMALL, []], strict=True):
        done = subprocess.run(
            [sys.executable, *shlex.split(command), *more], cwd=tmp_path, env=environment, timeout=PATIENCE_S,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "outputs" / "location" / "llama"
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    net = AutoModelForCausalLM.from_pretrained(run / "model")
    assert (net.config.model_type, net.config.hidden_size, net.config.num_hidden_layers) == ("llama", 64, 4)
