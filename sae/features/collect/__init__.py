"""One pass over text or images that collects every latent's statistics and examples."""
