"""Processes that are forked from one that has imported: real ones, with their own exit codes, words and environment."""

import json
import os
import signal
import subprocess
import sys

import pytest

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
DRIVER = """
import json, os
from lightning_apps.process.preloaded import preload, run_preloaded
if __name__ == "__main__":
    preload(["program_of_a_test", "nothing_is_called_so"])
    done = [
        run_preloaded("program_of_a_test", [word, "x y"], {**os.environ, "WORD": f"of {word}"})
        for word in ("0", "2", "kill", "1")
    ]
    print(json.dumps([os.getpid(), [[entry.returncode, entry.stdout] for entry in done]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process imports for itself")
def test_exit_codes_words_and_environment_are_a_process_own(tmp_path):
    (tmp_path / "program_of_a_test.py").write_text(PROGRAM)
    (tmp_path / "driver.py").write_text(DRIVER)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, str(tmp_path / "driver.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=True)
    driver, found = json.loads(done.stdout)
    assert done.stderr == ""
    assert [code for code, _ in found] == [0, 2, -signal.SIGKILL, 1]
    loaded, pids = set(), set()
    for word, (_, said) in zip(("0", "2", "kill", "1"), found, strict=True):
        first, second = said.splitlines()
        loaded_by, pid, rest = first.split(" ", 2)
        assert rest == f"of {word} ['{word}', 'x y']"
        assert second == "and this"
        loaded.add(int(loaded_by))
        pids.add(int(pid))
    assert len(loaded) == 1  # imported once, by the server
    assert len(pids) == 4
    assert not loaded & {*pids, driver}
