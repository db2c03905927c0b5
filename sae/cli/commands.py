"""The commands of `sae`: one dataclass each, whose fields are the flags. Heavy packages are imported inside `run`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sae.cli.harvest import Harvest
from sae.cli.measure import Measure
from sae.cli.options import Json
from sae.cli.reporting import Report
from sae.cli.selftest import SelfTest
from sae.config import (
    CollectConfig,
    ConfigError,
    Device,
    EvalConfig,
    ExplainConfig,
    ImportConfig,
    L0Config,
    MatchConfig,
    RunConfig,
    SteerConfig,
    TensorTrainConfig,
    TrainConfig,
    refuse_ignored,
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
class Train:
    """Train an autoencoder on a model's activations, or with --data on activations or images that are there already.

    --data FILE reads activations of any model from .safetensors, .npy or .parquet; --data NAME reads images, as
    `sae image train` does. `sae train --data X --help` shows the flags of each.
    """

    config: TrainConfig
    dry_run: bool = False
    """Print sites, shapes, steps, memory, disk and time; train nothing, write nothing."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        return run_training(self.config, dry_run=self.dry_run)


@dataclass(frozen=True, kw_only=True)
class TensorTrain:
    """Train an autoencoder on activations of any model: a .safetensors, .npy or .parquet file, or a folder of such."""

    config: TensorTrainConfig
    dry_run: bool = False
    """Print shapes, steps, memory, disk and time; keep no training, write nothing."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        return run_training(self.config, dry_run=self.dry_run)


def run_training(config: RunConfig, *, dry_run: bool) -> dict[str, Any]:
    """Train, or show what training would do."""
    if not dry_run:
        from sae.training.run import train

        return train(config).to_json()
    from sae.base.progress import Progress
    from sae.training.plan import make_plan
    from sae.training.space import check_space, estimate

    plan = make_plan(config)
    check_space(plan)
    with Progress() as progress:
        progress.say(plan.data.opening())
    return estimate(plan)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Train several autoencoders on one read of the activations and compare them in one table and one plot.

    Takes the flags of `sae train`; --variant, --k, --width, --layer, --lr and --seed take several values with commas,
    and every combination is a member. A variant may bring settings of its own: `jumprelu:recipe=anthropic`,
    `transcoder:site=mlp_in:target-site=mlp_out`, `crosscoder:layer=None:site=resid_post.6+resid_post.9`. Every member
    ends with the weights of its own `sae train`. Run again with the same flags, it resumes where it stopped.
    """

    config: TrainConfig
    evaluate_tokens: int = 32_768
    """Held-out tokens on which members are evaluated."""
    downstream_tokens: int = 4_096
    """Held-out tokens on which the language model runs with reconstructions spliced in; 0 leaves this out."""
    dry_run: bool = False
    """Print members, memory, disk and time; train nothing, write nothing."""
    members: tyro.conf.Suppress[tuple[TrainConfig, ...]] = ()
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.cli.sweep import dry_run, run_sweep

        refuse_ignored(self.config, {"resume": "sae sweep always resumes what is there"})
        if self.dry_run:
            return dry_run(self.members)
        return run_sweep(self.config.out, self.members, self.evaluation())

    def evaluation(self) -> EvalConfig:
        """How the members are evaluated."""
        return EvalConfig(
            tokens=self.evaluate_tokens, downstream_tokens=self.downstream_tokens, device=self.config.device
        )


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
class Match:
    """Match the latents of several runs: what they share, what is new, gone, split or merged, how stable each is."""

    run_folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN RUN [RUN ...]")]
    """Two or more run folders, checkpoints (RUN/checkpoints/STEP), or what `sae import` reads: of different seeds,
    sizes, layers or tools."""
    config: MatchConfig = dataclasses.field(default_factory=MatchConfig)
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.evaluation.matching.run import match, shown

        report = match(self.run_folders, self.config)
        # the lists of latents are in match.json; a program gets them too
        return report if self.json else shown(report)


