"""Loading the model whose activations are harvested: its skeleton first (to check sites), then its weights.

source = locate_model("demo", trust_remote_code=False)
sites = resolve_sites(skeleton(source), ["resid_post"], layer=9)     # refuses a wrong layer, nothing loaded
lm = load_language_model(source, device=torch.device("cpu"), precision="auto")
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from sae.data.demo import demo_model
from sae.data.packing import named_ids
from sae.harvest.hooks import harvest_forward
from sae.harvest.sites import Site, SiteError
from sae.harvest.traits import ModelTraits, auto_class, find_traits

COUNTED = re.compile("n(?:um)?_(?:.*_)?(layer|expert)s?")
"""Fields of a config that say how many modules are built."""
MOST = {"layer": 2048, "expert": 1 << 16}
"""Far more than in any model that is known."""


class ModelError(ValueError):
    """The model cannot be found or loaded; the message says what was given and what is accepted."""


class ModelSource(NamedTuple):
    """Where a model comes from."""

    name: str
    """What the user gave."""
    place: str
    """Hub id or local folder, as transformers takes it."""
    gguf: str | None
    """Name of the .gguf file inside `place`, or None."""
    trust_remote_code: bool
    """Whether the repository may run its own code."""
    revision: str | None = None
    """Commit on the hub, so that skeleton, tokenizer and weights are of one; None for what lies on this machine."""
    cached: bool = False
    """Whether the hub cannot be reached, so that files are taken from the local cache."""

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for every `from_pretrained`."""
        extra: dict[str, Any] = {"gguf_file": self.gguf} if self.gguf else {}
        extra |= {"revision": self.revision} if self.revision else {}
        extra |= {"local_files_only": True} if self.cached else {}
        return {"pretrained_model_name_or_path": self.place, "trust_remote_code": self.trust_remote_code, **extra}


class LanguageModel(NamedTuple):
    """A model ready to harvest from, with what the stream needs to know about it."""

    model: nn.Module
    tokenizer: Any
    device: torch.device
    traits: ModelTraits
    """What the model is and can do."""
    beginning: tuple[int, ...]
    """Ids that begin every segment; `sae.harvest.beginning` settles them for a run; by default BOS, else CLS."""
    provenance: dict[str, Any]
    """Name, revision, architecture and precision, for the run's record."""


