"""Grids of runs, each job a process of its own, with a sweep's state; for `train sweep=...` and `report sweep=...`."""
