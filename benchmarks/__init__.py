"""Side-by-side measurements against peers; not part of the test suite.

- an experiment each, ours against transformers' Trainer or a plain loop: `location`, `arxiv`, `gsm8k`, `imdb`, `rating`
- all of these as `make bench`: `__main__`, with `rows`, which collects them
- quality in a given time, `make board`: `board`; of a search: `search`
- how cost grows, and what `plan` says of it: `growth`, `plan`; what guards and logs cost: `guard_cost`
- parts against libraries: `linear_cross_entropy`, `integrated_gradients`, `storage`, `token_windows`
- whether results are the same: `loss_digests`, `loss_parity`, `gsm8k_bf16`, `strategies`, `kill_resume`
"""
