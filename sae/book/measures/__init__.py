"""Measures that the study alone uses."""
