"""The best that a budget can buy, by an exact solver (HiGHS): at most one offer for each row, costs within the budget. Reads JSON
from standard input, {"budget": number, "rows": [[[cost, value], ...], ...]}, and prints the greatest sum of values that is possible.
`show_decide.py` runs it in the Python of the trainer.
"""

import json
import sys

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

asked = json.load(sys.stdin)
offers = [(row, cost, value) for row, offered in enumerate(asked["rows"]) for cost, value in offered]
owner, costs, values = (np.array(column) for column in zip(*offers))
one_each = csr_matrix((np.ones(len(offers)), (owner.astype(int), np.arange(len(offers)))), shape=(len(asked["rows"]), len(offers)))
found = milp(
    -values, integrality=np.ones(len(offers)), bounds=Bounds(0, 1), options={"mip_rel_gap": 1e-9, "time_limit": 120},
    constraints=[LinearConstraint(one_each, -np.inf, 1), LinearConstraint(costs[np.newaxis, :], -np.inf, asked["budget"])],
)
# The bound where the time was not enough: then it is no less than the best.
print(json.dumps({"optimum": -found.fun, "bound": -found.mip_dual_bound, "proved": found.status == 0}))
