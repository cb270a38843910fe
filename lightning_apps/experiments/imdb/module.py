"""Experiment `imdb`: a pretrained encoder learns to classify texts."""

from lightning_apps.experiments.classification import ClassificationExperiment


class ImdbModule(ClassificationExperiment):
    """Trains a sequence classifier."""
