"""Upload a run to an S3-compatible object store, or go on with an upload that was interrupted.

  python -m lightning_apps.upload run=outputs/location/default to=s3://bucket/prefix

Files that are there are not sent again; the object COMPLETE is written last. Server and credentials are those of
AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or of the AWS configuration files.
"""

from typing import Any

from omegaconf import DictConfig

from lightning_apps.config.command_line import run_command
from lightning_apps.config.command_settings import settings_of
from lightning_apps.config.composition import CONF
from lightning_apps.config.open_run import read_run
from lightning_apps.errors import ConfigError


def upload(cfg: DictConfig) -> None:
    """Upload a run, or what an earlier upload of it has left out.

    Raises:
        ConfigError: no such run, no such bucket, wrong credentials.
        StorageUnavailableError: the server is out of reach; the same command goes on later.
    """
    from datamodules.storage.folders import StorageError, StorageUnavailableError, is_remote
    from lightning_apps.process.console import open_console, say
    from lightning_apps.run_files.upload import progress_bar, report_text, run_url, upload_run

    options = settings_of("upload", cfg)
    if is_remote(options["run"]):
        raise ConfigError(f"run={options['run']} is in an object store already; name a local run")
    directory, config = read_run(options["run"])
    to = options["to"] if options["to"] is not None else config["run"].get("upload")
    if to is None:
        raise ConfigError(
            "to is missing: the run has no run.upload; give it on the command line, to=s3://bucket/prefix"
        )
    open_console()
    try:
        # the folder's name, which is the run's unless somebody copied it: a copy must not replace the original
        name = directory.path.resolve().name
        url = run_url(to, config["experiment"], name)
        if name != config["run"].get("name"):
            say(f"{directory.path} was the run {config['run'].get('name')}; it is uploaded as {name}")
        report = upload_run(directory.path, url, progress=progress_bar(), report=say)
    except StorageUnavailableError:
        raise
    except StorageError as error:
        raise ConfigError(str(error)) from error
    say(f"uploaded  {url}: {report_text(len(report.sent) + len(report.kept), len(report.sent), report.sent_bytes)}")


def main() -> Any:
    """Entry point."""
    return run_command(upload, config_path=CONF / "command", config_name="upload")


if __name__ == "__main__":
    main()
