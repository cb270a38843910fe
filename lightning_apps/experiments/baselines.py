"""What a classifier must beat: the most frequent class, and a linear model over words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BASELINES_VERSION = 2
"""Raise it whenever a baseline answers differently for the same data."""
STRENGTHS = (1.0, 10.0, 100.0)
"""Values of C, the inverse of regularization, that cross-validation chooses from."""
FOLDS = 5
MOST_FOR_CHOICE = 2_000
"""Training samples at most that choose C."""


def majority_probabilities(train_labels: NDArray[np.int64], num_samples: int, num_classes: int) -> NDArray[np.float64]:
    """(num_samples, num_classes): the frequencies of the training split for every sample.

    Args:
        train_labels: (n,) class numbers or (n, classes) of 0 and 1.
        num_samples: how many answers are wanted.
        num_classes: number of classes.
    """
    counts = train_labels.sum(axis=0) if train_labels.ndim == 2 else np.bincount(train_labels, minlength=num_classes)
    return np.tile(counts / max(len(train_labels), 1), (num_samples, 1))


def linear_probabilities(
    train_texts: Sequence[str], train_labels: NDArray[np.int64], texts: Sequence[str], num_classes: int
) -> NDArray[np.float64]:
    """(len(texts), num_classes): logistic regression over TF-IDF of words and pairs of words (scikit-learn).

    Whole texts are used, not those that the network's length cuts. Classes weigh alike, however rare, and C is chosen
    by cross-validated macro F1 on the training texts: a baseline that answers the most frequent class is beaten too
    easily. A class without training samples gets 0.

    Args:
        train_texts: n texts to fit.
        train_labels: (n,) class numbers or (n, classes) of 0 and 1.
        texts: to classify.
        num_classes: number of classes.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2 if len(train_texts) >= 200 else 1)
    train_features, features = vectorizer.fit_transform(train_texts), vectorizer.transform(texts)
    targets = train_labels.T if train_labels.ndim == 2 else [train_labels]
    found = np.zeros((len(texts), num_classes))
    for number, target in enumerate(targets):
        if len(np.unique(target)) == 1:  # one class alone, or one of several labels that all samples, or none, bear
            classes, probabilities = target[:1], np.ones((len(texts), 1))
        else:
            model = _logistic_regression(_chosen_strength(train_features, target)).fit(train_features, target)
            classes, probabilities = model.classes_, model.predict_proba(features)
        if train_labels.ndim == 2:
            found[:, number] = probabilities[:, classes == 1].sum(1)
        else:
            found[:, classes] = probabilities
    return found


def _logistic_regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)


def _chosen_strength(features: Any, target: NDArray[np.int64]) -> float:
    """The C of STRENGTHS with the best cross-validated macro F1; the middle one where a class has but one sample."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    some = np.random.default_rng(0).permutation(len(target))[:MOST_FOR_CHOICE]
    rarest = int(np.unique(target[some], return_counts=True)[1].min())
    if rarest < 2 or len(np.unique(target[some])) < 2:
        return STRENGTHS[len(STRENGTHS) // 2]
    folds = StratifiedKFold(min(FOLDS, rarest), shuffle=True, random_state=0)
    scores = [
        cross_val_score(
            _logistic_regression(strength), features[some], target[some], cv=folds, scoring="f1_macro"
        ).mean()
        for strength in STRENGTHS
    ]
    return STRENGTHS[int(np.argmax(scores))]
