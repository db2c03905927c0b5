"""Shared by the tests of loss terms: a forward pass with some of its fields replaced."""

from __future__ import annotations

import dataclasses
from typing import Any

from sae.modules.views import Everything


def replaced(everything: Everything, **fields: Any) -> Everything:
    """The same pass with other values for fields of itself, of its entries or of its output."""
    parts: dict[str, Any] = {}
    for name in ("entries", "output"):
        part = getattr(everything, name)
        names = {field.name for field in dataclasses.fields(part)} & fields.keys()
        parts[name] = dataclasses.replace(part, **{field: fields.pop(field) for field in names})
    return dataclasses.replace(everything, **parts, **fields)
