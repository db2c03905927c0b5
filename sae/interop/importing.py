"""`sae import`: another tool's autoencoder becomes a run folder, which every command reads like one of ours.

    import_run("their_sae", ImportConfig(out=Path("runs/theirs"), dataset="demo"))

With a data set, one forward pass of the language model shows whether the autoencoder fits it: its FVU there is printed,
and weights that reconstruct better transposed are refused. Without one, the run has weights and no text.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae.base.device import pick_device
from sae.base.files import CorruptError, publish_folder, publish_json
from sae.base.progress import Progress
from sae.config import ConfigError, HarvestConfig, ImportConfig, SAEConfig, TrainConfig
from sae.data.documents import Documents, open_documents
from sae.evaluation.reconstruction import fvu_of, fvu_sums
from sae.harvest.beginning import Beginning, described, settle
from sae.harvest.language_model import (
    LanguageModel,
    ModelSource,
    load_language_model,
    locate_model,
    measure_width,
    skeleton,
)
from sae.harvest.opening import opening
from sae.harvest.sites import Site, SiteError, resolve_sites
from sae.harvest.stream import Harvest
from sae.interop import Origin, read, recognised, split_layer
from sae.interop.gain import divided_by_gain, gain_of
from sae.interop.origin import WITHOUT_GAIN
from sae.interop.sources import fetch
from sae.models.autoencoder import Autoencoder
from sae.models.saved import CONFIG, CONFIG_FORMAT, save_weights
from sae.modules.codes import TopK
from sae.runs.text import joined
from sae.training.run_folder import new_record

PROBE = 256  # rows from which the self-test's are picked
TRIED = 1024  # rows on which an import is tried: dense codes of a million latents then take 4 GB


class Subject(NamedTuple):
    """The language model and text that an imported autoencoder belongs to, checked before weights are read."""

    source: ModelSource
    inputs: list[Site]
    targets: list[Site]
    documents: Documents
    settings: HarvestConfig

    @property
    def sites(self) -> list[Site]:
        """All places that a harvest must capture, each once."""
        return list(dict.fromkeys([*self.inputs, *self.targets]))


def import_run(source: str | Path, config: ImportConfig) -> dict[str, Any]:
    """Write the autoencoder of another tool as a run folder.

    Args:
        source: a file or folder, `hub_id`, `hub_id:path`, or a short name of `sae list`; with `:LAYER` at its end
            what a cross-layer transcoder reads at that layer.
        config: what the files do not say.

    Returns:
        JSON values: what was recognised, and with a data set the FVU on its first tokens.

    Raises:
        ConfigError, CorruptError, ModelError, SiteError: nothing is written then.
    """
    if config.out.exists():
        raise ConfigError(f"--out {config.out}: exists already; choose another folder")
    with Progress() as progress:
        place, layer = split_layer(source)
        fetched = fetch(place, progress.say)
        format = fetched.format if config.format == "auto" else config.format
        format = recognised(fetched.path) if format == "auto" else format
        imported = read(fetched.path if layer is None else f"{fetched.path}:{layer}", format)
        origin = _overruled(fetched.completed(imported.origin), config)
        model = imported.model
        progress.say(_said(format, model, origin))
        if config.dataset is None:
            record, rows, fvu = {"format": CONFIG_FORMAT, "kind": "weights"}, _made_up(model), None
        else:
            subject = _subject(model, origin, config)
            lm = _language_model(subject, origin, pick_device(config.device), progress)
            model, origin = _with_gain(model, origin, subject, lm)
            harvest = Harvest(lm, subject.sites, subject.documents, subject.settings)
            harvested = harvest.trained_on(next(harvest.batches()).rows)
            ends = (subject.inputs, subject.targets)
            rows, targets = (joined(harvested.activations, sites)[:TRIED].cpu() for sites in ends)
            fvu = _checked_fvu(model, rows, targets)
            record = _record(model, config, subject, harvest, rows)
            progress.say(f"FVU on {len(rows):,} tokens of {config.dataset}: {fvu:.4f}.")
        record["imported"] = {**origin._asdict(), "source": str(source), "format": format}
        with publish_folder(config.out, replace=False) as folder:
            record["autoencoder"] = save_weights(folder, model, rows[:PROBE])
            publish_json(folder / CONFIG, record)
    shown = {"run": str(config.out), "format": format, **_shown(model, origin)}
    return shown if fvu is None else {**shown, "fvu_of_first_batch": round(fvu, 4)}


def _overruled(origin: Origin, config: ImportConfig) -> Origin:
    """What the files say, with what the user says in its place."""
    changes: dict[str, Any] = {}
    if config.model is not None:
        changes["model"] = config.model
    if config.site is not None:
        changes["sites"] = _names(config.site)
    if config.target_site is not None:
        changes["targets"] = _names(config.target_site)
    if config.context is not None:
        changes["context"] = config.context
    if origin.before_gain:
        changes["notes"] = (*origin.notes, WITHOUT_GAIN)
    return origin._replace(**changes)


def _names(sites: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in sites.replace("+", ",").split(","))


def _shown(model: Autoencoder, origin: Origin) -> dict[str, Any]:
    target = {"target_site": ", ".join(origin.targets)} if origin.targets else {}
    return {
        "tool": origin.tool,
        "architecture": origin.architecture,
        "model": origin.model,
        "site": ", ".join(origin.sites) or None,
        **target,
        "dim": model.dim,
        "width": model.width,
        "code": model.code.name,
    }


def _said(format: str, model: Autoencoder, origin: Origin) -> str:
    shown = {name: value for name, value in _shown(model, origin).items() if value is not None and name != "tool"}
    listed = ", ".join(f"{name} {value}" for name, value in shown.items() if value != "")
    notes = "".join(f"\nNote: {note}." for note in origin.notes)
    return f"Recognised as {format} ({origin.tool}): {listed}; --format overrules.{notes}"


def _subject(model: Autoencoder, origin: Origin, config: ImportConfig) -> Subject:
    """The model, sites and text, without reading the model's weights.

    Raises:
        ConfigError, ModelError, SiteError, DataError: a part is unknown, or has another width than the weights.
    """
    if origin.model is None:
        raise ConfigError("--model: the files name no language model; expected its hub id or folder")
    if not origin.sites:
        raise ConfigError("--site: the files name no site; expected one such as resid_post.6")
    assert config.dataset is not None
    settings = HarvestConfig(
        model=origin.model,
        dataset=config.dataset,
        text_field=config.text_field,
        site="+".join(origin.sites),
        target_site="+".join(origin.targets) if origin.targets else None,
        context=origin.context or HarvestConfig.context,
        heldout=config.heldout,
        bos=config.bos,
    )
    source = locate_model(origin.model, trust_remote_code=False)
    body = skeleton(source)
    inputs = _sites(body, "--site", origin.sites, model.dim)
    targets = _sites(body, "--target-site", origin.targets, model.dim_out) if origin.targets else inputs
    if not origin.targets and model.dim_out != model.dim:
        raise ConfigError("--target-site: the files name none, and the reconstruction has another width than the input")
    settings = dataclasses.replace(
        settings,
        site=_joined(inputs),
        target_site=_joined(targets) if origin.targets else None,
    )
    documents = open_documents(config.dataset, text_field=config.text_field, split="train", heldout=config.heldout)
    return Subject(source, inputs, targets, documents, settings)


def _sites(body: nn.Module, flag: str, names: tuple[str, ...], width: int) -> list[Site]:
    try:
        sites = [measure_width(body, site) for name in names for site in resolve_sites(body, _spelled(body, name))]
    except SiteError as error:
        raise ConfigError(f"{flag}: {error}") from error
    widths = [site.width or 0 for site in sites]
    if sum(widths) != width:
        raise ConfigError(f"{flag} {', '.join(names)}: has the width {sum(widths)}, the autoencoder {width}")
    return sites


def _joined(sites: list[Site]) -> str:
    return "+".join(site.name for site in sites)


def _spelled(body: nn.Module, name: str) -> str:
    """The name, with a module's path completed: `layers.6.mlp` is `model.layers.6.mlp` where only that ends so."""
    path, side = name.removesuffix(":in"), ":in" if name.endswith(":in") else ""
    paths = [full for full, _ in body.named_modules() if full == path or full.endswith(f".{path}")]
    return f"{paths[0]}{side}" if len(paths) == 1 else name