def locate_model(name: str, *, trust_remote_code: bool) -> ModelSource:
    """Turn what the user gave into something transformers can load; fetches the demo model if that is it.

    Raises:
        ModelError: a path that does not exist, a folder without config.json, a hub id that is unknown or out of reach.
    """
    if name == "demo":
        return ModelSource(name, str(demo_model()), None, False)
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return ModelSource(name, str(path.parent), path.name, trust_remote_code)
    if path.is_file():
        raise ModelError(
            f"--model {name}: expected a folder, a .gguf file or a hub id; got a {path.suffix or 'plain'} file"
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            files = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise ModelError(f"--model {name}: the folder has no config.json (it holds {files})")
        return ModelSource(name, str(path), None, trust_remote_code)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix == ".gguf":
        raise ModelError(f"--model {name}: no such file or folder")
    return _locate_on_hub(name, trust_remote_code)


def skeleton(source: ModelSource) -> nn.Module:
    """The model's modules without weights (on the meta device), for resolving sites before anything large is read.

    Raises:
        ModelError: the model is unknown, unreachable, or of an architecture transformers does not have.
    """
    config = _configuration(source)
    _check_depth(source, config)
    # asked first: a class for the decoder alone (Marian's) turns it off
    reads_and_writes = getattr(config, "is_encoder_decoder", False)
    try:
        with torch.device("meta"):
            model = auto_class(config).from_config(config, trust_remote_code=source.trust_remote_code).eval()
    except Exception as error:  # a configuration can be wrong in as many ways as there are families
        raise ModelError(f"--model {source.name}: cannot be built from its config ({_said(error)})") from error
    if reads_and_writes or getattr(model.config, "is_encoder_decoder", False):
        saved_as = next(iter(getattr(config, "architectures", None) or ()), type(model).__name__)
        raise ModelError(
            f"--model {source.name}: {saved_as} reads one text and writes another; expected a decoder "
            "(GPT-2, Llama, ...) or an encoder (BERT, ...)"
        )
    return model


def measure_width(model: nn.Module, site: Site) -> Site:
    """The site with its width, from a forward of the skeleton where module and name do not tell it.

    Raises:
        SiteError: what flows there is not one vector a token, or a forward of text does not reach it.
    """
    if site.width is not None:
        return site
    tokens = torch.zeros(2, 8, dtype=torch.int64, device="meta")
    # without a cache transformers looks for packed segments in the positions, which have no values here
    cache = {"use_cache": True} if "use_cache" in inspect.signature(model.forward).parameters else {}
    try:
        shape = harvest_forward(model, {"input_ids": tokens, **cache}, [site])[site.name].shape
    except SiteError:
        raise
    except Exception as error:  # models with code that looks at values cannot run without weights
        raise SiteError(f"site {site.name}: its width cannot be told without weights ({error})") from error
    if shape[:2] != tokens.shape:
        raise SiteError(f"site {site.name}: expected [B, S, d] for B, S = {tuple(tokens.shape)}, got {tuple(shape)}")
    return dataclasses.replace(site, width=shape[-1])


def load_tokenizer(source: ModelSource) -> Any:
    """The model's tokenizer, of transformers.

    Raises:
        ModelError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(**source.arguments())
    except Exception as error:  # transformers raises many types for damaged files; the user must learn which model
        raise ModelError(f"--model {source.name}: its tokenizer cannot be loaded ({_said(error)})") from error


def load_language_model(source: ModelSource, *, device: torch.device, precision: str) -> LanguageModel:
    """Read weights and tokenizer, in float32 on a CPU and bfloat16 on a GPU unless `precision` says otherwise.

    Raises:
        ModelError: weights or tokenizer cannot be read.
    """
    dtype = {"auto": torch.bfloat16 if device.type == "cuda" else torch.float32}.get(precision)
    dtype = getattr(torch, precision) if dtype is None else dtype
    config = _configuration(source)
    tokenizer = load_tokenizer(source)  # read first, for it is small
    try:
        with _quiet():
            model, loaded = auto_class(config).from_pretrained(
                **source.arguments(), dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as error:
        raise ModelError(f"--model {source.name}: its weights cannot be loaded ({_said(error)})") from error
    has_head = _check_complete(source, model, loaded)
    model = model.eval().requires_grad_(False)
    provenance = {
        "name": source.name,
        "architecture": type(model).__name__,
        "revision": source.revision,
        "precision": str(dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    model = model.to(device)
    try:
        traits = find_traits(model, tokenizer, has_head=has_head)
    except Exception as error:  # forwards raise many types; the user must learn which model
        raise ModelError(f"--model {source.name}: a forward of a few tokens fails ({_said(error)})") from error
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        device=device,
        traits=traits,
        beginning=named_ids(tokenizer),
        provenance=provenance,
    )


def _locate_on_hub(name: str, trust_remote_code: bool) -> ModelSource:
    """Ask the hub once: transformers itself tries for half a minute where there is no network."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    choices = "`demo`, a local folder, a .gguf file or a hub id"
    try:
        revision = HfApi().model_info(name, timeout=10).sha
        return ModelSource(name, name, None, trust_remote_code, revision)
    except HFValidationError as error:
        raise ModelError(f"--model {name}: no such file or folder; expected {choices}") from error
    except GatedRepoError as error:
        raise ModelError(
            f"--model {name}: the hub asks to accept its terms first, then to log in (`hf auth login`)"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"--model {name}: no local file or folder, and the hub has no such model (a private one needs "
            f"`hf auth login`); expected {choices}"
        ) from error
    except Exception as error:  # network libraries share no base class
        if isinstance(cached := try_to_load_from_cache(name, "config.json"), str):
            # the cache keeps files in folders named by their commit
            return ModelSource(name, name, None, trust_remote_code, Path(cached).parent.name, cached=True)
        raise ModelError(
            f"--model {name}: no local file or folder, and the hub cannot be reached ({_said(error)}); without "
            "a network use `demo`, a local folder or a .gguf file"
        ) from error


def _configuration(source: ModelSource) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(**source.arguments())
    except Exception as error:  # transformers raises many types for a damaged file; the user must learn which model
        raise ModelError(f"--model {source.name}: its config cannot be read ({_said(error)})") from error


def _check_depth(source: ModelSource, config: Any) -> None:
    """Refuse a config with more layers, or experts in a layer, than can be: a damaged one may name billions.

    Raises:
        ModelError: names the field.
    """
    for name, value in config.get_text_config().to_dict().items():
        if match := COUNTED.fullmatch(name):
            most = MOST[match[1]]
            if isinstance(value, int) and value > most:
                raise ModelError(f"--model {source.name}: its config has {name} {value}, expected at most {most:,}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report of missing tensors; `_check_complete` reports those that matter."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _check_complete(source: ModelSource, model: Any, loaded: dict[str, Any]) -> bool:
    """Whether the weights hold an output head; refuses weights that lack other parts or have other shapes.

    Transformers initialises missing weights at random. A head may be missing (a bare model): its weights are set to
    NaN, so that no result computed with them looks valid.
    """
    for name, shape, expected in sorted(loaded["mismatched_keys"]):
        raise ModelError(
            f"--model {source.name}: {name} is {list(shape)} in its weights and {list(expected)} by its config"
        )
    base = f"{getattr(model, 'base_model_prefix', '')}."
    around = any(name.startswith(base) for name, _ in model.named_parameters())
    lost = sorted(name for name in loaded["missing_keys"] if name.startswith(base) or not around)
    if lost:
        raise ModelError(
            f"--model {source.name}: its weights lack {len(lost)} tensors of {type(model).__name__}, such as {lost[0]}"
        )
    for name, parameter in model.named_parameters():
        if name in loaded["missing_keys"]:
            parameter.data.fill_(torch.nan)
    try:
        return model.get_output_embeddings() is not None and not loaded["missing_keys"]
    except NotImplementedError:  # as transformers has it for models without one
        return False


def _said(error: BaseException) -> str:
    """An error's message, on one line and at most 300 characters long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
