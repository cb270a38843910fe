"""Grids of runs, each job a process of its own, with a ledger; for `train sweep=...` and `report sweep=...`."""