@dataclass(frozen=True, kw_only=True)
class ChooseL0:
    """Say what dictionaries of several L0 tell about the right one: where seeds agree, where atoms are least alike.

    `sae choose-l0 RUN RUN RUN ...` compares runs that differ in L0 and seed alone. With the flags of `sae sweep`
    (--model, --dataset, --layer, --k 8,16,32,64, --out) it trains them first, on one harvest, with --seed 0,1 unless
    others are given.
    """

    run_folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")] = ()
    """Run folders: three levels of L0 at least, and two seeds each if possible."""
    config: L0Config = dataclasses.field(default_factory=L0Config)
    sweep: tyro.conf.Suppress[Sweep | None] = None
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.cli.l0 import choose_and_draw, sweep_and_choose
        from sae.evaluation.l0.run import shown

        if self.sweep is not None:
            report = sweep_and_choose(self.sweep.config.out, self.sweep.members, self.sweep.evaluation())
        else:
            report = choose_and_draw(self.run_folders, self.config)
        return report if self.json else shown(report)


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
class Export:
    """Write a run for another tool, its features as a static page or for Neuronpedia, or push it to the hub.

    Weights are written exactly, or refused with what the other format cannot hold.
    """

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder; static and neuronpedia need collected features."""
    to: Literal["saelens", "sparsify", "dictionary_learning", "circuit-tracer", "neuronpedia", "static", "hub"]
    """A tool, whose own loader then reads --out; neuronpedia (JSON of the features); static (a page that opens from the
    disk or any web host); or hub (uploads to --repo)."""
    out: Path | None = None
    """New folder to write; all but hub need it."""
    repo: str | None = None
    """hub: the repository, user/name, which is made if there is none."""
    private: bool = False
    """hub: make a new repository private."""
    licence: str | None = None
    """hub: the licence that the model card names, as the hub spells it, such as mit."""
    latents: tuple[int, ...] = ()
    """static: latents of the page; by default all."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        readers = {"latents": "static", "repo": "hub", "private": "hub", "licence": "hub"}
        unread = {flag: f"applies to --to {to}; --to {self.to} does not read it" for flag, to in readers.items()}
        unread["out"] = "--to hub writes no folder"
        kept = [flag for flag in unread if readers.get(flag) == self.to or (flag == "out" and self.to != "hub")]
        refuse_ignored(self, {flag: why for flag, why in unread.items() if flag not in kept})
        if self.to == "hub":
            if self.repo is None:
                raise ConfigError("--repo: missing; --to hub uploads to a repository, user/name")
            from sae.interop.export.hub import push

            return push(self.run_folder, self.repo, private=self.private, licence=self.licence)
        if self.out is None:
            raise ConfigError(f"--out: missing; --to {self.to} writes a new folder")
        if self.to == "static":
            from sae.browser.export import export_static

            return export_static(self.run_folder, self.out, latents=self.latents or None)
        if self.to == "neuronpedia":
            from sae.interop.neuronpedia import export as export_features

            return export_features(self.run_folder, self.out)
        from sae.interop.export import export

        return export(self.run_folder, self.to, self.out)


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
class Import:
    """Make a run of another tool's autoencoder, which every command then reads like one of ours."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """File or folder, hub id, `hub_id:path`, or a short name of `sae list`."""
    config: ImportConfig
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.interop.importing import import_run

        return import_run(self.source, self.config)


@dataclass(frozen=True, kw_only=True)
class List:
    """List published autoencoders by the short names that `sae import` takes."""

    model: str | None = None
    """Only those on this language model: its hub id, or what stands behind the slash in it."""
    layer: int | None = None
    """Only those of this layer, one a line with its short name; without it, one line a set."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.interop.listing import list_published

        return list_published(**self.given())

    def given(self) -> dict[str, Any]:
        """The flags that were given."""
        return {name: value for name, value in (("model", self.model), ("layer", self.layer)) if value is not None}


