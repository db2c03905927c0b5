"""Tests of generative models; a package, so that its conftest.py is not taken for the one above."""
