"""What explain writes: explanations.jsonl, faithfulness.json and .png, explanations.html."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.text.jsonl import write_jsonl
from lightning_apps.explanations.agreement import summarise_agreement
from lightning_apps.explanations.check_tables import check_tables, difference, eraser_table, findings, spelt
from lightning_apps.explanations.explanation import Explanation, completeness_sentence, record
from lightning_apps.explanations.faithfulness import (
    CURVES,
    ERASER,
    EVIDENCE,
    METHOD_NAMES,
    summarise_curves,
    summarise_eraser,
    summarise_evidence,
)
from lightning_apps.explanations.faithfulness_picture import draw_faithfulness
from lightning_apps.explanations.page import documents
from lightning_apps.explanations.run import all_fractions
from lightning_apps.explanations.sanity import summarise_sanity
from lightning_apps.reports.page import Table, render, write_page
from lightning_apps.run_files.atomic_files import write_json_atomically
from lightning_apps.run_files.directory import RunDirectory


def write_explanations(
    folder: Path,
    explanations: Sequence[Explanation],
    *,
    directory: RunDirectory,
    source: str,
    options: Mapping[str, Any],
) -> tuple[list[str], list[Path]]:
    """Write all files.

    Args:
        folder: where they go.
        explanations: of the documents, in the order of the page.
        directory: the run whose model was explained.
        source: the split or the file that the documents are from.
        options: the command's configuration.

    Returns:
        What to say, and the paths of the files.
    """
    fractions = all_fractions(dict(options))
    paths = [folder / name for name in ("explanations.html", "explanations.jsonl", "faithfulness.json",
                                        "faithfulness.png")]  # fmt: skip
    write_jsonl(paths[1], [record(entry, fractions) for entry in explanations])
    results = summarise(explanations, fractions, options)
    write_json_atomically(paths[2], results)
    name = f"{directory.path.parent.name}/{directory.path.name}"
    draw_faithfulness(paths[3], results, title=f"{name}, {source}: are the explanations true?")
    said = results_in_words(explanations, results)
    shown = documents(explanations, **options["page"])
    letters = [letter for letter, *_ in shown["methods"]]
    write_page(
        paths[0], "explanations.html", f"Explanations of {name}, {source}",
        style=render("explanations.css", letters=letters), script=render("explanations.js"),
        overview=overview(explanations, results, directory, source), picture=paths[3], tables=result_tables(results),
        checks=check_tables(results), findings=findings(results["sanity"]),
        completeness=said[0], **shown,
    )  # fmt: skip
    return said, paths


def summarise(
    explanations: Sequence[Explanation], fractions: Sequence[float], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What faithfulness.json holds: settings, curves, evidence over all documents and by label."""
    measured = [entry for entry in explanations if entry.curves]
    known = [entry for entry in explanations if entry.evidence is not None]
    goals = {entry.target for entry in explanations}
    is_class = options["target"] != "higher"
    labels = sorted({entry.document.label for entry in known if entry.document.label is not None})
    errors = sorted(entry.completeness.error for entry in explanations if entry.completeness is not None)
    return {
        "target": options["target"],
        "targets": sorted(goals),
        "measured": f"probability of the {options['target']} class" if options["target"] == "predicted" else (
            f"probability of {options['target']}" if is_class else "expected class number / highest"
        ),
        "unit": options["faithfulness"]["unit"],
        "steps": options["steps"],
        "tolerance": options["tolerance"],
        "max_steps": options["max_steps"],
        "seed": options["seed"],
        "fractions": list(fractions),
        "num_documents": len(measured),
        "curves": summarise_curves([entry.curves for entry in measured], fractions),
        "by_prediction": {
            name: {
                "num_documents": len(found),
                "curves": summarise_curves([entry.curves for entry in found], fractions),
            }
            for name in sorted({entry.prediction for entry in measured})
            for found in [[entry for entry in measured if entry.prediction == name]]
        },
        "eraser": summarise_eraser([entry.eraser for entry in measured]),
        "agreement": summarise_agreement(
            [
                {method: entry.sentence_scores(method) for method in entry.attributions}
                for entry in explanations
                if len(entry.words.spans)
            ]
        ),
        "sanity": summarise_sanity([entry.sanity for entry in explanations if entry.sanity is not None]),
        "completeness_error": {"largest": errors[-1], "median": errors[len(errors) // 2]} if errors else None,
        "evidence": {
            "num_documents": len(known),
            "num_without_evidence": sum(not entry.document.evidence for entry in explanations),
            "num_evidence_not_read": sum(entry.evidence_read is False for entry in explanations),
            "scores": summarise_evidence([entry.evidence for entry in known if entry.evidence is not None]),
            "by_label": {
                label: {
                    "num_documents": sum(entry.document.label == label for entry in known),
                    "scores": summarise_evidence(
                        [entry.evidence for entry in known if entry.evidence and entry.document.label == label]
                    ),
                }
                for label in labels
            },
        },
    }  # fmt: skip


def overview(
    explanations: Sequence[Explanation], results: Mapping[str, Any], directory: RunDirectory, source: str
) -> list[tuple[str, str]]:
    """The page in a few facts."""
    labelled = [entry for entry in explanations if entry.document.label is not None]
    wrong = sum(entry.wrong for entry in explanations)
    return [
        ("run", str(directory.path)),
        ("documents", f"{len(explanations):,} of {source}"),
        ("wrong verdicts", f"{wrong:,} of {len(labelled):,}" if labelled else "unknown, there are no labels"),
        ("target of scores", str(results["target"])),
    ]


def result_tables(results: Mapping[str, Any]) -> list[Table]:
    """Areas, ERASER and evidence scores."""
    tables = []
    if results["num_documents"]:
        rows = [
            [
                METHOD_NAMES[method],
                *(
                    cell
                    for curve in CURVES
                    for area in [results["curves"][curve]["area"][method]]
                    for cell in (spelt(area), difference(area))
                ),
            ]
            for method in results["curves"]["deletion"]["area"]
        ]
        caption = (
            f"Area under the curves of {results['num_documents']:,} documents: mean, 95 % interval; lower is better "
            "for deletion, higher for insertion"
        )
        head = ["method", "deletion", "minus random", "insertion", "minus random"]
        tables += [Table(caption, head, rows, text=(0,)), eraser_table(results)]
    evidence = results["evidence"]
    if evidence["num_documents"]:
        scores = evidence["scores"]
        rows = [
            [METHOD_NAMES[method], *(spelt(scores[name][method], 2) for name in EVIDENCE)]
            for method in scores["average_precision"]
        ]
        head = ["method", "top word", "top sentence", "top chunk", "AP, words", "AP, sentences"]
        caption = f"{evidence_caption(evidence)}: how often the top one is evidence, and average precision (AP)"
        tables.append(Table(caption, head, rows, text=(0,)))
    return tables


def evidence_caption(evidence: Mapping[str, Any]) -> str:
    """What the evidence scores are over."""
    return (
        f"Known evidence found, over {evidence['num_documents']:,} documents ({evidence['num_without_evidence']:,} "
        f"without evidence and {evidence['num_evidence_not_read']:,} whose evidence was not read are left out)"
    )


def results_in_words(explanations: Sequence[Explanation], results: Mapping[str, Any]) -> list[str]:
    """What the command prints: completeness, curves and evidence against chance, what speaks against a method."""
    lines = [completeness_sentence(explanations)]
    width = max(map(len, METHOD_NAMES.values()))
    if results["num_documents"]:
        lines.append(f"area under the curves of {results['num_documents']:,} documents ({results['measured']}):")
        areas = {curve: results["curves"][curve]["area"] for curve in CURVES}
        lines += method_lines(areas, width)
        lines.append("fall of it without the best words (comprehensiveness) and with nothing else (sufficiency):")
        lines += method_lines({name: results["eraser"][name] for name in ERASER}, width)
    if results["evidence"]["num_documents"]:
        lines.append(f"{evidence_caption(results['evidence'])}:")
        scores = results["evidence"]["scores"]
        for name, words in EVIDENCE.items():
            for method in scores[name]:
                entry = scores[name][method]
                lines.append(f"  {words:28}  {METHOD_NAMES[method]:{width}}  {against_random(entry)}")
    return lines + [line for _, line in findings(results["sanity"])]


def method_lines(measured: Mapping[str, Mapping[str, Any]], width: int) -> list[str]:
    """A line for each method, with all measures (name -> method -> mean) and their differences to random."""
    methods = next(iter(measured.values()))
    return [
        f"  {METHOD_NAMES[method]:{width}}  "
        + "   ".join(f"{name} {against_random(entries[method])}" for name, entries in measured.items())
        for method in methods
    ]


def against_random(entry: Mapping[str, Any]) -> str:
    """Mean and interval, and the same of the difference to random where that is another method."""
    return spelt(entry) + (f", {difference(entry)} to random" if "minus_random" in entry else "")
