from pathlib import Path

import pytest

from lightning_apps.config.open_run import open_run
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.atomic_files import write_text_atomically
from lightning_apps.run_files.directory import (
    RunDirectory,
    check_overwrite,
    check_start,
    check_writable,
    clear,
    locate_run,
    results_folder,
)

CONFIG = "experiment: location\nrun: {}\ntrainer: {}\n"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "outputs"


def settings(root, **changes):
    return {"output_root": str(root), "name": "a", "resume": None, "overwrite": False, **changes}


def made_run(root, name="a"):
    directory = RunDirectory(root / "location" / name)
    directory.checkpoints.mkdir(parents=True)
    directory.config.write_text(CONFIG)
    directory.metrics.write_text("step\n")
    (directory.checkpoints / "last.ckpt").write_bytes(b"x")
    return directory


def test_a_fresh_directory_may_be_used(root):
    check_start(locate_run(settings(root), "location"), settings(root))


def test_another_run_is_not_touched_unless_asked(root):
    directory = made_run(root)
    with pytest.raises(ConfigError, match=r"run\.resume=auto.*run\.overwrite=true"):
        check_start(directory, settings(root))
    check_start(directory, settings(root, resume="auto"))
    check_start(directory, settings(root, overwrite=True))


def test_overwriting_deletes_what_a_run_wrote_and_nothing_else(root):
    directory = made_run(root)
    (directory.path / "notes.txt").write_text("mine")
    neighbour = made_run(root, "b")
    clear(directory, root)
    assert [entry.name for entry in directory.path.iterdir()] == ["notes.txt"]
    assert (neighbour.checkpoints / "last.ckpt").exists()


def test_overwriting_refuses_a_folder_that_is_no_run(root):
    directory = RunDirectory(root / "location" / "a")
    directory.path.mkdir(parents=True)
    (directory.path / "thesis.tex").write_text("years of work")
    for config in (None, "- a list\n", "other: yaml\n", "{broken"):
        if config is not None:
            directory.config.write_text(config)
        with pytest.raises(ConfigError, match=r"no config\.yaml of a run"):
            clear(directory, root)
    assert (directory.path / "thesis.tex").exists()


def test_overwriting_refuses_symlinks(root, tmp_path):
    elsewhere = made_run(tmp_path / "elsewhere")
    (root / "location").mkdir(parents=True)
    (root / "location" / "a").symlink_to(elsewhere.path)
    with pytest.raises(ConfigError, match="symlink"):
        locate_run(settings(root), "location")
    with pytest.raises(ConfigError, match="symlink"):
        clear(RunDirectory(root / "location" / "a"), root)
    assert elsewhere.metrics.exists()


def test_a_symlink_inside_the_run_is_removed_without_following_it(root, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("x")
    directory = made_run(root)
    directory.model.symlink_to(precious)
    clear(directory, root)
    assert not directory.model.exists()
    assert (precious / "data").exists()


@pytest.mark.parametrize("output_root", ["/", str(Path.home())])
def test_overwriting_refuses_the_root_and_the_home_folder(output_root):
    with pytest.raises(ConfigError, match="root or home folder"):
        check_overwrite(RunDirectory(Path(output_root) / "location" / "a"), Path(output_root))


def test_overwriting_refuses_what_lies_outside_the_root(root, tmp_path):
    outside = made_run(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not inside"):
        clear(outside, root)
    with pytest.raises(ConfigError, match="not inside"):
        clear(RunDirectory(root), root)


def test_checkpoints_by_name(root):
    directory = made_run(root)
    (directory.checkpoints / "step=00000120.ckpt").write_bytes(b"x")
    assert directory.checkpoint("last").name == "last.ckpt"
    assert directory.checkpoint("120").name == "step=00000120.ckpt"
    with pytest.raises(ConfigError, match=r"checkpoint=best.*there are: last\.ckpt, step=00000120\.ckpt"):
        directory.checkpoint("best")


def strangers_run(path):
    """A run directory with links to what is not its own, and the files that they lead to."""
    victim, elsewhere = path.parent / "victim", path.parent / "elsewhere"
    victim.write_text("precious")
    elsewhere.mkdir()
    directory = RunDirectory(path)
    path.mkdir()
    directory.config.write_text(CONFIG)
    return directory, victim, elsewhere


def test_a_link_with_the_name_of_a_file_aside_is_not_written_through(tmp_path):
    directory, victim, _ = strangers_run(tmp_path / "run")
    (directory.path / ".report.html.part").symlink_to(victim)
    (directory.path / "report.html").symlink_to(victim)
    write_text_atomically(directory.path / "report.html", "page")
    assert victim.read_text() == "precious"
    assert (directory.path / "report.html").read_text() == "page"
    assert not (directory.path / "report.html").is_symlink()


@pytest.mark.parametrize("link", ["evaluations", "evaluations/validation-best"])
def test_results_are_not_written_through_links(link, tmp_path):
    directory, _, elsewhere = strangers_run(tmp_path / "run")
    (directory.path / link).parent.mkdir(exist_ok=True)
    (directory.path / link).symlink_to(elsewhere)
    folder = directory.evaluations / "validation-best"
    with pytest.raises(ConfigError, match=r"validation-best leads out of the run, to .*elsewhere.* \(a link\).*out="):
        results_folder(directory, folder, None)
    assert results_folder(directory, folder, str(tmp_path / "mine")) == tmp_path / "mine" / "validation-best"
    assert list(elsewhere.iterdir()) == []


def test_a_configuration_or_a_log_that_lies_elsewhere(tmp_path):
    directory, victim, _ = strangers_run(tmp_path / "run")
    directory.config.rename(tmp_path / "config.yaml")
    directory.config.symlink_to(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"config\.yaml is a link out of the run"):
        open_run(str(directory.path))
    directory.config.unlink()
    (tmp_path / "config.yaml").rename(directory.config)
    directory.log.symlink_to(victim)
    run = {"output_root": str(tmp_path), "name": "run", "resume": "auto", "overwrite": False}
    with pytest.raises(ConfigError, match=r"train\.log is a link out of the run, to .*victim"):
        check_start(directory, run)
    directory.log.unlink()
    directory.log.symlink_to(directory.config)  # within the run
    check_start(directory, run)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be made: .*file is a file; choose another run\.output_root"):
        check_start(RunDirectory(tmp_path / "file" / "x" / "a"), {"resume": None, "overwrite": False})
    with pytest.raises(ConfigError, match=r"/proc cannot be written: .*; out=\.\.\. writes elsewhere"):
        check_writable(Path("/proc/nothing/there"), "out=... writes elsewhere")
    check_writable(tmp_path / "a" / "b", "")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
