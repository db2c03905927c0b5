"""Names for latents, and how well each predicts where its latent fires."""
