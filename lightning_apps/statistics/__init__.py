"""Intervals and paired comparisons that scipy does not have."""
