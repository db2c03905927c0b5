"""A run as a repository of the hub, from which `sae.load("user/name")` reads it.

push("runs/demo", "user/name", private=True)

Nothing is uploaded but what `files_for` writes: the record and the weights, the evaluation where there is one, and a
model card that is made from them. The token is the one of `hf auth login`, or HF_TOKEN.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sae.base.disk import copy_from
from sae.base.files import publish_file, publish_json
from sae.base.tables import markdown
from sae.config import ConfigError
from sae.evaluation.control_table import sentences
from sae.evaluation.tables import MEANING, added_tables, beside_controls
from sae.evaluation.words import described
from sae.interop.export import Finished, open_finished
from sae.models.saved import CONFIG, WEIGHTS, read_report, verify
from sae.runs.base import kind_of

EVALUATION, CARD = "eval.json", "README.md"


def push(
    run: str | Path, repository: str, *, private: bool = False, licence: str | None = None, message: str | None = None
) -> dict[str, Any]:
    """Upload a run to the hub; an existing repository gets another commit.

    Args:
        run: run folder.
        repository: "user/name".
        private: whether a new repository is private; an existing one stays as it is.
        licence: identifier as the hub spells it, such as "mit"; by default that of an imported autoencoder, else none.
        message: of the commit.

    Returns:
        JSON values: "repository", "address", "commit", "files".

    Raises:
        ConfigError: the run is none of activations, the name is no repository's, there is no token, or the hub refuses.
        CorruptError: the saved weights fail their checks.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"--repo {repository}: {str(error).splitlines()[0]}") from error
    if repository.count("/") != 1:
        raise ConfigError(f"--repo {repository}: expected user/name")
    finished = open_finished(run)
    verify(finished.folder)
    if get_token() is None:
        raise ConfigError(f"--repo {repository}: no token for the hub; log in with: hf auth login, or set HF_TOKEN")
    api = HfApi(library_name="sparsight")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files_for(finished, repository, folder, licence=licence)
        try:
            # not False: an organisation may make its repositories private by default
            api.create_repo(repository, private=private or None, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=message or f"Add a {finished.variant} autoencoder",
            )
        except Exception as error:  # network libraries share no base class
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"--repo {repository}: the hub did not take it ({reason})") from error
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    address = f"{api.endpoint}/{repository}"
    return {"repository": repository, "address": address, "commit": commit.oid, "files": ", ".join(names)}


def files_for(run: Finished, repository: str, out: Path, *, licence: str | None = None) -> None:
    """Write what is uploaded into the folder `out`: config.json, weights, eval.json where there is one, the card."""
    record = {**run.record}
    if "train" in record:
        # where the run lay on this machine concerns nobody
        record["train"] = {**record["train"], "out": Path(str(record["train"].get("out", "run"))).name}
    publish_json(out / CONFIG, record)
    publish_file(out / WEIGHTS, copy_from(run.folder / WEIGHTS))
    evaluation = None
    if (run.folder / EVALUATION).is_file():
        evaluation = {**read_report(run.folder, EVALUATION), "run": repository}
        publish_json(out / EVALUATION, evaluation)
    publish_file(out / CARD, card(run, repository, evaluation, licence=licence).encode())


def card(run: Finished, repository: str, evaluation: dict[str, Any] | None, *, licence: str | None = None) -> str:
    """The model card: YAML for the hub's search, then what the autoencoder is, how it is loaded, and its numbers."""
    from huggingface_hub import ModelCardData

    tags = ["sparse-autoencoder", "interpretability", "sparsight", run.variant]
    data = ModelCardData(
        library_name="sparsight",
        tags=list(dict.fromkeys(tags)),
        base_model=_hub_id(run.language_model),
        datasets=_hub_id((run.dataset or "").partition(":")[0]),
        license=licence or (run.record.get("imported") or {}).get("licence"),
    )
    model = run.model
    rows = {
        "Variant": run.variant,
        "Language model": run.language_model,
        "Reads": ", ".join(place.name for place in run.inputs) or None,
        "Reconstructs": ", ".join(place.name for place in run.targets) if run.targets != run.inputs else None,
        "Latents": f"{model.width:,}",
        "Width of the activations": str(model.dim),
        "Text": run.dataset,
        "Tokens a context": None if run.context is None else str(run.context),
        "Contexts begin with BOS or the like": None if run.bos is None else ("yes" if run.bos else "no"),
        "Imported from": (run.record.get("imported") or {}).get("source"),
    }
    facts = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value is not None)
    return f"""---
{data.to_yaml()}
---

# {repository.partition("/")[2]}

A sparse autoencoder, saved by Sparsight (the Python package `sae`).

```python
import sae

model = sae.load("{repository}")  # checks its self-test
codes = model.encode(x)  # x [N, {model.dim}] -> SparseCodes over {model.width} latents
x_hat = model.decode(codes{", x" if model.W_skip is not None or model.per_token_norm else ""})
```

| | |
|---|---|
{facts}

## Measured

{_measured(run, evaluation)}
"""


def _measured(run: Finished, evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "It has not been evaluated: `sae eval` had not been run when it was uploaded."
    parts = ["On documents that were held out of training, by `sae eval`; brackets are 95% intervals over documents."]
    beside = beside_controls(evaluation)
    if len(beside) > 1:
        parts += ["### Beside its controls", MEANING, markdown(beside)]
    if said := sentences(evaluation):
        parts.append("As good as this autoencoder or better:\n\n" + "\n".join(f"- {sentence}" for sentence in said))
    for table in added_tables(evaluation):
        parts += [f"### Delta CE: {table.title.lower()}", f"Classes: {table.meaning}.", markdown(table.rows)]
    measures = described(evaluation, kind_of(run.folder))
    rows = [{"measure": m.name, "value": m.value, "meaning": m.meaning} for m in measures]
    return "\n\n".join([*parts, "### Every measure", markdown(rows)])


def _hub_id(name: str | None) -> str | None:
    """A name that may be a repository of the hub: not a path, and not a name of ours such as `demo`."""
    looks = (
        name is not None and name.count("/") == 1 and not name.startswith((".", "~", "/")) and not Path(name).exists()
    )
    return name if looks else None
