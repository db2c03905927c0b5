"""The feature store: what is kept of every latent, how it is written, and how it is read."""
