"""How good a model is, by a suite of tasks; which strength is best; whether a release may go out.

`sculpt.evaluate(model, suite)` scores a model: a call of the room is one of its function.
"""

from __future__ import annotations

import sys
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .evaluate import evaluate

        return evaluate(*args, **kwargs)

    @property
    def __signature__(self) -> Signature:
        from .evaluate import evaluate

        return signature(evaluate)


sys.modules[__name__].__class__ = _Callable
