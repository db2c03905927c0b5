"""What a run will do, settled and checked before any weight is read: sites, shapes, steps, memory, disk, time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from sae.base.device import pick_device
from sae.config import ConfigError, TrainConfig, refuse_ignored, to_json
from sae.data.columns import TEXT
from sae.data.documents import Documents, open_documents
from sae.harvest.beginning import described
from sae.harvest.language_model import (
    LanguageModel,
    ModelSource,
    load_tokenizer,
    locate_model,
    measure_width,
    skeleton,
)
from sae.harvest.opening import opening
from sae.harvest.sites import Site, resolve_sites
from sae.harvest.store import check_store, stored_precision
from sae.harvest.stream import prepared
from sae.harvest.traits import known_limit
from sae.models.language import find_variant
from sae.models.settings import Ignored, ignored
from sae.models.variants.base import Variant
from sae.training.optimizers import check_optimizer
from sae.training.run_folder import check_finite, check_run_folder, new_record, read_record
from sae.training.space import check_space


class Plan(NamedTuple):
    """A checked run."""

    config: TrainConfig
    source: ModelSource
    inputs: list[Site]
    """Where the autoencoder reads."""
    targets: list[Site]
    """Where its reconstruction belongs; `inputs` again unless it transcodes."""
    documents: Documents
    """The training part."""
    device: torch.device
    batch: int
    """Tokens a step."""
    dead_after: int
    """Tokens without firing after which a latent is dead."""
    auxk: int
    """Dead latents the auxiliary loss uses."""
    layer_parameters: int
    """Parameters of the language model that a harvest runs through."""
    precision: str
    """In what activations wait; auto until the first forward pass has been seen."""

    @property
    def sites(self) -> list[Site]:
        """All places that are harvested, each once."""
        return list(dict.fromkeys([*self.inputs, *self.targets]))

    @property
    def dim(self) -> int:
        """Width of the autoencoder's inputs, all sites together."""
        return sum(widths(self.inputs))

    @property
    def dim_out(self) -> int:
        """Width of its reconstruction."""
        return sum(widths(self.targets))

    @property
    def row_width(self) -> int:
        """Numbers kept of a token, at all sites together."""
        return sum(widths(self.sites))

    @property
    def row_bytes(self) -> int:
        """Bytes of a token's activations where they wait; what auto chooses takes two a number nearly always."""
        return self.row_width * (2 if self.precision == "auto" else getattr(torch, self.precision).itemsize)

    @property
    def training_tokens(self) -> int:
        """Tokens trained on, all epochs together."""
        return self.config.tokens * self.config.epochs

    @property
    def cached(self) -> bool:
        """Whether activations are kept (for several epochs, or because a store was named)."""
        return self.config.epochs > 1 or self.config.store is not None

    @property
    def store_identity(self) -> dict[str, Any]:
        """What a store of this harvest records of it."""
        harvest = to_json(self.config.harvest)
        return {
            "format": 1,
            "sites": {site.name: site.width for site in self.sites},
            "precision": self.precision,
            "data": self.documents.provenance,
            **{name: harvest[name] for name in ("model", "context", "contexts", "max_norm", "keep_special")},
            **({} if harvest["roles"] is None else {"roles": harvest["roles"]}),
            "model_revision": self.source.revision,
            "model_precision": self.config.harvest.precision,
        }


def widths(sites: list[Site]) -> list[int]:
    """Widths of the activations at sites that were measured."""
    return [site.width or 0 for site in sites]


