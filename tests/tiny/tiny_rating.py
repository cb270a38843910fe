"""A rating model small enough to compute by hand, and a chunking of white-space words, for tests of explanations."""

import re
from itertools import count, islice

import numpy as np
import torch
from torch import nn

CLS, SEP, PAD, ABSENT = range(4)


class Words:
    """Numbers for words as they come, behind the special tokens."""

    def __init__(self):
        fresh = count(ABSENT + 1)
        self.number = {}
        self.fresh = fresh

    def __getitem__(self, word):
        if word not in self.number:
            self.number[word] = next(self.fresh)
        return self.number[word]


def chunker(words, *, room=6, stride=4, max_chunks=1000):
    """A function like explanation.ChunkText: one token a word, chunks of `room` words between CLS and SEP."""

    def chunk_text(text):
        read = islice(re.finditer(r"\S+", text), (max_chunks - 1) * stride + room)
        found = [(words[match[0]], match.span()) for match in read]
        starts = [0]
        while starts[-1] + room < len(found):
            starts.append(starts[-1] + stride)
        rows = [found[start : start + room] for start in starts]
        length = max(map(len, rows)) + 2
        ids = torch.full((len(rows), length), PAD)
        mask = torch.zeros(len(rows), length, dtype=torch.int64)
        spans = np.full((len(rows), length, 2), -1, dtype=np.int64)
        for row, tokens in enumerate(rows):
            size = len(tokens) + 2
            ids[row, :size] = torch.tensor([CLS, *(number for number, _ in tokens), SEP])
            mask[row, :size] = 1
            for column, (_, span) in enumerate(tokens, start=1):
                spans[row, column] = span
        return ids, mask, spans, range(len(rows))

    return chunk_text


class TinyNet(nn.Module):
    """The contract of models.encoders.hierarchical in a few lines.

    Args:
        linear: mean of embeddings, mean of chunks, a linear head; else tanh units, attention pooling.
    """

    def __init__(self, *, vocab=400, width=6, classes=3, linear=False, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(vocab, width)
        self.mix = nn.Linear(width, width)
        self.attend = nn.Linear(width, 1)
        self.head = nn.Linear(width, classes)
        self.linear = linear
        self.most_chunks = 0

    def get_input_embeddings(self):
        return self.embedding

    def encode(self, input_ids=None, attention_mask=None, *, inputs_embeds=None):
        assert (input_ids is None) != (inputs_embeds is None)
        hidden = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        self.most_chunks = max(self.most_chunks, len(hidden))
        if not self.linear:
            neighbours = nn.functional.pad(hidden[:, :-1], (0, 0, 1, 0))  # so that tokens of a chunk act together
            hidden = torch.tanh(self.mix(hidden) * (1 + 0.5 * torch.sigmoid(neighbours)))
        weight = attention_mask[..., None].float()
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)

    def classify(self, chunk_vectors, chunk_counts, chunk_sections=None):
        logits, weights = [], []
        for vectors in chunk_vectors.split(torch.as_tensor(chunk_counts).tolist()):
            scores = torch.zeros(len(vectors)) if self.linear else self.attend(vectors)[:, 0] * 3
            weight = scores.softmax(dim=0)
            pooled = weight @ vectors
            logits.append(self.head(pooled if self.linear else torch.tanh(pooled * 2)))
            weights.append(weight)
        return torch.stack(logits), torch.cat(weights)


def synthetic_net(words, word, *, seed=0):
    """A TinyNet whose class 1 speaks of one word: the head reads a direction that only this word has."""
    net = TinyNet(seed=seed)
    with torch.no_grad():
        net.embedding.weight.mul_(0.05)
        net.embedding.weight[:, 0] = 0.0
        net.embedding.weight[words[word], 0] = 4.0
        net.mix.weight.copy_(torch.eye(6))
        net.mix.bias.zero_()
        net.attend.weight.zero_()
        net.attend.weight[0, 0] = 10.0
        net.head.weight.zero_()
        net.head.weight[1, 0] = 20.0
        net.head.bias.copy_(torch.tensor([1.5, 0.0, 0.0]))
    return net
