"""What is asked for over what a recipe says: flags of a command, or arguments of a function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..arithmetic.two_sided import Protection
from ..errors import MethodError, did_you_mean
from ..plan.options import Policies, Selection
from ..run.calibration import Calibration
from ..run.settings import Settings
from .recipe import Recipe

SOURCES = ("hessian", "data", "enabled")  # fields of a calibration that exclude one another
Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Over:
    """Values by field; what is not among them is as the recipe says, or else the default.

    Attributes:
        calibration: May be a whole one, whose fields a recipe can change; the chosen ones are then in `measured`.
    """

    settings: Values = field(default_factory=dict)
    selection: Values = field(default_factory=dict)
    policies: Values = field(default_factory=dict)
    protection: Values = field(default_factory=dict)
    measured: Values = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)

    @classmethod
    def of(cls, given: Values) -> Over:
        """Return it of arguments by name, of whatever part; `seed`, `device`, `dtype` and `memory` are the run's.

        Raises:
            MethodError: Nothing has such a name.
        """
        parts: dict[str, dict[str, Any]] = {}
        places = {"settings": Settings, "selection": Selection, "policies": Policies, "protection": Protection}
        places["measured"] = Calibration
        known = {name: {one.name for one in fields(found)} for name, found in places.items()}
        known["settings"] -= {"selection", "policies", "protection", "recipe", "tile_elements"}
        for key, value in given.items():
            part = next((name for name, found in known.items() if key in found), None)
            if part is None:
                hint = did_you_mean(key, {name for found in known.values() for name in found})
                raise MethodError(f"`{key}` is not an argument of `merge`", hint=hint)
            parts.setdefault(part, {})[key] = value
        return cls(**parts)  # pyright: ignore[reportArgumentType] (`calibration` is none of them)

    def settings_of(self, recipe: Recipe) -> Settings:
        """Return the settings of a recipe's run."""
        run = recipe.run
        return replace(
            run,
            **self.settings,
            selection=replace(run.selection, **self.selection),
            policies=replace(run.policies, **self.policies),
        )

    def calibration_of(self, recipe: Recipe) -> Calibration:
        """Return where the curvature comes from."""
        replaced = SOURCES if set(SOURCES) & set(self.measured) else ()
        said = {name: value for name, value in recipe.calibration.items() if name not in replaced}
        return replace(self.calibration, **{**said, **self.measured})

    def protection_of(self, recipe: Recipe, calibration: Calibration) -> Protection | None:
        """Return how the base is protected, if it is.

        Raises:
            MethodError: It is said how, and not that it is.
        """
        if recipe.run.protection is not None:
            return replace(recipe.run.protection, **self.protection)
        if calibration.protect is not None:
            return replace(Protection(), **self.protection)
        if self.protection:
            raise MethodError(f"`{next(iter(self.protection))}` has no effect without a protected base")
        return None
