"""The table of docs/families.md, from the results of `scripts/families.py`."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

KINDS = ("resid_pre", "resid_post", "mlp_in", "mlp_out", "attn_out", "resid_mid")
HEAD = (
    "| family | mapping | config class | sites | residual | documents | next tokens | result |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)
TEXT = """# Families of models

Every family of transformers {version} that loads as a causal, a masked or an image-text model, tried with a tiny random
model: `sae train`, `sae eval`, `sae features` and `sae steer`, and every site read and replaced. Written by
`make families`. {counts}

- **sites**: the kinds that every layer has; a kind that is not listed is refused, with the reason in the last column.
  A layer that has one may still be used where others do not. Module paths work in every family that works.
- **residual**: how the contributions make up what a block does. *sum*: `resid_post - resid_pre = attn_out + mlp_out`;
  *normalised sum*: a norm follows each sum (BERT); *then scaled*: the block multiplies the whole residual afterwards;
  *third branch*: the block adds something besides attention and MLP; *after a norm*: the first block normalises its
  input; `-`: attention or MLP has no site.
- **documents**: how documents in one context are kept apart: *positions* that begin again, a *mask* (*mask_both*: in
  both directions), or *pad*, one document a context. Each document's activations equal those of the document alone.
- **next tokens**: whether the model predicts them; `sae eval`, `sae steer` and the logit lens agree. Where it does not,
  cross-entropies and steering are left out.
- **result**: *works*, *refused* with the message, or *no tiny config* where the script cannot make a small model.

{table}
"""


def table(results: list[dict[str, Any]], version: str) -> str:
    """The text of docs/families.md."""
    statuses = Counter(result["status"] for result in results)
    counts = ", ".join(f"{status} {count}" for status, count in statuses.most_common())
    rows = "\n".join([*HEAD, *map(line, results)])
    return TEXT.format(version=version, counts=f"{len(results)} rows: {counts}.", table=rows)


def line(result: dict[str, Any]) -> str:
    """One row of the table."""
    predicts = {True: "yes", False: "no", None: "-"}[result.get("predicts")]
    sites = result.get("sites", [])
    listed = "all" if set(sites) == set(KINDS) else ", ".join(sites) or "-"
    cells = [result["family"], result["mapping"], result.get("config", "")]
    cells += [listed, result.get("identity") or "-", result.get("isolation") or "-", predicts, outcome(result)]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def outcome(result: dict[str, Any]) -> str:
    """Works, with why kinds of site are missing; or why not."""
    if result["status"] != "works":
        return f"{result['status']}: {result['reason']}"
    reasons: dict[str, list[str]] = {}
    for kind, reason in result.get("missing", {}).items():
        reasons.setdefault(re.sub(r"\.? (Layer \d+ has|Use module paths).*", "", reason), []).append(kind)
    return "; ".join(["works", *(f"no {', '.join(kinds)}: {reason}" for reason, kinds in reasons.items())])
