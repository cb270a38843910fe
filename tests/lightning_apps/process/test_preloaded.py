"""Processes that are forked from one that has imported: real ones, with their own exit codes, words and environment."""

import os
import signal
import sys

import pytest

from lightning_apps.process.preloaded import preload, run_preloaded

PROGRAM = """
import os, signal, sys
LOADED_BY = os.getpid()
def main():
    print(LOADED_BY, os.getpid(), os.environ["WORD"], sys.argv[1:], flush=True)
    os.write(2, b"and this\\n")
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preloaded")
    (folder / "program_of_a_test.py").write_text(PROGRAM)
    sys.path.insert(0, str(folder))  # the server and its processes take it over
    preload(["program_of_a_test", "nothing_is_called_so"])
    yield "program_of_a_test"
    sys.path.remove(str(folder))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process imports for itself")
def test_exit_codes_words_and_environment_are_a_process_own(program):
    loaded, pids = set(), set()
    for word, code in (("0", 0), ("2", 2), ("kill", -signal.SIGKILL), ("1", 1)):
        done = run_preloaded(program, [word, "x y"], {**os.environ, "WORD": f"of {word}"})
        assert done.returncode == code
        first, second = done.stdout.splitlines()
        loaded_by, pid, rest = first.split(" ", 2)
        assert rest == f"of {word} ['{word}', 'x y']"
        assert second == "and this"
        loaded.add(int(loaded_by))
        pids.add(int(pid))
    assert len(loaded) == 1  # imported once, by the server
    assert len(pids) == 4
    assert not loaded & {*pids, os.getpid()}
    assert "WORD" not in os.environ
