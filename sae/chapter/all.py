"""Makes every experiment known. A new file of experiments is a name here."""

from sae.chapter import (
    anomaly,
    collapse,
    denoising,
    overcomplete,
    reduction,
    sparse,
    undercomplete,
)

__all__ = ["anomaly", "collapse", "denoising", "overcomplete", "reduction", "sparse", "undercomplete"]
