"""One file, one method; the file's name is the method's name in recipes and on the command line."""

from .adadare import AdaDare
from .dare import Dare
from .dare_ties import DareTies
from .linear import Linear
from .method import Method
from .tailor import Tailor
from .task_arithmetic import TaskArithmetic

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (AdaDare, Dare, DareTies, Linear, Tailor, TaskArithmetic)
}

__all__ = ["METHODS", "AdaDare", "Dare", "DareTies", "Linear", "Method", "Tailor", "TaskArithmetic"]
