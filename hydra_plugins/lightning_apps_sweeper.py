"""Hydra's door to the sweeps: what `--multirun` does with a command of this project.

Hydra finds sweepers in the namespace package `hydra_plugins` and nowhere else, and imports them whenever it composes:
nothing heavy is imported here.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from lightning_apps.config.override_value import override_value


class LightningAppsSweeper(BasicSweeper):
    """Hands a whole multirun to the train command, once; other commands run their jobs as Hydra's own sweeper does."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember whom to call.

        Args:
            hydra_context: of Hydra's own sweeper.
            task_function: the command.
            config: the configuration without what is swept.
        """
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.task_function = task_function
        self.whole = config

    def sweep(self, arguments: Sequence[str]) -> Any:
        """Run the jobs of these overrides."""
        if not vars(self.task_function).get("takes_multirun", False):
            # Hydra's own writes multirun.yaml and a folder for each job, which nobody wants among the runs
            with tempfile.TemporaryDirectory() as folder:
                self.whole.hydra.sweep.dir = folder
                return super().sweep([*arguments, f"hydra.sweep.dir={override_value(folder)}"])
        HydraConfig.instance().set_config(self.whole)
        return self.task_function(self.whole)
