"""What can be checked of a run on text before weights are read: its store, the model, the sites, the data set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from sae.base.launcher import world_size
from sae.config import ConfigError, TrainConfig
from sae.data.columns import TEXT
from sae.data.documents import Documents, open_documents
from sae.harvest.language_model import ModelSource, load_tokenizer
from sae.harvest.model_shape import named_sites
from sae.harvest.sites import Site
from sae.harvest.store import DiskStore, stored_contexts, stored_precision
from sae.harvest.stream import prepared
from sae.models.settings import Ignored
from sae.models.variants.base import Variant
from sae.training.run_folder import read_record


def ignored_by_batches(config: TrainConfig) -> Ignored:
    """Settings of the buffer where activations lie in memory as they are."""
    if config.epochs > 1 and config.store is None:
        why = f"--epochs {config.epochs} keeps all activations in memory; expected with --store, or with one epoch"
        return {"buffer_mb": why}
    return {}


def check_same_store(config: TrainConfig) -> None:
    """A resumed run keeps its kind of batches: refuse a store that comes or goes.

    Raises:
        ConfigError: says what the run began with.
    """
    if not config.resume:
        return
    saved = read_record(config.out)["train"].get("store")
    if (saved is None) != (config.store is None):
        raise ConfigError(
            f"--resume: --store was {saved} in {config.out}, now it is {config.store}; a store may move, but a "
            "run that began without one resumes without one (its batches come in another order)"
        )


def with_contexts(config: TrainConfig) -> TrainConfig:
    """`--contexts auto` of a resumed run, or beside a store, as the number with which that was begun.

    Raises:
        ConfigError: auto on several ranks, whose devices would find different numbers.
    """
    if config.harvest.contexts != "auto":
        return config
    begun: int | None = None
    if config.resume:
        begun = read_record(config.out)["train"]["harvest"]["contexts"]
    elif config.store is not None:
        begun = stored_contexts(config.store)
    if begun is None and world_size() > 1:
        raise ConfigError("--contexts auto: not on several ranks, which must take one number; expected a number")
    return config if begun is None else replace(config, harvest=replace(config.harvest, contexts=begun))


def check_beginning(config: TrainConfig, store: DiskStore) -> None:
    """Refuse a store whose segments begin with something else than --bos names.

    Raises:
        ConfigError: names both.
    """
    begun = store.identity.get("beginning")
    if config.harvest.bos == "auto" or begun is None:
        return
    wanted = [] if config.harvest.bos == "none" else [config.harvest.bos]
    if begun["tokens"] != wanted:
        raise ConfigError(
            f"--store {config.store}: it holds a harvest with beginning = {begun['tokens']}, --bos "
            f"{config.harvest.bos} means {wanted}; pass the store's --bos, or choose another folder"
        )


def refuse_route(config: TrainConfig) -> None:
    """Refuse a route of attention where a store holds all tokens.

    Raises:
        ConfigError: the flag would do nothing.
    """
    asked = config.harvest.attention
    if asked != "auto" and not config.resume:
        raise ConfigError(
            f"--attention {asked}: {config.store} holds all tokens, and no text goes through the model; leave it out"
        )


def check_rows(config: TrainConfig, store: DiskStore) -> None:
    """Refuse a store of many workers that holds too few tokens: a run extends a store of one worker alone.

    Raises:
        ConfigError: says what it holds and how to go on.
    """
    workers = store.identity.get("workers", 1)
    if workers > 1 and store.rows < config.tokens and not store.ended:
        raise ConfigError(
            f"--tokens {config.tokens}: {store.place} holds {store.rows} tokens of {workers} workers so far; run sae "
            f"harvest --tokens {config.tokens} --worker i/{workers} for every i, or lower --tokens to {store.rows}"
        )


def input_sites(config: TrainConfig, variant: Variant[Any], model: torch.nn.Module) -> list[Site]:
    """Where the autoencoder reads: one place, or for a crosscoder several.

    Raises:
        ConfigError, SiteError: there is no such place, or the variant reads another number of them.
    """
    sites = named_sites(model, "site", config.harvest.site, config.harvest.layer)
    if variant.several_sites != (len(sites) > 1):
        expected = "two or more, with commas" if variant.several_sites else "one (several are for a crosscoder)"
        raise ConfigError(
            f"--site {config.harvest.site}: names {len(sites)} places; --variant {config.sae.variant} reads {expected}"
        )
    return sites


def target_sites(config: TrainConfig, inputs: list[Site], model: torch.nn.Module) -> list[Site]:
    """Where the reconstruction belongs: `inputs` again, or a transcoder's target.

    Raises:
        ConfigError, SiteError: there is no such place, or it is the one that is read.
    """
    if config.harvest.target_site is None:
        return inputs
    sites = named_sites(model, "target_site", config.harvest.target_site, config.harvest.layer)
    if len(sites) != 1 or sites == inputs:
        raise ConfigError(f"--target-site {config.harvest.target_site}: expected one place, another than --site")
    return sites


def training_documents(config: TrainConfig, source: ModelSource, model: torch.nn.Module) -> Documents:
    """The training part of the data set; on resume the revision that the run began with."""
    settings = config.harvest
    documents = open_documents(
        settings.dataset,
        text_field=settings.text_field,
        split="train",
        heldout=settings.heldout,
        revision=read_record(config.out)["data"].get("revision") if config.resume else None,
        roles=settings.roles,
    )
    if documents.kind != TEXT:  # refused here rather than after the weights are read
        documents = prepared(documents, load_tokenizer(source), model, settings)
    return documents


def known_precision(config: TrainConfig) -> str:
    """The precision in which activations are kept, as far as it is known before the model is run, else auto.

    A run that is resumed and a store keep theirs.
    """
    if config.harvest.store_precision != "auto":
        return config.harvest.store_precision
    if config.resume:
        record = read_record(config.out)
        begun = record.get("harvest") or record["train"]["harvest"]
        if begun.get("store_precision", "auto") != "auto":
            return begun["store_precision"]
    return stored_precision(config.store) or "auto"
