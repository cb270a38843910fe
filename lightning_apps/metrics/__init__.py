"""Metrics with a known definition, as pure functions of arrays."""
