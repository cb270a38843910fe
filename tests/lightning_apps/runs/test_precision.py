"""What precision=auto chooses on machines that are made up, where it is said, and that a run keeps it."""

import subprocess
import sys

import pytest
import torch
import yaml

from lightning_apps.config.checks import check_config
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.settings import different_settings
from lightning_apps.runs import precision, preflight
from lightning_apps.runs.doctor.examination import examine
from lightning_apps.runs.experiment_run import run_experiment
from lightning_apps.runs.precision import settle_precision
from tests.asserts.patience import PATIENCE_S
from tests.fakes.ranks import start_ranks
from tests.tiny.tiny_runs import IMDB_DATA, LOCATION, directory_of

FP32 = {"name": "fp32", "lightning": "32-true"}
BF16 = {"name": "bf16_mixed", "lightning": "bf16-mixed"}
RUN = [*LOCATION, "precision=auto", "trainer.max_steps=2", "trainer.evaluate_every=2", "callbacks.extra.picture=null"]
WIDE = "model.hidden_size=256"


@pytest.fixture
def machine(monkeypatch):
    """machine("gpu", bf16=True): what the program finds; a measurement that nobody expects fails."""

    def make(accelerator="cpu", *, bf16=True, speed=None):
        def measured():
            assert speed is not None, "measured in vain"
            return speed

        monkeypatch.setattr(precision, "available_accelerator", lambda wanted: accelerator)
        monkeypatch.setattr(precision, "cpu_has_bf16_units", lambda: bf16)
        monkeypatch.setattr(precision, "bf16_speed", measured)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)

    return make


