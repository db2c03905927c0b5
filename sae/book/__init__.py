"""The textbook's study of image autoencoders: experiments, comparison, generators, reports. Only `sae.cli` uses it."""
