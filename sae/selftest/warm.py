"""What the process that children are forked from imports; it computes nothing and starts no thread."""

import torch
import transformers

import sae.cli.main
import sae.cli.sweep
import sae.evaluation.run
import sae.features.collect.collect
import sae.features.collect.text_subject
import sae.features.explain.explain
import sae.models.saved
import sae.selftest.taking_away
import sae.training.run
import sae.training.text

__all__ = ["sae", "torch", "transformers"]
