"""EleutherAI sparsify (1.3): a folder named after the hookpoint, with `cfg.json` and `sae.safetensors`.

SparseCoder.load_from_disk(out / "layers.6"), or SparseCoder.load_many(out, local=True)

An SAE reads the output of a module of the base model; a transcoder reads its input and writes its output. It selects
with top k alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae.base.files import save_tensors, write_json
from sae.interop.export import Finished
from sae.modules.codes import TopK

FORMAT = "sparsify"
STACKS = ("layers", "layer", "h", "blocks", "encoder", "decoder", "embed_tokens", "wte")
"""First parts of paths that are within the base model already."""


def write(run: Finished, out: Path) -> dict[str, Any]:
    model, code = run.model, run.model.code
    if not isinstance(code, TopK):
        holds = "a threshold" if code.name == "jumprelu" else run.described
        run.refuse(FORMAT, f"{holds}: it selects with top k alone")
    if model.per_token_norm:
        run.refuse(FORMAT, "a per-token norm")
    if model.dim != model.dim_out:
        run.refuse(FORMAT, f"{model.dim} inputs and {model.dim_out} outputs: it has one width")
    place = _hookpoint(run)
    folder = out if place is None else out / place
    folder.mkdir(exist_ok=True)
    tensors = {
        "encoder.weight": model.W_enc,
        "encoder.bias": model.b_enc,
        "W_dec": model.dictionary.W,
        "b_dec": model.dictionary.b,
        **({} if model.W_skip is None else {"W_skip": model.W_skip}),
    }
    save_tensors(folder / "sae.safetensors", {name: t.detach().clone().contiguous() for name, t in tensors.items()})
    settings = {
        "activation": "topk",
        "expansion_factor": max(1, model.width // model.dim),
        "normalize_decoder": model.dictionary.unit,
        "num_latents": model.width,
        "k": code.k,
        "multi_topk": False,
        "skip_connection": model.W_skip is not None,
        "transcode": model.transcodes,
        "d_in": model.dim,
    }
    write_json(folder / "cfg.json", settings)
    if place is not None:
        about = {"model": run.language_model, "dataset": run.dataset, "ctx_len": run.context, "hookpoints": [place]}
        write_json(out / "config.json", {"sae": settings, **about})
    return {"hookpoint": place or "", "load": f'sparsify.SparseCoder.load_from_disk("{Path("OUT") / (place or "")}")'}


def _hookpoint(run: Finished) -> str | None:
    """The module relative to the base model; None for a run without a site.

    Raises:
        ConfigError: sparsify reads no such place.
    """
    if not run.inputs:
        return None
    site, target = run.inputs[0], run.targets[0]
    name = site.module or site.name
    if not run.model.transcodes and site.side == "input":
        run.refuse(FORMAT, f"{site.name}, the input of {name}: an SAE there reads what a module puts out")
    if run.model.transcodes and (site.module, site.side, target.side) != (target.module, "input", "output"):
        run.refuse(FORMAT, f"a transcoder from {site.name} to {target.name}: it maps one module's input to its output")
    first, _, rest = name.partition(".")
    # a name that is no path stays as it is
    return rest if site.module is not None and rest and first not in STACKS else name
