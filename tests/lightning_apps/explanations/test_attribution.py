"""Attributions against hand-made models, brute force, and their own axioms."""

import numpy as np
import pytest
import torch

from lightning_apps.explanations.attribution import (
    CachedEncoder,
    Chunks,
    chunk_attention,
    class_target,
    higher_target,
    occlusion,
    random_scores,
)
from lightning_apps.explanations.documents import Document
from lightning_apps.explanations.explanation import ExplainSettings, explain_document
from lightning_apps.explanations.integrated_gradients import integrated_gradients
from lightning_apps.explanations.text_units import read_words
from tests.tiny.tiny_rating import ABSENT, TinyNet, Words, chunker, synthetic_net

pytestmark = pytest.mark.numeric

TEXT = " ".join(f"w{number}" for number in range(21))  # chunks of 6 words each 4: words 4 and 5 are in two of them


def once(steps):
    """Settings of quadrature without halving."""
    return {"steps": steps, "tolerance": 0.0, "max_steps": steps}


def document(text=TEXT, net=None, *, micro_chunks=2, **chunking):
    """Chunks of a text, a encoder of a model, and the words."""
    words = Words()
    ids, mask, spans, sections = chunker(words, **chunking)(text)
    read, word = read_words(text, spans, max_sentences=400)
    return (
        Chunks(ids, mask, word, len(read.spans), sections),
        CachedEncoder(net or TinyNet(), micro_chunks, ABSENT),
        read,
    )


def value(encoder, chunks, target, ids):
    logits, _ = encoder.net.classify(encoder.net.encode(ids, chunks.attention_mask), torch.tensor([len(ids)]))
    return (logits[0] * target.logit_weights).sum()


def test_completeness_error_shrinks_with_steps():
    chunks, encoder, _ = document()
    target = class_target(1, "b", 3)
    errors = [integrated_gradients(chunks, encoder, target, **once(steps))[1].error for steps in (3, 9, 33)]
    assert errors[0] > 1e-4
    assert errors[1] < errors[0] / 10
    assert errors[2] < 1e-5
    scores, complete, tokens = integrated_gradients(chunks, encoder, target, **once(33))
    absent = chunks.without(np.ones(21, dtype=bool), ABSENT)
    assert complete.value == pytest.approx(float(value(encoder, chunks, target, chunks.input_ids)), abs=1e-6)
    assert complete.baseline == pytest.approx(float(value(encoder, chunks, target, absent)), abs=1e-6)
    assert scores.words.sum() == pytest.approx(complete.value - complete.baseline, abs=1e-5)
    assert scores.chunks.sum() == pytest.approx(tokens.sum())
    assert (tokens[chunks.word < 0] == 0).all()  # special tokens stay, so they have no share


def test_three_points_are_exact_where_the_model_is_linear():
    net = TinyNet(linear=True)
    chunks, encoder, _ = document(net=net)
    target = class_target(2, "c", 3)
    scores, complete, _ = integrated_gradients(chunks, encoder, target, **once(3))
    assert complete.error < 1e-6
    # by hand: a word adds its embedding less that of the absent token, over the length of its chunk, over chunks
    direction = net.head.weight.T @ target.logit_weights
    lengths = chunks.attention_mask.sum(dim=1)
    expected = np.zeros(21)
    for chunk, row in enumerate(chunks.word):
        for column, word in enumerate(row):
            if word >= 0:
                change = net.embedding.weight[chunks.input_ids[chunk, column]] - net.embedding.weight[ABSENT]
                expected[word] += float(change @ direction) / float(lengths[chunk]) / len(chunks.word)
    np.testing.assert_allclose(scores.words, expected, atol=1e-6)


@pytest.mark.parametrize("micro_chunks", [1, 2, 100])
def test_chunk_by_chunk_equals_the_gradient_of_the_whole(micro_chunks):
    chunks, encoder, _ = document(micro_chunks=micro_chunks)
    target = higher_target(3)
    _, _, tokens = integrated_gradients(chunks, encoder, target, **once(5))
    net = encoder.net
    embedded = net.embedding(chunks.input_ids)
    base = net.embedding(chunks.without(np.ones(21, dtype=bool), ABSENT))
    weights = np.array([1, 4, 2, 4, 1]) / 12  # Simpson's rule on two halves
    expected = torch.zeros(chunks.input_ids.shape, dtype=torch.float64)
    for position, weight in zip(np.linspace(0, 1, 5), weights, strict=True):
        point = (base + float(position) * (embedded - base)).detach().requires_grad_()
        vectors = net.encode(attention_mask=chunks.attention_mask, inputs_embeds=point)
        logits, _ = net.classify(vectors, torch.tensor([len(point)]))
        (slope,) = torch.autograd.grad((logits[0] * target.logit_weights).sum(), point)
        expected += weight * (slope * (embedded - base)).sum(dim=-1).double()
    np.testing.assert_allclose(tokens, expected.detach().numpy(), atol=1e-6)


