"""One family through train, eval, features and steer on a tiny random model, with its sites checked.

row = walk("causal", "llama", Path("/tmp/scratch"), texts)
row.works, row.reason, row.sites
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

import sae.evaluation.run
import sae.features.collect.collect
import sae.features.steer.steer
import sae.training.run
from sae.config import CollectConfig, EvalConfig, HarvestConfig, OptimConfig, SAEConfig, SteerConfig, TrainConfig
from sae.data.documents import open_documents
from sae.data.packing import BEGINNING
from sae.features.store.lens import UndefinedError, next_token_unembedding
from sae.harvest.hooks import harvest_forward, splice
from sae.harvest.language_model import LanguageModel, load_language_model, locate_model
from sae.harvest.sites import KINDS, Site, SiteError, find_blocks, resolve_sites
from sae.harvest.stream import Harvest
from scripts.tiny_configs import tiny_model

MAPPINGS = {
    "causal": (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForCausalLM),
    "masked": (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, transformers.AutoModelForMaskedLM),
    "image-text": (modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, transformers.AutoModelForImageTextToText),
}
"""transformers' mappings: name -> (family -> model class, the class that builds from a config)."""
LAYER, CONTEXT = 1, 32


@dataclasses.dataclass
class Row:
    """What came of one family."""

    mapping: str
    family: str
    config: str = ""
    """Config class."""
    status: str = "works"
    """works, refused, no tiny config, or fault."""
    reason: str = ""
    """Why not, for every other status."""
    sites: list[str] = dataclasses.field(default_factory=list)
    """Kinds of site that every layer has."""
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    """Kinds that some layer lacks -> why."""
    identity: str = ""
    """How the contributions make up the residual: sum, normalised sum, or - where a part of it has no site."""
    isolation: str = ""
    """How documents are kept apart."""
    predicts: bool | None = None
    """Whether the model predicts next tokens, as eval, steer and the lens say alike."""


class WalkError(Exception):
    """Something that a user would call a bug."""


def is_refusal(error: BaseException) -> bool:
    """Whether an error is one of ours, which names what is wrong and why."""
    return isinstance(error, ValueError) and type(error).__module__.startswith("sae.")


def rows_of(only: set[str] | None = None) -> list[tuple[str, str]]:
    """(mapping, family) of all of transformers' families, or of those named."""
    return [(m, f) for m, (names, _) in MAPPINGS.items() for f in sorted(names) if not only or f in only]


def walk(mapping: str, family: str, scratch: Path, texts: Path) -> Row:
    """Take one family through everything.

    Args:
        scratch: folder for the model and the run, emptied afterwards.
        texts: a .jsonl file of documents.
    """
    row = Row(mapping, family)
    with contextlib.suppress(KeyError):
        row.config = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES[family]
    folder, run = scratch / "model", scratch / "run"
    try:
        try:
            model = tiny_model(family, MAPPINGS[mapping][1])
            tokenizer().save_pretrained(folder)
            model.save_pretrained(folder)
        except Exception as error:  # transformers raises as many kinds as there are families
            row.status, row.reason = "no tiny config", said(error)
            return row
        try:
            _walk(row, folder, run, texts)
        except Exception as error:
            row.status = "refused" if is_refusal(error) else "fault"
            row.reason = said(error) if is_refusal(error) else f"{said(error)} [{where(error)}]"
            row.reason = row.reason.replace(f"--model {folder}: ", "").replace(str(folder), "MODEL")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return row


def _walk(row: Row, folder: Path, run: Path, texts: Path) -> None:
    config = TrainConfig(
        harvest=HarvestConfig(model=str(folder), dataset=str(texts), layer=LAYER, context=CONTEXT, contexts=4),
        sae=SAEConfig(width=64, k=4),
        optim=OptimConfig(batch=64),
        out=run,
        tokens=512,
        buffer_mb=1,
        device="cpu",
    )
    sae.training.run.train(config)
    lm = load_language_model(
        locate_model(str(folder), trust_remote_code=False), device=torch.device("cpu"), precision="auto"
    )
    check_sites(row, lm.model)
    row.isolation = check_isolation(lm, texts, config.harvest)
    report = sae.evaluation.run.evaluate(
        run, EvalConfig(tokens=128, downstream_tokens=64, pca_tokens=128, resamples=10, device="cpu")
    )
    sae.features.collect.collect.collect(run, CollectConfig(tokens=256, device="cpu"))
    row.predicts = agreed(lm, run, report)


