"""One process at a time trains in a run directory."""

import os
import time

from lightning_apps.errors import ConfigError
from lightning_apps.process.file_lock import has_died, owner_text, sign_lock, this_process, try_lock
from lightning_apps.run_files.directory import RunDirectory

PATIENCE_S = 10.0
"""The loader processes of a run that was killed inherit its lock, and notice within seconds that it is gone."""


class RunLock:
    """Held from the moment at which a run's files are looked at until the run has ended.

    Args:
        directory: of the run.
        is_first: whether this process is its first one; the others need no lock.
    """

    def __init__(self, directory: RunDirectory, *, is_first: bool) -> None:
        self.directory = directory
        self.is_first = is_first
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take the lock, unless it is held already.

        A directory that is not there yet is made, so call this once the run is known to be possible. Whoever was
        first in between has then made a run of it.

        Raises:
            ConfigError: another process trains here, or has done so since this one looked.
        """
        if not self.is_first or self._descriptor is not None:
            return
        path = self.directory.lock
        end = time.monotonic() + PATIENCE_S
        try:
            while (descriptor := try_lock(path)) is None:
                if not has_died(path) or time.monotonic() > end:
                    raise ConfigError(
                        f"{self.directory.path} is in use by {owner_text(path)}; wait for its end or stop it, or "
                        "choose another run.name"
                    )
                time.sleep(0.1)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another run.output_root") from error
        sign_lock(descriptor, this_process())
        self._descriptor = descriptor

    def take_for_a_new_run(self) -> None:
        """As `take`, for a directory that held no run when it was looked at.

        Raises:
            ConfigError: another process trains here, or has made a run of it meanwhile.
        """
        if not self.is_first or self._descriptor is not None:
            return
        self.take()
        if self.directory.holds_a_run():
            self.release()
            raise ConfigError(
                f"another process has made a run in {self.directory.path} meanwhile: continue it with run.resume=auto, "
                "replace it with run.overwrite=true, or choose another run.name"
            )

    def release(self) -> None:
        """Let others in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
