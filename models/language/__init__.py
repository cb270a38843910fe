"""Causal language models, random and pretrained, and their loss over target tokens."""
