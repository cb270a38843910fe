"""Picture of a `location` run: losses, distances, and the answers on the map."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import IdentityTransform
from numpy.typing import NDArray

from datamodules.cities import to_radians
from lightning_apps.experiments.location.errors_by_place import SMALLEST_KM, by_continent, by_density, draw_groups
from lightning_apps.experiments.location.great_circle import parse_answer
from lightning_apps.figures.curves import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    TITLE_PAD,
    VERMILLION,
    add_axes_px,
    draw_best,
    draw_evaluations,
    draw_references,
    draw_title,
    draw_training,
    label_steps,
    legend_above,
    place_labels,
    png_figure,
    printable,
    say_empty,
    series,
)

WIDTH_PX, HEIGHT_PX = 1600, 1500
PLACES_PX = 340
"""Height of the lowest part: errors by place."""
MAP_WIDTH_PX, MAP_HEIGHT_PX = 1485, 575
NUM_WORST, NUM_NAMED, NUM_SAMPLED = 15, 5, 150
REFERENCES = {
    "chance": ("chance", BLACK),
    "cell_centre": ("hint limit, cell centre", GREEN),
    "cell_mean": ("hint limit, cell mean", ORANGE),
}


@dataclass(frozen=True)
class Answers:
    """Columns of equal length n."""

    truth: NDArray[np.float64]
    """(n, 2) longitude, latitude in degrees."""
    answer: NDArray[np.float64]
    """(n, 2), NaN where the answer names no place."""
    distance_km: NDArray[np.float64]
    """(n,), NaN where the answer names no place."""
    names: list[str]


def draw_location_summary(
    path: Path,
    *,
    rows: list[dict[str, Any]],
    predictions: list[dict[str, Any]],
    background: tuple[NDArray[np.float64], NDArray[np.float64]],
    references: dict[str, float],
    title: str,
    best_step: int | None = None,
) -> None:
    """Write the picture of a run, a PNG of 1600 x 1500 pixels: whole or not at all, from any thread.

    Args:
        path: where to.
        rows: what metrics.csv holds, a logged step each.
        predictions: rows of predictions.jsonl; may be empty.
        background: longitude (m,) and latitude (m,) in degrees of the cities that make up the map.
        references: median distances in km that need no model: `chance`, `cell_centre`, `cell_mean`.
        title: above the picture.
        best_step: optimizer step of the evaluation to mark; None marks none.
    """
    with png_figure(path, WIDTH_PX, HEIGHT_PX) as figure:
        draw_title(figure, title)
        draw_training(
            figure, rows, losses=(115, PLACES_PX + 855, 590, 185), learning_rate=(115, PLACES_PX + 755, 590, 65),
            best_step=best_step,
        )  # fmt: skip
        draw_distances(add_axes_px(figure, 830, PLACES_PX + 755, 535, 285), rows, references, best_step=best_step)
        map_axes = add_axes_px(figure, 90, PLACES_PX + 75, MAP_WIDTH_PX, MAP_HEIGHT_PX)
        draw_answers(map_axes, read_answers(predictions), background)
        map_axes.set_title("Answers on the map")
        map_axes.set_title(answers_caption(predictions), loc="right", fontsize=10, fontweight="normal")
        draw_groups(
            add_axes_px(figure, 215, 40, 560, 225), by_continent(predictions), title="Distance by continent", kind=""
        )
        draw_groups(
            add_axes_px(figure, 985, 40, 590, 225), by_density(predictions),
            title="Distance by density", kind="training cities in the cell",
        )  # fmt: skip


def draw_distances(
    axes: Axes, rows: Sequence[dict[str, Any]], references: dict[str, float], *, best_step: int | None = None
) -> None:
    """Median with its 95 % band and mean of the distances over steps, in km on a log axis, and the references.

    Args:
        axes: to draw on.
        rows: what metrics.csv holds, a logged step each.
        references: what is known without a model -> its median distance in km; NaN is left out.
        best_step: optimizer step of the evaluation to mark; None marks none.
    """
    steps, median = series(rows, "val/haversine_km_median")
    mean_steps, mean = series(rows, "val/haversine_km_mean")
    banded = [row for row in rows if {"val/haversine_km_median_low", "val/haversine_km_median_high"} <= row.keys()]
    band_steps, low = series(banded, "val/haversine_km_median_low")
    _, high = series(banded, "val/haversine_km_median_high")
    median, mean, low, high = (np.maximum(values, SMALLEST_KM) for values in (median, mean, low, high))
    references = {key: value for key, value in references.items() if np.isfinite(value)}
    shown = np.concatenate([median, mean, low, high, np.maximum(list(references.values()), SMALLEST_KM)])
    _label_kilometres(axes, shown[np.isfinite(shown)])
    label_steps(axes, rows)
    axes.set_title("Distance from answer to city", pad=TITLE_PAD)
    if np.isfinite(low).any():
        # the interval is that of the penalized median, which is the plain one where every answer names a place
        misses = (series(banded, "val/valid_ratio")[1] < 1).any()
        axes.fill_between(band_steps, low, high, color=VERMILLION, alpha=0.2, linewidth=0, label="95 % band of median")
        note = "band: no-place answers count 20,015 km" if misses else ""
        axes.annotate(note, (1.41, -0.17), xycoords="axes fraction", ha="right", fontsize=9)
        axes.vlines(band_steps, low, high, color=VERMILLION, alpha=0.45, linewidth=1)  # a lone band has no area
    draw_evaluations(axes, steps, median, color=VERMILLION, label="median")
    draw_evaluations(axes, mean_steps, mean, color=PURPLE, label="mean", dashed=True)
    draw_best(axes, steps, median, best_step, "best {:,.0f} km")
    if not (np.isfinite(median).any() or np.isfinite(mean).any()):
        say_empty(axes, "no answer named a place" if len(steps) else "no evaluation yet")
    draw_references(
        axes,
        [
            (max(value, SMALLEST_KM), f"{name}\n{value:,.0f} km", color)
            for key, value in references.items()
            for name, color in [REFERENCES.get(key, (key.replace("_", " "), GREY))]
        ],
    )
    legend_above(axes)


def _label_kilometres(axes: Axes, shown: NDArray[np.float64]) -> None:
    """Log axis with lines at 100, 1,000 and 10,000 km, which are always in view."""
    axes.set_yscale("log")
    axes.set_ylim(max(SMALLEST_KM, shown.min(initial=100) * 0.6), max(26_000.0, shown.max(initial=0) * 1.3))
    axes.yaxis.set_major_locator(FixedLocator([10.0**power for power in range(5)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda km, _: f"{'≤ ' if km <= SMALLEST_KM else ''}{km:,.0f} km"))
    for kilometres in (100, 1_000, 10_000):
        axes.axhline(kilometres, color="#A6A6A6", linewidth=1.0, zorder=1.5)


def read_answers(predictions: Sequence[dict[str, Any]]) -> Answers:
    """Columns of rows of predictions.jsonl."""
    none = (np.nan, np.nan)
    places = [parse_answer(row["output"]) or none if _is_place(row) else none for row in predictions]
    target = np.array([row["target"].split(",") for row in predictions], dtype=np.float64).reshape(-1, 2)
    answer = np.array(places, dtype=np.float64).reshape(-1, 2)
    return Answers(
        truth=np.degrees(to_radians(target[:, 0], target[:, 1])),
        answer=np.degrees(to_radians(answer[:, 0], answer[:, 1])),
        distance_km=np.array([row["score"] if _is_place(row) else np.nan for row in predictions], dtype=np.float64),
        names=[f"{printable(row['name'])}, {row['country']}" for row in predictions],
    )


def _is_place(prediction: dict[str, Any]) -> bool:
    return prediction["score"] is not None and bool(np.isfinite(prediction["score"]))


def answers_caption(predictions: Sequence[dict[str, Any]]) -> str:
    """How many answers there are, how many name no place, and how far the others are from their cities."""
    if not predictions:
        return "no answers yet"
    scores = np.array([row["score"] for row in predictions if _is_place(row)], dtype=np.float64)
    number = len(predictions)
    counts = f"{len(scores):,} of {number:,} answers name a place, {number - len(scores):,} do not"
    if not len(scores):
        return counts
    median, most = np.quantile(scores, [0.5, 0.9])
    return f"{counts}; distance: median {median:,.0f} km, 90 % within {most:,.0f} km, worst {scores.max():,.0f} km"


def choose_arrows(distance_km: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which answers to draw: the worst, farthest first, at most a tenth; and a sample of the rest, evenly spaced.

    Args:
        distance_km: (n,), NaN for answers that have no arrow.

    Returns:
        Rows of the worst (at most 15) and of the sample (at most 150).
    """
    places = np.flatnonzero(~np.isnan(distance_km))
    order = places[np.argsort(-distance_km[places], kind="stable")]
    worst = order[: min(NUM_WORST, -(-len(places) // 10))]
    rest = np.setdiff1d(places, worst)
    sample = rest[np.linspace(0, len(rest) - 1, min(NUM_SAMPLED, len(rest))).astype(np.int64)]
    return worst, sample


def short_way(longitude: NDArray[np.float64], around: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """The same meridians as numbers of degrees within 180 of `around`."""
    return around + (longitude - around + 180) % 360 - 180


def short_way_arrows(
    truth: NDArray[np.float64], answer: NDArray[np.float64], centre: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Arrows that cross the edge of the map where that is shorter: such an arrow is there twice, once at each edge.

    Args:
        truth: (n, 2) longitude, latitude in degrees.
        answer: (n, 2), same layout.
        centre: longitude in the middle of the map.

    Returns:
        Starts (m, 2) and vectors (m, 2) in degrees; the copies follow the n arrows.
    """
    start = np.stack([short_way(truth[:, 0], centre), truth[:, 1]], axis=-1)
    vector = np.stack([short_way(answer[:, 0], start[:, 0]), answer[:, 1]], axis=-1) - start
    end = start[:, 0] + vector[:, 0]
    turns = np.where(end > centre + 180, -360.0, np.where(end < centre - 180, 360.0, 0.0))
    copied = turns != 0
    copies = start[copied] + np.stack([turns[copied], np.zeros(copied.sum())], axis=-1)
    return np.concatenate([start, copies]), np.concatenate([vector, vector[copied]])


@dataclass(frozen=True)
class MapView:
    """Part of the globe, in degrees; `east` may be beyond 180."""

    west: float
    east: float
    south: float
    north: float
    aspect: float
    """Height of a degree of latitude over width of a degree of longitude: true to scale in the middle."""

    @property
    def centre(self) -> float:
        """Longitude in the middle."""
        return (self.west + self.east) / 2


def view_of(points: NDArray[np.float64], box_ratio: float) -> MapView:
    """Smallest view with all points and a margin that fills a box; the whole globe where they span half of it.

    Args:
        points: (n, 2) longitude, latitude in degrees.
        box_ratio: width of the box over its height.
    """
    if len(points):
        longitude = np.sort(points[:, 0])
        gaps = np.diff(longitude, append=longitude[0] + 360)
        widest = int(gaps.argmax())
        span = 360 - float(gaps[widest])
        centre = float(short_way(longitude[(widest + 1) % len(points)] + span / 2, 0.0))
        south, north = float(points[:, 1].min()), float(points[:, 1].max())
    else:
        span, centre, south, north = 360.0, 0.0, -55.0, 77.0
    if span > 180:
        return MapView(-180.0, 180.0, max(min(south - 3, -58.0), -90.0), min(max(north + 3, 80.0), 90.0), 1.0)
    middle = (south + north) / 2
    shrink = max(float(np.cos(np.radians(middle))), 0.1)
    width, height = max(1.3 * span, 4.0), max(1.3 * (north - south), 2.0)
    width, height = max(width, height * box_ratio / shrink), max(height, width * shrink / box_ratio)
    width, height = min(width, 360.0), min(height, 180.0)
    middle = min(max(middle, height / 2 - 90), 90 - height / 2)
    return MapView(centre - width / 2, centre + width / 2, middle - height / 2, middle + height / 2, 1 / shrink)


def draw_answers(axes: Axes, answers: Answers, background: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    """Arrows from cities to answers on a plate carrée map that the background cities make up.

    The worst are highlighted and the five worst named; of the rest a sample is drawn. Cities whose answer names no
    place are crosses.
    """
    worst, sample = choose_arrows(answers.distance_km)
    nearest = np.argsort(answers.distance_km)[: int(np.ceil(0.95 * (~np.isnan(answers.distance_km)).sum()))]
    all_background = np.stack(background, axis=-1)
    points = np.concatenate([answers.truth, answers.answer[nearest]]) if len(answers.truth) else all_background
    view = view_of(points, MAP_WIDTH_PX / MAP_HEIGHT_PX)
    _draw_map(axes, view, all_background)
    no_place = answers.truth[np.isnan(answers.distance_km)]
    for rows, color, width, zorder in ((sample, BLUE, 1.3, 3), (worst, VERMILLION, 2.2, 5)):
        start, vector = short_way_arrows(answers.truth[rows], answers.answer[rows], view.centre)
        axes.quiver(
            *start.T,
            *vector.T,
            angles="xy",
            scale_units="xy",
            scale=1,
            units="dots",
            width=width,
            headwidth=12 / width,
            headlength=13 / width,
            headaxislength=11 / width,
            color=color,
            alpha=0.6 if zorder == 3 else 0.95,
            zorder=zorder,
        )
        asked = answers.truth[rows]
        axes.plot(short_way(asked[:, 0], view.centre), asked[:, 1], ".", color=BLACK, markersize=4, zorder=zorder + 1)
    longitude, latitude = short_way(no_place[:, 0], view.centre), no_place[:, 1]
    axes.plot(longitude, latitude, "x", color=PURPLE, markersize=6, markeredgewidth=1.7, zorder=4)
    _name_worst(axes, answers, worst, view)
    _explain_map(axes, answers, worst, sample, view)


def _draw_map(axes: Axes, view: MapView, cities: NDArray[np.float64]) -> None:
    axes.set_xlim(view.west, view.east)
    axes.set_ylim(view.south, view.north)
    axes.set_aspect(view.aspect, adjustable="box")
    axes.apply_aspect()  # from here on transData is the final one
    steps = [1, 1.5, 3, 4.5, 9, 10] if view.north - view.south > 60 else [1, 2, 5, 10]
    for axis, number, sides in ((axes.xaxis, 9, "EW"), (axes.yaxis, 6, "NS")):
        axis.set_major_locator(MaxNLocator(number, steps=steps))
        axis.set_major_formatter(FuncFormatter(lambda degrees, _, sides=sides: label_degrees(degrees, *sides)))
    axes.grid(visible=True, zorder=0)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#A6A6A6")
    longitude = short_way(cities[:, 0], view.centre)
    inside = (view.west <= longitude) & (longitude <= view.east)
    inside &= (view.south <= cities[:, 1]) & (cities[:, 1] <= view.north)
    pixels = axes.transData.transform(np.stack([longitude[inside], cities[inside, 1]], axis=-1))
    _, kept = np.unique(np.floor(pixels).astype(np.int64), axis=0, return_index=True)  # one city a pixel is enough
    dot_px = float(np.clip(250 / np.sqrt(max(len(kept), 1)), 1.6, 4))
    axes.plot(
        longitude[inside][kept],
        cities[inside, 1][kept],
        ".",
        color="#B8B8B8",
        markersize=2 * dot_px * 72 / axes.figure.dpi,  # the marker "." is half as wide as its size
        markeredgewidth=0,
        zorder=1,
    )


def label_degrees(degrees: float, positive: str, negative: str) -> str:
    """A tick such as `45°W`; degrees beyond 180 are those of the other side."""
    degrees = round((degrees + 180) % 360 - 180, 6)
    side = "" if degrees in (0, -180) else positive if degrees > 0 else negative
    return f"{abs(degrees):g}°{side}"


def _name_worst(axes: Axes, answers: Answers, worst: NDArray[np.int64], view: MapView) -> None:
    """Names of the worst answers' cities, where they cover no other name and few arrows."""
    named = worst[:NUM_NAMED]
    start, vector = short_way_arrows(answers.truth[worst], answers.answer[worst], view.centre)
    along = np.linspace(0, 1, 40)[:, None, None]
    frame = axes.get_window_extent()
    corner = np.array([frame.x0, frame.y0])
    obstacles = axes.transData.transform((start + along * vector).reshape(-1, 2)) - corner
    anchors = axes.transData.transform(start[: len(named)]) - corner
    labels = [
        axes.text(
            0,
            0,
            f"{answers.names[row]}: {answers.distance_km[row]:,.0f} km",
            transform=IdentityTransform(),
            fontsize=9.5,
            va="bottom",
            zorder=9,
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )
        for row in named
    ]
    sizes = np.array([(box.width, box.height) for box in (label.get_window_extent() for label in labels)])
    places = place_labels(anchors, sizes, obstacles, frame.width, frame.height)
    for label, size, anchor, place in zip(labels, sizes, anchors, places, strict=True):
        label.set_position(place + corner)
        leader = np.stack([anchor, np.clip(anchor, place, place + size)], axis=-1) + corner[:, None]
        axes.add_artist(Line2D(*leader, color=BLACK, linewidth=0.8, transform=IdentityTransform(), zorder=8))


def _explain_map(
    axes: Axes, answers: Answers, worst: NDArray[np.int64], sample: NDArray[np.int64], view: MapView
) -> None:
    """Legend below the map; it also counts what is not drawn."""
    invalid = int(np.isnan(answers.distance_km).sum())
    rest = len(answers.names) - invalid - len(worst)
    ends = answers.answer[np.concatenate([worst, sample])]
    east, north = short_way(ends[:, 0], view.centre), ends[:, 1]
    inside = (view.west <= east) & (east <= view.east) & (view.south <= north) & (north <= view.north)
    leaving = int((~inside).sum())
    entries: list[tuple[str, str, str, Any, float, bool]] = [
        ("GeoNames cities", ".", "#999999", "", 0, True),
        ("city asked for", ".", BLACK, "", 0, len(answers.names) > invalid),
        (f"worst {len(worst)}", ">", VERMILLION, "-", 2.2, len(worst) > 0),
        (f"{len(sample):,} of the other {rest:,}", ">", BLUE, "-", 1.3, len(sample) > 0),
        (f"{invalid:,} not a place", "x", PURPLE, "", 0, invalid > 0),
        (f"{leaving:,} arrow{'s' * (leaving != 1)} end beyond the map", "", BLACK, "", 0, leaving > 0),
    ]
    handles = [
        Line2D([], [], color=color, marker=marker, markeredgewidth=1.5, linestyle=style, linewidth=width, label=label)
        for label, marker, color, style, width, wanted in entries
        if wanted
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.045), ncols=len(handles), fontsize=10)
