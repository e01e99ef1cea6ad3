"""Which values a config's fields may have: numbers in their range, names that are known.

    def __post_init__(self) -> None:
        check(self, "optimizer.", rate=above(0), warmup=at_least(0))

A number that is NaN or infinite is in no range, and neither is one that f32 or int32 cannot hold,
whether a range is given for its field or not. None is taken wherever the field's type has it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

from rec_jax.errors import InputError

MOST_INT, MOST_FLOAT = 2**31 - 1, 1e30


class Range(NamedTuple):
    """Numbers from `low` to `high`, without an end that is open; an infinite end is what an array
    can hold."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` is in it; NaN is not."""
        return ((self.low < value if self.low_open else self.low <= value)
                and (value < self.high if self.high_open else value <= self.high))

    def __str__(self) -> str:
        low = f"{'more than' if self.low_open else 'at least'} {self.low:g}"
        high = f"{'less than' if self.high_open else 'at most'} {_shown(self.high)}"
        ends = [text for text, end in ((low, self.low), (high, self.high)) if math.isfinite(end)]
        return " and ".join(ends) or "a number"


def _shown(value: float) -> str:
    """A whole number in full, as far as people read one."""
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else f"{value:.10g}"


def above(low: float, high: float = math.inf) -> Range:
    """Numbers greater than `low`, up to `high`."""
    return Range(low, high, low_open=True)


def at_least(low: float, high: float = math.inf) -> Range:
    """Numbers from `low` to `high`."""
    return Range(low, high)


def below(low: float, high: float) -> Range:
    """Numbers from `low` on that are smaller than `high`."""
    return Range(low, high, high_open=True)


def between(low: float, high: float) -> Range:
    """Numbers between two that are not among them."""
    return Range(low, high, low_open=True, high_open=True)


ANY = Range(-math.inf)


def check(config: Any, where: str, **ranges: Range) -> None:
    """Refuse a dataclass with a number out of its range, or a name that is no choice of its field.

    where: what stands before a field's name in a message, such as "table.".

    Raises:
      InputError: naming the field, its value and what was expected.
    """
    cls: type = type(config)
    hints = _hints(cls)
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        options = typing.get_args(hint) if _is_union(hint) else (hint,)
        if value is None and type(None) in options:
            continue
        named = f"{where}{field.name}"
        for option in options:
            if typing.get_origin(option) is typing.Literal:
                known = typing.get_args(option)
                if value not in known:
                    raise InputError(f"{named} is {value!r}; expected one of "
                                     f"{', '.join(map(repr, known))}")
            elif option in (int, float):
                _check_number(named, value, option, ranges.get(field.name, ANY))
            elif typing.get_args(option) in ((int, ...), (float, ...)):
                for each in value:
                    _check_number(named, each, typing.get_args(option)[0],
                                  ranges.get(field.name, ANY))


def check_different(what: str, names: Sequence[str]) -> None:
    """Refuse entries of `what` of which two have one name."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{what}: {name!r} is given twice; expected different names")


def _check_number(name: str, value: Any, kind: type, allowed: Range) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (kind is float and isinstance(value, float))):
        raise InputError(f"{name} is {value!r}; expected a "
                         f"{'whole ' if kind is int else ''}number")
    most = MOST_INT if kind is int else MOST_FLOAT
    if not allowed.holds(value) or not math.isfinite(value):
        raise InputError(f"{name} is {value}; expected {allowed}")
    if not math.isfinite(allowed.high) and abs(value) > most:
        raise InputError(f"{name} is {value}; expected at most {most:.10g}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