def _language_model(subject: Subject, origin: Origin, device: torch.device, progress: Progress) -> LanguageModel:
    """The language model; segments begin as the files say, or as `sae train` would have them."""
    lm = load_language_model(subject.source, device=device, precision="auto")
    beginning = settle(lm, subject.settings, subject.documents)
    if subject.settings.bos == "auto" and origin.bos is not None:
        bos = lm.tokenizer.bos_token_id
        if origin.bos and bos is None:
            raise ConfigError("--bos: the autoencoder was trained with BOS, which this tokenizer lacks; name a token")
        beginning = Beginning((bos,) if origin.bos else (), "as the files say")
    progress.say(beginning.line(lm.tokenizer))
    lm = lm._replace(beginning=beginning.ids)
    progress.say(opening(subject.documents, lm.tokenizer, subject.settings, beginning=lm.beginning))
    return lm


def _with_gain(model: Autoencoder, origin: Origin, subject: Subject, lm: LanguageModel) -> tuple[Autoencoder, Origin]:
    """The autoencoder at its site: weights that read a norm's output without its gain are divided by the gain."""
    if not origin.before_gain:
        return model, origin
    (site,) = subject.inputs
    if site.block is None:
        raise ConfigError(f"--site {site.name}: the autoencoder reads a norm without its gain; expected mlp_in.LAYER")
    note = f"W_enc is divided by the gain of the norm before the MLP in {site.block}"
    model = divided_by_gain(model, gain_of(lm.model, site.block))
    return model, origin._replace(before_gain=False, notes=(*origin.notes, note))


