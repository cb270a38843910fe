"""A corpus as a memory-mapped token store, and token windows of it."""
