"""Texts and tokenizers: the hub, tokens on disk, chunks, near duplicates."""
