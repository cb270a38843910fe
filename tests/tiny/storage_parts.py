"""What tests of the object store share: sizes, options, and a bar that acts in the middle of a transfer."""

from datamodules.storage.folders import (
    TransferOptions,
)
from tests.fakes.s3_server import BUCKET

URL = f"s3://{BUCKET}/some/prefix"
MIB = 1 << 20
PART = 200_000  # rclone takes parts of any size; AWS would want 5 MiB
LARGE = 2 * PART + 17
QUICK = TransferOptions(patience_s=16.0, attempts=2, first_delay_s=0.01, part_bytes=PART, threads=1)
PATIENT = TransferOptions(patience_s=16.0, attempts=3, first_delay_s=0.01, part_bytes=PART, threads=4)


class Hook:
    """Stands in for tqdm: calls `act` at the n-th move of the bar with this description."""

    def __init__(self, description, moves, act):
        self.description, self.moves, self.act = description, moves, act
        self.current, self.seen = "", []

    def __call__(self, *, total, desc, **_):
        self.current = desc
        return self

    def update(self, num_bytes):
        if self.current == self.description:
            self.seen.append(num_bytes)
            if len(self.seen) == self.moves:
                self.act()

    def close(self):
        pass


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "COMPLETE"
    }


def marker_of(s3, prefix="some/prefix"):
    return s3.path(f"{prefix}/COMPLETE")
