"""Prove on this machine what the program claims of itself.

python -m lightning_apps.verify experiment=location
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_apps.config.binding import target
from lightning_apps.config.checks import check_config
from lightning_apps.config.command_line import run_command
from lightning_apps.config.composition import CONF, asks_for_sweep, plain
from lightning_apps.config.search_path import search_path_override
from lightning_apps.errors import ConfigError
from lightning_apps.process.console import open_console, say
from lightning_apps.process.preloaded import preload, run_preloaded
from lightning_apps.run_files.directory import RunDirectory

TRAIN = "lightning_apps.train"
KILL_POINTS = {
    "between two checkpoints": "on_train_batch_end@3",
    "between evaluation and checkpoint": "on_validation_epoch_end@4",
    "while gradients accumulate": "on_before_optimizer_step@6",
    "in a later epoch": "on_train_batch_end@-2",
}
"""Negative steps count from the end of the run."""


@dataclass(frozen=True)
class Proof:
    """One line of the table.

    Attributes:
        claim: what is claimed.
        difference: largest difference measured; None where the claim does not apply here.
        tolerance: largest difference allowed.
        why: why that tolerance, or why the claim does not apply.
    """

    claim: str
    difference: float | None
    tolerance: float
    why: str

    @property
    def outcome(self) -> str:
        """`proved`, `FAILED` or `skipped`."""
        if self.difference is None:
            return "skipped"
        return "proved" if self.difference <= self.tolerance else "FAILED"


@dataclass(frozen=True)
class Bench:
    """Where verify trains, and on what.

    Attributes:
        folder: output root of the runs.
        experiment: folder of the runs in it, which a configuration names as it likes.
        arguments: of the train command, for a run of seconds.
        last_step: where such a run ends.
    """

    folder: Path
    experiment: str
    arguments: tuple[str, ...]
    last_step: int

    def train(self, name: str, *more: str, kill: str | None = None, processes: int = 1) -> RunDirectory:
        """Train in a process of its own.

        Args:
            name: of the run.
            more: overrides.
            kill: where the process kills itself, see SelfKill.
            processes: that the run has; if more than one, they start each other by their command line.

        Raises:
            RuntimeError: the process failed, or was to be killed and was not.
        """
        from lightning_apps.callbacks.self_kill import KILL_VARIABLE

        environment = {key: value for key, value in os.environ.items() if key != KILL_VARIABLE}
        environment |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} | ({KILL_VARIABLE: kill} if kill else {})
        words = [*self.arguments, f"run.output_root={self.folder}", f"run.name={name}", *more]
        if processes == 1:
            done = run_preloaded(TRAIN, words, environment)
        else:
            command = [sys.executable, "-m", TRAIN, *words]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)  # noqa: S603
        expected = -signal.SIGKILL if kill else 0
        if done.returncode != expected:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise RuntimeError(f"run {name} ended with {done.returncode}: {lines[-1] if lines else 'no output'}")
        return RunDirectory(self.folder / self.experiment / name)


def bits_that_differ(first: RunDirectory, second: RunDirectory) -> float:
    """Leaves of the last checkpoints (weights, average, optimizer, counters) and of losses() that differ in any bit."""
    import torch

    from lightning_apps.diagnostics.run_comparison import differences

    one, other = (torch.load(run.checkpoint("last"), map_location="cpu", weights_only=True) for run in (first, second))
    return float(len(differences(one, other)) + len(differences(losses(first), losses(second))))


def largest_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Largest absolute difference between tensors of the same names; infinite where names or NaNs differ."""
    if first.keys() != second.keys():
        return float("inf")
    largest = 0.0
    for name, tensor in first.items():
        difference = float((tensor.double() - second[name].double()).abs().max())
        largest = max(largest, difference if difference == difference else float("inf"))
    return largest


def losses(directory: RunDirectory) -> dict[int, dict[str, float]]:
    """Losses and norms of every step: the values that may not depend on how the run was cut up."""
    from lightning_apps.run_files.metrics_csv import read_metrics

    kept = ("train/loss", "train/grad_norm", "train/learning_rate", "val/loss")
    return {row["step"]: {key: row[key] for key in kept if key in row} for row in read_metrics(directory.metrics)}


LEAST_LOSS = 1e-2


def loss_difference(first: RunDirectory, second: RunDirectory) -> float:
    """Largest relative difference of losses() between two runs; infinite where one lacks a value.

    Losses below LEAST_LOSS are compared as if they were that large: those of drawn answers add up to nearly zero.
    """
    one, other = losses(first), losses(second)
    if one.keys() != other.keys() or any(one[step].keys() != other[step].keys() for step in one):
        return float("inf")
    return max(
        abs(value - other[step][key]) / max(abs(value), LEAST_LOSS)
        for step, values in one.items()
        for key, value in values.items()
    )


