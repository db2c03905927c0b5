"""The page on the user's own machine: every latent of a run can be found, read, compared, tested and steered."""
