"""Dies with SIGKILL at one place of a run, so that verify and the tests can resume what is left."""

import os
import signal

import lightning as L

KILL_VARIABLE = "LIGHTNING_APPS_VERIFY_KILL"
"""Environment variable that verify sets to a point (see SelfKill) for the train command it starts."""


class SelfKill(L.Callback):
    """Kills this process when a hook is reached at or after an optimizer step.

    Args:
        point: `hook@step`, such as on_train_batch_end@3.
    """

    def __init__(self, point: str) -> None:
        hook, _, step = point.partition("@")
        if not hasattr(L.Callback, hook) or not step.isdecimal():
            raise ValueError(f"{point!r}: expected the name of a callback hook, @ and a step")
        self.step = int(step)
        setattr(self, hook, self._die)

    def _die(self, trainer: L.Trainer, *args: object, **kwargs: object) -> None:
        if trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)
