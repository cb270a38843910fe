"""Shared fixtures: composed configurations and tiny runs in temporary folders."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, settings
from omegaconf import OmegaConf

from lightning_apps.config.composition import CONF, plain
from lightning_apps.config.overrides import run_name
from lightning_apps.experiments.gsm8k.small_files import write_small_files
from tests.fakes.s3_server import s3  # noqa: F401 (a fixture)
from tests.tiny.storage_parts import LARGE

pytest.register_assert_rewrite("tests.asserts")  # so that what is asserted there says what differed
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in a shell's background; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
# a busy machine draws slowly and is not wrong
settings.register_profile("project", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    """One thread, as two workers share the machine, or as many as OMP_NUM_THREADS asks for."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def _own_draws() -> None:
    """What a test draws without a seed of its own does not depend on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def small_gsm8k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `data/` and `model/` of gsm8k_small."""
    folder = tmp_path_factory.mktemp("small_gsm8k")
    write_small_files(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Small files, an empty one, odd names, and one of three parts."""
    root = tmp_path / "local"
    (root / "checkpoints").mkdir(parents=True)
    (root / "config.yaml").write_text("a: 1\n")
    (root / "empty").write_bytes(b"")
    (root / "metrics,lr=1e-3 [é]+.csv").write_text("step\n1\n")
    (root / "checkpoints" / "step=00000002.ckpt").write_bytes(os.urandom(3_000))
    (root / "tokens.bin").write_bytes(os.urandom(LARGE))
    return root


@pytest.fixture
def composed(tmp_path: Path, cache_root: Path) -> Callable[..., dict[str, Any]]:
    """compose("model.hidden_size=8") -> the plain resolved configuration, with outputs in the test's folder."""

    def make(*overrides: str, name: str | None = None) -> dict[str, Any]:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            # fp32: what auto chooses depends on the processor
            cfg = compose("config", overrides=["precision=fp32", *overrides])
        OmegaConf.update(cfg, "run.output_root", str(tmp_path / "outputs"))
        OmegaConf.update(cfg, "run.cache_root", str(cache_root))
        if cfg.run.name is None:
            OmegaConf.update(cfg, "run.name", name or run_name(list(overrides)))
        return plain(cfg)

    return make
