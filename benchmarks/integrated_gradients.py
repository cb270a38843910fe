"""Integrated gradients against captum's: same scores, and readings of a document for the same completeness error.

    python -m benchmarks.integrated_gradients                                   a tiny model with large weights
    python -m benchmarks.integrated_gradients --run outputs/rating/default --documents 10

Both integrate the same function from the same empty document, captum by its default rule (Gauss-Legendre) with all
chunks of a document as one input. A reading is one pass of all chunks through the encoder, counted there. Ours stops
where it says itself that it adds up; captum is told a number of points, so it gets the smallest of STEPS whose error is
within the same tolerance (`first`), which nobody knows before, and the smallest from which on every larger one is
(`safe`). Scores are compared where both have converged.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_apps.explanations.attribution import Array, CachedEncoder, Chunks, Target, class_target
from lightning_apps.explanations.integrated_gradients import integrated_gradients

STEPS = (3, 5, 7, 9, 12, 16, 20, 25, 32, 40, 50, 64, 80, 100)
WEIGHT = 0.4
"""Standard deviation: smaller ones make a nearly straight function, 0.6 one that jumps everywhere."""
DEFAULT = 50
"""Points of captum where none are asked for."""
Case = tuple[str, Chunks, CachedEncoder, Target]


def by_captum(chunks: Chunks, encoder: CachedEncoder, target: Target, steps: int) -> Array:
    """Scores of tokens (chunks, length) by captum, `steps` points, a chunk batch at a time as ours."""
    from captum.attr import IntegratedGradients

    net, mask = encoder.net, chunks.attention_mask
    count = len(mask)
    embedding = net.get_input_embeddings()
    absent = chunks.without(np.ones(chunks.num_words, dtype=np.bool_), encoder.absent_id)
    here, base = embedding(chunks.input_ids).detach(), embedding(absent).detach()  # (chunks, length, width)

    def function(points: Tensor) -> Tensor:  # (n, chunks, length, width) -> (n,)
        encoder.num_encoded += points.shape[0] * count
        vectors = net.encode(attention_mask=mask.repeat(len(points), 1), inputs_embeds=points.flatten(0, 1))
        logits, _ = net.classify(vectors, [count] * len(points), [*chunks.sections] * len(points))
        return (logits.float() * target.logit_weights).sum(dim=1)

    found = IntegratedGradients(function).attribute(
        here[None], base[None], n_steps=steps, internal_batch_size=max(1, encoder.micro_chunks // count)
    )
    return found[0].double().sum(dim=-1).numpy()


def tiny_cases(number: int) -> list[Case]:
    """Documents of three chunks of random tokens, and an untrained model of three layers."""
    from models.encoders.build_hierarchical import random_hierarchical

    draw = torch.Generator().manual_seed(0)
    net = random_hierarchical(
        vocab_size=100, pad_token_id=0, label_names=["a", "b", "c"], hidden_size=32, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=64, max_position_embeddings=40, chunk_pooling="first",
        document_pooling="additive", attention_size=16, attention_heads=2, head_size=None, hidden_dropout=0.0,
        attention_dropout=0.0, head_dropout=0.0, freeze_embeddings=False, freeze_layers=0, micro_chunks=8,
        recompute="layers",
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=WEIGHT, generator=draw)
    encoder = CachedEncoder(net, 24, 3)
    cases: list[Case] = []
    for place in range(number):
        ids = torch.randint(4, 100, (3, 32), generator=draw)
        chunks = Chunks(ids, torch.ones_like(ids), np.arange(96).reshape(3, 32), 96, range(3))
        cases.append((f"document {place}", chunks, encoder, class_target(place % 3, "abc"[place % 3], 3)))
    return cases


def cases_of_run(run: Path, number: int, split: str) -> list[Case]:
    """The first documents of a split of a finished rating run, towards the class that the run predicts."""
    from lightning_apps.config.binding import target as model_of
    from lightning_apps.config.open_run import open_run
    from lightning_apps.explanations.run import RatingModel, absent_token, documents_of_split
    from lightning_apps.explanations.text_units import read_words

    directory, config = open_run(str(run), trust=None)
    model_of("model", config["model"])
    model = RatingModel(directory, config, "cpu")
    encoder = CachedEncoder(model.net, 24, absent_token(model.tokenizer))
    options = {"split": split, "ids": None, "max_documents": number, "seed": 42}
    cases: list[Case] = []
    for document in documents_of_split(config, options)[0]:
        ids, mask, spans, sections = model.chunk_text(document.text)
        words, word = read_words(document.text, spans, max_sentences=400)
        chunks = Chunks(ids, mask, word, len(words.spans), sections)
        logits, _ = encoder.classify([encoder.vectors(ids, mask)], sections)
        best = int(logits[0].argmax())
        cases.append(
            (document.id, chunks, encoder, class_target(best, model.label_names[best], len(model.label_names)))
        )
    return cases


def compare(case: Case, tolerance: float) -> dict[str, float]:
    """Print one document, and give its ratios of readings."""
    name, chunks, encoder, target = case

    def readings() -> float:
        """Of the document since the last time."""
        number, encoder.num_encoded = encoder.num_encoded / len(chunks.input_ids), 0
        return number

    readings()
    start = time.perf_counter()
    _, complete, _ = integrated_gradients(chunks, encoder, target, steps=9, tolerance=tolerance, max_steps=401)
    seconds, ours = time.perf_counter() - start, readings()
    change = complete.value - complete.baseline
    errors: dict[int, float] = {}
    for steps in STEPS:
        start = time.perf_counter()
        peer = by_captum(chunks, encoder, target, steps)
        errors[steps] = abs(float(peer.sum()) - change) / abs(change)
        if steps == DEFAULT:
            seconds_of_default = time.perf_counter() - start
        assert readings() == steps
    # beyond the last one nothing was tried: the ratio is at least what it would be there
    first = next((steps for steps in STEPS if errors[steps] <= tolerance), STEPS[-1])
    tail = [max(errors[other] for other in STEPS[place:]) for place in range(len(STEPS))]
    safe = next((steps for steps, worst in zip(STEPS, tail, strict=True) if worst <= tolerance), STEPS[-1])
    fine = integrated_gradients(chunks, encoder, target, steps=9, tolerance=tolerance / 20, max_steps=161)[2]
    apart = float(np.abs(peer - fine).max() / np.abs(fine).max())
    print(
        f"{name}: F changes by {change:+.2f}; ours {ours:.0f} readings, error {complete.error / abs(change):.4f}; "
        f"captum first {first}, safe {safe}, error at {DEFAULT} {errors[DEFAULT]:.4f}, at {STEPS[-1]} "
        f"{errors[STEPS[-1]]:.4f}; converged scores apart by {apart:.1e} of the largest",
        flush=True,
    )
    return {
        "our readings": ours,
        "our error": complete.error / abs(change),
        f"captum's error at {DEFAULT}": errors[DEFAULT],
        "readings, captum first / ours": first / ours,
        "readings, captum safe / ours": safe / ours,
        f"seconds, captum at {DEFAULT} / ours": seconds_of_default / seconds,
        "converged scores apart": apart,
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of experiment=rating")
    parser.add_argument("--split", default="test")
    parser.add_argument("--documents", type=int, default=10)
    parser.add_argument("--tolerance", type=float, default=0.02, help="completeness error over the change of F")
    options = parser.parse_args()
    cases = (
        tiny_cases(options.documents) if options.run is None
        else cases_of_run(options.run, options.documents, options.split)
    )  # fmt: skip
    found = [compare(case, options.tolerance) for case in cases]
    print(f"tolerance {options.tolerance:g}, {len(found)} documents: median (lowest to highest)")
    for name in found[0]:
        values = [entry[name] for entry in found]
        print(f"  {name}: {statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})")


if __name__ == "__main__":
    main()
