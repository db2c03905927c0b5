"""One page about runs that a reviewer reads: numbers beside their controls, curves, latents, provenance."""