def _checked_fvu(model: Autoencoder, x: Tensor, targets: Tensor) -> float:
    """FVU of the rows x [n, d] against their targets [n, d_out].

    Raises:
        CorruptError: square weights that reconstruct better transposed.
    """
    fvu = _fvu(model, x, targets)
    if model.dim != model.width or model.dim != model.dim_out:
        return fvu
    for turns, names in ((("enc", "dec"), "W_enc and W_dec"), (("enc",), "W_enc"), (("dec",), "W_dec")):
        turned = model.like(model.code)
        with torch.no_grad():
            turned.W_enc.copy_(model.W_enc.T if "enc" in turns else model.W_enc)
            turned.dictionary.W.copy_(model.dictionary.W.T if "dec" in turns else model.dictionary.W)
        other = _fvu(turned, x, targets)
        # a broken autoencoder is a little better or worse by chance
        if other < 0.9 * min(fvu, 1.0):
            raise CorruptError(
                f"{names} {tuple(model.W_enc.shape)}: reconstructs better transposed (FVU {other:.4g}, as they are "
                f"{fvu:.4g}): not in the order of this format"
            )
    return fvu


@torch.no_grad()
def _fvu(model: Autoencoder, x: Tensor, target: Tensor) -> float:
    sums = fvu_sums(target, model(x).reconstruction, target.mean(0))
    return float(fvu_of("error", sums))


def _made_up(model: Autoencoder) -> Tensor:
    """Inputs for a self-test where no text is given: b_dec and a few atoms, or noise where these are not inputs."""
    generator = torch.Generator().manual_seed(0)
    if model.transcodes:
        return torch.randn(PROBE, model.dim, generator=generator)
    strengths = torch.rand(PROBE, 8, generator=generator) * 4
    latents = torch.randint(model.width, (PROBE, 8), generator=generator)
    with torch.no_grad():
        return model.dictionary.b + torch.einsum("nk,nkd->nd", strengths, model.dictionary.W[latents])


def _record(
    model: Autoencoder, config: ImportConfig, subject: Subject, harvest: Harvest, rows: Tensor
) -> dict[str, Any]:
    """config.json of an imported run, but for its weights and origin: what `sae train` would have recorded."""
    with torch.no_grad():
        l0 = model.code.k if isinstance(model.code, TopK) else round(model.encode(rows).l0().float().mean().item())
    sae = SAEConfig(
        variant="transcoder" if model.transcodes else model.code.name,
        width=model.width,
        k=max(1, min(l0, model.width)),
        normalise="none",
    )
    train = TrainConfig(harvest=subject.settings, sae=sae, out=config.out)
    return {
        **new_record(train, kind="language", data=subject.documents.provenance),
        "sites": {
            "inputs": [site.describe() for site in subject.inputs],
            "targets": [site.describe() for site in subject.targets],
        },
        "model": harvest.lm.provenance,
        "harvest": {
            "norm_limits": dict(harvest.norm_limits),
            "isolation": harvest.isolation,
            "beginning": described(harvest.lm),
            "store_precision": "float32",
        },
        "training": {"form": model.code.describe()},
    }
