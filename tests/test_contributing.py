"""The worked examples of CONTRIBUTING: a loss term with its test, and a variant that trains, is saved and loads."""

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
from sae.config import OptimConfig, SAEConfig
from sae.evaluation.synthetic.sampling import SyntheticData
from sae.evaluation.synthetic.worlds import WORLDS
from sae.models.language import VARIANTS, recipe_of
from sae.models.saved import save_weights
from sae.modules.losses import TERMS, Term
from sae.training.routes import FusedRoute
from sae.training.trainer import Trainer

ROOT = Path(__file__).parent.parent


def imported(path: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The file that CONTRIBUTING shows under this path, imported as written."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (source,) = re.findall(rf"`{re.escape(path)}`:\n\n```python\n(.*?)```", text, re.DOTALL)
    module = types.ModuleType(path.removesuffix(".py").replace("/", "."))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "CONTRIBUTING.md", "exec"), module.__dict__)
    return module


def test_the_worked_loss_term_passes_its_test_and_trains_on_the_fused_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.modules.losses.TERMS", {**TERMS})
    imported("sae/modules/log_square.py", monkeypatch)
    checks = vars(imported("tests/modules/test_log_square.py", monkeypatch))
    tests = [check for name, check in checks.items() if name.startswith("test_")]
    assert len(tests) == 2
    for check in tests:
        check()
    terms = [Term("squared_error"), Term("log_square", 0.1, {"scale": 0.5})]
    assert FusedRoute.fits(recipe_of(SAEConfig(variant="relu", width=32, k=2), [32]).model, terms, [32])


@pytest.fixture
def hoyer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's file, imported as written, and its line in the table."""
    module = imported("sae/models/variants/hoyer.py", monkeypatch)
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
