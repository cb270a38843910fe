import json
from pathlib import Path

import pytest

from benchmarks.board import LOCATION, LOCATION_TRAINER, PAGE, RECIPES, RESULTS, TRAINER, cell, location_table, page

ROOT = Path(__file__).parents[2]


def test_a_cell_has_mean_interval_and_the_test_against_the_line_before():
    assert cell([], []) == ""
    assert cell([2.0], [3.0, 3.1]) == "2.000"
    # by hand: s = 0.1, t(0.975, 2) = 4.3027, half = 4.3027 * 0.1 / sqrt(3) = 0.2484
    assert cell([1.9, 2.0, 2.1], []) == "2.000 (1.752 to 2.248)"
    assert cell([1.9, 2.0, 2.1], [2.9, 3.0, 3.1]) == "2.000 (1.752 to 2.248) [p < 0.001]"  # t = -12.2 with 4 degrees
    assert cell([1.9, 2.0, 2.1], [1.9, 2.0, 2.1]).endswith("[p = 1]")


def test_a_line_names_recipe_overrides_and_when_it_was_measured():
    line = {"commit": "abc1234", "date": "2026-01-02", "step_s": 0.62345, "machine": "Some CPU"}
    results = {
        "arxiv": {
            TRAINER: {**line, "overrides": [], "budgets": {"60": {"steps": 9, "bits_per_byte": {"0": 3.0, "1": 3.1}}}},
            "+ small": {**line, "overrides": ["model=modern_small", "optimizer=muon"], "budgets": {}},
        },
        "location": {},
    }
    rows = [row for row in page(results).splitlines() if row.startswith("| ")]
    assert rows[0] == "| recipe | overrides | s a step | 60 s | commit, date |"
    assert rows[2] == f"| {TRAINER} | its own | 0.623 | 3.050 (2.415 to 3.685) | abc1234, 2026-01-02 |"
    assert rows[3] == "| + small | `model=modern_small` `optimizer=muon` | 0.623 |  | abc1234, 2026-01-02 |"


def test_a_line_of_location_is_tested_against_the_one_before_and_says_who_never_arrived():
    def line(reached, last):
        runs = {
            str(seed): {"reached_s": seconds, "train_s": 20.0, "last_km": last} for seed, seconds in enumerate(reached)
        }
        return {"overrides": ["a=1"], "seeds": runs, "commit": "abc1234", "date": "2026-01-02", "machine": "Some CPU"}

    results = {"first": line([9.0, 10.0, 11.0], 210.0), "late": line([9.0, None], 260.0), "last": line([1.0, 2.0], 1.0)}
    first, late, last = location_table(results)[-3:]
    # by hand: s = 1, half = 4.3027 / sqrt(3) = 2.484
    assert first.split(" | ")[1:4] == ["`a=1`", "10.0 (7.5 to 12.5)", "20.0 (20.0 to 20.0)"]
    assert late.split(" | ")[2:] == [
        "1 of 2 seeds are there",
        "20.0 (20.0 to 20.0)",
        "260 (260 to 260)",
        "abc1234, 2026-01-02 |",
    ]
    assert "[p" not in last  # there is nothing to test against
    tested = location_table({"first": results["first"], "last": line([1.0, 2.0, 3.0], 210.0)})[-1]
    assert tested.split(" | ")[2] == "2.0 (-0.5 to 4.5) [p < 0.001]"  # t = -9.8 with 4 degrees of freedom


@pytest.mark.skipif(not (ROOT / RESULTS).is_file(), reason="the board has not been measured yet")
def test_the_page_is_what_the_results_say():
    results = json.loads((ROOT / RESULTS).read_text(encoding="utf-8"))
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(results)
    assert set(results["arxiv"]) <= set(RECIPES)
    assert all(line["overrides"] == RECIPES[recipe] for recipe, line in results["arxiv"].items())
    assert {recipe: line["overrides"] for recipe, line in results["location"].items()} == LOCATION


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes(composed, recipe):
    from benchmarks.board import overrides

    config = composed(*overrides(recipe, seed=1, steps=7, data="x"))
    assert (config["experiment"], config["seed"], config["trainer"]["max_steps"]) == ("arxiv", 1, 7)


@pytest.mark.parametrize("recipe", [name for name in LOCATION if name != LOCATION_TRAINER])
def test_every_recipe_of_location_composes(composed, recipe):
    assert composed(*LOCATION[recipe])["experiment"] == "location"
