"""Pictures: what they say is exact, and every degenerate run still gets one."""

import gc
import struct
import threading
import weakref
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_apps.experiments.location import picture as location
from lightning_apps.experiments.location.picture import draw_location_summary
from lightning_apps.figures import curves
from tests.asserts.drawing_warnings import drawing_warnings_fail

pytestmark = drawing_warnings_fail
NAN = float("nan")
MAP = 3  # behind losses, learning rate and distances
WORLD = (np.linspace(-179.0, 179.0, 60), np.linspace(-50.0, 70.0, 60))
METRICS = {
    "val/loss": 1.5,
    "val/haversine_km_median": 300.0,
    "val/haversine_km_mean": 900.0,
    "val/haversine_km_median_low": 250.0,
    "val/haversine_km_median_high": 360.0,
    "val/valid_ratio": 0.9,
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were written."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (figures.append(self), save(self, *args, **kwargs))[1]
    )
    return figures


def answer(target: str, output: str, score: float | None, name: str = "Town", country: str = "XX") -> dict[str, Any]:
    return {
        "input": "loc(c_1)=", "target": target, "output": output, "score": score, "name": name, "country": country,
        "continent": "EU", "cities_in_cell": 5, "cell_mean_km": 150.0,
    }  # fmt: skip


def training_rows(number: int) -> list[dict[str, Any]]:
    return [{"step": step, "train/loss": 5 / step, "train/learning_rate": 1e-3} for step in range(1, number + 1)]


def texts(figure: Figure) -> list[str]:
    legends = [legend for axes in figure.axes if (legend := axes.get_legend())]
    inside = [text.get_text() for legend in legends for text in legend.get_texts()]
    return inside + [text.get_text() for text in figure.findobj(Text)]


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def summary(path: Path, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "rows": [*training_rows(9), {"step": 10, **METRICS}],
        "predictions": [answer("3141,1570", "3241,1670", 900.0), answer("3141,1570", "x", None)],
        "background": WORLD,
        "references": {"chance": 9000.0, "cell_centre": 250.0, "cell_mean": 190.0},
        "title": "location",
    }
    draw_location_summary(path, **(arguments | changes))


def test_series_drops_exactly_the_rows_without_the_key() -> None:
    rows = [{"step": 1, "a": 2.0}, {"step": 2}, {"step": 3, "a": NAN, "b": 1.0}, {"step": 4, "a": 0.0}]
    steps, values = curves.series(rows, "a")
    assert steps.tolist() == [1, 3, 4]
    np.testing.assert_array_equal(values, [2.0, NAN, 0.0])
    assert [column.shape for column in curves.series(rows, "c")] == [(0,), (0,)]


def test_smooth_is_a_centred_mean_that_skips_what_is_not_finite() -> None:
    values = np.array([1.0, 3.0, NAN, 5.0, np.inf, np.inf, np.inf])
    np.testing.assert_array_equal(curves.smooth(values, 3), [2.0, 2.0, 4.0, 5.0, 5.0, NAN, NAN])
    np.testing.assert_array_equal(curves.smooth(values[:2], 1), [1.0, 3.0])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.5, 2e3, [1, 10, 100, 1000]),
        (0.9, 6.0, [1, 2, 5]),
        (2.8, 6.6, [3, 4, 5, 6]),
        (1e-9, 1.0, [1e-8, 1e-6, 1e-4, 1e-2, 1]),
    ],
)
def test_log_ticks_are_round_and_few(low: float, high: float, ticks: list[float]) -> None:
    assert curves.log_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ([], []),
        ([0.5], [0.5]),
        ([0.8, 0.2], [0.8, 0.2]),
        ([0.5, 0.5], [0.4, 0.6]),
        ([1.0, 0.95], [1.0, 0.8]),
        ([-1.0], [0.0]),
        ([0.5] * 11, [rank / 10 for rank in range(11)]),
    ],
)
def test_spread_moves_labels_apart_no_more_than_needed(wishes: list[float], expected: list[float]) -> None:
    assert curves.spread(wishes, 0.2, 0.0, 1.0) == pytest.approx(expected)


def test_placed_labels_stay_inside_and_apart() -> None:
    anchors = np.array([[2.0, 2.0], [5.0, 4.0], [398.0, 199.0], [200.0, 100.0], [201.0, 101.0]])
    sizes = np.full((5, 2), [90.0, 16.0])
    low = np.array(curves.place_labels(anchors, sizes, anchors, 400, 200))
    high = low + sizes
    assert (low >= 0).all()
    assert (high <= [400, 200]).all()
    for first in range(5):
        assert not ((low[first] <= anchors) & (anchors <= high[first])).all(axis=-1).any()
        for second in range(first):
            assert ((low[first] >= high[second]) | (low[second] >= high[first])).any()


def test_printable_is_one_short_line_of_known_glyphs() -> None:
    assert curves.printable("A\n b\t$x$") == "A b $x$"
    assert curves.printable("Việt ʻĀ Łódź") == "Việt ʻĀ Łódź"
    assert curves.printable("北b") == "\ufffdb"
    assert curves.printable("abcdef", 4) == "abc…"
    assert curves.printable("abcdefgh", 5, tail=2) == "ab…gh"
    assert curves.printable("abcde", 5, tail=2) == "abcde"


