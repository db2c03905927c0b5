"""Help for the settings of variants: each flag names the variants that read it.

`sae train --help` shows all of them, `sae train --variant jumprelu --help` those that jumprelu reads.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, get_type_hints

import tyro

from sae.config import SAEConfig


def with_variants(command: Any, arguments: list[str]) -> Any:
    """The command's dataclass with help on variants, wherever it contains an `SAEConfig`; for --help alone."""
    variant = next((a.partition("=")[2] for a in arguments if a.startswith("--variant=")), None)
    if "--variant" in arguments[:-1]:
        variant = arguments[arguments.index("--variant") + 1]
    return _described(command, variant)


def _described(cls: Any, variant: str | None) -> Any:
    hints = get_type_hints(cls, include_extras=True)
    changes: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if issubclass(cls, SAEConfig):
            described = _flag(cls, field.name, hint, variant)
        else:
            described = _described(hint, variant) if dataclasses.is_dataclass(hint) else hint
        if described is not hint:
            factory = described if field.default_factory is hint else field.default_factory
            kept = dataclasses.field(default_factory=factory) if field.default is dataclasses.MISSING else field.default
            changes.append((field.name, described, kept))
    if not changes:
        return cls
    return dataclasses.make_dataclass(
        cls.__name__, changes, bases=(cls,), namespace={"__doc__": cls.__doc__}, frozen=True, kw_only=True
    )


def _flag(config: type[SAEConfig], name: str, hint: Any, variant: str | None) -> Any:
    """The type of one setting with what its help says of variants; hidden where the given variant does not read it."""
    readers = config.readers()
    variants = [other for other, names in readers.items() if name in names]
    if name == "variant":
        return Annotated[hint, tyro.conf.arg(help=f"Kind of autoencoder: {', '.join(readers)}.")]
    one = variant is not None and variant in readers and "base" not in readers[variant]
    if not variants or (one and variant not in variants):
        return tyro.conf.Suppress[hint]
    if one or len(variants) == len(readers):
        return hint
    return Annotated[
        hint, tyro.conf.arg(help_behavior_hint=lambda default: f"(default: {default}; for {', '.join(variants)})")
    ]
