"""Groups of answers by continent and density."""

import numpy as np
from matplotlib.figure import Figure

from lightning_apps.experiments.location.errors_by_place import by_continent, by_density, draw_groups


def row(continent, cities_in_cell, score, cell_mean_km=200.0):
    return {
        "continent": continent, "cities_in_cell": cities_in_cell, "score": score, "cell_mean_km": cell_mean_km,
    }  # fmt: skip


ROWS = [
    row("EU", 0, 100.0, 50.0),
    row("AS", 1, 300.0),
    row("EU", 2, 200.0, 150.0),
    row("EU", 3, None, 250.0),
    row(None, 4, 10.0),
    row("XX", 64, 5.0),
]


def test_continents_come_by_number_of_cities():
    groups = by_continent(ROWS)
    assert [(group.name, len(group.distances_km)) for group in groups] == [("Europe", 3), ("Asia", 1), ("elsewhere", 1)]
    europe = groups[0]
    assert europe.distances_km.tolist() == [100.0, 200.0, 20_015.0]  # no place counts half the Earth's circumference
    assert (europe.median_km, europe.cell_mean_km) == (200.0, 150.0)
    assert europe.interval_km == (100.0, 20_015.0)
    assert groups[1].interval_km == (300.0, 300.0)


def test_densities_double():
    groups = by_density(ROWS)
    assert [group.name for group in groups] == ["0", "1", "2 to 3", "4 to 7", "64 to 127"]
    assert [len(group.distances_km) for group in groups] == [1, 1, 2, 1, 1]


def test_random_ids_have_no_limit_and_older_rows_no_group():
    assert by_continent([row("AF", 1, 3.0, None)])[0].cell_mean_km is None
    assert by_continent([{"score": 1.0}]) == by_density([{"score": 1.0}]) == []


def test_marks_of_a_picture():
    axes = Figure().add_subplot()
    draw_groups(axes, by_continent(ROWS), title="Distance by continent", kind="")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Europe (3)", "Asia (1)", "elsewhere (1)"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "a city", "median with 95 % interval", "hint limit, cell mean",
    ]  # fmt: skip
    vermillion = [line.get_xdata() for line in axes.lines if line.get_color() == "#D55E00"]
    medians = [list(found) for found in vermillion if len(found) == 1]
    np.testing.assert_array_equal(medians, [[200.0], [300.0], [5.0]])
    empty = Figure().add_subplot()
    draw_groups(empty, [], title="Distance by continent", kind="")
    assert [text.get_text() for text in empty.texts] == ["no answers yet"]
