"""Finished runs, opened again."""
