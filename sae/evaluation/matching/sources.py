"""What is matched: a run's latents, or those of a checkpoint, with their activations on common held-out tokens.

subjects = [open_subject("runs/a"), open_subject("runs/b/checkpoints/000001200")]
common = activations_of(subjects, config)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy import sparse
from torch import Tensor

from sae.base.device import pick_device
from sae.base.files import CorruptError, check_folder, sha256_of
from sae.base.progress import Progress, StopSignal
from sae.config import ConfigError, MatchConfig
from sae.data.images import ImageSet
from sae.data.tensors import TensorPart
from sae.evaluation.matching.activations import Activations, entries
from sae.harvest.opening import opening
from sae.models.autoencoder import Autoencoder
from sae.models.saved import WEIGHTS, load, locate_run, read_config
from sae.modules.normalise import Affine
from sae.runs import open_run
from sae.runs.base import kind_of
from sae.runs.text import harvest_of

STATE = "state.safetensors"
CHUNK = 4096  # rows encoded at a time


class Subject(NamedTuple):
    """One side of a match."""

    name: str
    """As it was given."""
    folder: Path
    kind: str
    """That of its run (`sae.runs.base.KINDS`), or checkpoint."""
    weights: str
    """SHA-256 of the file of its weights."""
    atoms: Tensor
    """[F, d_out], in the units of the model's activations."""
    encoder: Tensor | None
    """Encoder rows [F, d]; None where the atoms are the encoder, or a latent has several rows."""
    space: int | None
    """Width of the space of its atoms; None where that is a learnt one, before a head, in which seeds differ."""
    seed: int | None = None
    """Of the training, with which the atoms began; None where it is unknown."""

    @property
    def width(self) -> int:
        """F, the number of latents."""
        return len(self.atoms)


class Common(NamedTuple):
    """Activations on the same tokens, of those subjects that have them."""

    activations: dict[int, Activations]
    """Place among the subjects -> its activations."""
    tokens: int
    what: str
    """tokens, rows or images."""
    missing: dict[int, str]
    """Place -> why it has none."""


def open_subject(source: str | Path) -> Subject:
    """A run folder, a hub repository with one, or one of a run's checkpoints (RUN/checkpoints/STEP).

    Raises:
        ConfigError, CorruptError: it is neither, not finished, or damaged.
    """
    path = Path(source).expanduser()
    if (path / STATE).is_file():
        return _open_checkpoint(str(source), path)
    folder = locate_run(source)
    model = load(folder)
    record = read_config(folder)
    several = model.code.tied or model.code.rows != 1
    return Subject(
        str(source),
        folder,
        kind_of(folder),
        sha256_of(folder / WEIGHTS),
        model.dictionary.W.detach().float(),
        None if several or model.stem is not None else model.W_enc.detach().float(),
        model.dim_out if model.head is None else None,
        None if "imported" in record else record.get("train", {}).get("seed"),
    )


def _open_checkpoint(name: str, path: Path) -> Subject:
    check_folder(path)
    try:
        tensors = load_file(path / STATE)
        inputs, targets = (
            Affine(**{field: tensors[f"{end}.{field}"] for field in Affine._fields}) for end in ("inputs", "targets")
        )
        atoms, encoder = tensors["model.dictionary.W"].float(), tensors.get("model.W_enc")
    except (KeyError, SafetensorError) as error:
        raise CorruptError(f"{path / STATE}: not a checkpoint of an autoencoder ({error})") from error
    atoms = targets.atoms(atoms)
    same = encoder is not None and len(encoder) == len(atoms)
    rows = inputs.encoder(encoder.float()) if encoder is not None and same else None
    return Subject(name, path, "checkpoint", sha256_of(path / STATE), atoms, rows, atoms.shape[1])


