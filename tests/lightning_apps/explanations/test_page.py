"""The page of explanations: what it says, that it is safe, and that it works in a real browser."""

import base64
import hashlib
import http.server
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_apps.explanations.attribution import Attribution
from lightning_apps.explanations.documents import Document
from lightning_apps.explanations.explanation import Explanation
from lightning_apps.explanations.files import write_explanations
from lightning_apps.explanations.integrated_gradients import Completeness
from lightning_apps.explanations.page import display_scores, documents, excerpt, highlighted_text, levels, shorter
from lightning_apps.explanations.sanity import Sanity
from lightning_apps.explanations.text_units import WORD, read_words
from lightning_apps.reports.page import ENVIRONMENT, page, render
from lightning_apps.run_files.directory import RunDirectory
from tests.asserts.browser import browser, load, violations
from tests.asserts.html_pages import Page

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
NAMES = ["General", "Teen", "Mature"]
METHODS = ("chunk_attention", "integrated_gradients", "occlusion")


def explanation(name, text, probabilities, *, label=None, evidence=None, read=slice(None), scores=None):
    """Chunks of ten words; scores 1, 2, 3 ... of words by default, negative ones in between."""
    spans = np.array([match.span() for match in WORD.finditer(text)], dtype=np.int64).reshape(-1, 2)[read]
    words, _ = read_words(text, spans, max_sentences=400)
    number = len(words.spans)
    values = np.arange(number) * np.where(np.arange(number) % 2, -1.0, 1.0) if scores is None else np.array(scores)
    starts = range(0, max(number, 1), 10)
    weights = np.arange(1.0, len(starts) + 1) / sum(range(1, len(starts) + 1))
    held = [spans[start : start + 10] for start in starts]
    found = {
        "chunk_attention": Attribution(np.repeat(weights, 10)[:number], weights),
        "integrated_gradients": Attribution(values, weights - 0.1),
        "occlusion": Attribution(-values, -weights),
    }
    return Explanation(
        document=Document(name, text, label, evidence),
        prediction=NAMES[int(np.argmax(probabilities))],
        probabilities=dict(zip(NAMES, probabilities, strict=True)),
        target=NAMES[int(np.argmax(probabilities))],
        words=words,
        chunk_spans=np.array([[part[0, 0], part[-1, 1]] if len(part) else [0, 0] for part in held]),
        chunk_weights=weights,
        attributions=found,
        completeness=Completeness(1.0, 0.25, 0.76, 16),
        curves={method: {"deletion": [0.9, 0.5, 0.1], "insertion": [0.1, 0.5, 0.9]} for method in (*METHODS, "random")},
        evidence=None,
        evidence_read=None,
        eraser={method: {"comprehensiveness": [0.4], "sufficiency": [0.1]} for method in (*METHODS, "random")},
    )


OPTIONS = {
    "target": "predicted", "steps": 16, "tolerance": 0.02, "max_steps": 112, "methods": list(METHODS), "seed": 1,
    "page": {"words": 1000, "megabytes": 1.0}, "faithfulness": {"unit": "sentence", "fractions": [0.5]},
}  # fmt: skip


def write(folder, entries, **options):
    _, files = write_explanations(
        folder, entries, directory=RunDirectory(Path("outputs/rating/a")), source="test", options=OPTIONS | options
    )
    return files[0]


def entries(port=9):
    away = f"<img src=http://127.0.0.1:{port}/a><link rel=stylesheet href=http://127.0.0.1:{port}/b>"
    return [
        explanation("first", f"calm {EVIL} words & more . " * 6, [0.7, 0.2, 0.1], label="General"),
        explanation(f"second{EVIL}", f"{away} b c d . e f g", [0.1, 0.5, 0.4], label="Mature", evidence=[[0, 20]]),
        explanation("third", "x y z", [0.05, 0.05, 0.9], label="General"),
        explanation("empty", "", [0.4, 0.35, 0.25], label="General"),
    ]


