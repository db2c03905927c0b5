"""Launch parameters: the rule, what it predicts of the certificate, and the measurements kept on disk."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from sae_kernels import tuning
from sae_kernels.launch import recording
from sae_kernels.tune import ENCODES, alternatives, tune
from sae_kernels.tuning import (
    DEVICES,
    choose_bucket,
    encode_config,
    fallback_probability,
    measure,
    measurement_key,
    threshold_config,
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_KERNELS_CACHE", str(tmp_path))
    tuning._measured.cache_clear()
    yield tmp_path / "tuning.json"
    tuning._measured.cache_clear()


def simulated_failures(F: int, k: int, bucket: int, kept: int, rows: int = 4000) -> float:
    """Share of rows with `kept` of the k - 1 largest in one bucket, their places drawn at random."""
    torch.manual_seed(0)
    fails = 0
    for _ in range(rows):
        places = torch.randperm(F)[: k - 1] // bucket
        fails += int(torch.bincount(places).max() >= kept)
    return fails / rows


@pytest.mark.parametrize(("F", "k", "bucket", "kept"), [(4096, 32, 128, 4), (2048, 16, 64, 2), (16_384, 32, 128, 4)])
def test_fallback_probability_bounds_what_random_places_give(F, k, bucket, kept):
    share, bound = simulated_failures(F, k, bucket, kept), fallback_probability(F, k, bucket, kept)
    assert share <= bound + 0.01
    assert bound < 0.05 or share > 0.3 * bound


def test_fallback_probability_of_the_large_example():
    assert fallback_probability(131_072, 64, 128, 4) < 7e-4


@pytest.mark.parametrize(
    ("F", "k"), [(F, k) for F in (32, 100, 1000, 4608, 16_384, 131_072) for k in (1, 8, 32, 64, 256) if k <= F]
)
def test_rule_keeps_enough_and_rarely_fails(F, k):
    bucket, kept = choose_bucket(F, k, 768)
    full, rest = divmod(F, bucket)
    assert full * min(kept, bucket) + min(kept, rest) >= k
    assert fallback_probability(F, k, bucket, kept) <= tuning.MOST_FALLBACK


def measure_once(timer) -> None:
    x, W, b = (torch.empty(s, dtype=torch.bfloat16, device="meta") for s in ((8192, 768), (16_384, 768), (16_384,)))
    with recording(DEVICES["sm_90"]):
        tune("topk_encode", x, W, b, 32, timer)


def test_a_measurement_is_kept_and_used(cache):
    def ask():
        return encode_config(8192, 16_384, 768, 32, torch.bfloat16, DEVICES["sm_90"])

    by_rule = ask()
    timed = []
    # the third alternative is the fastest
    measure_once(lambda run: (run(), timed.append(0), abs(len(timed) - 3))[-1])
    assert len(timed) > 3
    measured = ask()
    assert measured != by_rule
    assert len(json.loads(cache.read_text())) == 1
    # other sizes keep the rule's choice
    assert encode_config(8192, 16_384, 576, 32, torch.bfloat16, DEVICES["sm_90"]).stages == by_rule.stages
    # and a later process finds it
    tuning._measured.cache_clear()
    assert ask() == measured


def test_a_broken_file_is_reported_and_passed_over(cache):
    cache.write_text("{")
    with pytest.warns(UserWarning, match="is no JSON"):
        encode_config(8192, 16_384, 768, 32, torch.bfloat16, DEVICES["sm_90"])


@pytest.mark.parametrize("op", ENCODES)
def test_both_encoders_of_every_encode_are_tried(op):
    tried = alternatives(op, 8192, 16_384, 768, 32, torch.bfloat16, DEVICES["sm_90"])
    assert [config.vendor for config in tried[:2]] == [False, True]
    assert len(tried) == len(set(tried))
    assert all(config.shared <= DEVICES["sm_90"].shared for config in tried)
    with pytest.raises(ValueError, match="op = 'decode': expected one of topk_encode"):
        alternatives("decode", 8, 8, 8, 8, torch.bfloat16, DEVICES["sm_90"])


def test_thresholds_and_batches_keep_measurements_of_their_own(cache):
    device, sizes = DEVICES["sm_90"], (8192, 16_384, 768)
    by_rule = threshold_config(*sizes, torch.bfloat16, device)
    fast = replace(by_rule, vendor=True)
    measure(measurement_key("batch_topk_encode", 16_384, 768, 32, torch.bfloat16, device), [fast], lambda _: 1.0)
    assert threshold_config(*sizes, torch.bfloat16, device) == by_rule
    assert threshold_config(*sizes, torch.bfloat16, device, op="batch_topk_encode", k=32) == fast
    assert threshold_config(*sizes, torch.bfloat16, device, op="batch_topk_encode", k=16) == by_rule
