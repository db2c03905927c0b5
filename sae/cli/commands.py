"""The commands of `sae`: one dataclass each, whose fields are the flags. Heavy packages are imported inside `run`.

Those of several flags have files of their own; `COMMANDS` lists all.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sae.cli.bench import Bench
from sae.cli.choose_l0 import ChooseL0
from sae.cli.comparing import Compare
from sae.cli.exchange import Export, Import, List
from sae.cli.harvest import Harvest
from sae.cli.match import Match
from sae.cli.measure import Measure
from sae.cli.options import Json
from sae.cli.reporting import Report
from sae.cli.selftest import SelfTest
from sae.cli.training import Sweep, Train
from sae.config import (
    CollectConfig,
    Device,
    EvalConfig,
    ExplainConfig,
    SteerConfig,
)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train on the demo model and text, evaluate, and print the results."""

    out: Path = Path("runs/demo")
    """Run folder; where one exists, a number is added to the name."""
    tokens: int = 420_000
    """Tokens to harvest."""
    epochs: int = 4
    """Passes over them."""
    seed: int = 0
    """Seed of every random draw."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.cli.demo import run_demo

        return run_demo(self.out, tokens=self.tokens, epochs=self.epochs, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Evaluate a saved autoencoder, or all of a sweep, on held-out documents, images, or rows of a file."""

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, folder of a sweep, hub repository that holds a run, or what `sae import` reads (with --dataset)."""
    config: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.runs.sweeps import sweep_of

        if sweep_of(self.run_folder) is not None:
            from sae.reporting.sweep import compare

            return compare(self.run_folder, self.config)
        from sae.evaluation.run import evaluate

        return evaluate(self.run_folder, self.config)

    def table(self, report: dict[str, Any]) -> dict[str, Any]:
        """What people are shown of it."""
        from sae.evaluation.control_table import readable

        return readable(report)


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Name the latents of a run from its collected features, and score the names on held-out documents."""

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder with collected features."""
    config: ExplainConfig = dataclasses.field(default_factory=ExplainConfig)
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.features.explain.explain import explain

        return explain(self.run_folder, self.config)


@dataclass(frozen=True, kw_only=True)
class Steer:
    """Generate text with latents added, set or removed, beside the text without steering.

    --measure measures what it does over the strength instead; see `sae steer RUN --measure --help`.
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a hub repository that holds one."""
    config: SteerConfig
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.features.steer.steer import steer_run

        result = steer_run(self.run_folder, self.config)
        # values for each token are for programs, not for the table
        return result if self.json else {name: v for name, v in result.items() if name not in ("tokens", "kl")}


@dataclass(frozen=True, kw_only=True)
class Features:
    """Collect statistics and examples of every latent of a run, over its text or its images, in one pass."""

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder; the features are written into it."""
    config: CollectConfig = dataclasses.field(default_factory=CollectConfig)
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.features.collect.collect import collect

        return collect(self.run_folder, self.config)


@dataclass(frozen=True, kw_only=True)
class Browse:
    """Serve a page on one or several runs on this machine: search, read, compare, test and steer latents."""

    run_folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders, or the folder of a sweep for all its members that have features."""
    port: int = 0
    """Port on 127.0.0.1; 0 takes a free one."""
    open: bool = False
    """Also open the address in the default browser."""
    device: Device = "auto"
    """Where to run the language model for prompts and steering: auto takes a GPU where there is one."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        import sys
        import webbrowser

        from sae.browser.serve import serve

        def ready(address: str) -> None:
            print(address, file=sys.stderr if self.json else sys.stdout, flush=True)
            if self.open:
                webbrowser.open(address)

        return serve(self.run_folders, port=self.port, device=self.device, ready=ready)


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a saved autoencoder's hash, shapes and self-test."""

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a hub repository that holds one."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.models.saved import TOLERANCE, verify

        distance = verify(self.run_folder)
        return {"run": self.run_folder, "verified": True, "tolerance": TOLERANCE, **distance._asdict()}


@dataclass(frozen=True, kw_only=True)
class Image:
    """Image autoencoders on the same modules: train, report, compare; see `sae image --help`."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Show versions, device, kernel backends, cache and space; say what is missing and how to fix it."""

    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.cli.doctor import examine

        return examine()


COMMANDS: dict[str, type] = {
    "demo": Demo,
    "train": Train,
    "harvest": Harvest,
    "sweep": Sweep,
    "eval": Eval,
    "match": Match,
    "compare": Compare,
    "measure": Measure,
    "choose-l0": ChooseL0,
    "explain": Explain,
    "steer": Steer,
    "features": Features,
    "browse": Browse,
    "report": Report,
    "list": List,
    "import": Import,
    "export": Export,
    "verify": Verify,
    "image": Image,
    "bench": Bench,
    "selftest": SelfTest,
    "doctor": Doctor,
}
