"""MLflow and Trackio: one run of ours is one run of theirs, in files below run.output_root unless told otherwise."""

import contextlib
import importlib.util
import io
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from lightning_apps.errors import ConfigError
from lightning_apps.run_files.atomic_files import write_text_atomically
from lightning_apps.run_files.settings import flat_settings

MLFLOW_RUN_ID = ".mlflow_run_id"
"""File of a run directory; hidden, so that no upload takes it to another server."""


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f'logger={package} needs the package {package}: pip install "lightning-apps[{package}]"')


def mlflow_logger(*, save_dir: Path, tracking_uri: str | None = None, group: str | None = None) -> Logger:
    """A run of MLflow, in its local file store where no server is named.

    Args:
        save_dir: the run directory, `<run.output_root>/<experiment>/<name>`.
        tracking_uri: a server or store; null is MLFLOW_TRACKING_URI, or `<run.output_root>/mlruns`.
        group: what several runs have in common, such as their sweep; a tag.

    Raises:
        ConfigError: MLflow is not installed.
    """
    _require("mlflow")
    # it asks a server that is gone for minutes, and training would wait
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return ContinuedMLFlowLogger(
        id_file=save_dir / MLFLOW_RUN_ID,
        experiment_name=save_dir.parent.name,
        run_name=save_dir.name,
        tracking_uri=tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"),
        save_dir=str((save_dir.parent.parent / "mlruns").resolve()),
        tags={"group": group} if group is not None else None,
    )


class ContinuedMLFlowLogger(MLFlowLogger):
    """Lightning's logger, which begins a new run of MLflow at each start: here a resumed run goes on in its own.

    Args:
        id_file: where the id that the server gives stands between two starts.
        options: of MLFlowLogger.
    """

    def __init__(self, *, id_file: Path, **options: Any) -> None:
        self._id_file = id_file
        self._is_continued = False
        super().__init__(**options)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client; its run is begun, or taken up again, when it is first asked for."""
        if self._initialized:
            return self._mlflow_client
        # not before: overwriting deletes the file after loggers were made
        if self._id_file.is_file():
            self._is_continued = True
            self._run_id = self._id_file.read_text(encoding="utf-8").strip()
        client = super().experiment
        if self._is_continued:
            client.update_run(self._run_id, status="RUNNING")
        else:
            write_text_atomically(self._id_file, str(self._run_id))
        return client

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Hand on the configuration, once: MLflow refuses what a resumed run may change, such as run.resume."""
        if self.experiment is not None and not self._is_continued:
            super().log_hyperparams(params)


class TrackioLogger(Logger):
    """A run of Trackio, in its local database; a resumed run goes on in the same.

    Args:
        save_dir: the run directory, `<run.output_root>/<experiment>/<name>`.
        group: what several runs have in common, such as their sweep.

    Raises:
        ConfigError: Trackio is not installed.
    """

    def __init__(self, *, save_dir: Path, group: str | None = None) -> None:
        super().__init__()
        _require("trackio")
        os.environ.setdefault("TRACKIO_DIR", str((save_dir.parent.parent / "trackio").resolve()))  # read at its import
        self._project, self._run_name, self._group = save_dir.parent.name, save_dir.name, group
        self._config: dict[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project: the experiment."""
        return self._project

    @property
    def version(self) -> str:
        """The name of the run."""
        return self._run_name

    @property
    def experiment(self) -> Any:
        """Trackio's run, begun when it is first asked for."""
        if self._run is None:
            with contextlib.redirect_stdout(io.StringIO()):  # its advertisement
                import trackio

                self._run = trackio.init(
                    self._project, name=self._run_name, group=self._group, config=self._config, resume="allow",
                    embed=False, auto_log_gpu=False, auto_log_cpu=False,
                )  # fmt: skip
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Keep the configuration for the run that begins."""
        self._config = flat_settings(vars(params) if isinstance(params, Namespace) else params)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log the values of one step."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run, which sends what is waiting."""
        if self._run is not None:
            with contextlib.redirect_stdout(io.StringIO()):
                self._run.finish()
