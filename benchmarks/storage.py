"""Throughput of upload_folder and download_folder against the server of the AWS environment.

    python -m benchmarks.storage s3://bucket/prefix --megabytes 500 --repeats 3

Random bytes go there and come back, in one large file and 200 small ones; an empty file is left in their place. The
last line is a second upload, which has nothing to send.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from datamodules.storage.folders import download_folder, upload_folder

NUM_SMALL, SMALL_BYTES = 200, 20_000


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url")
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"upload": [], "download": [], "upload again": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder, copy = Path(scratch, "local"), Path(scratch, "copy")
        folder.mkdir()
        for _ in range(options.repeats):
            (folder / "tokens.bin").write_bytes(os.urandom(options.megabytes * 1_000_000))
            for number in range(NUM_SMALL):
                (folder / f"small-{number}").write_bytes(os.urandom(SMALL_BYTES))
            seconds["upload"].append(timed(lambda: upload_folder(folder, options.url)))
            seconds["download"].append(timed(lambda: download_folder(options.url, copy)))
            seconds["upload again"].append(timed(lambda: upload_folder(folder, options.url)))
            shutil.rmtree(copy)
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "nothing").touch()
        upload_folder(folder, options.url)
    megabytes = options.megabytes + NUM_SMALL * SMALL_BYTES / 1e6
    for name, values in seconds.items():
        rates = sorted(megabytes / value for value in values)
        print(f"{name:12}  {megabytes:,.0f} MB in {', '.join(f'{value:.2f}' for value in values)} s: ", end="")
        print(f"{rates[len(rates) // 2]:,.0f} MB/s ({rates[0]:,.0f} to {rates[-1]:,.0f})")


if __name__ == "__main__":
    main()
