"""Golden rows and baseline: what of the training data may be published.

What lives here: synthetic customers drawn feature by feature from the training marginals, and histograms of those
marginals. What does not: scores (the caller computes them with the native library), files.
"""

import numpy as np

from train.data import Dataset, encode, first_columns

DRAWN = 80
ON_THRESHOLD = 16


def draw(dictionary: list[dict], data: Dataset, train: np.ndarray, count: int, seed: int) -> list[dict]:
    """Rows drawn feature by feature: no row is a person. Numbers come from the interpolated quantile function and are
    rounded the way the data writes them. Row k is given no value for the k-th feature that may be missing, so that
    every such feature is missing at least once."""
    random = np.random.default_rng(seed)
    columns = {}
    for feature in dictionary:
        name = feature["name"]
        values = [data.rows[i][name] for i in train]
        present = [value for value in values if value is not None]
        if feature["type"] == "category":
            shares = [present.count(c) / len(present) for c in feature["categories"]]
            drawn = [str(c) for c in random.choice(list(feature["categories"]), count, p=shares)]
        elif feature["type"] == "integer":
            drawn = np.quantile(present, random.random(count), method="inverted_cdf").astype(int).tolist()
        else:
            drawn = np.round(np.quantile(present, random.random(count)), data.decimals[name]).tolist()
        gone = random.random(count) < 1 - len(present) / len(values)
        columns[name] = [None if g else value for g, value in zip(gone, drawn, strict=True)]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for k, feature in enumerate(f for f in dictionary if f["missing"] != "refuse"):
        rows[k][feature["name"]] = None
    return rows


def put_on_thresholds(dictionary: list[dict], rows: list[dict], splits: list, mode: str | None, learner) -> list[dict]:
    """Each row with one number put exactly on a threshold that decides about this row: one float32 further the
    probability is another. A runtime that confuses `<` with `<=`, or that rounds thresholds the other way, gets these
    rows wrong. The values are float32 numbers printed exactly, and legal for their type and range."""
    starts = first_columns(dictionary)
    candidates = {}
    for feature in dictionary:
        if feature["type"] == "category":
            continue
        low, high = feature["range"]["min"], feature["range"]["max"]
        found = [float(t) for column, t in splits if column == starts[feature["name"]] and low <= t <= high]
        if feature["type"] == "integer":
            found = [int(t) for t in found if t == int(t)]
        if found:
            candidates[feature["name"]] = found
    if not candidates:
        return []

    # `<` sends the threshold itself to the false branch, `<=` to the true one: look to the other side of it.
    other_side = np.float32(-np.inf if mode == "BRANCH_LT" else np.inf)
    out = []
    for k, row in enumerate(rows):
        name = list(candidates)[k % len(candidates)]
        placed = [row | {name: value} for value in candidates[name]]
        x = encode(dictionary, placed)
        beside = x.copy()
        beside[:, starts[name]] = np.nextafter(x[:, starts[name]], other_side)
        jump = np.abs(learner.probability(x) - learner.probability(beside))
        if jump.max() > 0:
            out.append(placed[int(jump.argmax())])
    if not out:
        raise ValueError("no golden row could be put on a threshold that matters")
    return out


def baseline(dictionary: list[dict], data: Dataset, train: np.ndarray, scores: np.ndarray) -> dict:
    """Histograms of the training part. The scores are out-of-fold ones: a model's scores of its own training rows are
    more extreme than those of any customer to come, and would look like drift on the first day."""
    features = {}
    for feature in dictionary:
        values = [data.rows[i][feature["name"]] for i in train]
        present = [value for value in values if value is not None]
        missing = len(values) - len(present)
        if feature["type"] == "category":
            counts = {c: present.count(c) for c in feature["categories"]}
            features[feature["name"]] = {"categories": counts, "missing": missing}
        else:
            edges = _edges(np.array(present), data.decimals.get(feature["name"]))
            features[feature["name"]] = {"edges": edges, "counts": _counts(present, edges), "missing": missing}
    tenths = [k / 10 for k in range(1, 10)]
    return {
        "rows": len(train),
        "features": features,
        "score": {"edges": tenths, "counts": _counts(scores, tenths)},
    }


def _edges(values: np.ndarray, decimals: int | None) -> list:
    """Cuts behind the deciles: at the next integer that occurs, or half way to the next number (so that no value lies
    on an edge, where float32 and float64 could disagree)."""
    distinct = np.unique(values)
    edges = set()
    for decile in np.quantile(values, np.arange(1, 10) / 10, method="inverted_cdf"):
        after = distinct[distinct > decile]
        if len(after):
            edges.add(int(after[0]) if decimals is None else round(float(decile + after[0]) / 2, decimals + 1))
    return sorted(edges)


def _counts(values, edges: list) -> list[int]:
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1).tolist()