def same_seed(bench: Bench, whole: RunDirectory) -> Proof:
    """Two runs of one configuration."""
    again = bench.train("again")
    difference = bits_that_differ(whole, again)
    return Proof("same seed = same run", difference, 0.0, "each step's random state is a function of seed and step")


def accumulated(bench: Bench, whole: RunDirectory) -> Proof:
    """One micro-batch against several, of unequal sizes, a partial last step included."""
    split = bench.train("accumulated", "data.device_batch_size=3")
    return Proof(
        "accumulation 1 = N",
        loss_difference(whole, split),
        1e-5,
        "float32 sums in another order, carried through the run's steps",
    )


def resumed(bench: Bench, whole: RunDirectory, place: str, point: str) -> Proof:
    """A run killed with SIGKILL and resumed."""
    hook, _, step = point.partition("@")
    at = int(step) if int(step) > 0 else bench.last_step + int(step)
    name = f"killed-{hook}-{at}"
    bench.train(name, kill=f"{hook}@{at}")
    run = bench.train(name, "run.resume=auto")
    difference = bits_that_differ(whole, run)
    return Proof(f"resumed = uninterrupted: killed {place}, step {at}", difference, 0.0, "nothing may be lost")


def several_processes(bench: Bench, whole: RunDirectory) -> Proof:
    """The same global batch on two CPU processes."""
    two = bench.train("two-processes", "hardware=cpu_ddp", processes=2)
    why = "float32 sums in another order, carried through the run's steps"
    return Proof("1 process = 2 processes", loss_difference(whole, two), 1e-5, why)


def compiled(bench: Bench, whole: RunDirectory) -> Proof:
    """torch.compile against eager."""
    claim, why = "compiled = eager", "the compiler fuses operations and so rounds elsewhere"
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return Proof(claim, None, 1e-4, "no C++ compiler on this machine")
    return Proof(claim, loss_difference(whole, bench.train("compiled", "hardware.compile=true")), 1e-4, why)


def own_claim(bench: Bench, claim: str, pair: Sequence[Sequence[str]]) -> Proof:
    """Two runs of which the experiment itself says that they are the same."""
    name = re.sub(r"\W+", "-", claim)
    one, other = (bench.train(f"{name}-{number}", *words) for number, words in enumerate(pair))
    return Proof(claim, bits_that_differ(one, other), 0.0, "the experiment's own claim")


def reloaded(config: Mapping[str, Any], whole: RunDirectory) -> Proof:
    """The exported model, as transformers loads it, against the best checkpoint."""
    import torch

    from lightning_apps.runs.build import build_datamodule, build_module, build_plan

    datamodule = build_datamodule(config)
    module: Any = build_module(config, datamodule, build_plan(config, datamodule))
    module.load_state_dict(torch.load(whole.checkpoint("best"), map_location="cpu", weights_only=True)["state_dict"])
    # not the file's own names: transformers writes some architectures (GPT-NeoX) under those of the hub
    exported = type(module.net).from_pretrained(whole.model, dtype=torch.float32)
    difference = largest_difference(module.net.state_dict(), exported.state_dict())
    return Proof("saved, exported, reloaded = original", difference, 0.0, "files hold the same bits")


