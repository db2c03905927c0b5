"""Autoencoders: the one class, the table of language variants, and saving."""
