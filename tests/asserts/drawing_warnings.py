"""A picture is drawn without a warning."""

import pytest

drawing_warnings_fail = pytest.mark.filterwarnings(
    "error",
    # the garbage collector may close what an earlier test left open while a picture is drawn
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