def test_arrows_over_the_date_line_go_the_short_way_and_show_at_both_edges() -> None:
    truth = np.array([[170.0, 10.0], [-175.0, 0.0], [20.0, 30.0]])
    answers = np.array([[-160.0, 20.0], [165.0, -5.0], [-30.0, 40.0]])
    start, vector = location.short_way_arrows(truth, answers)
    np.testing.assert_allclose(start, [[170, 10], [-175, 0], [20, 30], [-190, 10], [185, 0]])
    np.testing.assert_allclose(vector, [[30, 10], [-20, -5], [-50, 10], [30, 10], [-20, -5]])


def test_arrows_on_a_map_around_the_date_line_need_no_copy() -> None:
    start, vector = location.short_way_arrows(np.array([[-179.0, 0.0]]), np.array([[178.0, 1.0]]), centre=180.0)
    np.testing.assert_allclose(start, [[181, 0]])
    np.testing.assert_allclose(vector, [[-3, 1]])


def test_worst_tenth_is_drawn_farthest_first_and_the_rest_sampled_evenly() -> None:
    distances = np.arange(20.0)
    distances[[19, 3]] = NAN
    worst, sample = location.choose_arrows(distances)
    assert worst.tolist() == [18, 17]
    assert sample.tolist() == [0, 1, 2, *range(4, 17)]
    worst, sample = location.choose_arrows(np.arange(1000.0))
    assert worst.tolist() == list(range(999, 984, -1))
    assert len(sample) == 150
    assert (sample[0], sample[-1]) == (0, 984)
    assert [len(rows) for rows in location.choose_arrows(np.array([NAN]))] == [0, 0]


@pytest.mark.parametrize(
    ("scores", "caption"),
    [
        ([], "no answers yet"),
        ([None, None], "0 of 2 answers name a place, 2 do not"),
        (
            [None, 0.0, 1000.0, 3000.0],
            "3 of 4 answers name a place, 1 do not; distance: median 1,000 km, 90 % within 2,600 km, worst 3,000 km",
        ),
    ],
)
def test_caption_counts_answers_that_are_no_place(scores: list[float | None], caption: str) -> None:
    assert location.answers_caption([answer("0000,0000", "0000,0000", score) for score in scores]) == caption


def test_answers_are_read_in_degrees() -> None:
    answers = location.read_answers([answer("3141,1570", "6283,3141", 9.0, "A$"), answer("0000,0000", "12", None)])
    np.testing.assert_allclose(answers.truth, [[-0.034, -0.046], [-180, -90]], atol=1e-3)
    np.testing.assert_allclose(answers.answer, [[179.989, 89.966], [NAN, NAN]], atol=1e-3)
    np.testing.assert_array_equal(answers.distance_km, [9.0, NAN])
    assert answers.names == ["A$, XX", "Town, XX"]


def test_view_zooms_to_a_region_over_the_date_line_and_shows_the_globe_otherwise() -> None:
    view = location.view_of(np.array([[175.0, -40.0], [-175.0, -20.0]]), box_ratio=2.0)
    assert view.centre == pytest.approx(-180)
    assert view.north - view.south == pytest.approx(26)  # 20 degrees and a margin of 15 % on both sides
    assert (view.east - view.west) / (view.north - view.south) == pytest.approx(2 * view.aspect)
    assert view.aspect == pytest.approx(1 / np.cos(np.radians(30)))
    globe = location.view_of(np.array([[-120.0, 0.0], [0.0, 0.0], [120.0, 0.0]]), box_ratio=2.0)
    assert (globe.west, globe.east, globe.aspect) == (-180, 180, 1)


@pytest.mark.parametrize(
    ("degrees", "label"), [(0, "0°"), (-45, "45°W"), (180, "180°"), (190, "170°W"), (-181.5, "178.5°E"), (360, "0°")]
)
def test_meridians_beyond_the_date_line_are_named_from_the_other_side(degrees: float, label: str) -> None:
    assert location.label_degrees(degrees, "E", "W") == label


NO_PLACES = [answer("3141,1570", "no idea", None), answer("3000,1500", "9999,9999", None)]
DEGENERATE = {
    "nothing at all": {"rows": [], "predictions": [], "background": (np.array([]), np.array([])), "references": {}},
    "no evaluation yet": {"rows": training_rows(3), "predictions": [], "best_step": 2},
    "one training row": {"rows": training_rows(1)},
    "one evaluation row, at step 0": {"rows": [{"step": 0, **METRICS}], "best_step": 0},
    "no answer is a place": {"predictions": NO_PLACES},
    "every metric is NaN": {"rows": [{"step": 5, "train/loss": NAN, **dict.fromkeys(METRICS, NAN)}], "best_step": 5},
    "infinite and zero values": {
        "rows": [{"step": 5, "train/loss": float("inf"), **dict.fromkeys(METRICS, 0.0)}],
        "references": {"chance": NAN, "cell_mean": 0.0, "another": 5.0},
    },
    "perfect answer of one city": {"predictions": [answer("3141,1570", "3141,1570", 0.0)]},
}


