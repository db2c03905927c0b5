"""Autoencoders attached to a running transformers model: their codes read, their latents changed, while it runs.

    with attach(model, {"resid_post.9": autoencoder}, mode="ablate", latents=[3588]) as session:
        texts = model.generate(**tokenizer(prompts, return_tensors="pt", padding=True))
    session.codes["resid_post.9"]                # SparseCodes of every token that was read, padding left out
    session.batch, session.position              # where each of them stands, [N] each

Works in forwards and in `generate`, with a cache of keys and values or without, on batches padded left or right.
Shapes: B texts, S tokens (columns of the input, padding included), N tokens read, F latents.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from sae.config import ConfigError, unknown_choice
from sae.harvest.hooks import visit
from sae.harvest.intervene import Change, Effect, Intervention
from sae.harvest.sites import Site, SiteError, resolve_sites
from sae.models.autoencoder import Autoencoder
from sae_kernels import SparseCodes

Place: TypeAlias = "str | tuple[str, str]"
"""The sites of an autoencoder: `resid_post.9`, several joined by + for a crosscoder, or (read, written)."""
Mode = Literal["read", "splice", "steer", "set", "ablate"]
Latents: TypeAlias = "Mapping[int, float] | Sequence[int]"
CHANGE_OF: dict[str, Change] = {"steer": "add", "set": "set", "ablate": "ablate"}
"""Mode -> what it does to the latents it is given."""
CACHES = ("past_key_values", "cache_params")
"""Names under which models take what they keep of the tokens before."""


def attach(
    model: nn.Module,
    autoencoders: Mapping[Place, Autoencoder],
    mode: Mode = "read",
    *,
    latents: Mapping[Place, Latents] | Latents | None = None,
    error: bool = False,
    where: Tensor | None = None,
) -> Session:
    """Attach autoencoders to a transformers model for the length of a `with` block.

    Gradients pass through what is spliced or changed, to the model's inputs and to the autoencoders' weights, unless
    they are turned off around the forward, as `generate` does. All autoencoders read activations as the model computes
    them; of two sessions, the one entered later sees what the earlier has changed.

    Args:
        model: a model of transformers; its forwards are followed when it is called itself, not a part of it.
        autoencoders: site -> autoencoder. A transcoder's key is (site read, site written); a crosscoder's sites are
            joined by +. Sites are spelled as for `sae train --site`, with their layer.
        mode: read (the codes alone), splice (reconstructions in place of activations), steer (add strength times the
            atom), set (the latent takes the value), or ablate (the latent is removed); the last two leave the
            reconstruction error as it is.
        latents: for steer and set {latent: value in the activation's units}, for ablate [latent, ...]; with several
            autoencoders {site: these}, in which a site that is left out is only read.
        error: with splice, add the reconstruction error back, as a constant for gradients: values stay as they are, and
            a gradient with respect to `session.codes[site].values` attributes an outcome to latents.
        where: which tokens are changed, bool [S] or [B, S]; tokens behind its end, such as generated ones, are changed
            too. Codes are read everywhere. Padding is never changed.

    Raises:
        ConfigError, SiteError: a site, width, latent or setting that does not fit, before anything runs.

    Example:
        >>> import sae, torch
        >>> run = sae.Run("runs/demo")
        >>> model, autoencoder = run.language_model().model, run.model
        >>> with torch.no_grad(), sae.attach(model, {"resid_post.1": autoencoder}, mode="splice") as session:
        ...     logits = model(input_ids=torch.tensor([[1, 40, 41, 42]])).logits
        >>> session.codes["resid_post.1"].tokens, session.dense("resid_post.1").shape
        (4, torch.Size([1, 4, 128]))
        >>> with sae.attach(model, {"resid_post.1": autoencoder}, mode="steer", latents={3: 8.0}):
        ...     text = model.generate(torch.tensor([[1, 40, 41, 42]]), max_new_tokens=8)
    """
    if mode not in get_args(Mode):
        raise unknown_choice("mode", str(mode), get_args(Mode))
    if not autoencoders:
        raise ConfigError("autoencoders: none given, expected {site: autoencoder}")
    if error and mode != "splice":
        raise ConfigError(f"error: it is the reconstruction's, expected with mode='splice', not {mode!r}")
    effects = _effects(autoencoders, mode, latents)
    interventions: dict[Place, Intervention] = {}
    for place, autoencoder in autoencoders.items():
        name = place if isinstance(place, str) else " -> ".join(place)
        if not isinstance(autoencoder, Autoencoder):
            raise ConfigError(f"{name}: expected an Autoencoder, got {type(autoencoder).__name__}")
        read, written = (place, place) if isinstance(place, str) else place
        interventions[place] = Intervention(
            name,
            autoencoder,
            _sites(model, read),
            _sites(model, written),
            splice=mode == "splice",
            error=error,
            effects=effects[place],
        )
    return Session(model, interventions, where=where)


class _Forward(NamedTuple):
    """One forward of the model."""

    start: int
    """Tokens before it, which a cache holds."""
    mask: Tensor | None
    """Attention mask [B, start + S], where it is one of tokens."""


class _Tokens(NamedTuple):
    """The tokens of one forward that are no padding, and their codes."""

    start: int
    shape: tuple[int, int]
    """(B, S) of this forward."""
    real: Tensor
    """Flat indices in B x S, int64 [n]."""
    changed: Tensor
    """Which of these are changed, indices in `real`, int64."""
    codes: dict[Place, SparseCodes]
    """Filled while the forward goes on."""

    def before(self, column: int) -> _Tokens | None:
        """Those that stand before a column; None if none does."""
        kept = self.start + self.real % self.shape[1] < column
        if kept.all() or not kept.any():
            return self if kept.any() else None
        codes = {place: part.kept(kept.to(part.values.device)) for place, part in self.codes.items()}
        return self._replace(real=self.real[kept], codes=codes)


class Session:
    """Interventions in a model, in force within a `with` block; see `attach`.

    Codes are those of the last text or batch of texts: a forward without a cache begins a new one, forwards that go on
    from a cache add to it. With beams, every step's codes are those of its beams at that time.
    """

    def __init__(
        self, model: nn.Module, interventions: Mapping[Place, Intervention], *, where: Tensor | None = None
    ) -> None:
        self._model, self._interventions = model, dict(interventions)
        if where is not None and (where.dtype != torch.bool or where.ndim not in (1, 2)):
            raise ConfigError(f"where: expected bool [S] or [B, S], got {where.dtype} {tuple(where.shape)}")
        self._where = where
        targets: dict[Site, str] = {}
        for one in self._interventions.values():
            for site in one.targets if one.splice else ():
                if site in targets:
                    raise ConfigError(f"{one.name}: {targets[site]} is spliced in at {site.name} already")
                targets[site] = one.name
        self._signature = inspect.signature(model.forward)
        self._hooks: ExitStack | None = None
        self._forward = _Forward(0, None)
        self._running: _Tokens | None = None
        self._parts: list[_Tokens] = []

    def __enter__(self) -> Session:
        if self._hooks is not None:
            raise ConfigError("session: it is in use already; attach once more for a second one")
        sites = {s: None for one in self._interventions.values() for s in (*one.inputs, *(one.targets * one.writes))}
        with ExitStack() as hooks:
            hooks.callback(self._model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            hooks.enter_context(visit(self._model, {site: partial(self._visit, site) for site in sites}))
            self._hooks = hooks.pop_all()
        self._running, self._parts = None, []
        return self

    def __exit__(self, *_: object) -> None:
        assert self._hooks is not None
        self._hooks.close()
        self._hooks = None

    @property
    def codes(self) -> dict[Place, SparseCodes]:
        """Codes of the N tokens read, padding left out, in the order of `batch` and `position`.

        After one forward these are the very tensors from which a reconstruction was made, so that
        `torch.autograd.grad(loss, session.codes[site].values)` is possible.
        """
        parts = self._read
        return {place: SparseCodes.cat([part.codes[place] for part in parts]) for place in self._interventions}

    @property
    def batch(self) -> Tensor:
        """The text of every token read, int64 [N]."""
        return torch.cat([part.real // part.shape[1] for part in self._read])

    @property
    def position(self) -> Tensor:
        """The column of every token read, int64 [N]; padding on its left counts."""
        return torch.cat([part.start + part.real % part.shape[1] for part in self._read])

    @property
    def shape(self) -> tuple[int, int]:
        """(B, S) of all that was read, padding and tokens before the block included."""
        last = self._read[-1]
        return last.shape[0], last.start + last.shape[1]

    @property
    def real(self) -> Tensor:
        """Whether a column of a text was read and is no padding, bool [B, S]."""
        real = torch.zeros(self.shape, dtype=torch.bool, device=self.batch.device)
        real[self.batch, self.position] = True
        return real

    def dense(self, place: Place) -> Tensor:
        """Codes as [B, S, F], zero at padding."""
        return self._placed(self._of(place).to_dense())

    def latents(self, place: Place, latents: Sequence[int]) -> Tensor:
        """Activations of n latents [B, S, n], zero at padding, without the dense codes."""
        codes = self._of(place)
        for latent in latents:
            if not 0 <= latent < codes.width:
                raise ConfigError(f"latents: {latent}: expected 0 to {codes.width - 1}")
        return self._placed(codes.at(torch.tensor(latents, device=codes.indices.device, dtype=torch.int64)))

    def _of(self, place: Place) -> SparseCodes:
        codes = self.codes
        if place not in codes:
            raise unknown_choice("site", str(place), map(str, codes))
        return codes[place]

    def _placed(self, rows: Tensor) -> Tensor:
        places = self.batch.to(rows.device), self.position.to(rows.device)
        return rows.new_zeros(*self.shape, rows.shape[1]).index_put(places, rows)

    @property
    def _read(self) -> list[_Tokens]:
        """The forwards of the last text that read all sites."""
        parts = [part for part in self._parts if len(part.codes) == len(self._interventions)]
        if not parts:
            raise ConfigError("session: nothing was read yet; run the model within the block")
        return parts

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the model."""
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        seen = self._parts[-1].start + self._parts[-1].shape[1] if self._parts else 0
        cache = next((given[name] for name in CACHES if given.get(name) is not None), None)
        mask = given.get("attention_mask")
        is_of_tokens = isinstance(mask, Tensor) and mask.ndim == 2
        self._forward = _Forward(_length(cache, seen), mask if is_of_tokens else None)
        self._running = None
        # another text begins there, or the cache was cut
        before = [part.before(self._forward.start) for part in self._parts]
        self._parts = [part for part in before if part is not None]
        for one in self._interventions.values():
            one.begin()

    def _visit(self, site: Site, x: Tensor) -> Tensor | None:
        """The model is at a site, with activations [B, S, d]: read it for all, then change it."""
        if self._running is None:
            self._running = self._tokens_of(x)
            self._parts.append(self._running)
        tokens = self._running
        if tuple(x.shape[:2]) != tokens.shape:
            raise SiteError(f"{site.name} has {tuple(x.shape[:2])} rows, other sites have {tokens.shape}")
        flat = x.flatten(0, 1)
        for place, one in self._interventions.items():
            if site in one.inputs and (codes := one.read(site, flat[tokens.real])) is not None:
                tokens.codes[place] = codes
        writers = [one for one in self._interventions.values() if one.writes and site in one.targets]
        if not writers or not len(tokens.changed):
            return None
        places = tokens.real[tokens.changed]
        rows = flat[places]
        for one in writers:
            rows = one.write(site, rows, tokens.changed)
        return flat.index_copy(0, places, rows.to(flat.dtype)).view_as(x)

    def _tokens_of(self, x: Tensor) -> _Tokens:
        """Which tokens of the running forward are real, and which of them are changed."""
        start, mask = self._forward
        batch, columns = x.shape[:2]
        real = torch.ones(batch, columns, dtype=torch.bool, device=x.device)
        if mask is not None and mask.shape[0] == batch and mask.shape[1] >= start + columns:
            real = mask[:, start : start + columns].to(x.device) != 0
        changed = torch.ones_like(real)
        if self._where is not None:
            if self._where.ndim == 2 and self._where.shape[0] != batch:
                raise ConfigError(f"where: expected [{batch}, S] for {batch} texts, got {tuple(self._where.shape)}")
            given = self._where.to(x.device)[..., start : start + columns]
            changed[:, : given.shape[-1]] = given
        places = real.flatten().nonzero().squeeze(1)
        return _Tokens(start, (batch, columns), places, changed.flatten()[places].nonzero().squeeze(1), {})


def _length(cache: Any, seen: int) -> int:
    """Tokens that a model's cache holds; `seen` for a cache of states alone, which does not count them."""
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length())
    except ValueError:
        return seen if cache.has_previous_state() else 0


