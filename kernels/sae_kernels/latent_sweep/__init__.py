"""All gradients of encode and decode, latent by latent."""
