"""Every setting of the toolkit: frozen dataclasses that are at once Python API, command-line flags and JSON.

The field names are the flags (`checkpoint_every` is `--checkpoint-every`), the text under a field is its help, the
checks in `__post_init__` run before anything is loaded. This module imports no torch.

    config = TrainConfig(harvest=HarvestConfig(model="demo", dataset="demo", layer=9), out=Path("runs/first"))
    from_json(TrainConfig, to_json(config)) == config
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sae.config.fields import check, refuse_ignored

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """Which activations: a place in a model, over the tokens of a data set."""

    model: str
    """`demo`, a hub id, a local folder, or a .gguf file."""
    dataset: str
    """`demo`, `demo:fr`, `demo:es`, a hub id (`name[:config]`, streamed), a folder, a .jsonl/.csv/.parquet/... file."""
    layer: int | None = None
    """Layer of the site, counted from 0; not needed where --site names a layer or a module path."""
    site: str = "resid_post"
    """resid_pre, resid_post, mlp_in, mlp_out, attn_out, a TransformerLens hook name, or a module path (`...:in`).

    Several for a crosscoder, with commas or +: `resid_post.6,resid_post.9`."""
    target_site: str | None = None
    """Transcoders: the place to reconstruct, such as mlp_out with --site mlp_in."""
    text_field: str | None = None
    """Column that is read: of text, of chats (OpenAI's messages, ShareGPT's conversations) or of token ids.

    By default one of a well-known name: text, content, ..., messages, conversations, input_ids, ..."""
    roles: tuple[str, ...] | None = None
    """Chats: train on tokens of these roles alone, with commas (`assistant`); the model still reads the others."""
    context: int = 256
    """Tokens in one context; documents are packed into full contexts and do not see each other."""
    contexts: int = 16
    """Contexts in one forward pass."""
    heldout: float = 0.1
    """Share of documents set aside for evaluation, chosen by a hash of their text."""
    max_norm: float = 10.0
    """Tokens whose activation norm is over this many times the median are left out (attention sinks); 0 keeps them."""
    bos: str = "auto"
    """What begins every segment: auto (what the tokenizer adds, else what the model predicts text best after), none,
    or a token such as `<s>`."""
    keep_special: bool = False
    """Keep BOS and other special tokens in the training stream."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the language model: auto is float32 on a CPU and bfloat16 on a GPU."""
    store_precision: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Precision in which activations wait in the buffer, in memory or on disk; auto: the first that holds them."""
    trust_remote_code: bool = False
    """Allow a model repository to run its own Python code."""

    def __post_init__(self) -> None:
        if self.roles is not None:
            names = tuple(name.strip() for part in self.roles for name in part.split(","))
            check(bool(names) and all(names), "roles", ", ".join(self.roles), "roles with one comma between two")
            object.__setattr__(self, "roles", tuple(dict.fromkeys(names)))
        check(bool(self.model), "model", self.model, "a model: demo, a hub id, a folder or a .gguf file")
        check(bool(self.dataset), "dataset", self.dataset, "a data set: demo, a hub id, a folder or a file")
        check(self.layer is None or self.layer >= 0, "layer", self.layer, "a layer counted from 0")
        check(self.context >= 8, "context", self.context, "at least 8 tokens")
        check(bool(self.bos), "bos", self.bos, "auto, none, or a token of the tokenizer")
        check(self.contexts >= 1, "contexts", self.contexts, "at least 1")
        check(0 < self.heldout < 1, "heldout", self.heldout, "a share between 0 and 1, both excluded")
        check(self.max_norm == 0 or self.max_norm > 1, "max_norm", self.max_norm, "0 (keep all) or more than 1")


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """Which autoencoder."""

    variant: str = "topk"
    """Kind of sparse autoencoder."""
    width: int = 4608
    """Number of latents."""
    k: int = 32
    """Latents active a token; on average for penalised variants, unless --l0-target or --sparsity says otherwise."""
    base: str | None = None
    """For transcoders and crosscoders: whose code and loss they take (transcoder: topk, the others: batchtopk)."""
    l0_target: float | None = None
    """Penalised variants: the L0 that a controller moves the penalty's weight to; by default --k."""
    sparsity: float | None = None
    """Penalised variants: the penalty's weight, fixed; turns the controller off."""
    sparsity_warmup: float = 0.3
    """Share of the steps over which the aim falls from the L0 of the first step, or a fixed weight rises from zero."""
    penalty: Literal["l1", "tanh"] = "l1"
    """Penalty of --variant relu."""
    recipe: Literal["deepmind", "anthropic", "target"] = "deepmind"
    """How --variant jumprelu is trained: a penalty on L0, on tanh, or on the distance of L0 from its target."""
    bandwidth: float | None = None
    """Width of the window in which thresholds learn; by default 0.01 sqrt(d), or 2 (recipe anthropic)."""
    groups: int = 5
    """Nested dictionaries of --variant matryoshka, each half the next."""
    contrast: float = 1.0
    """Weight of the contrast between neighbouring tokens in --variant temporal."""
    k_start: int | None = None
    """Variants with k: latents active a token at the start, from which k falls to --k."""
    k_anneal: float = 0.2
    """Share of the steps over which k falls from --k-start."""
    normalise: Literal["scale", "centre", "layer_norm", "whiten", "none"] = "scale"
    """What is done to activations before encoding, and undone after; folded into the saved weights where it can be."""
    revival: Literal["auto", "auxk", "resample", "pre_activation", "none"] = "auto"
    """How dead latents are brought back; auto is what the variant likes."""
    pre_activation_weight: float = 3e-6
    """Weight of the loss of --revival pre_activation."""
    auxk_weight: float = 1 / 32
    """Weight of the loss that revives dead latents; 0 turns it off."""
    auxk: int | None = None
    """Dead latents used by that loss; by default half the model's width."""
    dead_after: int | None = None
    """Tokens without firing after which a latent counts as dead; by default 10M, or a tenth of a shorter run."""

    @property
    def keeps_k(self) -> bool:
        """Whether --k says anything."""
        return True

    def __post_init__(self) -> None:
        check(self.width >= 1, "width", self.width, "at least 1 latent")
        check(self.k >= 1, "k", self.k, "at least 1")
        fits = self.k <= self.width or not self.keeps_k
        check(fits, "k", self.k, f"at most the number of latents, --width {self.width}")
        check(self.l0_target is None or 0 < self.l0_target <= self.width, "l0_target", self.l0_target, "1 to --width")
        check(self.sparsity is None or self.sparsity > 0, "sparsity", self.sparsity, "more than 0")
        check(0 <= self.sparsity_warmup < 1, "sparsity_warmup", self.sparsity_warmup, "a share of the steps, below 1")
        check(self.bandwidth is None or self.bandwidth > 0, "bandwidth", self.bandwidth, "more than 0")
        check(1 <= self.groups <= 20, "groups", self.groups, "1 to 20")
        check(self.contrast >= 0, "contrast", self.contrast, "0 or more")
        check(
            self.k_start is None or self.k <= self.k_start <= self.width,
            "k_start", self.k_start, f"--k {self.k} to --width {self.width}",
        )  # fmt: skip
        check(0 < self.k_anneal <= 1, "k_anneal", self.k_anneal, "a share of the steps")
        check(self.pre_activation_weight > 0, "pre_activation_weight", self.pre_activation_weight, "more than 0")
        check(self.auxk_weight >= 0, "auxk_weight", self.auxk_weight, "0 or more")
        check(self.auxk is None or self.auxk >= 1, "auxk", self.auxk, "at least 1")
        check(self.dead_after is None or self.dead_after >= 1, "dead_after", self.dead_after, "at least 1 token")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights move."""

    lr: float | None = None
    """Peak learning rate; by default chosen from the width and the number of steps."""
    batch: int | None = None
    """Tokens a step; by default 2048 on a CPU and 4096 on a GPU."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises from zero (at most 1000 steps)."""
    decay: float = 0.2
    """Share of the steps over which the rate falls to zero at the end."""
    optimizer: Literal["adam", "signsgd", "muon", "adam8bit"] = "adam"
    """adam (fused), signsgd (schedule-free), muon (matrices; Adam for the rest), adam8bit (where bitsandbytes is)."""
    beta1: float | None = None
    """Adam's decay of the first moment; by default what the variant likes (0.9)."""
    beta2: float = 0.999
    """Adam's decay of the second moment."""
    eps: float = 6.25e-10
    """Adam's epsilon."""
    clip: float = 4.0
    """Largest global gradient norm, in units of the activations' width; 0 turns clipping off."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the autoencoder's products; master weights stay float32. Auto is float32 on CPU, bfloat16 on GPU."""

    def __post_init__(self) -> None:
        check(self.lr is None or self.lr > 0, "lr", self.lr, "more than 0")
        check(self.batch is None or self.batch >= 1, "batch", self.batch, "at least 1 token")
        check(0 <= self.warmup <= 1, "warmup", self.warmup, "a share of the steps, 0 to 1")
        check(0 <= self.decay <= 1, "decay", self.decay, "a share of the steps, 0 to 1")
        check(self.beta1 is None or 0 <= self.beta1 < 1, "beta1", self.beta1, "0 to below 1")
        check(0 <= self.beta2 < 1, "beta2", self.beta2, "0 to below 1")
        check(self.eps > 0, "eps", self.eps, "more than 0")
        check(self.clip >= 0, "clip", self.clip, "0 or more")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training run has, whatever it trains on."""

    out: Path
    """Run folder to write; it must not exist yet, or --resume must be given."""
    checkpoint_every: int = 5_000_000
    """Training tokens between two checkpoints."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay."""
    resume: bool = False
    """Continue the unfinished run in --out from its newest whole checkpoint."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Also log to Weights & Biases; nothing leaves the machine unless this is `online`."""
    seed: int = 0
    """Every random draw comes from this seed and a counter."""
    device: Device = "auto"
    """Where to compute: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        check(self.checkpoint_every >= 1, "checkpoint_every", self.checkpoint_every, "at least 1")
        check(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, "at least 1")
        check(self.log_every >= 1, "log_every", self.log_every, "at least 1 step")
        check(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """One training run on a language model's activations."""

    harvest: HarvestConfig
    sae: SAEConfig = field(default_factory=SAEConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    tokens: int = 1_000_000
    """Tokens to harvest for training (tokens left out of the stream do not count)."""
    epochs: int = 1
    """Passes over the harvested tokens; more than one keeps the activations in memory, or on disk with --store."""
    store: Path | None = None
    """Folder to keep the harvested activations in, and to reuse them from."""
    buffer_mb: int = 512
    """Memory of the shuffle buffer in MiB: activations are mixed within one buffer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.tokens >= 1, "tokens", self.tokens, "at least 1")
        check(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        check(self.buffer_mb >= 1, "buffer_mb", self.buffer_mb, "at least 1 MiB")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """One evaluation of a saved autoencoder on held-out documents."""

    dataset: str | None = None
    """Data set to evaluate on; by default the held-out part of the one it was trained on."""
    text_field: str | None = None
    """Column of that data set that is read; see `sae train`."""
    tokens: int = 65_536
    """Held-out tokens for reconstruction metrics (fewer if the held-out part is smaller)."""
    downstream_tokens: int = 16_384
    """Held-out tokens on which the language model is run with the reconstruction spliced in; 0 leaves this out."""
    pca_tokens: int = 32_768
    """Training tokens on which the PCA baseline is fitted; 0 leaves it out."""
    resamples: int = 1000
    """Bootstrap resamples over documents, for the 95% intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    device: Device = "auto"
    """Where to compute: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        check(self.tokens >= 1, "tokens", self.tokens, "at least 1")
        check(self.downstream_tokens >= 0, "downstream_tokens", self.downstream_tokens, "0 or more")
        check(self.pca_tokens >= 0, "pca_tokens", self.pca_tokens, "0 or more")
        check(self.resamples >= 10, "resamples", self.resamples, "at least 10")
        check(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """How the latents of a run are named."""

    latents: tuple[int, ...] = ()
    """Latents to name; by default all that fired while features were collected."""
    again: bool = False
    """Name latents anew that have a name for these weights."""
    explainer: Literal["rules", "local", "openai"] = "rules"
    """rules (no model), local (a language model on this machine), openai (an OpenAI-compatible endpoint)."""
    explainer_model: str | None = None
    """The explainer: a hub id or folder for local, the model's name there for openai."""
    endpoint: str | None = None
    """Address of the endpoint, such as http://127.0.0.1:8000/v1; examples are sent there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key."""
    examples: int = 16
    """Examples of a latent that the explainer is shown."""
    judged: int = 10
    """Held-out texts that fire, and as many that do not, on which the explainer's name is judged."""
    seed: int = 0
    """Seed of the bootstrap, the control and the draws of texts."""
    device: Device = "auto"
    """Where to run a local explainer: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        check(self.examples >= 1, "examples", self.examples, "at least 1")
        check(self.judged >= 1, "judged", self.judged, "at least 1")
        check(self.seed >= 0, "seed", self.seed, "0 or more")
        if self.explainer == "openai":
            check(bool(self.endpoint), "endpoint", self.endpoint, "an address, for --explainer openai")
        else:
            check(self.endpoint is None, "endpoint", self.endpoint, "none, unless --explainer openai is given")
        if self.explainer == "rules":
            remedy = "none, unless --explainer local or openai is given"
            check(self.explainer_model is None, "explainer_model", self.explainer_model, remedy)
        else:
            remedy = f"a model, for --explainer {self.explainer}"
            check(bool(self.explainer_model), "explainer_model", self.explainer_model, remedy)
        why = f"--explainer {self.explainer} does not read it; it is of"
        names = {"local or openai": ("examples", "judged"), "openai": ("key_variable",), "local": ("device",)}
        others = {owners: fields for owners, fields in names.items() if self.explainer not in owners}
        refuse_ignored(self, {name: f"{why} {owners}" for owners, fields in others.items() for name in fields})


@dataclass(frozen=True, kw_only=True)
class SteerConfig:
    """Which latents are steered, how, and what is generated."""

    latent: tuple[int, ...]
    """Latents, one or several."""
    scale: tuple[float, ...] = (1.0,)
    """Strength, one for all latents or one each, in units of the latent's largest collected activation."""
    mode: Literal["add", "set", "ablate"] = "add"
    """add (the atom times the strength), set (the latent takes that value), ablate (it takes none)."""
    absolute: bool = False
    """--scale is in the activation's own units; needs no collected features."""
    prompt: str
    """Beginning of the text; of a run on chats also messages as JSON: '[{"role": "user", "content": "Hi"}]'."""
    where: str = "every"
    """every (token), generated (tokens alone), or positions such as 3,4,5 (BOS is 0)."""
    steer_bos: bool = False
    """Steer BOS too, which models use as a sink for attention."""
    tokens: int = 48
    """Tokens to generate."""
    temperature: float = 0.0
    """0 is greedy; above, tokens are drawn with the seed."""
    seed: int = 0
    """Seed of the draws, the same for the plain and the steered text."""
    device: Device = "auto"
    """Where to compute: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        check(len(self.latent) >= 1, "latent", self.latent, "at least one latent")
        check(len(self.scale) in (1, len(self.latent)), "scale", self.scale, "one number, or one a latent")
        check(self.tokens >= 1, "tokens", self.tokens, "at least 1")
        check(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        ignored: dict[str, str] = {}
        if self.mode == "ablate":
            ignored |= dict.fromkeys(
                ("scale", "absolute"), "--mode ablate takes the whole latent out; add and set scale"
            )
        if self.temperature == 0:
            ignored["seed"] = "at --temperature 0 nothing is drawn"
        if self.where != "every":
            ignored["steer_bos"] = f"--where {self.where} says which tokens; BOS is position 0"
        refuse_ignored(self, ignored)
        check(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """One pass over a corpus, or over a run's images, that collects every latent's statistics and examples."""

    dataset: str | None = None
    """Data set to read; by default the one the run was trained on."""
    text_field: str | None = None
    """Column of that data set that is read; see `sae train`."""
    split: Literal["train", "heldout", "all"] = "train"
    """Which documents: those for training, those held out, or all."""
    store: Path | None = None
    """Take stored activations of the run's sites from this folder instead of harvesting text."""
    tokens: int = 262_144
    """Tokens to read, in whole forward passes (special and sink ones count and are left out), or rows of images."""
    save_every: float = 60.0
    """Seconds, at least, between two writings of what was collected so far."""
    resume: bool = False
    """Go on from the last writing; with more --tokens a finished pass is extended."""
    seed: int = 0
    """Seed of the random examples."""
    device: Device = "auto"
    """Where to compute: auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        check(self.tokens >= 1, "tokens", self.tokens, "at least 1")
        check(self.save_every >= 0, "save_every", self.save_every, "0 or more seconds")
        if self.store is not None:
            why = f"--store {self.store} is read in the place of text"
            refuse_ignored(self, dict.fromkeys(("dataset", "text_field", "split"), why))
        check(self.seed >= 0, "seed", self.seed, "0 or more")
