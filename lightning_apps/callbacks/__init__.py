"""Trainer callbacks: clock, logging, checkpoints, generation evals, pictures."""
