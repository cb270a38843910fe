import math

import numpy as np
import pytest

from lightning_apps.experiments.location.great_circle import (
    EARTH_RADIUS_KM,
    answer_distances_km,
    chance_km,
    haversine_km,
    hint_limits_km,
    location_metrics,
    parse_answer,
)
from lightning_apps.statistics.bootstrap import bootstrap_interval

pytestmark = pytest.mark.numeric


def radians(*longitude_latitude):
    return np.radians(np.array(longitude_latitude, dtype=float))


@pytest.mark.parametrize(
    ("start", "end", "km"),
    [
        # great-circle distances between airports, published to the kilometre on the mean sphere
        ((-73.7789, 40.6398), (-0.4614, 51.4706), 5540),  # JFK - LHR
        ((-118.4085, 33.9416), (-73.7789, 40.6398), 3974),  # LAX - JFK
        ((151.1772, -33.9461), (-118.4085, 33.9416), 12062),  # SYD - LAX, over the date line
        ((0.0, 0.0), (180.0, 0.0), math.pi * EARTH_RADIUS_KM),
        ((0.0, 90.0), (77.0, -90.0), math.pi * EARTH_RADIUS_KM),
        ((179.5, 0.0), (-179.5, 0.0), math.pi * EARTH_RADIUS_KM / 180),
    ],
)
def test_published_distances(start, end, km):
    assert haversine_km(radians(*start), radians(*end)) == pytest.approx(km, rel=2e-3)


def test_distance_is_zero_symmetric_and_keeps_nan():
    here, there = radians(10, 20), radians(30, -40)
    assert haversine_km(here, here) == 0
    assert haversine_km(here, there) == haversine_km(there, here)
    assert math.isnan(haversine_km(np.array([math.nan, 0.0]), there))


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [
        ("3612,2554", (3612, 2554)),
        ("0000,0000", (0, 0)),
        ("6283,3141", (6283, 3141)),
        ("6284,0000", None),
        ("0000,3142", None),
        ("361,2554", None),
        ("3612,25541", None),
        ("3612,2554,", None),
        (" 3612,2554", None),
        ("3612.2554", None),
        ("", None),
        ("٣٦١٢,2554", None),
    ],
)
def test_answers_are_places_or_nothing(answer, parsed):
    assert parse_answer(answer) == parsed


def test_answers_that_name_no_place_are_counted():
    x, y = np.array([3141, 3141, 3141, 3141]), np.array([1570, 1570, 1570, 1570])
    distances = answer_distances_km(["3141,1570", "3241,1570", "!!!!", "9999,0000"], x, y)
    assert distances[0] == 0
    assert distances[1] == pytest.approx(637.1, abs=0.1)  # a tenth of a radian along the equator
    assert np.isnan(distances[2:]).all()
    metrics = location_metrics(distances)
    assert metrics["valid_ratio"] == 0.5
    assert metrics["haversine_km_median"] == pytest.approx(318.55, abs=0.05)
    assert metrics["haversine_km_median_penalized"] == pytest.approx((637.1 + 20015) / 2, abs=0.1)
    assert metrics["haversine_km_mean_penalized"] == pytest.approx((0 + 637.1 + 2 * 20015) / 4, abs=0.1)
    assert metrics["haversine_km_max"] == pytest.approx(637.1, abs=0.1)


def test_no_valid_answer_gives_nan_beside_the_penalty():
    metrics = location_metrics(np.array([np.nan, np.nan]))
    assert math.isnan(metrics["haversine_km_median"])
    assert metrics["haversine_km_median_penalized"] == 20015
    assert metrics["valid_ratio"] == 0


def test_references_on_real_cities():
    """The figures that the experiment's issue names for the split of seed 42."""
    from datamodules.cities import load_cities, shuffled_rows, to_milliradians

    cities = load_cities(min_population=500_000)
    cities = cities.take(shuffled_rows(len(cities), 42))
    x, y = to_milliradians(cities.longitude_deg, cities.latitude_deg)
    limits = hint_limits_km(x[:128], y[:128], x[128:], y[128:])
    assert limits == {"cell_centre": pytest.approx(233, abs=0.5), "cell_mean": pytest.approx(196, abs=0.5)}
    assert chance_km(x[:128], y[:128], x[128:], y[128:]) == pytest.approx(6900, rel=0.02)


def test_bootstrap_interval():
    values = np.random.default_rng(0).normal(10, 2, 400)
    low, high = bootstrap_interval(values, np.mean)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)
    assert bootstrap_interval(values, np.mean) == (low, high)
    assert bootstrap_interval(np.full(5, 3.0), np.median) == (3.0, 3.0)
