"""Settings of runs on text: which activations, how many, and how a run is evaluated. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from sae.config.fields import Count, InnerShare, Limit, Limited, Resamples, WholeNumber, as_place, check
from sae.config.run import Device, OptimConfig, RunConfig
from sae.config.variants import SAEConfig


@dataclass(frozen=True, kw_only=True)
class HarvestConfig(Limited):
    """The activations: a site of a language model, over the tokens of a data set."""

    model: str
    """`demo`, a hub id, a local folder, or a .gguf file."""
    dataset: str
    """`demo`, `demo:fr`, `demo:es`, a hub id (`name[:config]`, streamed), a folder, a .jsonl/.csv/.parquet/... file."""
    layer: Annotated[int, Limit(lambda layer: layer >= 0, "a layer counted from 0")] | None = None
    """Layer of the site, counted from 0; not needed where --site names a layer or a module path."""
    site: str = "resid_post"
    """resid_pre, resid_post, mlp_in, mlp_out, attn_out, a TransformerLens hook name, or a module path (`...:in`).

    Several for a crosscoder, with commas or +: `resid_post.6,resid_post.9`."""
    target_site: str | None = None
    """Transcoders: the site to reconstruct, such as mlp_out with --site mlp_in."""
    text_field: str | None = None
    """Column to read: text, chats (OpenAI's messages, ShareGPT's conversations) or token ids.

    By default the one with a well-known name: text, content, ..., messages, conversations, input_ids, ..."""
    roles: tuple[str, ...] | None = None
    """Chats: train only on tokens of these roles, with commas (`assistant`); the model still reads the others."""
    context: int = 256
    """Tokens in one context; documents are packed into full contexts and cannot attend to each other."""
    contexts: Annotated[
        int | Literal["auto"], Limit(lambda value: value == "auto" or value >= 1, "auto, or at least 1")
    ] = 16
    """Contexts in one forward pass; auto: as many as fit into the GPU's memory, or 4,096 tokens on a CPU."""
    attention: Literal["auto", "varlen", "flex", "masked", "padded"] = "auto"
    """How documents that share a context are kept apart: varlen (a flash kernel over segments), flex (a compiled
    block-diagonal mask), masked (a mask of context x context), or padded (one document a context). auto takes the first
    that is exact with the model on the device."""
    heldout: InnerShare = 0.1
    """Share of documents set aside for evaluation, chosen by a hash of their text."""
    max_norm: float = 10.0
    """Leave out tokens whose activation norm is over this many times the median (attention sinks); 0 keeps them."""
    bos: str = "auto"
    """First token of every segment: auto (the one the tokenizer adds, else the one after which the model predicts text
    best), none, or a token such as `<s>`."""
    keep_special: bool = False
    """Keep BOS and other special tokens in the training stream."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the language model: auto is float32 on a CPU and bfloat16 on a GPU."""
    store_precision: Literal["auto", "float16", "bfloat16", "float32", "int8"] = "auto"
    """Precision of buffered and stored activations; auto: the first of the three floats that can represent them. int8
    is for stores alone: half of float16's bytes, the largest entries of each row exact."""
    trust_remote_code: bool = False
    """Allow a model repository to run its own Python code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.roles is not None:
            names = tuple(name.strip() for part in self.roles for name in part.split(","))
            check(bool(names) and all(names), "roles", ", ".join(self.roles), "roles with one comma between two")
            object.__setattr__(self, "roles", tuple(dict.fromkeys(names)))
        check(bool(self.model), "model", self.model, "a model: demo, a hub id, a folder or a .gguf file")
        check(bool(self.dataset), "dataset", self.dataset, "a data set: demo, a hub id, a folder or a file")
        check(self.context >= 8, "context", self.context, "at least 8 tokens")
        check(bool(self.bos), "bos", self.bos, "auto, none, or a token of the tokenizer")
        check(self.max_norm == 0 or self.max_norm > 1, "max_norm", self.max_norm, "0 (keep all) or more than 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """One training run on a language model's activations."""

    harvest: HarvestConfig
    sae: SAEConfig = field(default_factory=SAEConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    tokens: Count = 1_000_000
    """Tokens to harvest for training (tokens left out of the stream do not count)."""
    epochs: Count = 1
    """Passes over the harvested tokens; more than one keeps the activations in memory, or on disk with --store."""
    store: str | Path | None = None
    """Folder or URL (s3://..., gs://...) to keep the harvested activations in, and to reuse them from."""
    buffer_mb: Count = 512
    """Memory of the shuffle buffer in MiB: activations are mixed within one buffer."""
    mesh: str | None = None
    """Under torchrun: processes along DATAxLATENT, such as 4x2; by default all share the data. See docs/scale.md."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "store", as_place(self.store))


@dataclass(frozen=True, kw_only=True)
class StoreConfig(Limited):
    """A harvest into a store that runs are then trained from."""

    harvest: HarvestConfig
    store: str | Path
    """Folder or URL (s3://..., gs://...) of the store; one that is there already is continued."""
    tokens: Count = 1_000_000
    """Tokens that the store shall hold, those of all workers together (tokens that are left out do not count)."""
    worker: str | None = None
    """`i/n`: harvest as worker i (from 0) of n that share the work without talking to each other; under torchrun the
    ranks."""
    device: Device = "auto"
    """Where to run the language model: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "store", as_place(self.store))
        unread = self.harvest.target_site
        check(unread is None, "target_site", unread, "all places in --site, which may name several")
        if self.worker is not None:
            number, slash, count = self.worker.partition("/")
            good = bool(slash) and number.isdecimal() and count.isdecimal() and int(number) < int(count)
            check(good, "worker", self.worker, "i/n with i from 0 to n - 1, such as 0/4")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Limited):
    """One evaluation of a saved autoencoder on held-out documents."""

    dataset: str | None = None
    """Data set to evaluate on; by default the held-out part of the one it was trained on."""
    text_field: str | None = None
    """Column of that data set that is read; see `sae train`."""
    tokens: Count = 65_536
    """Held-out tokens, or rows of a file, for reconstruction metrics (fewer if the held-out part is smaller)."""
    downstream_tokens: WholeNumber = 8_192
    """Held-out tokens on which the language model is run with the reconstruction spliced in; 0 leaves this out."""
    pca_tokens: WholeNumber = 32_768
    """Training tokens, or rows of a file, on which the PCA baseline is fitted; 0 leaves it out."""
    controls: Literal["none", "fast", "all"] = "fast"
    """Reconstructions without a learnt dictionary that are measured beside it: fast is the mean, PCA, the largest
    channels and shuffled atoms; all adds random atoms with an encoder that is trained on --pca-tokens first."""
    resamples: Resamples = 1000
    """Bootstrap resamples over documents, for the 95% intervals."""
    seed: WholeNumber = 0
    """Seed of the bootstrap."""
    device: Device = "auto"
    """Where to compute: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.controls == "all":
            check(self.pca_tokens > 0, "pca_tokens", self.pca_tokens, "at least 1, on which --controls all trains")
