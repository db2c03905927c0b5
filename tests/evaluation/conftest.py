"""A harvest of a tiny model, shared by the tests of what splicing costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sae.config import HarvestConfig
from sae.data.documents import open_documents
from sae.harvest.language_model import load_language_model, locate_model
from sae.harvest.sites import resolve_sites
from sae.harvest.stream import Harvest


@pytest.fixture(scope="module")
def harvest(tiny_model: Path, corpus: Path) -> Harvest:
    lm = load_language_model(
        locate_model(str(tiny_model), trust_remote_code=False), device=torch.device("cpu"), precision="float32"
    )
    config = HarvestConfig(model=str(tiny_model), dataset=str(corpus), layer=1, context=64, contexts=4)
    harvest = Harvest(lm, resolve_sites(lm.model, ["resid_post"], layer=1), open_documents(str(corpus)), config)
    return harvest
