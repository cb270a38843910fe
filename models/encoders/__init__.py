"""Text classifiers: whole texts, and long documents chunk by chunk."""
