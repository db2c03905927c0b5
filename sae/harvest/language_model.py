"""Loading the model whose activations are harvested: its skeleton first (to check sites), then its weights.

source = locate_model("demo", trust_remote_code=False)
sites = resolve_sites(skeleton(source), ["resid_post"], layer=9)     # refuses a wrong layer, nothing loaded
lm = load_language_model(source, device=torch.device("cpu"), precision="auto")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from sae.data.demo import demo_model


class ModelError(ValueError):
    """The model cannot be found or loaded; the message says what was given and what would do."""


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

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for every `from_pretrained`."""
        extra = {"gguf_file": self.gguf} if self.gguf else {}
        return {"pretrained_model_name_or_path": self.place, "trust_remote_code": self.trust_remote_code, **extra}


class LanguageModel(NamedTuple):
    """A model ready to harvest from, with what the stream must know about it."""

    model: nn.Module
    tokenizer: Any
    device: torch.device
    special: frozenset[int]
    """Ids of the tokenizer's special tokens, BOS included."""
    provenance: dict[str, Any]
    """Name, revision, architecture and precision, for the run's record."""


def locate_model(name: str, *, trust_remote_code: bool) -> ModelSource:
    """Turn what the user gave into something transformers can load; fetches the demo model if that is it.

    Raises:
        ModelError: a path that does not exist, or a folder without config.json.
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
            held = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise ModelError(f"--model {name}: the folder has no config.json (it holds {held})")
        return ModelSource(name, str(path), None, trust_remote_code)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix == ".gguf":
        raise ModelError(f"--model {name}: no such file or folder")
    return ModelSource(name, name, None, trust_remote_code)


def skeleton(source: ModelSource) -> nn.Module:
    """The model's modules without weights (on the meta device), for resolving sites before anything large is read.

    Raises:
        ModelError: the model is unknown, unreachable, or of an architecture transformers does not have.
    """
    config = _configuration(source)
    with torch.device("meta"):
        return _auto_class(config).from_config(config, trust_remote_code=source.trust_remote_code).eval()


def load_language_model(source: ModelSource, *, device: torch.device, precision: str) -> LanguageModel:
    """Read weights and tokenizer, in float32 on a CPU and bfloat16 on a GPU unless `precision` says otherwise.

    Raises:
        ModelError: weights or tokenizer cannot be read.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = {"auto": torch.bfloat16 if device.type == "cuda" else torch.float32}.get(precision)
    dtype = getattr(torch, precision) if dtype is None else dtype
    config = _configuration(source)
    try:
        model = _auto_class(config).from_pretrained(**source.arguments(), dtype=dtype).eval().requires_grad_(False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"--model {source.name}: its weights cannot be loaded ({_first_line(error)})") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source.arguments())
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"--model {source.name}: its tokenizer cannot be loaded ({_first_line(error)})") from error
    provenance = {
        "name": source.name,
        "architecture": type(model).__name__,
        "revision": getattr(model.config, "_commit_hash", None),
        "precision": str(dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return LanguageModel(
        model=model.to(device),
        tokenizer=tokenizer,
        device=device,
        special=frozenset(tokenizer.all_special_ids),
        provenance=provenance,
    )


def _configuration(source: ModelSource) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(**source.arguments())
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"--model {source.name}: not `demo`, not a local folder or .gguf file, and it cannot be read from the hub "
            f"({_first_line(error)})"
        ) from error


def _auto_class(config: Any) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    # the model with a head, where there is one, so that a replaced activation can be followed to the loss
    for auto in (AutoModelForCausalLM, AutoModelForMaskedLM):
        if type(config) in auto._model_mapping:
            return auto
    return AutoModel


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
