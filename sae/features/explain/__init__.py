"""Names for latents, and how well a name tells where its latent fires."""
