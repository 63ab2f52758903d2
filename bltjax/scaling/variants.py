"""A preset with some fields changed, as a study compares it with others: `blt-cpu-1+no-hash`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from bltjax.config import ModelConfig, from_dict, to_dict
from bltjax.scaling.series import named, rule_of, sized

MARK = "+"  # between the name of the preset and that of the variant


@dataclasses.dataclass(frozen=True)
class Variant:
    """A changed preset.

    Attributes:
      name: what it is called after the preset: letters, digits, dots, dashes and underscores.
      preset: a name, as of `Study.preset`.
      changes: dotted paths into the model's configuration and their new values, as JSON has them: {"hash.sizes": []}.
        Without any it is the preset, by another name.
      patch_size: mean bytes per patch (or length, of blt-strided) for this variant alone; None: those of the study.
    """

    name: str
    preset: str
    changes: Mapping[str, Any]
    patch_size: float | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", self.name):
            raise ValueError(f"variant {self.name!r}: name it in letters, digits, dots, dashes and underscores.")
        if self.patch_size is not None:
            sized(rule_of(self.preset), self.patch_size)
        before, after = to_dict(named(self.preset)[1]), to_dict(self.model())
        for path, value in self.changes.items():
            if _value(before, path) == _value(after, path):
                raise ValueError(f"variant {self.full_name}: {path}={value!r} is what the preset has; leave it out.")

    @classmethod
    def having(cls, name: str, preset: str, values: Mapping[str, Any]) -> "Variant":
        """A preset with such values; only those that it does not have already are changes."""
        before = to_dict(named(preset)[1])
        plain = {path: list(value) if isinstance(value, tuple) else value for path, value in values.items()}
        changes = {path: value for path, value in plain.items() if _value(before, path) != value}
        return cls(name, preset, changes)

    @property
    def full_name(self) -> str:
        """What its runs are called."""
        return f"{self.preset}{MARK}{self.name}"

    def model(self) -> ModelConfig:
        """The changed model.

        Raises:
          ValueError: for an unknown path, with the nearest known keys, or a value that its field refuses.
        """
        model = named(self.preset)[1]
        values = to_dict(model)
        for path, value in self.changes.items():
            *parents, last = path.split(".")
            place = values
            for parent in parents:
                place = place.setdefault(parent, {})
                if not isinstance(place, dict):
                    raise ValueError(f"variant {self.full_name}: {path}: {parent} holds no fields.")
            place[last] = list(value) if isinstance(value, tuple) else value
        return from_dict(type(model), values, f"variant {self.full_name}")


def _value(values: Any, path: str) -> Any:
    """What lies at a path; of a path that is not there the path itself, which no field has."""
    for key in path.split("."):
        if not isinstance(values, dict) or key not in values:
            return path
        values = values[key]
    return values
