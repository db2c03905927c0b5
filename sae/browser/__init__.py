"""The page on which a run's latents are found, read, compared, tested and steered, on the user's machine."""
