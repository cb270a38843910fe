"""Grids of runs, each job a process of its own, with a sweep's state; for `train sweep=...` and `report sweep=...`.

- which jobs: `sweep`, `grid`, `spaces`, `optuna_search`, `check_jobs`
- running them: `engine`, `places`, `state`, `table`, `backends/`
- what came out: `results`, `analysis`, `shared_text`, `scaling_fit`, `findings`, `report`
- drawing it: `pictures`, `scaling_picture`, `search_pictures`
"""
