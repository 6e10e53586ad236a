"""The command line."""

import os

# NumPy's BLAS starts a thread for each core, which spins for a tenth of a second before it sleeps. 4 is 2⁴ cycles.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
