"""What configurations refuse and how they say so; and fields that came later."""

import difflib
import typing
from typing import Any, Literal

# Metadata of a field that came when runs were kept already: it is written only where it is not at its default, which it
# had then. So configurations without it, and their hashes, stay what they were.
LATER = {"later": True}


def require(condition: bool, argument: str, value: Any, advice: str) -> None:
    if not condition:
        raise ValueError(f"{argument}={value!r}: {advice}")


def check_choices(config: Any, prefix: str = "") -> None:
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            one_of(f"{prefix}{name}", getattr(config, name), typing.get_args(hint))


def at_least(config: Any, prefix: str = "", **bounds: int) -> None:
    """Every named field is None or no less than its bound."""
    for name, bound in bounds.items():
        value = getattr(config, name)
        require(value is None or value >= bound, f"{prefix}{name}", value, f"must be at least {bound}.")


def one_of(argument: str, value: Any, choices: tuple[Any, ...]) -> None:
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    require(value in choices, argument, value, f"choose one of {', '.join(map(repr, choices))}.{hint}")
