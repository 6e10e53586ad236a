"""One file, one method; the file's name is the method's name in recipes and on the command line."""

from .adadare import AdaDare
from .dare import Dare
from .method import Method
from .task_arithmetic import TaskArithmetic

METHODS: dict[str, type[Method]] = {method.name: method for method in (AdaDare, Dare, TaskArithmetic)}

__all__ = ["METHODS", "AdaDare", "Dare", "Method", "TaskArithmetic"]
