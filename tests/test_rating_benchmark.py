"""The benchmark's plain loop is the same training: where nothing is dropped out, so are the losses."""

import json
import subprocess
import sys
from argparse import Namespace

import pytest

from benchmarks import rating


@pytest.fixture(scope="module")
def options(cache_root):
    return Namespace(data="planted", model="tiny", precision="fp32", device="cpu", steps=2, cache_root=str(cache_root))


def test_the_plain_loop_trains_as_we_do(options):
    command = [sys.executable, "-m", "benchmarks.rating", "--plain", "exact", "--data", "planted", "--model", "tiny",
               "--steps", "2", "--cache-root", options.cache_root]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peer = json.loads(done.stdout.splitlines()[-1])
    ours = rating.our_run(options, rating.COMPARISONS["exact"][0], 0)
    assert peer["losses"] == pytest.approx(ours["losses"], rel=1e-5)
    assert len(peer["losses"]) == 3
    for found in (peer, ours):
        assert found["documents_per_s"] > 0
        assert found["peak_bytes"] > 1e8
