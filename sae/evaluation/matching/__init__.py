"""Which latents of several autoencoders are the same: `sae match`."""