def make_plan(config: TrainConfig) -> Plan:
    """Check everything that can be checked without reading weights.

    Raises:
        ConfigError, ModelError, SiteError, DataError: a setting is wrong; the message says what exists.
    """
    variant = find_variant(config.sae)
    check_finite(config)
    if not config.resume:  # a run keeps the settings that it was begun with
        refuse_ignored(config.sae, ignored(config.sae, variant))
        refuse_ignored(config.optim, config.optim.ignored())
        refuse_ignored(config, _ignored_by_batches(config))
    _check_together(config, variant)
    check_optimizer(config.optim)
    device = pick_device(config.device)
    check_run_folder(config)
    _check_store(config)
    batch = config.optim.batch or (4096 if device.type == "cuda" else 2048)
    if config.tokens < batch:
        raise ConfigError(f"--tokens {config.tokens}: less than one batch; expected at least --batch {batch}")
    source = locate_model(config.harvest.model, trust_remote_code=config.harvest.trust_remote_code)
    model = skeleton(source)
    _check_context(config, model)
    inputs = _resolve(model, "site", config.harvest.site, config.harvest.layer)
    if variant.several_sites != (len(inputs) > 1):
        expected = "two or more, with commas" if variant.several_sites else "one (several are for a crosscoder)"
        raise ConfigError(
            f"--site {config.harvest.site}: names {len(inputs)} places; --variant {config.sae.variant} reads {expected}"
        )
    targets = inputs
    if config.harvest.target_site is not None:
        targets = _resolve(model, "target_site", config.harvest.target_site, config.harvest.layer)
        if len(targets) != 1 or targets == inputs:
            raise ConfigError(f"--target-site {config.harvest.target_site}: expected one place, another than --site")
    documents = _open_documents(config, source, model)
    training_tokens = config.tokens * config.epochs
    plan = Plan(
        config=config,
        source=source,
        inputs=inputs,
        targets=targets,
        documents=documents,
        device=device,
        batch=batch,
        dead_after=config.sae.dead_after or max(1, min(10_000_000, training_tokens // 10)),
        auxk=config.sae.auxk or max(1, sum(widths(targets)) // 2),
        layer_parameters=_parameters_up_to(model, [*inputs, *targets]),
        precision=_known_precision(config),
    )
    if config.store is not None:
        check_store(config.store, plan.store_identity)
    check_space(plan)
    return plan


def opening_of(plan: Plan) -> str:
    """What a person is shown of the data, without the model's weights; see `opening`."""
    return opening(plan.documents, load_tokenizer(plan.source), plan.config.harvest)


def with_precision(plan: Plan, precision: str) -> Plan:
    """The plan with the precision that auto came to.

    Raises:
        ConfigError: it takes more memory or disk than there is.
    """
    settled = plan._replace(precision=precision)
    if settled.row_bytes > plan.row_bytes:
        check_space(settled)
    return settled


def _known_precision(config: TrainConfig) -> str:
    """In what activations wait, as far as it is known before the model is run: a run and a store keep their own."""
    if config.harvest.store_precision != "auto":
        return config.harvest.store_precision
    if config.resume:
        record = read_record(config.out)
        begun = record.get("harvest") or record["train"]["harvest"]
        if begun.get("store_precision", "auto") != "auto":
            return begun["store_precision"]
    return stored_precision(config.store) or "auto"


def run_record(plan: Plan, lm: LanguageModel) -> dict[str, Any]:
    """What config.json holds from the start: settings, versions, where model and data came from."""
    return {
        **new_record(plan.config, kind="language", data=plan.documents.provenance),
        "sites": {
            "inputs": [_described(site) for site in plan.inputs],
            "targets": [_described(site) for site in plan.targets],
        },
        "model": lm.provenance,
        "harvest": {"beginning": described(lm), "store_precision": plan.precision},
    }


def _check_store(config: TrainConfig) -> None:
    """A resumed run keeps its kind of batches: refuse a store that comes or goes."""
    if not config.resume:
        return
    saved = read_record(config.out)["train"].get("store")
    if (saved is None) != (config.store is None):
        raise ConfigError(
            f"--resume: --store was {saved} in {config.out}, now it is {config.store}; a store may move, but a "
            "run that began without one goes on without (its batches come in another order)"
        )


def _described(site: Site) -> dict[str, Any]:
    return {"name": site.name, "path": site.path, "width": site.width}


def _resolve(model: torch.nn.Module, flag: str, names: str, layer: int | None) -> list[Site]:
    """The places that a flag names, with commas between them, their widths measured.

    Raises:
        ConfigError, SiteError: a name is empty or names no place.
    """
    spelled = [name.strip() for name in names.replace("+", ",").split(",")]
    if not all(spelled):
        raise ConfigError(f"--{flag.replace('_', '-')} {names}: expected names with one comma (or +) between two")
    sites = resolve_sites(model, spelled, layer=layer)
    if len(set(spelled)) < len(spelled):
        raise ConfigError(f"--{flag.replace('_', '-')} {names}: names one place twice")
    return [measure_width(model, site) for site in sites]


def _check_together(config: TrainConfig, variant: Variant) -> None:
    """Refuse settings that do not go together."""
    sae, harvest = config.sae, config.harvest
    if variant.transcodes != (harvest.target_site is not None):
        expected = "needs --target-site" if variant.transcodes else "has no --target-site (a transcoder has)"
        raise ConfigError(f"--variant {sae.variant}: {expected}")
    if sae.normalise == "layer_norm" and (variant.transcodes or variant.several_sites):
        raise ConfigError(f"--normalise layer_norm: undone with the input's own mean; not for --variant {sae.variant}")
    tied = variant.code(sae, 1).tied
    if tied and (sae.normalise == "whiten" or variant.several_sites):
        raise ConfigError(f"--variant {sae.variant}: atoms must keep equal norms; expected --normalise scale or centre")
    if sae.revival == "auxk" and tied:
        raise ConfigError(f"--revival auxk: --variant {sae.variant} has no pre-activations; expected resample or none")
    if variant.neighbours and (config.optim.batch or 2) % 2:
        raise ConfigError(f"--batch {config.optim.batch}: --variant {sae.variant} reads pairs; expected an even number")


def _ignored_by_batches(config: TrainConfig) -> Ignored:
    """Settings of the buffer where activations lie in memory as they are."""
    if config.epochs > 1 and config.store is None:
        why = f"--epochs {config.epochs} keeps all activations in memory; expected with --store, or with one epoch"
        return {"buffer_mb": why}
    return {}


def _check_context(config: TrainConfig, model: torch.nn.Module) -> None:
    limit = known_limit(model)
    if limit is not None and limit < config.harvest.context:
        raise ConfigError(f"--context {config.harvest.context}: this model reads at most {limit} tokens")


def _open_documents(config: TrainConfig, source: ModelSource, model: torch.nn.Module) -> Documents:
    """The training part of the data set; on resume the very data that the run began with."""
    settings = config.harvest
    began = read_record(config.out)["data"] if config.resume else None
    documents = open_documents(
        settings.dataset,
        text_field=settings.text_field,
        split="train",
        heldout=settings.heldout,
        revision=began.get("revision") if began else None,
        roles=settings.roles,
    )
    if documents.kind != TEXT:  # refused here rather than after the weights are read
        documents = prepared(documents, load_tokenizer(source), model, settings)
    for name, value in documents.provenance.items():
        if began is not None and began.get(name) != value:
            raise ConfigError(
                f"--resume: the data set {settings.dataset} has changed since the run began: {name} was "
                f"{began.get(name)!r}, now it is {value!r}"
            )
    return documents


def _parameters_up_to(model: torch.nn.Module, sites: list[Site]) -> int:
    """Parameters of the modules that run before the last site, embeddings left out (they are looked up)."""
    paths = [name for name, _ in model.named_modules()]
    last = max(paths.index(site.path) for site in sites)
    inside = {name for name in paths[: last + 1]}
    inside |= {name for name in paths for site in sites if name.startswith(site.path + ".")}
    embeddings = {id(m) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    total = 0
    for name, module in model.named_modules():
        if name in inside and id(module) not in embeddings:
            total += sum(p.numel() for p in module.parameters(recurse=False))
    return total