def test_a_sharp_turn_of_the_path_is_halved_until_it_adds_up():
    """A head that jumps within a thousandth of the path: one stretch misses it, halving finds it."""
    chunks, encoder, _ = document()
    target = class_target(1, "b", 3)
    head = encoder.net.head
    start, end = (
        float(encoder.net.classify(encoder.vectors(ids, chunks.attention_mask), torch.tensor([5]))[0][0, 1])
        for ids in (chunks.without(np.ones(21, dtype=bool), ABSENT), chunks.input_ids)
    )

    class Jump(torch.nn.Module):
        def forward(self, pooled):
            logits = head(pooled)
            jump = torch.sigmoid((logits[..., 1] - (0.3 * start + 0.7 * end)) * 2000 / (end - start))
            return torch.stack([logits[..., 0], 3 * jump, logits[..., 2]], dim=-1)

    encoder.net.head = Jump()
    encoder.forget()
    _, plain, _ = integrated_gradients(chunks, encoder, target, **once(9))
    assert plain.error > 1
    _, halved, _ = integrated_gradients(chunks, encoder, target, steps=9, tolerance=0.01, max_steps=400)
    assert halved.error < 0.02 * 3
    assert halved.points < 100
    _, bounded, _ = integrated_gradients(chunks, encoder, target, steps=9, tolerance=0.0, max_steps=48)
    assert bounded.points == 47


def test_no_more_chunks_at_a_time_than_allowed():
    chunks, encoder, read = document(" ".join(f"w{number % 300}" for number in range(900)), micro_chunks=3)
    assert len(chunks.input_ids) > 200
    target = class_target(0, "a", 3)
    integrated_gradients(chunks, encoder, target, **once(3))
    occlusion(chunks, encoder, target, read.sentence)
    assert encoder.net.most_chunks == 3


def test_occlusion_by_hand():
    chunks, encoder, read = document("Ann fell . Bob saw it . He ran off . Good .")
    assert read.sentence.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    target = class_target(1, "b", 3)
    found = occlusion(chunks, encoder, target, read.sentence)
    whole = float(value(encoder, chunks, target, chunks.input_ids))
    for sentence in range(4):
        ids = chunks.without(read.sentence == sentence, ABSENT)
        assert (ids != chunks.input_ids).any()
        fall = whole - float(value(encoder, chunks, target, ids))
        members = read.sentence == sentence
        np.testing.assert_allclose(found.words[members], fall / members.sum(), atol=1e-6)
    vectors = encoder.net.encode(chunks.input_ids, chunks.attention_mask)
    for chunk in range(len(vectors)):
        others = torch.cat([vectors[:chunk], vectors[chunk + 1 :]])
        logits, _ = encoder.net.classify(others, torch.tensor([len(others)]))
        assert found.chunks[chunk] == pytest.approx(whole - float((logits[0] * target.logit_weights).sum()), abs=1e-6)


def test_a_single_chunk_is_left_out_by_having_its_words_absent():
    chunks, encoder, read = document("just one")
    target = class_target(1, "b", 3)
    found = occlusion(chunks, encoder, target, read.sentence)
    empty = float(value(encoder, chunks, target, chunks.without(np.ones(2, dtype=bool), ABSENT)))
    assert found.chunks.tolist() == pytest.approx([float(value(encoder, chunks, target, chunks.input_ids)) - empty])
    assert found.words.sum() == pytest.approx(found.chunks[0])  # one sentence, which is the document


def test_words_inherit_the_attention_of_their_chunks():
    chunks, encoder, _ = document("a b c d e f g h")  # chunks a-f and e-h
    _, weights = encoder.read(chunks)
    found = chunk_attention(chunks, weights)
    first, second = weights.tolist()
    assert first != pytest.approx(second, abs=1e-3)
    expected = [first] * 4 + [(first + second) / 2] * 2 + [second] * 2
    assert found.words.tolist() == pytest.approx(expected)
    assert found.chunks.tolist() == [first, second]


def test_goals():
    target = class_target(2, "c", 4)
    assert target.logit_weights.tolist() == [-0.25, -0.25, 0.75, -0.25]
    assert target.probability_weights.tolist() == [0, 0, 1, 0]
    assert higher_target(3).logit_weights.tolist() == [-0.5, 0, 0.5]
    assert higher_target(3).probability_weights.tolist() == [0, 0.5, 1]


