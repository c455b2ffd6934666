"""Entry point of `python -m train`. What lives here: nothing but the call; the command itself is in `train.py`."""

import os
import sys

# Before numpy is imported: sums of a threaded BLAS differ in the last bit with the number of threads, and then a
# second run would not be byte-identical.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

from train.train import main  # noqa: E402  (the environment has to be set first)

sys.exit(main())
