"""Numbers on the page: an interval stands only where there is one."""

from math import nan

from lightning_apps.explanations.check_tables import difference, spelt
from lightning_apps.explanations.files import against_random


def test_one_document_has_no_interval():
    change = {"value": -0.25, "low": nan, "high": nan}
    entry = {"value": 0.5, "low": nan, "high": nan, "minus_random": change}
    assert spelt(entry) == "0.500"
    assert against_random(entry) == "0.500, -0.250 to random"
    assert difference(entry) == "-0.250"
    assert against_random({"value": 0.5, "low": nan, "high": nan}) == "0.500"


def test_several_have():
    change = {"value": -0.25, "low": -0.5, "high": 0.125}
    entry = {"value": 0.5, "low": 0.25, "high": 0.75, "minus_random": change}
    assert difference(entry) == "-0.250 (-0.500 to +0.125)"
    assert spelt(entry, 2) == "0.50 (0.25 to 0.75)"
