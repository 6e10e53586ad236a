"""Training a LoRA that does not forget: LoRASculpt, and what it is compared with.

    from sculpt.training import ConflictTerm, LoRASculptCallback, add_term

    trainer = Trainer(model=peft_model, …, callbacks=[LoRASculptCallback(density=0.1, warmup_steps=100)])
    add_term(trainer, ConflictTerm(alpha=1e-3))

Nothing heavy is imported until a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callback import LoRASculptCallback
    from .regulariser import conflict
    from .sculptor import Masking, Sculptor
    from .settings import AdapterMethod, Schedule
    from .terms import ConflictTerm, L2Term, OrthogonalTerm
    from .train import train_adapter
    from .trainer import add_term

_PLACES = {
    "ConflictTerm": "terms",
    "L2Term": "terms",
    "LoRASculptCallback": "callback",
    "Masking": "sculptor",
    "AdapterMethod": "settings",
    "OrthogonalTerm": "terms",
    "Schedule": "settings",
    "Sculptor": "sculptor",
    "add_term": "trainer",
    "conflict": "regulariser",
    "train_adapter": "train",
}

__all__ = [
    "AdapterMethod",
    "ConflictTerm",
    "L2Term",
    "LoRASculptCallback",
    "Masking",
    "OrthogonalTerm",
    "Schedule",
    "Sculptor",
    "add_term",
    "conflict",
    "train_adapter",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'sculpt.training' has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
