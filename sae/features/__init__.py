"""Features: statistics, examples, names and effects of every latent of a finished run."""