def agreed(lm: LanguageModel, run: Path, report: dict[str, Any]) -> bool:
    """Whether the model predicts next tokens; eval, steer and the lens must say the same."""
    says = {"eval": report["downstream"] is not None, "lens": True, "steer": True}
    reasons = []
    try:
        next_token_unembedding(lm, find_blocks(lm.model).width)
    except UndefinedError as error:
        says["lens"] = False
        reasons.append(said(error))
    try:
        steering = SteerConfig(latent=(0,), prompt="the river ran", absolute=True, tokens=4, device="cpu")
        sae.features.steer.steer.steer_run(run, steering)
    except ValueError as error:
        if not is_refusal(error):
            raise
        says["steer"] = False
        reasons.append(said(error))
    if set(says.values()) != {lm.traits.predicts_next}:
        raise WalkError(f"next tokens: traits say {lm.traits.predicts_next}, commands {says}: {'; '.join(reasons)}")
    return lm.traits.predicts_next


# Sites


def check_sites(row: Row, model: Any) -> None:
    """Read and replace every site, and compare the contributions with what the residual gains."""
    blocks = find_blocks(model)
    sites: list[Site] = []
    for kind in KINDS:
        try:
            of_kind = [resolve_sites(model, f"{kind}.{layer}")[0] for layer in range(blocks.n_layers)]
            row.sites.append(kind)
        except SiteError as error:
            row.missing[kind] = said(error).partition("does not exist: ")[2] or said(error)
            of_kind = []
            for layer in range(blocks.n_layers):
                with contextlib.suppress(SiteError):
                    of_kind += resolve_sites(model, f"{kind}.{layer}")
        sites += of_kind
    tokens = torch.randint(80, 160, (2, 12), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": tokens}
    norms = norm_inputs(model, blocks.path)
    with norms as seen:
        activations = harvest_forward(model, inputs, sites)
    kinds = set()
    for layer in range(blocks.n_layers):
        parts = {kind: activations.get(f"{kind}.{layer}") for kind in KINDS}
        if parts["attn_out"] is not None and parts["mlp_out"] is not None:
            block = model.get_submodule(blocks.block(layer)[0])
            kinds.add(identity(parts, seen, layer, float(getattr(block, "layer_scalar", 1.0))))
        if not any("after a norm" in kind for kind in kinds):
            check_middle(parts, layer)
    row.identity = ", ".join(sorted(kinds)) or "-"
    check_replacing(model, inputs, sites, activations)


def identity(parts: dict[str, Tensor | None], norms: list[tuple[Tensor, Tensor]], layer: int, scale: float) -> str:
    """How attention and MLP make up what a block does to the residual.

    `sum`: post - pre = attention + MLP. `normalised sum`: a norm follows each sum, as in BERT. A further branch, or a
    norm in front of both, is named; `scale` is what multiplies the finished residual (Gemma 4), else 1.
    """
    pre, post, attention, mlp = (parts[kind] for kind in ("resid_pre", "resid_post", "attn_out", "mlp_out"))
    assert pre is not None
    assert post is not None
    assert attention is not None
    assert mlp is not None
    end = post / scale
    size = torch.stack([pre.abs().max(), end.abs().max()]).max()

    def same(ours: Tensor, theirs: Tensor) -> bool:
        return ours.shape == theirs.shape and bool((ours - theirs).abs().max() < 2e-5 * size)

    rest = end - pre - attention - mlp
    if same(rest, torch.zeros_like(rest)):
        return "sum" if scale == 1 else "sum, then scaled"
    if any(same(rest, after) for _, after in norms):
        return "sum with a third branch"
    if any(same(before, pre) and same(after + attention + mlp, end) for before, after in norms):
        return "sum after a norm"
    for middle in [pre + attention, *(after for before, after in norms if same(before, pre + attention))]:
        if same(middle + mlp, end) or any(same(before, middle + mlp) and same(after, end) for before, after in norms):
            return "normalised sum"
    raise WalkError(
        f"layer {layer}: attn_out + mlp_out is not resid_post - resid_pre (off by {rest.norm() / end.norm():.2g})"
    )


def check_middle(parts: dict[str, Tensor | None], layer: int) -> None:
    """resid_mid is the residual between the two sums."""
    pre, attention, middle = parts["resid_pre"], parts["attn_out"], parts["resid_mid"]
    if pre is None or attention is None or middle is None:
        return
    if not close(middle, pre + attention):
        raise WalkError(f"layer {layer}: resid_mid is not resid_pre + attn_out")


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Equal up to the rounding of a few sums."""
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() < 2e-5 * theirs.abs().max())


@contextlib.contextmanager
def norm_inputs(model: nn.Module, stack: str) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What goes into and comes out of every norm in the stack, filled by forwards within the block."""
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, args: tuple, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            seen.append((args[0].detach().clone(), output.detach().clone()))

    modules = model.get_submodule(stack).named_modules()
    handles = [m.register_forward_hook(keep) for _, m in modules if "norm" in type(m).__name__.lower()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def check_replacing(model: Any, inputs: dict[str, Tensor], sites: list[Site], activations: dict[str, Tensor]) -> None:
    """Replacing by the same changes nothing, by something else the outcome; what is replaced is what is read."""
    cache = {"use_cache": False}
    plain = model(**inputs, **cache)[0]
    places = [site for site in sites if site.kind != "resid_mid"]
    with splice(model, {site: lambda x: x.clone() for site in places}):
        same = model(**inputs, **cache)[0]
    if not (same - plain).abs().max() <= 1e-4 * plain.abs().max():
        raise WalkError("replacing every site by itself changes the outcome")
    for site in places:
        if site.layer != LAYER:
            continue
        moved = activations[site.name].roll(1, dims=1) + torch.eye(site.width or 0)[0]
        with splice(model, {site: lambda x, moved=moved: moved}):
            read = harvest_forward(model, inputs, [site])[site.name]
            changed = model(**inputs, **cache)[0]
        if not close(read, moved):
            raise WalkError(f"{site.name}: what was put there is not read there")
        if torch.equal(changed, plain):
            raise WalkError(f"{site.name}: replacing it changes nothing")


# Documents apart


@torch.no_grad()
def check_isolation(lm: LanguageModel, texts: Path, config: HarvestConfig) -> str:
    """The way in which documents are kept apart; each packed segment must be what it is alone."""
    (site,) = resolve_sites(lm.model, f"resid_post.{find_blocks(lm.model).n_layers - 1}")
    harvest = Harvest(lm, [site], open_documents(str(texts), split="train"), config)
    contexts = next(iter(harvest.contexts(BEGINNING)))
    packed = harvest_forward(lm.model, harvest.inputs(contexts), [site])[site.name]
    worst = 0.0
    for row in range(len(contexts.tokens)):
        real = int((contexts.document[row] >= 0).sum())
        starts = [*(contexts.position[row, :real] == 0).nonzero().flatten().tolist(), real]
        starts = starts if starts[0] == 0 else [0, *starts]
        for begin, end in zip(starts, starts[1:], strict=False):
            alone = harvest_forward(lm.model, {"input_ids": contexts.tokens[row : row + 1, begin:end]}, [site])
            alone = alone[site.name][0]
            if alone.shape != packed[row, begin:end].shape:
                raise WalkError(f"documents alone have {alone.shape[0]} rows for {end - begin} tokens")
            worst = max(worst, float((packed[row, begin:end] - alone).norm() / alone.norm()))
    if not worst < 1e-4:
        raise WalkError(f"isolation {harvest.isolation!r}: a document differs by {worst:.2g} from the document alone")
    return harvest.isolation


# Words


def tokenizer() -> Any:
    """The byte tokenizer of the tests, of 300 tokens."""
    from sae.selftest.world import byte_tokenizer

    return byte_tokenizer(300)


def said(error: BaseException) -> str:
    """An error on one line."""
    text = " ".join(str(error).split())
    return text if type(error).__module__.startswith(("sae.", "scripts.")) else f"{type(error).__name__}: {text}"[:300]


def where(error: BaseException) -> str:
    """The last frames of an error, for faults."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in reversed(frames))
