import math
from pathlib import Path

import pytest

from benchmarks.growth import MEMORY_SIZES, STEP_AXES, row, words


def test_a_row_has_the_exponent_with_its_interval_and_that_of_the_last_doubling():
    exact = row("cost", [1, 2, 4, 8], [1, 4, 16, 64])
    assert exact == "| cost | 1, 2, 4, 8 | 1, 4, 16, 64 | 2.00 (2.00 to 2.00) | 2.00 |"
    # by hand, in doublings: y = 0, 0, 1, 2 over x = 0, 1, 2, 3: slope 3.5 / 5 = 0.7, squared residuals 0.3,
    # error sqrt(0.3 / 2 / 5) = 0.1732, t(0.975, 2) = 4.3027, half 0.745
    bent = row("cost", [1000, 2000, 4000, 8000], [0.1, 0.1, 0.2, 0.4])
    assert bent == "| cost | 1,000, 2,000, 4,000, 8,000 | 0.1, 0.1, 0.2, 0.4 | 0.70 (-0.05 to 1.45) | 1.00 |"


@pytest.mark.parametrize("axis", STEP_AXES)
def test_every_size_composes(composed, axis):
    _, size_at, setting = STEP_AXES[axis]
    config = composed(*words(Path("x"), Path("y"), setting.format(size_at(8))))
    key = setting.removesuffix("={}")
    group, name = key.split(".")
    assert config[group][name] == size_at(8) == 8 * size_at(1)


def test_memory_doubles():
    assert all(math.log2(size) == place for place, size in enumerate(MEMORY_SIZES))