@pytest.mark.parametrize("changes", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_degenerate_runs_get_a_picture(tmp_path: Path, changes: dict[str, Any]) -> None:
    summary(tmp_path / "summary.png", **changes)
    assert png_size(tmp_path / "summary.png") == (1600, 1500)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.png"]


def test_picture_says_its_numbers(tmp_path: Path, drawn: list[Figure]) -> None:
    summary(tmp_path / "summary.png", best_step=10)
    said = texts(drawn[0])
    for text in (
        "1 of 2 answers name a place, 1 do not; distance: median 900 km, 90 % within 900 km, worst 900 km",
        "1 not a place",
        "Town, XX: 900 km",
        "best 1.5",
        "best 300 km",
        "band: no-place answers count 20,015 km",
        "chance\n9,000 km",
        "hint limit, cell centre\n250 km",
        "hint limit, cell mean\n190 km",
        "100 km",
        "1,000 km",
        "10,000 km",
    ):
        assert text in said


def test_a_median_of_zero_is_drawn_at_one_kilometre(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [{"step": 1, "val/haversine_km_median": 5.0}, {"step": 2, "val/haversine_km_median": 0.0}]
    summary(tmp_path / "summary.png", rows=rows)
    (median,) = [line for line in drawn[0].axes[2].lines if line.get_label() == "median"]
    assert median.get_ydata().tolist() == [5.0, 1.0]
    assert "≤ 1 km" in texts(drawn[0])


def test_dollars_are_no_mathematics(tmp_path: Path, drawn: list[Figure]) -> None:
    row = answer("3141,1570", "3241,1670", 900.0, name=r"$\frac{1}$ 北京 Ås", country="$_$")
    summary(tmp_path / "summary.png", predictions=[row], title="$x_$ and $y^$")
    names = [text for text in drawn[0].findobj(Text) if "$" in text.get_text()]
    assert {text.get_text() for text in names} == {"$\\frac{1}$ \ufffd\ufffd Ås, $_$: 900 km", "$x_$ and $y^$"}
    assert not any(text.get_parse_math() for text in names)


def test_arrow_over_the_date_line_is_drawn_at_both_edges(tmp_path: Path, drawn: list[Figure]) -> None:
    east, far_west = "6270,1570", "0100,1570"  # 179.2° E, 174.3° W
    rows = [answer(east, far_west, 730.0), *(answer(x, x, 0.0) for x in ("1000,1570", "2500,1570", "4500,1570"))]
    summary(tmp_path / "summary.png", predictions=rows)
    worst = [item for item in drawn[0].axes[MAP].collections if item.get_facecolor()[0][0] > 0.5]
    np.testing.assert_allclose(worst[0].get_offsets()[:, 0], [179.245, -180.755], atol=1e-3)
    np.testing.assert_allclose(worst[0].U, [6.485, 6.485], atol=1e-3)


def test_many_background_cities_are_thinned_to_one_a_pixel(tmp_path: Path, drawn: list[Figure]) -> None:
    source = np.random.Generator(np.random.PCG64(0))
    cities = (source.normal(10, 1, 40_000), source.normal(50, 2, 40_000))
    summary(tmp_path / "summary.png", background=cities, predictions=[])
    (dots,) = [line for line in drawn[0].axes[MAP].lines if len(line.get_xdata()) > 1000]
    pixels = np.floor(drawn[0].axes[MAP].transData.transform(np.stack(dots.get_data(), axis=-1)))
    assert len(dots.get_xdata()) < 40_000
    assert len(np.unique(pixels, axis=0)) == len(pixels)


def test_pictures_change_no_global_state_and_draw_in_any_thread(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    threads = [threading.Thread(target=summary, args=(tmp_path / f"{number}.png",)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(matplotlib.rcParams) == before
    pictures = {(tmp_path / f"{number}.png").read_bytes() for number in range(2)}
    assert len(pictures) == 1  # the same file gives the same bytes


def test_a_written_picture_lets_go_of_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels: list[weakref.ref[Any]] = []
    save = Figure.savefig

    def watched(self: Figure, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        canvas: Any = self.canvas
        pixels.append(weakref.ref(canvas.renderer))

    monkeypatch.setattr(Figure, "savefig", watched)
    gc.disable()  # figure and canvas hold each other
    try:
        summary(tmp_path / "summary.png")
        assert [reference() for reference in pixels] == [None]
    finally:
        gc.enable()


def test_failed_drawing_leaves_the_old_picture(tmp_path: Path) -> None:
    path = tmp_path / "summary.png"
    path.write_bytes(b"old")
    with pytest.raises(KeyError):
        summary(path, predictions=[{"score": None}])
    assert path.read_bytes() == b"old"
    assert matplotlib.rcParams["text.parse_math"] is True
    assert not curves._style_lock.locked()
