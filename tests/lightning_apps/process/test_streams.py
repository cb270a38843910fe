"""No text, no encoding and no closed pipe breaks a command."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_apps.process.console import log_file_only, open_console, say
from lightning_apps.process.streams import SteadyStream

TEXT = "\ud800 ⟦trained⟧ … é"
SPEAK = f"""
import sys
from pathlib import Path
from lightning_apps.process.console import say, open_console
from lightning_apps.process.streams import steady_streams
steady_streams()
open_console()
text = {TEXT!r}
for _ in range(3):
    say(text)
    print(text)
    print(text, file=sys.stderr)
    sys.stdout.flush()
print("the end")
sys.exit(7)
"""


def speak(encoding="utf-8", **options):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    return subprocess.run([sys.executable, "-c", SPEAK], env=environment, capture_output=not options, **options)


@pytest.mark.parametrize(
    ("encoding", "line"),
    [
        ("utf-8", b"\\ud800 \xe2\x9f\xa6trained\xe2\x9f\xa7 \xe2\x80\xa6 \xc3\xa9"),
        ("latin-1", b"\\ud800 \\u27e6trained\\u27e7 \\u2026 \xe9"),
        ("ascii", b"\\ud800 \\u27e6trained\\u27e7 \\u2026 \\xe9"),
    ],
)
def test_what_an_encoding_lacks_is_shown_as_an_escape(encoding, line):
    done = speak(encoding)
    assert done.returncode == 7
    assert done.stdout.splitlines() == [line] * 6 + [b"the end"]
    assert done.stderr.splitlines() == [line] * 3


def test_a_pipe_that_nobody_reads_any_more(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with (tmp_path / "err").open("wb") as err:
        done = speak(stdout=writer, stderr=err)
    os.close(writer)
    assert done.returncode == 7
    assert b"Traceback" not in (tmp_path / "err").read_bytes()
    assert b"BrokenPipe" not in (tmp_path / "err").read_bytes()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "> /dev/full"])
def test_outputs_that_the_shell_closed_or_a_full_disk(closed, tmp_path):
    (tmp_path / "speak.py").write_text(SPEAK)
    command = f"{sys.executable} {tmp_path / 'speak.py'} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    assert done.returncode == 7
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_a_stream_that_cannot_be_reconfigured():
    class Narrow(io.StringIO):
        def write(self, text):
            text.encode("ascii")
            return super().write(text)

    narrow = Narrow()
    stream = SteadyStream(narrow)
    assert stream.write("a…\n") == 3
    narrow_value = narrow.getvalue()
    narrow.close()
    stream.write("b")
    stream.flush()
    assert narrow_value == "a\\u2026\n"
    assert not stream.isatty()


def test_train_log_takes_any_text_and_a_full_disk(tmp_path, capsys):
    path = tmp_path / "train.log"
    open_console(path)
    say("half \ud800")
    log_file_only("\udfff")
    open_console()
    assert [line.partition(",")[2][4:] for line in path.read_text().splitlines()] == ["half \\ud800", "\\udfff"]
    assert capsys.readouterr().out == "half \\ud800\n"
    full = tmp_path / "full.log"
    full.symlink_to("/dev/full")
    open_console(full)
    say("nobody keeps this")
    open_console()
    assert capsys.readouterr() == ("nobody keeps this\n", "")
    assert logging.raiseExceptions  # nobody else's logging was silenced