CHOICES = {
    "a GPU with units": (
        ("gpu",), {}, ["hardware=auto"], BF16,
        "bf16_mixed: Some GPU multiplies bf16 many times faster than float32 (precision=fp32 undoes it)",
    ),
    "a GPU without": (
        ("gpu",), {"bf16": False}, [WIDE],
        FP32, "fp32: Some GPU has no units for bf16 (precision=fp16_mixed undoes it)",
    ),
    "Apple's": (
        ("mps",), {}, [WIDE], FP32, "fp32: on Apple's GPU bf16 was never measured (precision=fp16_mixed undoes it)"
    ),
    "a fast CPU": (
        ("cpu",), {"speed": 2.0}, [WIDE], BF16,
        "bf16_mixed: this CPU multiplies bf16 at 2.0 times the speed of float32 (precision=fp32 undoes it)",
    ),
    "a slow CPU": (
        ("cpu",), {"speed": 0.52}, [WIDE], FP32,
        "fp32: this CPU multiplies bf16 at 0.5 times the speed of float32 (precision=bf16_mixed undoes it)",
    ),
    "a CPU without": (
        ("cpu",), {"bf16": False}, [WIDE], FP32,
        "fp32: this CPU has no units for bf16 (precision=bf16_mixed undoes it)",
    ),
    "a narrow network": (
        ("cpu",), {}, ["model.hidden_size=252"], FP32,
        "fp32: model.hidden_size=252 is below 256, where casts cost more than bf16 saves (precision=bf16_mixed undoes "
        "it)",
    ),
    "two processes": (
        ("cpu",), {}, [WIDE, "hardware=cpu_ddp"], FP32,
        "fp32: with several processes on CPUs the speed of bf16 is not measured (precision=bf16_mixed undoes it)",
    ),
    "two machines": (
        ("cpu",), {}, [WIDE, "hardware=cpu_fsdp", "hardware.devices=1", "hardware.num_nodes=2"], FP32,
        "fp32: with several processes on CPUs the speed of bf16 is not measured (precision=bf16_mixed undoes it)",
    ),
    "a network that says nothing": (
        ("cpu",), {}, ["~model.hidden_size"], FP32,
        "fp32: nothing says how wide the network will be (model.hidden_size) (precision=bf16_mixed undoes it)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICES)
def test_the_choice_of_every_machine(case, machine, composed):
    what, can, words, settings, said = CHOICES[case]
    machine(*what, **can)
    config = composed(*LOCATION, "precision=auto", *words, name="x")
    if "hidden_size" in config["model"]:
        check_config(config)
    assert settle_precision(config) == ({**config, "precision": settings}, said)


def test_a_pretrained_network_counts_as_wide(machine, composed):
    machine(speed=4.5)
    config = composed(*IMDB_DATA, "model=minilm", "hardware=cpu", "precision=auto", name="x")
    assert settle_precision(config)[0]["precision"] == BF16


def test_what_lies_beside_a_checkpoint_elsewhere_is_not_read(machine, composed, tmp_path):
    machine(speed=2.0)
    (tmp_path / "config.yaml").write_text("a: 1")  # of something else
    config = composed(*RUN, WIDE, f"run.resume={tmp_path}/kept/last.ckpt", name="x")
    assert settle_precision(config)[0]["precision"] == BF16


def test_the_speed_is_that_of_the_runs_threads(machine, composed, monkeypatch):
    machine(speed=2.0)
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(precision, "bf16_speed", lambda: seen.append(torch.get_num_threads()) or 2.0)
    try:
        settle_precision(composed(*RUN, WIDE, f"hardware.num_threads={before + 1}", name="x"))
    finally:
        torch.set_num_threads(before)
    assert seen == [before + 1]


def test_a_device_that_is_not_here(composed):
    config = composed(*LOCATION, "hardware=gpu", "precision=auto", name="x")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    said = "fp32: there is no gpu here to look at (precision=fp16_mixed undoes it)"
    assert settle_precision(config) == ({**config, "precision": FP32}, said)  # plan and prepare go on
    with pytest.raises(ConfigError, match="no such device here"):
        run_experiment(config)


@pytest.mark.parametrize("name", ["fp32", "bf16_mixed", "bf16_true", "fp16_mixed"])
def test_what_was_asked_for_stays(name, machine, composed):
    machine("cpu", bf16=False)
    config = composed(*LOCATION, WIDE, f"precision={name}", name="x")
    assert settle_precision(config) == (config, None)


@pytest.mark.parametrize(
    ("lightning", "name"), [("bf16-mixed", "bf16_mixed"), ("16-mixed", "fp16_mixed"), ("64-true", "64-true")]
)
def test_lightnings_own_word_is_a_choice_too(lightning, name, machine, composed):
    machine("gpu")
    config = composed(*LOCATION, "precision=auto", f"precision.lightning={lightning}", name="x")
    settled = {"name": name, "lightning": lightning}
    assert settle_precision(config) == ({**config, "precision": settled}, None)


def test_a_run_says_and_writes_what_was_chosen(machine, composed, capsys):
    machine(speed=4.5)
    config = composed(*RUN, WIDE, name="a")
    run_experiment(config)
    out = capsys.readouterr().out
    said = "bf16_mixed: this CPU multiplies bf16 at 4.5 times the speed of float32 (precision=fp32 undoes it)"
    assert f"   precision  {said}\n" in out
    assert "seed 42, bf16_mixed on 1 x cpu\n" in out
    assert yaml.safe_load(directory_of(config).config.read_text())["precision"] == BF16
    run_experiment(composed(*RUN, WIDE, "precision=fp32", name="b"))
    assert "   precision  " not in capsys.readouterr().out


def test_a_run_that_goes_on_keeps_its_precision_on_another_machine(machine, composed, capsys):
    machine(speed=4.5)
    config = composed(*RUN, WIDE, "trainer.max_time=00:00:00", name="a")
    assert run_experiment(config)["status"] == "stopped"
    machine(bf16=False)
    resumed = composed(*RUN, WIDE, "run.resume=auto", name="a")
    capsys.readouterr()
    assert run_experiment(resumed)["status"] == "completed"
    out = capsys.readouterr().out
    assert "seed 42, bf16_mixed on 1 x cpu\n" in out
    assert "   precision  " not in out  # nothing was chosen
    assert yaml.safe_load(directory_of(config).config.read_text())["precision"] == BF16
    with pytest.raises(ConfigError, match=r"precision\.lightning: 'bf16-mixed' then, '32-true' now"):
        run_experiment(composed(*RUN, WIDE, "run.resume=auto", "precision=fp32", name="a"))
    # a checkpoint that another run goes on from brings its precision, unless another one is asked for
    checkpoint = f"run.resume='{directory_of(config).checkpoint('last').absolute()}'"
    other = composed(*RUN, WIDE, checkpoint, name="b")
    assert settle_precision(other)[0]["precision"] == BF16
    asked = composed(*RUN, WIDE, checkpoint, "precision=fp32", name="b")
    assert settle_precision(asked)[0]["precision"] == FP32


def test_a_damaged_precision_of_a_run_is_a_line(machine, composed):
    machine(bf16=False)
    config = composed(*RUN, WIDE, "run.resume=auto", name="a")
    file = directory_of(config).config
    file.parent.mkdir(parents=True)
    for saved, outcome in (({"name": "x", "lightning": "8-true"}, None), ("x", FP32), ({"name": "x"}, FP32)):
        file.write_text(yaml.safe_dump({**config, "precision": saved}))
        if outcome is None:
            with pytest.raises(ConfigError, match=r"precision\.lightning='8-true' .*: allowed are auto, 32-true"):
                settle_precision(config)
        else:
            assert settle_precision(config)[0]["precision"] == outcome


def test_a_sweep_that_asks_for_auto_finds_its_runs_again():
    settled, auto = {"precision": BF16, "seed": 1}, {"precision": {"name": "auto", "lightning": "auto"}, "seed": 1}
    assert different_settings(settled, auto) == []
    assert different_settings({**settled, "seed": 2}, auto) == ["seed: 2 then, 1 now"]
    assert different_settings(settled, {**auto, "precision": FP32}) == [
        "precision.lightning: 'bf16-mixed' then, '32-true' now", "precision.name: 'bf16_mixed' then, 'fp32' now"
    ]  # fmt: skip


def test_where_auto_chose_no_notice_contradicts_it(machine, composed, monkeypatch):
    machine(speed=4.5)
    monkeypatch.setattr(preflight, "cpu_has_bf16_units", lambda: True)
    monkeypatch.setattr(preflight, "bf16_speed", lambda: 4.5)
    chosen, _ = settle_precision(composed(*LOCATION, WIDE, "precision=auto", name="x"))
    assert not any("precision=" in notice for notice in preflight.check_accelerator(chosen))


def test_doctor_says_it(machine, composed):
    machine()
    config = composed(*LOCATION, "precision=auto", name="x")
    found = {finding.claim: finding for finding in examine(config, config).findings}
    choice = found["precision=auto has a reason"]
    assert (choice.level, choice.counted) == ("green", settle_precision(config)[1])
    assert found["what differs from the defaults is meant"].counted == "none"
    assert "the machine suits cpu with precision=fp32" in found
    asked = {**config, "precision": FP32}
    assert "precision=auto has a reason" not in {finding.claim for finding in examine(asked, asked).findings}


def test_composing_measures_nothing_and_imports_no_torch():
    code = (
        "import sys\n"
        "from lightning_apps.train import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "experiment=location", WIDE, "--cfg", "job", "--package", "precision"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "# @package precision\nname: auto\nlightning: auto\nFalse\n"


@pytest.mark.slow
def test_processes_that_chose_differently_do_not_train(tmp_path, cache_root):
    words = [*RUN, "hardware=cpu_ddp", f"run.output_root={tmp_path}", f"run.cache_root={cache_root}", "run.name=two"]
    code = (
        "import os\n"
        "from lightning_apps.runs import precision\n"
        "precision.choose_bf16 = lambda config, accelerator: (os.environ['RANK'] == '1', 'it is so')\n"
        "from lightning_apps.train import main; main()"
    )
    ranks = start_ranks(2, [sys.executable, "-c", code, *words])
    said = [rank.communicate(timeout=PATIENCE_S)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert (
        "error: RankError: the processes of this run chose 32-true and bf16-mixed: their machines differ; give all of "
        "them one precision, such as precision=fp32\n"
    ) in said[0]
