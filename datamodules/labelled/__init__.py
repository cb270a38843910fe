"""Texts with labels: files, classes, splits without leaks."""
