"""Flags that every command takes."""

from __future__ import annotations

from typing import Annotated

import tyro

Json = Annotated[bool, tyro.conf.arg(help="Print one JSON line on stdout, and nothing else there.")]
