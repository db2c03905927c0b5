"""What the process that children are forked from imports; it computes nothing and starts no thread."""

import importlib

MODULES = (
    "torch",
    "transformers",
    # the command stands above this room, and is started by its name as a person starts it
    "sae.cli.main",
    "sae.cli.sweep",
    "sae.evaluation.run",
    "sae.features.collect.collect",
    "sae.features.collect.text_subject",
    "sae.features.explain.explain",
    "sae.harvest.harvesting",
    "sae.selftest.taking_away",
    "sae.training.run",
    "sae.training.text",
)
for name in MODULES:
    importlib.import_module(name)
