"""The worked example of CONTRIBUTING is a variant: it trains to the L0 asked for, is saved and loads."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

import sae
from sae.base.files import publish_json
from sae.cli.recovery import Course, recover
from sae.evaluation.synthetic.sampling import SyntheticData
from sae.evaluation.synthetic.worlds import WORLDS
from sae.models.language import VARIANTS, recipe_of
from sae.models.saved import save_weights
from sae.modules.losses import TERMS

ROOT = Path(__file__).parent.parent


@pytest.fixture
def hoyer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's file, imported as written, and its line in the table."""
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    module = types.ModuleType("sae.models.variants.hoyer")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "CONTRIBUTING.md", "exec"), module.__dict__)
    monkeypatch.setitem(VARIANTS, "hoyer", module.__dict__["HOYER"])
    yield
    del TERMS["hoyer"]


@pytest.mark.usefixtures("hoyer")
def test_the_worked_example_finds_the_features_at_the_l0_asked_for() -> None:
    found = recover("hoyer", "easy16", seed=0, course=Course(32, 500, 1e-2))
    assert found.mcc > 0.95
    assert found.l0 == pytest.approx(found.true_l0, rel=0.1)


@pytest.mark.usefixtures("hoyer")
def test_the_worked_example_is_saved_and_loads(tmp_path: Path) -> None:
    from sae.config import OptimConfig, SAEConfig
    from sae.training.trainer import Trainer

    data = SyntheticData(WORLDS["easy16"], seed=0)
    trainer = Trainer(
        recipe_of(SAEConfig(variant="hoyer", width=32, k=2), [32]), OptimConfig(lr=1e-2), steps=20, dead_after=10**6,
        auxk=16, device=torch.device("cpu"), seed=0,
    )  # fmt: skip
    x = data.sample(512, 0).x
    trainer.initialise([x], [x])
    for batch in range(20):
        x = data.sample(512, batch).x
        trainer.step(x, x)
    assert trainer.route.name == "fused"
    model = trainer.finished()
    publish_json(tmp_path / "config.json", {"autoencoder": save_weights(tmp_path, model, trainer.probe)})
    loaded = sae.load(tmp_path)
    assert loaded.encode(x).to_dense().equal(model.encode(x).to_dense())
