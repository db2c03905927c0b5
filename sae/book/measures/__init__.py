"""Measures that only the book uses."""
