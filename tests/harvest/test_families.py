"""Tiny models of families go through train, eval, features and steer, as docs/families.md says."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
import transformers

from sae.data.isolation import IsolationError, choose_isolation
from sae.harvest.hooks import harvest_forward
from sae.harvest.sites import SiteError, find_blocks, resolve_sites
from sae.selftest.world import corpus_texts
from scripts.family_table import line
from scripts.family_walk import MAPPINGS, rows_of, walk
from scripts.tiny_configs import tiny_model

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "families.md"

SAMPLE = [
    ("causal", "bert"),
    ("image-text", "video_llava"),
    ("image-text", "ovis2"),
    ("causal", "gpt2"),
    ("causal", "gemma4_text"),
    ("causal", "rwkv"),
    ("causal", "longcat_flash"),
    ("causal", "deepseek_v4"),
    ("causal", "xlnet"),
    ("causal", "reformer"),
    ("causal", "trocr"),
    ("masked", "bert"),
    ("masked", "gte"),
    ("masked", "mpnet"),
    ("masked", "funnel"),
    ("image-text", "llava"),
    ("image-text", "qwen2_5_vl"),
    ("image-text", "florence2"),
]
"""Families that differ in structure."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in corpus_texts(40)))
    return path


@pytest.fixture(scope="module")
def documented() -> list[str]:
    return [row for row in DOCUMENT.read_text().splitlines() if row.startswith("| ")][2:]


@pytest.mark.parametrize(("mapping", "family"), SAMPLE)
def test_a_family_does_what_the_table_says(
    mapping: str, family: str, texts: Path, tmp_path: Path, documented: list[str]
) -> None:
    row = dataclasses.asdict(walk(mapping, family, tmp_path / "scratch", texts))
    assert row["status"] in ("works", "refused"), row["reason"]
    assert line(row) in documented


def test_the_table_has_a_row_for_every_family(documented: list[str]) -> None:
    pinned = re.search(r"^transformers==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert f"transformers {pinned[1]} " in DOCUMENT.read_text()
    if transformers.__version__ == pinned[1]:
        listed = [tuple(cell.strip() for cell in row.split("|")[1:3]) for row in documented]
        assert listed == [(family, mapping) for mapping, family in rows_of()]


def test_no_family_is_at_fault(documented: list[str]) -> None:
    results = [row.split(" | ")[-1].split(":")[0].split(";")[0].removesuffix(" |") for row in documented]
    assert set(results) <= {"works", "refused", "no tiny config"}
    assert results.count("no tiny config") < len(results) / 30


def test_norms_after_the_sums_are_not_taken_for_norms_of_the_branches() -> None:
    """GTE names its norms like GLM 4 does, and uses them like BERT."""
    model = tiny_model("gte", MAPPINGS["masked"][1])
    sites = resolve_sites(model, ["resid_pre.1", "attn_out.1", "mlp_in.1", "mlp_out.1", "resid_post.1"])
    tokens = torch.arange(80, 92)[None]
    pre, attention, mlp_in, mlp, post = harvest_forward(model, {"input_ids": tokens}, sites).values()
    block = model.get_submodule(find_blocks(model).block(1)[0])
    with torch.no_grad():
        torch.testing.assert_close(block.post_attention_layernorm(pre + attention), mlp_in)
        torch.testing.assert_close(block.post_mlp_layernorm(mlp_in + mlp), post)
    with pytest.raises(SiteError, match="no residual between attention and MLP"):
        resolve_sites(model, "resid_mid.1")


@pytest.mark.parametrize(("family", "layers"), [("bart", 2), ("longcat_flash", 3), ("git", 3), ("phi4_multimodal", 3)])
def test_the_stack_that_reads_text_is_found_whatever_length_the_config_states(family: str, layers: int) -> None:
    with torch.device("meta"):
        model = tiny_model(family, MAPPINGS["causal"][1])
    blocks = find_blocks(model)
    assert blocks.n_layers == layers
    assert not re.search("image|vision|audio", blocks.path)


def test_rows_that_are_not_the_tokens_are_refused() -> None:
    """XLNet's blocks have the tokens before the batch; CPM-Ant puts a prompt in front."""
    model = tiny_model("cpmant", MAPPINGS["causal"][1])
    with pytest.raises(SiteError, match=r"rows for \(2, 12\) tokens: its rows are not the tokens"):
        harvest_forward(model, {"input_ids": torch.arange(80, 104).view(2, 12)}, resolve_sites(model, "resid_post.1"))
    model = tiny_model("xlnet", MAPPINGS["causal"][1])
    with pytest.raises(SiteError, match="tokens before the batch"):
        resolve_sites(model, "resid_post.1")


@pytest.mark.parametrize("family", ["fnet", "xmod"])
def test_a_model_in_which_documents_cannot_be_kept_apart_is_refused(family: str) -> None:
    model = tiny_model(family, MAPPINGS["masked"][1])
    if family == "xmod":  # as a checkpoint without a default language
        model.config.default_language = None
    reason = "cannot read plain tokens: Input language unknown" if family == "xmod" else "padding or another document"
    with pytest.raises(IsolationError, match=reason):
        choose_isolation(model, context=32)
