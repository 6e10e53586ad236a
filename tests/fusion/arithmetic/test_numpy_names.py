"""What others find under NumPy's names in the process of sculpt is what NumPy has there."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import sculpt.fusion.arithmetic
light = {"numpy.f2py", "numpy.testing"}.isdisjoint(sys.modules)
import array_api_compat.numpy as compatible
import numpy as np
for name in ("random", "testing", "ma", "polynomial", "char", "strings", "rec", "f2py", "ctypeslib"):
    assert getattr(compatible, name) is getattr(np, name), name
assert not hasattr(compatible, "no_such_name")
print(light)
"""


def test_others_get_numpys_own_of_what_is_left_out() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
