"""The hold-out rows of the trainer's split, without its libraries: train_test_split(range(n), test_size=0.2,
random_state=42, stratify=y) of scikit-learn, which draws from NumPy's RandomState. `show_score.py` proves that these are
the rows by meeting the AUC of the model card.
"""

import random
from itertools import accumulate
from math import ceil

SEED = 42
SHARE = 0.2


class RandomState:
    """NumPy's: the Mersenne Twister that Python has too, but seeded by Knuth's generator and bounded by rejection."""

    def __init__(self, seed):
        step = lambda word, i: (1812433253 * (word ^ (word >> 30)) + i) & 0xFFFFFFFF
        state = tuple(accumulate(range(1, 624), step, initial=seed))
        self._twister = random.Random()
        self._twister.setstate((3, (*state, 624), None))

    def permutation(self, n):
        """The numbers below `n`, shuffled."""
        rows = list(range(n))
        for i in range(n - 1, 0, -1):
            while (j := self._twister.getrandbits(32) & ((1 << i.bit_length()) - 1)) > i:
                pass
            rows[i], rows[j] = rows[j], rows[i]
        return rows


def holdout(left):
    """The hold-out's row numbers, given of every row whether the customer left."""
    classes = [[row for row, value in enumerate(left) if value == wanted] for wanted in (0, 1)]
    counts = [len(rows) for rows in classes]
    held = ceil(SHARE * len(left))
    trained = _shares(counts, len(left) - held)
    tested = _shares([count - part for count, part in zip(counts, trained)], held)
    state, chosen = RandomState(SEED), []
    for rows, train, test in zip(classes, trained, tested):
        chosen += [rows[place] for place in state.permutation(len(rows))[train : train + test]]
    return sorted(chosen)


def _shares(counts, total):
    """`total` divided in proportion to `counts`; what rounding leaves goes to the largest remainders."""
    exact = [count * total / sum(counts) for count in counts]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(counts)), key=lambda i: whole[i] - exact[i])
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole
