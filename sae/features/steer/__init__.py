"""Generation with latents pushed, set or ablated, and prompts read latent by latent."""
