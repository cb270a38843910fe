"""One run of one experiment: claim the directory, build, fit, evaluate the best again, export, sum up."""

import contextlib
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from transformers import PreTrainedModel

from datamodules.contract import ExperimentData
from lightning_apps.callbacks.checkpoints import RunCheckpoints
from lightning_apps.callbacks.run_upload import RunUpload
from lightning_apps.callbacks.schedule_free_evaluation import ScheduleFreeEvaluation
from lightning_apps.callbacks.weight_average import ExponentialWeightAverage
from lightning_apps.config.kind_checks import check_needs
from lightning_apps.diagnostics.phases import PhaseProfiler
from lightning_apps.errors import ConfigError
from lightning_apps.experiments.experiment import Experiment
from lightning_apps.process.console import open_console, say
from lightning_apps.process.rank import is_first_process
from lightning_apps.process.safe_stop import SafeStop, StopRun, max_time_seconds
from lightning_apps.process.side_products import side_product
from lightning_apps.reports.model_card import write_model_card
from lightning_apps.reports.run_report import write_run_report
from lightning_apps.run_files.atomic_files import write_text_atomically
from lightning_apps.run_files.checkpoint_files import newest_whole_checkpoint
from lightning_apps.run_files.directory import RunDirectory, check_start, clear, locate_run, read_config, whole_summary
from lightning_apps.run_files.settings import different_settings
from lightning_apps.run_files.weights import (
    damage,
    exported_damage,
    read_checkpoint,
    refuse_other_model,
    write_checksums,
)
from lightning_apps.runs.banner import result_lines, start_banner
from lightning_apps.runs.build import (
    available_accelerator,
    build_callbacks,
    build_datamodule,
    build_loggers,
    build_module,
    build_plan,
    build_profiler,
    build_trainer,
    callback_of,
    quiet_libraries,
)
from lightning_apps.runs.precision import settle_precision
from lightning_apps.runs.preflight import check_before_start, check_callbacks, check_monitor
from lightning_apps.runs.run_lock import RunLock
from lightning_apps.runs.same_data import keep_fingerprint, refuse_other_data
from lightning_apps.runs.summary import Outcome, write_summary
from lightning_apps.training.launching import RankLauncher, in_company
from lightning_apps.training.plan import RunPlan
from models.adapters import has_adapters, merged_copy, save_adapters

Config = Mapping[str, Any]
TRIAL_VARIABLE = "LIGHTNING_APPS_TRIAL"


def run_experiment(config: Config) -> dict[str, Any]:
    """Train as the configuration says and return what summary.json holds.

    Raises:
        ConfigError: the configuration or data is wrong, or the run directory is taken; nothing has been written then.
    """
    if config["trainer"].get("fast_dev_run"):
        return try_once(config)
    upload = build_upload(config)
    directory = locate_run(config["run"], config["experiment"])
    lock = RunLock(directory, is_first=is_first_process(config["hardware"]))
    try:
        return _run_experiment(config, upload, lock)
    finally:
        if upload is not None:
            upload.finish()
        lock.release()


def try_once(config: Config) -> dict[str, Any]:
    """Lightning's `fast_dev_run`: some steps, as many batches of each evaluation, and nothing is kept."""
    count = int(config["trainer"]["fast_dev_run"])
    with trial_folder(is_first=is_first_process(config["hardware"])) as folder:
        few = {"limit_val_batches": count, "limit_test_batches": count, "fast_dev_run": False}
        length = {"max_steps": count, "max_tokens": None, "max_epochs": None, "evaluate_every": count}
        tried = {
            **config,
            "trainer": {**config["trainer"], **few, **length},
            "scheduler": {**config["scheduler"], "warmup_steps": 0},
            # what would begin to learn later in a whole run does so at once
            "optimizer": {**config["optimizer"], **({"unfreeze": []} if "unfreeze" in config["optimizer"] else {})},
            "logger": {},
            "run": {**config["run"], "output_root": folder, "resume": None, "overwrite": False, "upload": None},
        }
        lock = RunLock(locate_run(tried["run"], config["experiment"]), is_first=is_first_process(config["hardware"]))
        try:
            summary = _run_experiment(tried, None, lock, is_trial=True)
        finally:
            lock.release()
    say(f"trainer.fast_dev_run: {count} optimizer step(s) and {count} batch(es) of each evaluation; nothing is kept")
    return summary


