"""Generation evaluation of `location`: ask for every held-out city, measure how far the answers are."""

from typing import Annotated, Any

import lightning as L
import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from datamodules.cities import cell_counts, country_continents
from datamodules.contract import Indices, Split
from datamodules.location import LocationDataModule
from lightning_apps.callbacks.gather import gather_in_order
from lightning_apps.experiments.evaluation import Evaluation, heading, log_metrics
from lightning_apps.experiments.location.great_circle import (
    answer_distances_km,
    chance_km,
    hint_distances_km,
    hint_limits_km,
    location_metrics,
    parse_answer,
)
from lightning_apps.experiments.repeated_answers import is_collapsed
from lightning_apps.process.console import say
from lightning_apps.run_files.directory import RunDirectory
from models.decoding.generation import generate_greedy


class LocationGeneration(Evaluation):
    """Decodes greedily after each evaluation and logs `haversine_km_*`, `valid_ratio` and `collapsed_ratio`.

    Args:
        run_directory: whose predictions.jsonl takes every question, answer and distance.
        num_samples: held-out cities asked; None asks all.
        batch_size: cities decoded together.
        num_examples: answers to print.
    """

    needs = LocationDataModule

    def __init__(
        self,
        *,
        run_directory: RunDirectory,
        num_samples: Annotated[int, Ge(1)] | None,
        batch_size: Annotated[int, Ge(1)],
        num_examples: Annotated[int, Ge(0)],
    ) -> None:
        super().__init__(run_directory=run_directory)
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.num_examples = num_examples
        self.references: dict[str, float] = {}

    def evaluation_metrics(self, data: LocationDataModule) -> set[str]:
        """Names of what an evaluation logs, without the split: those of one made-up answer."""
        return {*location_metrics(np.zeros(1)), "collapsed_ratio"}

    def evaluate(self, trainer: L.Trainer, pl_module: Any, data: Any, split: Split, prefix: str) -> None:
        """Ask for the cities of a split."""
        asked = data.evaluated(split)[: self.num_samples]
        prompts = list(data.prompts(split)[asked])
        x, y = (column[asked] for column in data.coordinates(split))
        with trainer.precision_plugin.val_step_context():
            answers = generate_greedy(
                pl_module.net,
                prompts[trainer.global_rank :: trainer.world_size],
                max_new_tokens=len("xxxx,yyyy") + 1,
                batch_size=self.batch_size,
                pad_token_id=data.tokenizer.pad_token_id,
                eos_token_id=data.tokenizer.eos_token_id,
            )
        texts = gather_in_order(data.tokenizer.batch_decode(answers), len(prompts), trainer.world_size)
        distances = answer_distances_km(texts, x, y)
        repeats = gather_in_order([is_collapsed(answer) for answer in answers], len(prompts), trainer.world_size)
        metrics = {**location_metrics(distances), "collapsed_ratio": sum(repeats) / len(repeats)}
        log_metrics(pl_module, prefix, metrics)
        if not self.references:
            self.references = location_references(data, split)
        if trainer.is_global_zero:
            rows = prediction_rows(data, split, asked, texts, distances)
            self._report(trainer, prefix, metrics, rows)

    def _report(self, trainer: L.Trainer, prefix: str, metrics: dict[str, float], rows: list[dict[str, Any]]) -> None:
        self.write_predictions(rows)
        say(
            f"{heading(trainer, prefix)}, "
            f"median {metrics['haversine_km_median_penalized']:,.0f} km "
            f"(95 % {metrics['haversine_km_median_low']:,.0f} to {metrics['haversine_km_median_high']:,.0f}), "
            f"mean {metrics['haversine_km_mean_penalized']:,.0f} km, valid {metrics['valid_ratio']:.1%}; "
            + ", ".join(f"{name.replace('_', ' ')} {value:,.0f}" for name, value in self.references.items())
        )
        for row in rows[: self.num_examples]:
            distance = "no place" if row["distance_km"] is None else f"{row['distance_km']:,.0f} km"
            place = f"{row['name']}, {row['country']}"
            say(f"    {row['input']}{row['output']}   truth {row['target']} ({place}): {distance}")


def location_references(data: LocationDataModule, split: Split) -> dict[str, float]:
    """Median distances in km that need no model: `chance`, and with spatial ids what the hint allows."""
    x, y = data.coordinates(split)
    train_x, train_y = data.coordinates("train")
    references = {"chance": chance_km(x, y, train_x, train_y)}
    if data.settings["id_scheme"] == "spatial":
        references |= hint_limits_km(x, y, train_x, train_y)
    return references


def prediction_rows(
    data: LocationDataModule, split: Split, asked: Indices, answers: list[str], distances_km: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """What predictions.jsonl says of each answer; `score` is the distance in km, null where there is no place.

    `cities_in_cell` counts training cities; `cell_mean_km` is as far as a spatial id goes, null for random ids.

    Args:
        data: the cities that were asked for.
        split: which of its splits.
        asked: (n,) int64 numbers of the cities in the split.
        answers: n texts, in order.
        distances_km: (n,) float64 distance of each answer from its city, NaN where it names no place.
    """
    x, y = (column[asked] for column in data.coordinates(split))
    train = data.coordinates("train")
    in_cell = cell_counts(x, y, *train)
    limits = hint_distances_km(x, y, *train)["cell_mean"] if data.settings["id_scheme"] == "spatial" else None
    rows = data.rows[split][asked]
    prompts = data.tokenizer.batch_decode(data.prompts(split)[asked])
    table = []
    for number, (answer, distance) in enumerate(zip(answers, distances_km.tolist(), strict=True)):
        parsed = parse_answer(answer)
        row = rows[number]
        table.append(
            {
                "input": prompts[number],
                "target": f"{x[number]:04d},{y[number]:04d}",
                "output": answer,
                "score": None if parsed is None else distance,
                "distance_km": None if parsed is None else distance,
                "name": str(data.cities["name"][row]),
                "country": str(data.cities["country"][row]),
                "continent": country_continents().get(str(data.cities["country"][row])),
                "cities_in_cell": int(in_cell[number]),
                "cell_mean_km": None if limits is None else float(limits[number]),
                "geoname_id": int(data.cities["geoname_id"][row]),
            }
        )
    return table
