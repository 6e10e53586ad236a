from . import numpy_names  # noqa: F401 (before anything asks for NumPy's namespace)
