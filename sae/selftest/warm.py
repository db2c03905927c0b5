"""What the process that children are forked from imports; it computes nothing and starts no thread."""

import importlib

MODULES = (
    "torch",
    "torch.distributed.checkpoint.hf_storage",
    "torch.distributed.checkpoint.state_dict_loader",
    "torch.distributed.checkpoint.state_dict_saver",
    "torch.distributed.launcher.api",
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
    "sae.training.distributed.run",
    "sae.training.run",
    "sae.training.text",
)
for name in MODULES:
    importlib.import_module(name)
