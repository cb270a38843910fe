"""Trainer callbacks that every experiment shares; generation evals and pictures are the experiments' own.

- clock and logs: `step_clock`, `step_log`, `sample_log`, `progress`
- when to stop or slow down: `guards`, `early_stopping`, `reduce_on_plateau`
- weights and batches: `weight_average`, `schedule_free_evaluation`, `gradual_unfreezing`, `device_batch_size`
- checkpoints: `checkpoints`, `checkpoint_writer`, `run_upload`; `self_kill`, by which tests of resuming die
- what evaluations share: `after_evaluation`, `gather`
"""