def _sites(model: nn.Module, names: str) -> list[Site]:
    """The sites of one end of an autoencoder, each of which must be one."""
    sites: list[Site] = []
    for name in names.split("+"):
        matches = resolve_sites(model, name.strip())
        if len(matches) > 1:
            raise SiteError(f"site {name!r}: one place expected, got {', '.join(site.name for site in matches)}")
        sites += matches
    return sites


def _effects(
    autoencoders: Mapping[Place, Autoencoder], mode: str, latents: Mapping[Place, Latents] | Latents | None
) -> dict[Place, list[Effect]]:
    """The effects at every site; empty lists for modes that change no single latent."""
    if mode not in CHANGE_OF:
        if latents is not None:
            raise ConfigError(f"latents: expected with mode steer, set or ablate, not {mode!r}")
        return {place: [] for place in autoencoders}
    if not latents:
        raise ConfigError(f"latents: mode {mode!r} needs at least one")
    by_place = latents if isinstance(latents, Mapping) and not isinstance(next(iter(latents)), int) else None
    if by_place is None:
        if len(autoencoders) > 1:
            raise ConfigError("latents: with several autoencoders, expected {site: latents}")
        by_place = {place: latents for place in autoencoders}
    for place in by_place:
        if place not in autoencoders:
            raise unknown_choice("latents: site", str(place), map(str, autoencoders))
    change = CHANGE_OF[mode]
    effects: dict[Place, list[Effect]] = {place: [] for place in autoencoders}
    for place, given in cast("Mapping[Place, Latents]", by_place).items():
        if change == "ablate":
            effects[place] = [Effect(latent, change) for latent in given]
        elif isinstance(given, Mapping):
            effects[place] = [Effect(latent, change, float(value)) for latent, value in given.items()]
        else:
            raise ConfigError(f"latents: mode {mode!r} expects {{latent: value}}, got {given!r}")
    return effects