def activations_of(subjects: Sequence[Subject], config: MatchConfig) -> Common:
    """Activations of all subjects that read what the first one with data reads, on the same held-out tokens.

    Runs of one language model need not read the same site: its tokens are the same. Runs on files of activations or on
    images need the same data.
    """
    missing = {i: _no_data(s) for i, s in enumerate(subjects) if s.kind not in ("language", "tensors", "image")}
    if not config.tokens:
        return Common({}, 0, "tokens", dict.fromkeys(range(len(subjects)), "atoms alone were asked for"))
    able = [i for i in range(len(subjects)) if i not in missing]
    if not able:
        return Common({}, 0, "tokens", missing)
    device = pick_device(config.device)
    opened = {i: open_run(subjects[i].folder, device=device) for i in able}
    first = able[0]
    for i in able[1:]:
        why = _differs(subjects[first], opened[first], subjects[i], opened[i])
        if why is not None:
            missing[i] = why
            del opened[i]
    kind = subjects[first].kind
    if kind != "language" and (config.dataset or config.text_field):
        raise ConfigError(f"--dataset {config.dataset}: {subjects[first].name} is not on text")
    with StopSignal() as stop, Progress() as progress:
        batches = {"language": _text, "tensors": _rows, "image": _images}[kind](opened, config, progress)
        what = {"language": "tokens", "tensors": "rows", "image": "images"}[kind]
        parts: dict[int, list[sparse.csr_array]] = {i: [] for i in opened}
        tokens = 0
        with progress.bar("Comparing activations", config.tokens, what) as bar:
            for inputs in batches:
                for i, x in inputs.items():
                    parts[i] += _encoded(opened[i].model, x)
                count = len(next(iter(inputs.values())))
                tokens += count
                bar.advance(count)
                stop.check("nothing was written")
    return Common({i: Activations.of(each) for i, each in parts.items()}, tokens, what, missing)


@torch.no_grad()
def _encoded(model: Autoencoder, x: Tensor) -> list[sparse.csr_array]:
    return [entries(model.encode(rows)) for rows in x.to(model.W_enc.device).float().split(CHUNK)]


def _no_data(subject: Subject) -> str:
    if subject.kind == "checkpoint":
        return f"{subject.name} is a checkpoint, whose code is not fitted to its inputs yet"
    return f"{subject.name} has weights alone, no data"


def _differs(first: Subject, mine: Any, other: Subject, theirs: Any) -> str | None:
    """Why two runs have no tokens in common; None where they do."""
    if first.kind != other.kind:
        return f"{other.name} is of kind {other.kind}, {first.name} of kind {first.kind}"
    if first.kind == "language":
        settings = [run.config.harvest for run in (mine, theirs)]
        for name in ("model", "context", "bos", "roles"):
            here, there = (getattr(each, name) for each in settings)
            if here != there:
                return f"{other.name}: {name} is {there!r}, in {first.name} {here!r}"
        return None
    here, there = (run.config.rows if first.kind == "tensors" else run.config.images for run in (mine, theirs))
    if here != there or mine.model.positions != theirs.model.positions:
        return f"{other.name} is on other data than {first.name}"
    return None


def _text(opened: dict[int, Any], config: MatchConfig, progress: Progress) -> Iterator[dict[int, Tensor]]:
    """Inputs of the runs on held-out ordinary tokens."""
    runs = list(opened.values())
    settings = runs[0].settings(config.dataset, config.text_field)
    lm = runs[0].load_language_model(pick_device(config.device))
    harvest = harvest_of(runs, lm, split="heldout", settings=settings)
    if config.dataset is not None:
        progress.say(opening(harvest.documents, lm.tokenizer, settings, beginning=lm.beginning))
    left = config.tokens
    for harvested in harvest.batches():
        rows = harvest.trained_on(harvested.rows)
        count = min(left, len(rows.token))
        if count:
            yield {i: run.inputs_of(rows)[:count] for i, run in opened.items()}
        left -= count
        if left <= 0:
            return


def _rows(opened: dict[int, Any], config: MatchConfig, progress: Progress) -> Iterator[dict[int, Tensor]]:
    del progress
    heldout: TensorPart = next(iter(opened.values())).rows("heldout")
    count = min(config.tokens, heldout.rows)
    for places in (torch.arange(count) * heldout.rows // count).split(CHUNK):
        x = heldout.read(places)
        yield {place: x for place in opened}


def _images(opened: dict[int, Any], config: MatchConfig, progress: Progress) -> Iterator[dict[int, Tensor]]:
    del progress
    images: ImageSet = next(iter(opened.values())).images("heldout", limit=config.tokens)
    for places in torch.arange(images.count).split(CHUNK):
        x = images.render(places)
        yield {place: x for place in opened}
