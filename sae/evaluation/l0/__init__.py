"""What the data say about the right L0: `sae choose-l0`."""
