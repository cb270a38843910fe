"""Experiment `location`: a small causal LM learns city id -> coordinates from scratch."""

from lightning_apps.experiments.causal_lm import CausalLMExperiment


class LocationModule(CausalLMExperiment):
    """Trains a causal language model on city sentences."""
