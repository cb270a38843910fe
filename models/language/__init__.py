"""Causal language models and their loss."""