def test_a_chunk_is_encoded_once():
    chunks, encoder, _ = document()
    whole = encoder.vectors(chunks.input_ids, chunks.attention_mask)
    number = encoder.num_encoded
    assert number == len(chunks.input_ids) == 5
    again = encoder.vectors(chunks.input_ids.flip(0), chunks.attention_mask.flip(0))
    assert encoder.num_encoded == number
    torch.testing.assert_close(again.flip(0), whole)
    twice = torch.cat([chunks.input_ids, chunks.input_ids])
    encoder.forget()
    assert len(encoder.vectors(twice, chunks.attention_mask.repeat(2, 1))) == 10
    assert encoder.num_encoded == 2 * number
    torch.testing.assert_close(whole, encoder.net.encode(chunks.input_ids, chunks.attention_mask))


def test_random_scores_are_of_whole_sentences_and_of_the_seed():
    chunks, _, read = document("Ann fell . Bob saw it .")
    found = random_scores(chunks, read.sentence, 3)
    assert len(set(found.words[:3])) == len(set(found.words[3:])) == 1
    assert len(set(found.words)) == 2
    assert found.words.tolist() == random_scores(chunks, read.sentence, 3).words.tolist()
    assert found.words.tolist() != random_scores(chunks, read.sentence, 4).words.tolist()


SETTINGS = ExplainSettings(
    target="predicted", methods=["chunk_attention", "integrated_gradients", "occlusion"], steps=17, tolerance=0.001,
    max_steps=201, max_sentences=400,
    unit="word", fractions=[0.0, 0.1, 0.5, 1.0], seed=0,
)  # fmt: skip


def explained(text, *, net=None, words=None, settings=SETTINGS, evidence=None, **chunking):
    words = words or Words()
    return explain_document(
        Document("x", text, "b", evidence),
        chunk_text=chunker(words, **chunking),
        encoder=CachedEncoder(net or TinyNet(), 4, ABSENT),
        label_names=["a", "b", "c"],
        settings=settings,
        measure_curves=True,
    )


def test_a_synthetic_word_is_found_by_every_method():
    words = Words()
    net = synthetic_net(words, "blood.")
    tokens = [f"w{number}." for number in range(60)]
    tokens[37] = "blood."  # every word is a sentence, so that occlusion can point at it
    text = " ".join(tokens)
    start = text.index("blood")
    found = explained(text, net=net, words=words, evidence=[[start, start + 6]])
    assert found.prediction == "b"
    assert found.words.spans[37].tolist() == [start, start + 6]
    for method in ("integrated_gradients", "occlusion"):
        assert int(found.attributions[method].words.argmax()) == 37
        assert found.evidence[method]["pointing_word"] == 1
        assert found.evidence[method]["average_precision"] == 1
        # gone first, the verdict falls at once; put in first, it is there at once
        assert found.curves[method]["deletion"][1] < 0.5 < 0.9 < found.curves[method]["deletion"][0]
        assert found.curves[method]["insertion"][1] > 0.9
    top = int(found.attributions["chunk_attention"].chunks.argmax())
    assert found.chunk_spans[top][0] <= start < found.chunk_spans[top][1]
    assert found.evidence["chunk_attention"]["pointing_chunk"] == 1
    assert found.evidence["random"]["pointing_chunk"] == pytest.approx(2 / len(found.chunk_spans))  # they overlap
    assert found.evidence["random"]["pointing_word"] == pytest.approx(1 / 60)
    assert found.completeness.error < 1e-4
    for curves in found.curves.values():  # all curves share their ends
        assert curves["deletion"][0] == pytest.approx(curves["insertion"][-1])
        assert curves["deletion"][-1] == pytest.approx(curves["insertion"][0])


@pytest.mark.parametrize("text", ["", " \n\t ", "word"])
def test_empty_and_one_word_documents(text):
    found = explained(text)
    number = len(text.split())
    assert len(found.words.spans) == number
    for scores in found.attributions.values():
        assert (len(scores.words), len(scores.chunks)) == (number, 1)
    assert found.completeness.error < 1e-5
    assert set(found.curves) == ({*SETTINGS.methods, "random"} if number else set())
    assert sum(found.probabilities.values()) == pytest.approx(1)


def test_a_long_document_costs_no_more_than_its_chunks():
    text = "some words again. " * 550_000  # 9.9 MB
    net = TinyNet()
    settings = ExplainSettings(**{**vars(SETTINGS), "steps": 3, "max_steps": 3, "max_sentences": 3, "unit": "sentence"})
    found = explained(text, net=net, settings=settings, max_chunks=5)
    assert found.words.num_words == 1_650_000
    assert len(found.words.spans) == 22  # of five chunks
    assert found.words.num_sentences == 3
    assert net.most_chunks <= 4
