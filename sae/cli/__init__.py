"""The command `sae`."""