def test_the_text_is_whole_and_escaped(tmp_path):
    document = write(tmp_path, entries()).read_text()
    assert document.count("<script") == document.count("</script>") == 1  # our own
    assert "<img src=x" not in document
    parsed = Page(document)
    text = " ".join(parsed.text)
    assert text.count(f"second{EVIL}") >= 1
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    assert not any(name in ("href", "srcset", "action", "style") for name, _ in parsed.attributes)
    assert all(value.startswith("data:image/png;") for name, value in parsed.attributes if name == "src")
    policy = next(value for name, value in parsed.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):  # what is named is what is there
        content = document.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_spans_hold_the_exact_characters():
    text = " one\ttwo  three\nfour . "
    entry = explanation("a", text, [0.5, 0.3, 0.2], scores=[0.0, 1.0, 1.0, -0.5, 0.0])
    assert highlighted_text(entry, 100).endswith(
        'aria-label="Text of a"><sup>1</sup>one\t<span class="bp3 cn3">two  three</span>\n'
        '<span class="bn1 cp1">four</span> .</div>'
    )  # attention of one chunk is even: no level; neighbours of equal levels share an element


def test_what_was_not_read_is_a_gap_and_evidence_is_bracketed():
    text = "a b c d e f"
    spans = np.array([match.span() for match in WORD.finditer(text)])
    entry = explanation("a", text, [0.5, 0.3, 0.2], evidence=[[2, 3], [10, 11]], read=[0, 1, 4, 5], scores=[0.0] * 4)
    assert spans[1].tolist() == [2, 3]
    found = highlighted_text(entry, 100)
    bracket = '<b class="e">{}</b>'.format
    assert (
        f'<sup>1</sup>a {bracket("[")}b{bracket("]")}<span class="gap">… 2 words not read …</span>e {bracket("[")}f'
        f"{bracket(']')}</div>" in found
    )
    assert "2 words that the model did not read are left out" in found


def section(entries, *, words=1000, megabytes=1.0):
    return render("documents.html", **documents(entries, words=words, megabytes=megabytes))


def test_what_html_cannot_hold_is_replaced_before_it_is_escaped():
    template = ENVIRONMENT.from_string("{{ text }}{{ parts }}")
    found = template.render(text="a\x00b\ud800\u202e<", parts=render("words.html", pieces=[]))
    assert found == 'a\ufffdb\ufffd\ufffd&lt;<p class="muted">There are no words.</p>'


def test_limits_of_the_page():
    long = explanation("a", "word " * 300, [0.5, 0.3, 0.2])
    assert "… 290 more words that were read are not shown." in highlighted_text(long, 10)
    assert highlighted_text(long, 10).count("word") < 30
    both = section([long, long], megabytes=len(highlighted_text(long, 1000)) / 1e6)
    assert both.count("The text is not shown") == 1
    assert shorter("X" * 10_000_000) == excerpt("X" * 10_000_000)[:201] == "X" * 200 + "…"


def test_a_method_that_ignores_the_model_is_exposed_on_the_page(tmp_path):
    first, *others = entries()
    found = {"chunk_attention": [0.9, 0.875], "integrated_gradients": [0.5, 0.0], "occlusion": [0.5, 0.25]}
    sizes = {"chunk_attention": [0.9, 0.875], "integrated_gradients": [0.5, 0.75], "occlusion": [0.5, 0.25]}
    shift = {"chunk_attention": 0.0, "integrated_gradients": 1e-6, "occlusion": 0.5}
    checked = replace(first, sanity=Sanity(["head", "embeddings"], found, sizes, shift))
    text = " ".join(Page(write(tmp_path, [checked, *others]).read_text()).text)
    text = re.sub(r"\s+", " ", text)
    assert (
        "exposed Chunk attention ignores the model: with random parameters it says the same (rank correlation "
        "+0.88 over 1 document)." in text
    )
    assert "exposed Integrated gradients: the size of its scores rests on the text, not on what the model" in text
    assert "exposed Occlusion depends on how the model is written: shifted embeddings" in text
    assert "integrated gradients +0.50 +0.00 +0.75 1.0e-06" in text
    assert "integrated gradients / occlusion" in text
    assert text.count("exposed") == 3
    text = " ".join(Page(write(tmp_path, others).read_text()).text)
    assert "exposed" not in text
    assert "Not checked whether the methods explain the model at all: checks=1 does, on every document." in text


def test_levels():
    assert levels(np.array([1.0, 0.8, 0.6, 0.3, 0.2, 0.0, -0.9])).tolist() == [3, 3, 2, 1, 0, 0, -3]
    assert levels(np.zeros(3)).tolist() == [0, 0, 0]
    assert levels(np.zeros(0)).tolist() == []