def batched_generation(config: Mapping[str, Any], whole: RunDirectory) -> Proof:
    """Greedy answers to prompts of unequal lengths, four at a time and one at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    from datamodules.contract import AnswersPrompts
    from lightning_apps.runs.build import build_datamodule
    from models.decoding.generation import generate_answers, generate_greedy
    from models.kernels.packed_attention import supports_packed_attention, use_packed_attention

    claim = "batched = single generation"
    datamodule = build_datamodule(config)
    tokenizer = datamodule.tokenizer
    if not isinstance(datamodule, AnswersPrompts) or tokenizer is None:
        return Proof(claim, None, 0.0, "this experiment does not generate")
    net = AutoModelForCausalLM.from_pretrained(whole.model, dtype=torch.float32)
    prompts = [prompt[number % 5 :] for number, prompt in enumerate(datamodule.prompts("validation")[:12])]
    ending, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    options = {"pad_token_id": ending if padding is None else padding, "eos_token_id": ending}
    four, one = (generate_greedy(net, prompts, max_new_tokens=10, batch_size=size, **options) for size in (4, 1))
    different = sum(not first.equal(second) for first, second in zip(four, one, strict=True))
    if supports_packed_attention(net):
        use_packed_attention(net)
        settings = {"stop_token_ids": [options["eos_token_id"]], "pad_token_id": options["pad_token_id"]}
        refilled = generate_answers(net, prompts, max_new_tokens=10, batch_size=4, **settings)
        different += sum(not first.equal(second.tokens) for first, second in zip(one, refilled, strict=True))
    return Proof(claim, different / len(prompts), 0.0, "share of answers that differ, padded or continuously batched")


def packed(config: Mapping[str, Any], whole: RunDirectory) -> Proof:
    """Logits of documents in a packed batch against those of each document alone."""
    import torch

    from datamodules.contract import PacksSamples
    from lightning_apps.runs.build import build_datamodule, build_module, build_plan

    claim, tolerance = "packed = unpacked", 1e-4
    datamodule = build_datamodule(config)
    if not isinstance(datamodule, PacksSamples):
        return Proof(claim, None, tolerance, f"experiment {config['experiment']} does not pack")
    module: Any = build_module(config, datamodule, build_plan(config, datamodule))
    module.load_state_dict(torch.load(whole.checkpoint("best"), map_location="cpu", weights_only=True)["state_dict"])
    module.eval()
    together, alone = datamodule.packed_and_single(8)
    with torch.no_grad():
        one = module.target_logits(together)
        other = torch.cat([module.target_logits(batch) for batch in alone])
    return Proof(claim, float((one - other).abs().max()), tolerance, "largest difference of a logit, by rounding")


def run_proofs(config: Mapping[str, Any], bench: Bench) -> list[Proof]:
    """All proofs in turn; each is reported as it comes."""
    whole = bench.train("whole")
    steps: list[Callable[[], Proof]] = [
        lambda: same_seed(bench, whole),
        *(lambda place=place, point=point: resumed(bench, whole, place, point) for place, point in KILL_POINTS.items()),
        lambda: accumulated(bench, whole),
        lambda: several_processes(bench, whole),
        lambda: batched_generation(config, whole),
        lambda: packed(config, whole),
        lambda: reloaded(config, whole),
        lambda: compiled(bench, whole),
        *(
            lambda claim=claim, pair=pair: own_claim(bench, claim, pair)
            for claim, pair in config["verify_same"].items()
        ),
    ]
    proofs = []
    for step in steps:
        proofs.append(step())
        say(line(proofs[-1]))
    return proofs


def line(proof: Proof) -> str:
    """One line of the table."""
    measured = "-" if proof.difference is None else f"{proof.difference:.2g}"
    return f"{proof.outcome:8} {proof.claim:76} {measured:>8}  allowed {proof.tolerance:<6g} {proof.why}"


def write_files(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Let the experiment write the small data and model that it is verified with; returns overrides that use them."""
    if config["verify_files"] is None:
        return []
    overrides: list[str] = target("verify_files", {"_target_": config["verify_files"]})(folder)
    return overrides


def verify(cfg: DictConfig) -> list[Proof]:
    """Run every proof, print the table and write verify.json; exits with 1 where a claim fails."""
    from hydra.core.hydra_config import HydraConfig

    OmegaConf.update(cfg, "run.name", "verify")
    config = plain(cfg)
    if asks_for_sweep():
        raise ConfigError("verify proves the claims for one experiment: experiment=..., without sweep=...")
    check_config(config)
    from lightning_apps.run_files.atomic_files import write_json_atomically
    from lightning_apps.runs.build import build_datamodule, build_plan, quiet_libraries
    from lightning_apps.runs.precision import settle_precision

    quiet_libraries()
    open_console()
    hydra_config = HydraConfig.get()
    given = [word for word in hydra_config.overrides.task if not word.startswith(("experiment=", "run."))]
    experiment = f"experiment={hydra_config.runtime.choices['experiment']}"
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        made = write_files(config, Path(folder) / "files")
        tiny = [*search_path_override(sys.argv[1:]), experiment, *config["verify"], *made, *given]
        GlobalHydra.instance().clear()
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            small = plain(compose("config", overrides=[*tiny, "run.name=verify"]))
        check_config(small)
        small, _ = settle_precision(small)
        tiny += [f"precision.{key}={value}" for key, value in small["precision"].items()]  # one, for runs that compare
        plan = build_plan(small, build_datamodule(small))
        own = [small[key]["_target_"].rpartition(".")[0] for key in ("module", "data", "model")]
        preload([TRAIN, "lightning_apps.runs.experiment_run", *own])
        cache = f"run.cache_root={Path(config['run']['cache_root']).resolve()}"
        proofs = run_proofs(small, Bench(Path(folder), small["experiment"], (*tiny, cache), plan.total_steps))
    path = Path(config["run"]["output_root"]) / config["experiment"] / "verify.json"
    write_json_atomically(path, [{**asdict(proof), "outcome": proof.outcome} for proof in proofs])
    counts = Counter(proof.outcome for proof in proofs)
    failed = counts["FAILED"]
    say(f"{', '.join(f'{count} {name}' for name, count in counts.items())}; {time.monotonic() - started:.0f} s; {path}")
    if failed:
        sys.exit(1)
    return proofs


def main() -> Any:
    """Entry point."""
    return run_command(verify, config_path=CONF, config_name="config")


if __name__ == "__main__":
    main()
