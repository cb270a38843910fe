"""Attention, projections and losses that skip work nobody needs."""
