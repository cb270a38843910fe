"""A hierarchical classifier of three small layers with the weights of seed 0, and batches for it."""

import torch

from models.encoders.build_hierarchical import random_hierarchical

SETTINGS = {
    "chunk_pooling": "first", "document_pooling": "additive", "attention_size": 8, "attention_heads": 2,
    "head_size": None, "hidden_dropout": 0.0, "attention_dropout": 0.0, "head_dropout": 0.0,
    "freeze_embeddings": True, "freeze_layers": 0, "micro_chunks": 3, "recompute": "layers",
}  # fmt: skip
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 16,
}  # fmt: skip
DATA = {"vocab_size": 30, "pad_token_id": 0, "label_names": ["General", "Teen", "Mature"]}
LENGTHS = [[9, 9, 4], [1], [7, 9, 9, 9, 3], [5, 6]]
"""Of the chunks of four documents."""


def make(**changes):
    torch.manual_seed(0)
    return random_hierarchical(**DATA, **{**SIZES, **SETTINGS, **changes})


def batch(documents=LENGTHS, seed=1, width=None):
    """A flat batch of documents whose chunks have these lengths."""
    lengths = [length for document in documents for length in document]
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 30, (len(lengths), width or max(lengths)), generator=draw)
    mask = (torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]).long()
    return {
        "input_ids": tokens * mask,
        "attention_mask": mask,
        "chunk_counts": torch.tensor([len(d) for d in documents]),
    }