BENCHED = (
    "topk",
    "batchtopk",
    "matryoshka",
    "temporal",
    "relu",
    "relu:penalty=tanh",
    "p_anneal",
    "gated",
    "jumprelu",
    "jumprelu:recipe=anthropic",
    "jumprelu:recipe=target",
    "transcoder",
    "skip_transcoder",
    "crosscoder",
    "matching_pursuit",
)


_SHAPE = ("tokens", "d", "k", "rounds", "device")
READ_BY_BENCHES: dict[str, tuple[str, ...]] = {
    "kernels": (*_SHAPE, "width"),
    "step": (*_SHAPE, "width"),
    "curve": _SHAPE,
    "variants": (*_SHAPE, "width", "variants"),
    "recovery": ("variants", "worlds", "seeds", "l0_factor"),
    "l0": ("worlds", "seeds", "draws"),
}
"""Bench -> the flags that it reads."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time sparse ops and training steps against lower bounds, or measure the recovery of known features."""

    what: Annotated[
        tyro.conf.Positional[Literal["kernels", "step", "curve", "variants", "recovery", "l0"]],
        tyro.conf.arg(metavar="WHAT"),
    ]
    """kernels (op by op), step (a whole TopK step), curve (the step over the number of latents), variants (every
    variant's step), recovery (every variant on synthetic worlds), or l0 (whether `sae choose-l0` finds their L0)."""
    variants: str = ",".join(BENCHED)
    """variants, recovery: which variants, with commas; a variant's settings follow a colon."""
    worlds: str = "easy16,superposed,correlated,zipf,noisy,hierarchical,deep"
    """recovery, l0: which synthetic worlds."""
    seeds: int = 3
    """recovery: number of seeds, each with its own world and training; l0: trainings at each L0 of a world."""
    draws: int = 10
    """l0: number of draws of each world."""
    l0_factor: float = 1.0
    """recovery: the target L0, in multiples of the true one."""
    tokens: int = 2048
    """Tokens a batch."""
    d: int = 576
    """Width of the activations."""
    width: int = 9216
    """Latents; the curve goes from 4k to 131k."""
    k: int = 32
    """Latents active a token."""
    rounds: int = 9
    """Interleaved rounds; the medians are reported."""
    device: Device = "auto"
    """Where to compute: auto takes a GPU where there is one."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        from sae.base.device import pick_device

        common = ("what", "json")
        read = (*common, *READ_BY_BENCHES[self.what])
        names = [field.name for field in dataclasses.fields(self) if field.name not in read]
        refuse_ignored(self, dict.fromkeys(names, f"sae bench {self.what} does not read it"))
        if self.what == "l0":
            from sae.base.progress import Progress
            from sae.cli.l0_worlds import measure_choices

            with Progress() as progress:
                worlds = self.worlds.split(",")
                return measure_choices(worlds=worlds, seeds=self.seeds, draws=self.draws, tell=progress.say)
        if self.what == "recovery":
            from sae.base.progress import Progress
            from sae.cli.recovery import measure_recovery

            with Progress() as progress:
                names = {"variants": self.variants.split(","), "worlds": self.worlds.split(",")}
                return measure_recovery(**names, seeds=self.seeds, l0_factor=self.l0_factor, tell=progress.say)
        from sae_kernels.bench.kernels import measure_kernels
        from sae_kernels.bench.step import measure_curve, measure_step

        shape: dict[str, Any] = {"tokens": self.tokens, "d": self.d, "k": self.k, "rounds": self.rounds}
        shape["device"] = pick_device(self.device).type
        if self.what == "variants":
            from sae.training.bench import measure_variants

            return measure_variants(self.variants.split(","), width=self.width, **shape)
        if self.what == "curve":
            return measure_curve(**shape)
        return (measure_kernels if self.what == "kernels" else measure_step)(width=self.width, **shape)


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
