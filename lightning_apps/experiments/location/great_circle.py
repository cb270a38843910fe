"""Distances on the globe, and how well answers like `3612,2554` hit their cities."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.cities import CELL, MAX_X, MAX_Y, cell_means, to_radians
from lightning_apps.statistics.bootstrap import bootstrap_interval

EARTH_RADIUS_KM = 6371.0088
"""IUGG mean radius R1 = (2a + b) / 3."""
ANTIPODE_KM = 20_015.0
"""What an answer that names no place counts in the penalized metrics: half the Earth's circumference."""
ANSWER = re.compile(r"(\d{4}),(\d{4})", re.ASCII)


def haversine_km(predicted: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Great-circle distance on a sphere of radius 6371.0088 km (IUGG mean radius).

    Args:
        predicted: (..., 2) longitude, latitude in radians.
        target: (..., 2) longitude, latitude in radians.

    Returns:
        (...) distances in km; NaN in gives NaN out.
    """
    delta = predicted - target
    chord = (
        np.sin(delta[..., 1] / 2) ** 2
        + np.cos(predicted[..., 1]) * np.cos(target[..., 1]) * np.sin(delta[..., 0] / 2) ** 2
    )
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(chord, 0, 1)))


def parse_answer(answer: str) -> tuple[int, int] | None:
    """Milliradians x, y of an answer, or None where it is not `dddd,dddd` on the globe."""
    match = ANSWER.fullmatch(answer)
    if match is None:
        return None
    x, y = int(match[1]), int(match[2])
    return (x, y) if x <= MAX_X and y <= MAX_Y else None


def answer_distances_km(answers: Sequence[str], x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distance of each answer from its city, (n,) km; NaN where the answer names no place on the globe."""
    parsed = [parse_answer(answer) or (np.nan, np.nan) for answer in answers]
    predicted = np.array(parsed, dtype=np.float64).reshape(-1, 2)
    return haversine_km(to_radians(predicted[:, 0], predicted[:, 1]), to_radians(x, y))


def location_metrics(distances_km: NDArray[np.float64]) -> dict[str, float]:
    """Summary of distances (n,) in which NaN marks an answer that names no place.

    Plain statistics are over the valid answers (NaN where there is none); `penalized` ones count every other answer
    as 20,015 km. The interval is a 95 % percentile bootstrap over all answers.
    """
    valid = distances_km[~np.isnan(distances_km)]
    penalized = np.where(np.isnan(distances_km), ANTIPODE_KM, distances_km)
    low, high = bootstrap_interval(penalized, np.median)
    statistics: dict[str, Any] = {"median": np.median, "mean": np.mean, "std": np.std, "min": np.min, "max": np.max}
    return {
        **{
            f"haversine_km_{name}": float(statistic(valid)) if len(valid) else float("nan")
            for name, statistic in statistics.items()
        },
        "haversine_km_median_penalized": float(np.median(penalized)),
        "haversine_km_mean_penalized": float(penalized.mean()),
        "haversine_km_median_low": low,
        "haversine_km_median_high": high,
        "valid_ratio": len(valid) / len(distances_km),
    }


def chance_km(
    x: NDArray[np.int64], y: NDArray[np.int64], train_x: NDArray[np.int64], train_y: NDArray[np.int64]
) -> float:
    """Median distance when a random training city is the answer: over all pairs, so there is no draw in it.

    More than two thousand training cities are thinned evenly, which moves the median by less than one per cent.

    Args:
        x: (n,) milliradians, 0 to 6283, of the cities that are asked for.
        y: (n,) milliradians, 0 to 3141.
        train_x: (m,) milliradians of the training cities.
        train_y: (m,) milliradians of the training cities.
    """
    rows = np.linspace(0, len(train_x) - 1, min(len(train_x), 2000)).astype(np.int64)
    return float(np.median(haversine_km(to_radians(train_x[rows], train_y[rows])[None], to_radians(x, y)[:, None])))


def hint_distances_km(
    x: NDArray[np.int64], y: NDArray[np.int64], train_x: NDArray[np.int64], train_y: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Distances that a spatial id alone allows: answering the cell's centre, or its training cities' mean.

    Args:
        x: (n,) milliradians, 0 to 6283, of the cities that are asked for.
        y: (n,) milliradians, 0 to 3141.
        train_x: (m,) milliradians of the training cities.
        train_y: (m,) milliradians of the training cities.

    Returns:
        `cell_centre` and `cell_mean`, (n,) km each.
    """
    truth = to_radians(x, y)
    centre = to_radians(x // CELL * CELL + CELL / 2, y // CELL * CELL + CELL / 2)
    mean = to_radians(*cell_means(x, y, train_x, train_y))
    return {"cell_centre": haversine_km(centre, truth), "cell_mean": haversine_km(mean, truth)}


def hint_limits_km(
    x: NDArray[np.int64], y: NDArray[np.int64], train_x: NDArray[np.int64], train_y: NDArray[np.int64]
) -> dict[str, float]:
    """Medians of hint_distances_km."""
    return {name: float(np.median(km)) for name, km in hint_distances_km(x, y, train_x, train_y).items()}
