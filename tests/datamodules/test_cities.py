import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.cities import (
    MAX_X,
    MAX_Y,
    cell_counts,
    cell_means,
    city_ids,
    country_continents,
    load_cities,
    shuffled_rows,
    to_milliradians,
    to_radians,
)


@pytest.mark.parametrize(
    ("place", "longitude", "latitude", "x", "y"),
    [
        # by hand: Paris 2.3522 deg = 0.041054 rad, + 3.141593 = 3.182646; 48.8566 deg = 0.852708, + 1.570796 = 2.423505
        ("Paris, north-east", 2.3522, 48.8566, 3182, 2423),
        # -43.1729 deg = -0.753509, + pi = 2.388083; -22.9068 deg = -0.399799, + pi/2 = 1.170997
        ("Rio de Janeiro, south-west", -43.1729, -22.9068, 2388, 1170),
        # 179.99 deg = 3.141418, + pi = 6.283011; 0.01 deg = 0.000175, + pi/2 = 1.570971
        ("just west of the date line, just north of the equator", 179.99, 0.01, 6283, 1570),
        # -179.99 deg = -3.141418, + pi = 0.000175; -0.1 deg = -0.001745, + pi/2 = 1.569051
        ("just east of the date line, just south of the equator", -179.99, -0.1, 0, 1569),
        ("the south pole", 0.0, -90.0, 3141, 0),
        ("the north pole", 0.0, 90.0, 3141, 3141),
    ],
)
def test_milliradians_of_places_worked_by_hand(place, longitude, latitude, x, y):
    measured = to_milliradians(np.array([longitude]), np.array([latitude]))
    assert [int(measured[0][0]), int(measured[1][0])] == [x, y], place


@given(st.floats(-180, 180), st.floats(-90, 90))
def test_milliradians_stay_on_the_globe_and_come_back(longitude, latitude):
    x, y = to_milliradians(np.array([longitude]), np.array([latitude]))
    assert 0 <= x[0] <= MAX_X
    assert 0 <= y[0] <= MAX_Y
    back = to_radians(x, y)[0]
    assert 0 <= math.radians(longitude) - back[0] < 0.001 + 1e-9
    assert 0 <= math.radians(latitude) - back[1] < 0.001 + 1e-9


@pytest.mark.parametrize(("min_population", "count"), [(500_000, 1183), (15_000, None), (5_000, None)])
def test_number_of_cities(min_population, count):
    cities = load_cities(min_population=min_population)
    assert count is None or len(cities) == count
    assert len(set(cities.geoname_id.tolist())) == len(cities)


@pytest.mark.slow
def test_the_smallest_places_number_over_195_000():
    assert len(load_cities(min_population=500)) > 195_000
    assert len(load_cities(min_population=1_000)) > 100_000


def test_filters():
    french = load_cities(min_population=500_000, countries=["FR"])
    assert set(french.country) == {"FR"}
    oceania = load_cities(min_population=500_000, continents=["OC"])
    assert set(oceania.country) == {"AU", "NZ"}
    with pytest.raises(ValueError, match=r"data\.countries: there is no 'XX'"):
        load_cities(min_population=500_000, countries=["XX"])
    with pytest.raises(ValueError, match=r"data\.continents: there is no 'EUR'; allowed are AF AN AS EU NA OC SA"):
        load_cities(min_population=500_000, continents=["EUR"])
    with pytest.raises(ValueError, match="leave no city"):
        load_cities(min_population=500_000, continents=["AN"])
    with pytest.raises(ValueError, match="from 500 up"):
        load_cities(min_population=100)


def test_spatial_ids_are_the_leading_digits():
    assert city_ids(np.array([3612, 50, 6283]), np.array([2554, 99, 3141]), scheme="spatial", seed=0) == [
        "3625",
        "0000",
        "6231",
    ]


