"""Measurement: metrics, their intervals, and Platt's calibration.

What lives here: pure functions of labels and scores. What does not: models, files, gates.
"""

import numpy as np
from scipy.stats import rankdata, t

TOP = 0.2  # the share of customers that a campaign can reach: precision_at_20
BINS = 10


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-z))


def auc(left: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve by the rank sum; ties count half."""
    positives = int(left.sum())
    ranks = rankdata(score)[left == 1].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * (len(left) - positives)))


def precision_at_20(left: np.ndarray, score: np.ndarray) -> float:
    """Share of leavers among the highest fifth of the scores (ties in the order of the rows)."""
    return float(left[np.argsort(-score, kind="stable")[: round(TOP * len(left))]].mean())


def brier(left: np.ndarray, score: np.ndarray) -> float:
    return float(((score - left) ** 2).mean())


def ece(left: np.ndarray, score: np.ndarray) -> float:
    """Expected calibration error over bins of equal mass (equal width leaves almost empty bins, which are noise)."""
    bins = np.array_split(np.argsort(score, kind="stable"), BINS)
    return float(sum(abs(score[b].mean() - left[b].mean()) * len(b) for b in bins) / len(left))


METRICS = {"auc": auc, "precision_at_20": precision_at_20, "brier": brier, "ece": ece}


def interval(value: float, low: float, high: float) -> dict:
    """As the card writes it. A percentile interval of a biased statistic (a resampled ECE is larger than the ECE) can
    leave the value out; it is widened to hold it, never moved."""
    low, high = max(0.0, min(low, value)), min(1.0, max(high, value))
    return {"value": round(value, 6), "low": round(low, 6), "high": round(high, 6)}


def over_folds(folds: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """Mean of every metric over (left, score) of each fold, with Student's 95 % interval of that mean."""
    out = {}
    for name, metric in METRICS.items():
        values = np.array([metric(left, score) for left, score in folds])
        reach = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        out[name] = interval(float(values.mean()), float(values.mean() - reach), float(values.mean() + reach))
    return out


def over_resamples(left: np.ndarray, score: np.ndarray, seed: int, resamples: int = 2000) -> dict:
    """Every metric with its 95 % percentile bootstrap interval over rows."""
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        rows = random.integers(0, len(left), len(left))
        draws.append([metric(left[rows], score[rows]) for metric in METRICS.values()])
    low, high = np.percentile(np.array(draws), [2.5, 97.5], axis=0)
    return {
        name: interval(metric(left, score), float(low[i]), float(high[i]))
        for i, (name, metric) in enumerate(METRICS.items())
    }


class Platt:
    """score = sigmoid(a * logit(probability) + b): keeps the ranking (a > 0) and scales SHAP values, nothing more."""

    def __init__(self, a: float, b: float):
        if not (np.isfinite(a) and np.isfinite(b) and a > 0):
            raise ValueError(f"calibration is not usable: a = {a}, b = {b}")
        self.a, self.b = a, b

    @classmethod
    def fit(cls, left: np.ndarray, probability: np.ndarray) -> "Platt":
        """Maximum likelihood by Newton's method. The probabilities must be out-of-fold ones: a model's own training
        rows look far better separated than any customer to come."""
        x = np.column_stack([logit(probability), np.ones(len(left))])
        if not np.isfinite(x).all():
            raise ValueError("a probability of exactly 0 or 1 has no log-odds")
        theta = np.array([1.0, 0.0])
        for _ in range(50):
            p = sigmoid(x @ theta)
            step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x, x.T @ (left - p))
            theta = theta + step
            if np.abs(step).max() < 1e-12:
                break
        # Nine digits are what the card carries, so nine digits are what every score is computed with.
        return cls(round(float(theta[0]), 9), round(float(theta[1]), 9))

    def score(self, probability: np.ndarray) -> np.ndarray:
        return sigmoid(self.a * logit(probability) + self.b)
