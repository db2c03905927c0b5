"""Imports every module of this folder, which registers the experiments in it."""

import importlib
import pkgutil

from sae.book import chapter

for module in pkgutil.iter_modules(chapter.__path__):
    importlib.import_module(f"{chapter.__name__}.{module.name}")
