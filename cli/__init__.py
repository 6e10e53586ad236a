"""The command line."""

import gc
import os

# NumPy's BLAS starts a thread for each core, which spins for a tenth of a second before it sleeps. 4 is 2⁴ cycles.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

# Imports and headers make many objects and no cycles: searching for those at every 700th takes 30 ms of a start.
gc.set_threshold(100_000, 50, 50)
