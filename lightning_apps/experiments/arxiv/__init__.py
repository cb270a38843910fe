"""Pretraining over K categories of papers, and what a model gains from its context."""