@contextlib.contextmanager
def trial_folder(*, is_first: bool) -> Iterator[str]:
    """A folder that all processes of a run use and that does not outlive them; the first one makes it.

    Raises:
        ConfigError: the first process did not start this one, which then does not know the folder.
    """
    if not is_first:
        if TRIAL_VARIABLE not in os.environ:
            raise ConfigError(
                "trainer.fast_dev_run: this process does not know where the first one writes; let the program start "
                "its processes itself (hardware=cpu_ddp, say, without torchrun or srun), or try one with hardware=cpu"
            )
        yield os.environ[TRIAL_VARIABLE]
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ[TRIAL_VARIABLE] = folder  # for the processes that this one starts
        try:
            yield folder
        finally:
            del os.environ[TRIAL_VARIABLE]


def build_upload(config: Config) -> RunUpload | None:
    """What takes the run to an object store, where run.upload asks for it."""
    run, experiment = config["run"], config["experiment"]
    if run["upload"] is None:
        return None
    return RunUpload(directory=locate_run(run, experiment), to=run["upload"], experiment=experiment, name=run["name"])


def _run_experiment(
    config: Config, upload: RunUpload | None, lock: RunLock, *, is_trial: bool = False
) -> dict[str, Any]:
    quiet_libraries()
    available_accelerator(config["hardware"]["accelerator"])  # before data is prepared
    started = time.perf_counter()
    directory = lock.directory
    if lock.is_first:  # further processes of a run find the directory claimed by their first one
        check_start(directory, config["run"])
        if directory.holds_a_run():
            lock.take()
    checkpoint = resume_point(directory, config)
    damaged = exported_damage(directory.model) if checkpoint is not None else None
    if damaged is not None:
        print(f"{damaged}; it is made again", file=sys.stderr)
    earlier = whole_summary(directory) if checkpoint is not None and damaged is None else None
    if earlier is not None and earlier["status"] == "completed":
        open_console()
        if upload is not None and lock.is_first:
            upload.begin(plan=None)
        say("\n".join([f"{directory.path} is complete; run.overwrite=true trains it anew.", *result_lines(earlier)]))
        return earlier

    if lock.is_first:
        directory.stop_request.unlink(missing_ok=True)  # of an earlier start
    stop = SafeStop(max_time_seconds(config["trainer"]["max_time"]), directory.stop_request)
    stop.install()
    summary: dict[str, Any] = {}
    try:
        check_needs(config)
        open_console(main_process=lock.is_first)  # preparing data may take long, and say so
        config, chosen = settle_precision(config)
        datamodule = build_datamodule(config)
        if checkpoint is not None:
            refuse_other_data(directory, datamodule)
        plan = build_plan(config, datamodule)
        module = build_module(config, datamodule, plan)
        if checkpoint is not None and config["run"]["resume"] != "auto":
            refuse_other_model(module, checkpoint, given=f"run.resume={config['run']['resume']}")
        notices = check_before_start(config, plan, module, datamodule, directory)
        callbacks = build_callbacks(config, directory, plan, stop)
        check_callbacks(callbacks, datamodule)
        check_monitor(config, plan, module, callbacks, datamodule)
        module.save_hyperparameters(dict(config))  # plain values: every logger shows them
        if upload is not None:
            callbacks.append(upload)
        profiler = build_profiler(config, directory, module.net)
        trainer = build_trainer(config, plan, callbacks=callbacks, loggers=[], profiler=profiler)
        loggers = build_loggers(config, directory)
        lock.take_for_a_new_run()
        claim(directory, config, is_main=trainer.is_global_zero)
        if trainer.is_global_zero:
            keep_fingerprint(directory, datamodule)
        open_console(directory.log, main_process=trainer.is_global_zero)
        trainer.loggers = loggers
        said_of_data = datamodule.describe()
        say(start_banner(config, plan, module, trainer, directory, checkpoint, said_of_data, precision=chosen))
        for notice in notices:
            say(f"notice: {notice}")
        if upload is not None and trainer.is_global_zero:
            upload.begin(plan)

        outcome = Outcome("failed", "")
        try:
            with in_company(trainer.global_rank):
                trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
                outcome = Outcome("completed", reason_to_end(trainer, plan))
                tests = datamodule.has_test_split and config["trainer"].get("limit_test_batches") != 0
                finish(trainer, module, datamodule, callbacks, directory, tests=tests)
        except StopRun as stopped:
            outcome = Outcome("stopped", stopped.reason, stopped.signum)
        except BaseException as error:
            outcome = Outcome("failed", f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        finally:
            try:
                summary = write_summary(
                    config, directory, plan, module, trainer, callbacks, outcome, time.perf_counter() - started
                )
            except OSError as error:  # a full disk has been reported already
                say(f"summary.json could not be written: {error.strerror or error}")
            if trainer.is_global_zero and not is_trial:
                with side_product("report.html"):
                    write_run_report(str(directory.path), is_over=True)
                if (directory.model / "config.json").is_file():
                    with side_product("the model card"):
                        write_model_card(str(directory.path), directory.model, is_over=True)
        if isinstance(trainer.strategy.launcher, RankLauncher):
            trainer.strategy.launcher.wait()
    except StopRun as stopped:  # before there was a run to save
        sys.exit(128 + (stopped.signum or 0))
    finally:
        stop.restore()
        if "wandb" in sys.modules:  # else the jobs of a sweep in one process become one W&B run (wandb#1314)
            with side_product("W&B"):
                sys.modules["wandb"].finish()
    if outcome.status == "stopped":
        say(f"stopped ({outcome.reason}) after step {trainer.global_step:,}; go on with\n  {resume_command()}")
        if outcome.signum is not None:
            sys.exit(128 + outcome.signum)
        return summary
    if not is_trial:
        say("\n".join(result_lines(summary)))
    if isinstance(profiler, PhaseProfiler):
        say("\n".join(["", profiler.summary(), f"trace     {directory.profile}, for https://ui.perfetto.dev"]))
    return summary


def reason_to_end(trainer: L.Trainer, plan: RunPlan) -> str:
    """Why training is over, in words."""
    if trainer.global_step < plan.total_steps:
        return f"early stopping at step {trainer.global_step}"
    return f"reached {plan.budget}"


def resume_command() -> str:
    """The command of this process with run.resume=auto."""
    words = [word for word in sys.argv[1:] if not word.startswith(("run.resume=", "run.overwrite="))]
    return shlex.join(["python", "-m", "lightning_apps.train", *words, "run.resume=auto"])


def finish(
    trainer: L.Trainer,
    module: Experiment,
    datamodule: ExperimentData,
    callbacks: list[L.Callback],
    directory: RunDirectory,
    *,
    tests: bool,
) -> None:
    """Load the best weights and export them, evaluate them again, and test them; the test may take longest.

    A best checkpoint whose second evaluation differs from its first is said loudly: then either the weights on disk
    are not those that were measured, or the evaluation is not a function of the weights.
    """
    checkpoints = callback_of(callbacks, RunCheckpoints)
    # those that evaluate an average in place of the module's weights stay out: best.ckpt holds that average already
    averages = (ExponentialWeightAverage, ScheduleFreeEvaluation)
    trainer.callbacks = [entry for entry in trainer.callbacks if not isinstance(entry, averages)]  # type: ignore[attr-defined]
    if checkpoints.best_value is not None:
        trainer.strategy.load_model_state_dict(read_checkpoint(checkpoints.best_path))
    net = module.whole_net(keep=trainer.is_global_zero)
    if trainer.is_global_zero:
        export_model(net, datamodule, directory)
    if checkpoints.best_value is not None:
        loggers, trainer.loggers = trainer.loggers, []  # this evaluation is a check, not a new row
        (again,) = trainer.validate(module, datamodule, verbose=False)
        trainer.loggers = loggers
        value = float(again[checkpoints.monitor])
        if value != checkpoints.best_value:
            say(
                f"WARNING: best.ckpt gives {checkpoints.monitor}={value!r} when evaluated again, "
                f"{checkpoints.best_value!r} while training (step {checkpoints.best_step})"
            )
        else:
            say(f"best.ckpt of step {checkpoints.best_step:,} evaluated again: {checkpoints.monitor} is the same")
    if tests:
        keys = " or ".join(key for key in (datamodule.test_size_key, "trainer.limit_test_batches") if key)
        say(f"testing on {len(datamodule.evaluated('test')):,} samples, of which {keys} would leave fewer")
        try:
            trainer.test(module, datamodule, verbose=False)
        except StopRun as stopped:
            reason = f"{stopped.reason} during the test: the run is complete but for its test"
            raise StopRun(reason, stopped.signum) from stopped


def resume_point(directory: RunDirectory, config: Config) -> Path | None:
    """Checkpoint to continue from; None starts afresh.

    Raises:
        ConfigError: run.resume names no checkpoint, or the run was made with other settings.
    """
    wanted = config["run"]["resume"]
    if wanted is None:
        return None
    if wanted != "auto":
        path = directory.checkpoint(wanted)
        if (reason := damage(path)) is not None:
            raise ConfigError(f"run.resume={wanted}: {path} is damaged ({reason}); run.resume=auto finds a whole one")
        return path
    if directory.config.is_file():
        refuse_other_settings(directory, config)
    return newest_whole_checkpoint(directory.checkpoints, lambda text: print(text, file=sys.stderr))


def refuse_other_settings(directory: RunDirectory, config: Config) -> None:
    """Continuing under other settings would be another experiment; where it runs and what it logs may change.

    Raises:
        ConfigError: naming the first settings that differ.
    """
    different = different_settings(read_config(directory), config)
    if different:
        raise ConfigError(
            f"run.resume=auto: {directory.path} was started with other settings ({'; '.join(different[:3])}); "
            "restore them, or choose another run.name"
        )


def claim(directory: RunDirectory, config: Config, *, is_main: bool) -> None:
    """Make the run directory, cleared where overwriting was asked for, and write config.yaml."""
    if not is_main:
        return
    try:
        if config["run"]["overwrite"]:
            clear(directory, Path(config["run"]["output_root"]))
        directory.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text_atomically(directory.config, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise ConfigError(
            f"{error.filename or directory.path} cannot be written ({error.strerror or error}); choose another "
            "run.output_root, or another run.name"
        ) from error


def export_model(net: PreTrainedModel, datamodule: ExperimentData, directory: RunDirectory) -> None:
    """Write weights and tokenizer in Hugging Face layout; adapters are merged, and kept as they are in `adapter`."""
    if has_adapters(net):
        save_adapters(net, directory.model / "adapter", base=net.config._name_or_path)
        net = merged_copy(net)
    net.save_pretrained(directory.model)
    if datamodule.tokenizer is not None:
        datamodule.tokenizer.save_pretrained(directory.model)
    readable = (directory.model / "config.json").stat().st_mode
    for path in directory.model.rglob("*.safetensors"):  # which safetensors writes for its owner alone
        path.chmod(readable)
    write_checksums(directory.model)