def test_attention_shows_its_departure_from_even():
    entry = explanation("a", "w " * 20, [0.5, 0.3, 0.2])  # weights 1/3 and 2/3
    words, chunks = display_scores(entry, "chunk_attention")
    np.testing.assert_allclose(chunks, [-1 / 6, 1 / 6])
    np.testing.assert_allclose(words, [-1 / 6] * 10 + [1 / 6] * 10)
    entry.attributions["chunk_attention"] = Attribution(np.repeat([0.49, 0.51], 10), np.array([0.49, 0.51]))
    assert not display_scores(entry, "chunk_attention")[0].any()


def test_the_reading():
    text = "Bad one . Good one . Other one ."
    scores = [-2.0, -2.0, -2.0, 5.0, 5.0, 5.0, 0.0, 0.0, 0.0]
    found = section([explanation("a", text, [0.1, 0.8, 0.1], scores=scores)])
    assert (
        'The verdict Teen (0.80) rests on, by integrated gradients:</h4><ul><li>“Good one .” <span class="muted">(+5 a '
        "word)</span></li></ul><h4>Against it, by integrated gradients:</h4><ul><li>“Bad one .”" in found
    )
    assert "Looking for its verdict Teen (0.80) the model weighs most (an even share is 100%)" in found
    none = section([explanation("a", text, [0.1, 0.8, 0.1], scores=[0.0] * 9)])
    assert "By occlusion no sentence speaks for or against the verdict." in none


# ------------------------------------------------------------------ in a browser


def shown_documents(dom):
    """Numbers of the documents that are not hidden, in their order."""
    found = re.findall(r'<article id="d(\d+)"([^>]*)>', dom)
    return [int(number) for number, attributes in found if " hidden" not in attributes]


class Listener(http.server.BaseHTTPRequestHandler):
    """Notes every path that is asked for."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    Listener.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port
        running.shutdown()


@browser
def test_in_a_browser(tmp_path, server):
    path = write(tmp_path, entries(server))
    dom, console = load(path, "#sort=error", profile=tmp_path / "profile")
    assert console == []
    assert shown_documents(dom) == [2, 1, 3, 0]  # errors 0.95, 0.6, 0.6, 0.3; those that tie in the order of the data
    assert "<title>Explanations of rating/a, test</title>" in dom  # no synthetic script ran
    assert "4 of 4 documents" in dom
    dom, console = load(path, "#sort=unsure&wrong=1&label=General", profile=tmp_path / "profile")
    assert console == []
    assert shown_documents(dom) == [2]
    assert "1 of 4 documents" in dom
    assert Listener.asked == []
    # the control: the same marks unescaped on a page without a policy do run and do ask
    bare = tmp_path / "bare.html"
    bare.write_text(f"<title>bare</title>{EVIL}<img src=http://127.0.0.1:{server}/a>")
    dom, _ = load(bare, profile=tmp_path / "profile")
    assert "<title>owned</title>" in dom
    assert Listener.asked == ["/a"]


@browser
def test_the_policy_stops_what_is_not_escaped(tmp_path, server):
    path = tmp_path / "page.html"
    document = page("base.html", "title", script="let a = 1")
    path.write_text(document.replace("<main>", f"<main>{EVIL}<img src=http://127.0.0.1:{server}/a>"))
    dom, console = load(path, profile=tmp_path / "profile")
    assert "<title>title</title>" in dom
    assert Listener.asked == []
    assert len(console) >= 3  # the script, the handler and the picture


@browser
def test_the_choice_of_a_method_shows_and_works_without_a_script(tmp_path):
    path = write(tmp_path, entries())
    silent = tmp_path / "silent.html"
    silent.write_text(re.sub(r"<script>.*</script>", "", path.read_text(), flags=re.S))
    orange = {}
    for name, file, fragment in (("attention", silent, ""), ("occlusion", path, "#method=occlusion")):
        shot = tmp_path / f"{name}.png"
        _, console = load(file, fragment, action=f"--screenshot={shot}", size="700,2800", profile=tmp_path / "profile")
        assert console == []
        with Image.open(shot) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(np.int64)
        orange[name] = int((np.abs(pixels - [0xC4, 0x51, 0x00]).sum(axis=-1) < 12).sum())  # bars against, in the map
    assert min(orange.values()) > 500
    assert orange["attention"] != orange["occlusion"]


@browser
@pytest.mark.slow
def test_everyone_can_read_it(tmp_path):
    assert violations(write(tmp_path, entries()), tmp_path) == []
