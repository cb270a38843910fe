"""What was found of the methods, for the page and the terminal: ERASER, agreement, and whether they heed the model."""

import math
from collections.abc import Mapping
from typing import Any

from lightning_apps.explanations.faithfulness import ERASER, METHOD_NAMES
from lightning_apps.explanations.sanity import SHIFTED
from lightning_apps.reports.page import Table


def spelt(entry: Mapping[str, float], digits: int = 3) -> str:
    """Mean and interval."""
    return f"{entry['value']:.{digits}f}{interval(entry, f'.{digits}f')}"


def interval(entry: Mapping[str, float], form: str) -> str:
    """` (low to high)`; nothing where there is none, as for a single document."""
    ends = entry["low"], entry["high"]
    return f" ({ends[0]:{form}} to {ends[1]:{form}})" if all(map(math.isfinite, ends)) else ""


def difference(entry: Mapping[str, Any]) -> str:
    """Mean and interval of the difference to random, where there is one."""
    change = entry.get("minus_random")
    return "–" if change is None else f"{change['value']:+.3f}{interval(change, '+.3f')}"


def known_or_dash(entry: Mapping[str, float]) -> str:
    """A correlation and its interval, or a dash where no document could be ranked."""
    return "–" if math.isnan(entry["value"]) else f"{entry['value']:+.2f}{interval(entry, '+.2f')}"


def findings(sanity: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """What was found of the methods in a line each, with whether it speaks against one."""
    number = sanity["num_documents"]
    if not number:
        return [(False, "Not checked whether the methods explain the model at all: checks=1 does, on every document.")]
    over = f"over {number:,} document{'s' * (number > 1)}"
    methods = {METHOD_NAMES[method]: found for method, found in sanity["methods"].items()}
    against, others = [], []
    for name, found in methods.items():
        signed, absolute = found["signed"][-1], found["absolute"][-1]
        if found["survives"] == "scores":
            against.append(
                f"{name} ignores the model: with random parameters it says the same (rank correlation "
                f"{known_or_dash(signed)} {over})."
            )
        elif found["survives"] == "magnitudes":
            against.append(
                f"{name}: the size of its scores rests on the text, not on what the model learned (rank correlation of "
                f"magnitudes {known_or_dash(absolute)} {over}, with random parameters); their signs rest on the model."
            )
        elif math.isnan(signed["value"]):
            others.append(f"{name}: too few distinct scores to rank, so that nothing is said of it.")
        if found["shifted"]:
            against.append(
                f"{name} depends on how the model is written: shifted embeddings that compute the same change a "
                f"score by {found['shift']['value']:.0%} of the largest."
            )
    if not any(found["survives"] for found in methods.values()):
        others.append(f"No method was seen to say the same of a model with random parameters ({over}).")
    if any(found["shift"] is None for found in methods.values()):
        others.append("The encoder adds no positions to its words, so that no shift of the input was checked.")
    elif not any(found["shifted"] for found in methods.values()):
        others.append(
            f"Shifted embeddings that compute the same change no score by more than {SHIFTED:.0%} of the largest."
        )
    return [*((True, line) for line in against), *((False, line) for line in others)]


def eraser_table(results: Mapping[str, Any]) -> Table:
    """Comprehensiveness and sufficiency."""
    eraser = results["eraser"]
    rows = [
        [
            METHOD_NAMES[method],
            *(cell for name in ERASER for cell in (spelt(eraser[name][method]), difference(eraser[name][method]))),
        ]
        for method in eraser[ERASER[0]]
    ]
    shares = ", ".join(f"{share:.0%}"[:-1] for share in eraser["shares"])
    caption = (
        "Fall of the probability without the best words (comprehensiveness, higher is better) and with nothing else "
        f"(sufficiency, lower is better), mean over {shares} % of the words (AOPC)"
    )
    return Table(caption, ["method", ERASER[0], "minus random", ERASER[1], "minus random"], rows, text=(0,))


def check_tables(results: Mapping[str, Any]) -> list[Table]:
    """Agreement, and the cascade of random parameters."""
    tables = []
    agreement = results["agreement"]
    if agreement["pairs"]:
        rows = [
            [
                " / ".join(METHOD_NAMES[method] for method in pair["methods"]),
                known_or_dash(pair["spearman"]),
                spelt(pair["top_overlap"], 2) if pair["top_overlap"]["num_documents"] else "–",
            ]
            for pair in agreement["pairs"]
        ]
        chance = agreement["chance_overlap"]
        caption = (
            "Do the methods agree? Over the sentences of each document: rank correlation (Spearman), and share of "
        )
        caption += f"the {agreement['top']} best that both name"
        caption += "" if math.isnan(chance) else f" (chance: {chance:.2f})"
        tables.append(
            Table(caption, ["methods", "rank correlation", f"top {agreement['top']} in common"], rows, text=(0,))
        )
    sanity = results["sanity"]
    if sanity["num_documents"]:
        rows = [
            [
                METHOD_NAMES[method],
                *(f"{entry['value']:+.2f}" if math.isfinite(entry["value"]) else "–" for entry in found["signed"][:-1]),
                known_or_dash(found["signed"][-1]),
                known_or_dash(found["absolute"][-1]),
                "–" if found["shift"] is None else f"{found['shift']['value']:.1e}",
            ]
            for method, found in sanity["methods"].items()
        ]
        names = [name if place == 0 else f"+ {name}" for place, name in enumerate(sanity["stages"])]
        caption = (
            "Rank correlation of word scores with those of the trained model, as its parameters are drawn at random "
            f"from the head downwards, over {sanity['num_documents']:,} documents (near 0 is right); that of "
            "magnitudes at the end; and how far a shift of the embeddings that changes no prediction moves a score"
        )
        tables.append(Table(caption, ["method", *names, "magnitudes", "shift"], rows, text=(0,)))
    return tables
