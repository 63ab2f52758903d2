"""Configurations as plain JSON values and back, and the hash that a configuration is known by."""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from typing import Any, Literal, TypeVar

from bltjax.config.checks import one_of
from bltjax.config.model import FAMILIES, family_of

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values; a model carries its family's name under "family".

    A field that came later (`checks.LATER`) is left out where it is at its default.
    """
    out: dict[str, Any] = {"family": family_of(config)} if type(config) in FAMILIES.values() else {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("later") and value == field.default:
            continue
        plain = to_dict(value) if dataclasses.is_dataclass(value) else value
        out[field.name] = list(plain) if isinstance(plain, tuple) else plain
    return out


def _from_value(annotation: Any, value: Any, where: str) -> Any:
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    classes: list[Any] = [o for o in options if dataclasses.is_dataclass(o)]
    if isinstance(value, dict) and classes:
        if len(classes) > 1:
            one_of(f"{where}.family", value.get("family"), tuple(FAMILIES))
            return from_dict(FAMILIES[value["family"]], value, where)
        return from_dict(classes[0], value, where)
    value = tuple(value) if isinstance(value, list) else value
    if not any(_fits(option, value) for option in options):
        names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
        raise ValueError(f"{where}={value!r}: must be a value of type {names}.")
    return value


def _fits(option: Any, value: Any) -> bool:
    if typing.get_origin(option) is Literal:
        return True  # the configuration itself names the choices
    if typing.get_origin(option) is tuple:
        return isinstance(value, tuple) and all(type(item) is int for item in value)
    return type(value) is option or (option is float and type(value) is int)


def from_dict(cls: type[T], values: dict[str, Any], where: str = "config") -> T:
    """The inverse of to_dict.

    Raises:
      ValueError: for an unknown key, naming the nearest known ones, or a value that a field refuses.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    arguments = {}
    for key, value in values.items():
        if key == "family" and cls in FAMILIES.values():
            if FAMILIES.get(value) is not cls:
                raise ValueError(f"{where}.family={value!r}: a {cls.__name__} was expected here.")
            continue
        if key not in names:
            near = difflib.get_close_matches(key, names, n=3, cutoff=0.4) or names
            raise ValueError(f"{where}.{key} is not a known key of {cls.__name__}; the nearest are: {', '.join(near)}.")
        arguments[key] = _from_value(hints[key], value, f"{where}.{key}")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def config_hash(config: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the canonical JSON of a configuration."""

    def number(text: str) -> float:  # 10000.0 and 10000 make equal configurations, so they are written alike
        return int(float(text)) if float(text).is_integer() else float(text)

    values = json.loads(json.dumps(to_dict(config)), parse_float=number)
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
