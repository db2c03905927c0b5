"""The feature store: what is kept of every latent while a corpus is read, how it is written, and how it is read."""