def test_random_ids_are_unique_numbers_that_depend_on_the_seed():
    x = y = np.zeros(12_000, dtype=np.int64)
    ids = city_ids(x, y, scheme="random", seed=42)
    assert len(set(ids)) == 12_000
    assert {len(number) for number in ids} == {5}
    assert ids != city_ids(x, y, scheme="random", seed=43)
    assert {len(number) for number in city_ids(x[:10], y[:10], scheme="random", seed=42)} == {4}


def _best_split_gain(order, values):
    """Largest share of variance that cutting the order into ten runs explains; chance gives about 9 / (n - 1)."""
    runs = np.array_split(values[order], 10)
    between = sum(len(run) * (run.mean() - values.mean()) ** 2 for run in runs)
    return between / ((values - values.mean()) ** 2).sum()


def _neighbour_agreement(order, country):
    return float(np.mean(country[order][1:] == country[order][:-1]))


def test_neither_row_order_nor_random_id_tells_where_a_city_is():
    """GeoNames itself fails each of these; the shuffled rows and the random ids must not."""
    cities = load_cities(min_population=500_000)
    raw = np.arange(len(cities))
    share = np.unique(cities.country, return_counts=True)[1] / len(cities)
    chance_agreement = float((share**2).sum())
    spread = 4 * math.sqrt(chance_agreement * (1 - chance_agreement) / len(cities))
    chance_gain = 9 / (len(cities) - 1) * 3  # beyond the 99.9th percentile of the F(9, 1173) distribution
    assert _neighbour_agreement(raw, cities.country) > 0.8
    assert _best_split_gain(raw, cities.longitude_deg) > 10 * chance_gain

    shuffled = cities.take(shuffled_rows(len(cities), 42))
    x, y = to_milliradians(shuffled.longitude_deg, shuffled.latitude_deg)
    ids = np.array(city_ids(x, y, scheme="random", seed=42)).astype(int)
    for name, order in {"rows": np.arange(len(ids)), "ids": np.argsort(ids)}.items():
        assert abs(_neighbour_agreement(order, shuffled.country) - chance_agreement) < spread, name
        for values in (shuffled.longitude_deg, shuffled.latitude_deg):
            assert _best_split_gain(order, values) < chance_gain, name
    # nor do the digits of an id: no digit position explains longitude
    for digit in range(4):
        groups = ids // 10**digit % 10
        order = np.argsort(groups, kind="stable")
        assert _best_split_gain(order, shuffled.longitude_deg) < chance_gain
    # and ids are not the row numbers in disguise
    assert abs(np.corrcoef(ids, np.arange(len(ids)))[0, 1]) < 4 / math.sqrt(len(ids))


def test_cell_means_by_hand():
    x, y = cell_means(
        np.array([120, 120, 950]), np.array([10, 210, 10]), np.array([110, 130, 199]), np.array([5, 15, 205])
    )
    assert x.tolist() == [120.0, 199.0, 950.0]
    assert y.tolist() == [10.0, 205.0, 50.0]
    # the highest cell of a column is not the lowest of the next
    x, y = cell_means(np.array([120]), np.array([10]), np.array([50]), np.array([205]))
    assert (x.tolist(), y.tolist()) == ([150.0], [50.0])


def test_cell_counts_by_hand():
    # training cities in cells (0, 0), (0, 0), (1, 0) and (0, 2); asked in (0, 0), (1, 0), (1, 2) and far away
    counts = cell_counts(
        np.array([99, 100, 150, 6283]),
        np.array([0, 99, 250, 3141]),
        np.array([0, 50, 199, 20]),
        np.array([1, 2, 3, 200]),
    )
    assert counts.tolist() == [2, 1, 0, 0]


def test_each_country_lies_on_a_continent():
    continents = country_continents()
    assert [continents[code] for code in ("FR", "JP", "BR", "NG", "US", "AU", "AQ")] == [
        "EU",
        "AS",
        "SA",
        "AF",
        "NA",
        "OC",
        "AN",
    ]
