"""For all settings: the error that names a field, checks, and conversion to JSON and back. Imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

T = TypeVar("T")

TYPED: ContextVar[frozenset[str]] = ContextVar("typed", default=frozenset())
"""Fields whose flags were typed on the command line: a default that was typed is treated as a choice."""


class ConfigError(ValueError):
    """A setting is missing, unknown or out of range; the message names the field, the value and what was expected."""


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON values; paths become strings."""
    return {f.name: _value_to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_json(cls: type, values: Any, where: str = "config") -> Any:
    """The inverse of `to_json`: the dataclass `cls` from JSON values.

    Raises:
        ConfigError: not an object, an unknown field (with the nearest known one), or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected an object of {cls.__name__}, got {type(values).__name__}")
    known = {f.name for f in dataclasses.fields(cls)}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(f"{where}.{name}: unknown field" + (f"; did you mean {near[0]!r}?" if near else ""))
    for field in dataclasses.fields(cls):
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in values and not optional:
            raise ConfigError(f"{where}.{field.name}: missing")
    hints = typing.get_type_hints(cls)
    typed = {name: _value_from_json(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return cls(**typed)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def unknown_choice(what: str, given: str, known: typing.Iterable[str]) -> ConfigError:
    """The error for a name that is not in a registry: lists the nearest and all known ones."""
    known = sorted(known)
    near = difflib.get_close_matches(given, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"{what} {given!r} is unknown{hint} (known: {', '.join(known)})")


def built(what: str, known: Mapping[str, Callable[..., T]], description: Mapping[str, Any]) -> T:
    """The inverse of `describe()`: calls the entry of `known` with the description's `name` on the rest of it.

    Raises:
        ConfigError: the name is unknown, or a value is not of the type that the entry's argument has.
    """
    settings = dict(description)
    name = settings.pop("name")
    if name not in known:
        raise unknown_choice(what, name, known)
    entry = known[name]
    hints = typing.get_type_hints(entry.__init__ if isinstance(entry, type) else entry)
    typed = {k: _value_from_json(hints[k], v, f"{what} {name}: {k}") if k in hints else v for k, v in settings.items()}
    return entry(**typed)


def as_place(place: str | Path | None) -> str | Path | None:
    """A folder as a Path; a URL stays as it is, since a Path would join its slashes."""
    return Path(place) if isinstance(place, str) and "://" not in place else place


def check(good: bool, name: str, value: Any, expected: str) -> None:
    """Raise ConfigError, naming the flag, unless `good`."""
    if not good:
        raise ConfigError(f"--{name.replace('_', '-')} {value}: expected {expected}")


class Limit(NamedTuple):
    """A condition on a setting, given beside its type: `Annotated[float, Limit(lambda q: q > 1, "more than 1")]`."""

    met: Callable[[Any], bool]
    expected: str


Count = Annotated[int, Limit(lambda value: value >= 1, "at least 1")]
WholeNumber = Annotated[int, Limit(lambda value: value >= 0, "0 or more")]
Resamples = Annotated[int, Limit(lambda value: value >= 10, "at least 10")]
Positive = Annotated[float, Limit(lambda value: value > 0, "more than 0")]
NonNegative = Annotated[float, Limit(lambda value: value >= 0, "0 or more")]
Share = Annotated[float, Limit(lambda value: 0 <= value <= 1, "a share, 0 to 1")]
InnerShare = Annotated[float, Limit(lambda value: 0 < value < 1, "a share between 0 and 1, both excluded")]
BelowOne = Annotated[float, Limit(lambda value: 0 <= value < 1, "0 to below 1")]


class Limited:
    """Base of settings: checks the `Limit` in every field's type, for all items of a tuple; None is always allowed."""

    def __post_init__(self) -> None:
        for name, limit in _limits_of(type(self)).items():
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                check(item is None or limit.met(item), name, value, limit.expected)


@functools.cache
def _limits_of(cls: type) -> dict[str, Limit]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: limit for name, hint in hints.items() if (limit := _limit_in(hint)) is not None}


def _limit_in(hint: Any) -> Limit | None:
    parts = hint.__metadata__ if typing.get_origin(hint) is Annotated else map(_limit_in, typing.get_args(hint))
    return next((part for part in parts if isinstance(part, Limit)), None)


def refuse_ignored(config: Any, ignored: Mapping[str, str]) -> None:
    """Refuse settings without effect (name -> reason) that differ from their defaults or were typed.

    Raises:
        ConfigError: lists them all with the reasons.
    """
    refusals = [
        f"--{field.name.replace('_', '-')} {_spelled(value)}: {ignored[field.name]}"
        for field in dataclasses.fields(config)
        if field.name in ignored
        and ((value := getattr(config, field.name)) != field.default or field.name in TYPED.get())
    ]
    if refusals:
        raise ConfigError("; ".join(refusals))


def _spelled(value: Any) -> str:
    """A value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _value_to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _value_from_json(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        refusals = []
        for alternative in (a for a in arguments if a is not type(None)):
            try:
                return _value_from_json(alternative, value, where)
            except ConfigError as error:
                refusals.append(str(error))
        raise ConfigError("; or ".join([refusals[0], *(r.removeprefix(f"{where}: ") for r in refusals[1:])]))
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(str, arguments))}")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value_from_json(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1023:
        return float(value)
    plain = typing.cast(type, origin or hint)
    if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
        raise ConfigError(f"{where}: expected {plain.__name__}, got {value!r}")
    return value
