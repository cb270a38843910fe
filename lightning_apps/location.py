"""Experiment `location`: a small causal LM learns city id -> coordinates from scratch."""

from lightning_apps.target_tokens import TargetTokenModule


class LocationModule(TargetTokenModule):
    """Trains a causal language model on city sentences."""
