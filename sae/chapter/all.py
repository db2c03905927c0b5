"""Makes every experiment known, in the chapter's order. A new file of experiments is a name here."""

from sae.chapter import (
    undercomplete,  # noqa: F401
)
