"""Timings of the ops and of a whole training step against the floor measured in the same run."""
