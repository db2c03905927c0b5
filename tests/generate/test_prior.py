"""The prior over codes: what it may read, what it learns, and that its samples go through the run's decoder."""

from __future__ import annotations

import pytest
import torch

from sae.book.generate.base import seeded as started
from sae.book.generate.latent import CodePrior, PriorConfig, code_indices, decode_indices, earlier, train_prior
from sae.config import ConfigError
from sae.models.stems import ConvolutionalStem, MLPStem, TwoLevelStem
from sae.runs.images import ImageRun

SMALL = PriorConfig(hidden=32, embedding=8, steps=150, lr=5e-3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_positions_read_the_one_before_the_one_above_and_the_coarser_one() -> None:
    flat = earlier(ConvolutionalStem((1, 4, 6), [2], rows=3))
    assert flat.shape == (6, 3)
    assert flat[0].tolist() == [6, 6, 6]
    assert flat[4].tolist() == [3, 1, 6]
    levels = earlier(TwoLevelStem((1, 8, 8), [2], rows=3))  # 4 coarse codes, then 16
    assert levels.shape == (20, 3)
    assert levels[:4, 2].tolist() == [20] * 4
    assert levels[4].tolist() == [3, 20, 0]
    assert levels[4 + 4 * 3 + 2].tolist() == [4 + 4 * 3 + 1, 4 + 4 * 2 + 2, 3]
    assert (levels < torch.arange(20)[:, None]).logical_or(levels == 20).all()
    with pytest.raises(ConfigError, match="stem mlp: expected one of codes in a map"):
        earlier(MLPStem(4, [4]))


def test_no_position_knows_itself_or_what_comes_after() -> None:
    prior = started(lambda: CodePrior(5, earlier(TwoLevelStem((1, 8, 8), [2], rows=3)), SMALL), 0)
    codes = torch.randint(5, (3, 20), generator=seeded())
    before = prior(codes)
    for place in (0, 3, 4, 11, 19):
        changed = codes.clone()
        changed[:, place] = (changed[:, place] + 1) % 5
        same = (prior(changed) == before).all(2).all(0)
        assert same[: place + 1].all()
        assert place == 19 or not same[place + 1 :].all()


def test_drawing_step_by_step_has_the_odds_of_the_whole_sequence() -> None:
    """Two binary codes: the share of each pair among many draws is its probability by `forward`."""
    prior = started(lambda: CodePrior(2, earlier(ConvolutionalStem((1, 2, 4), [2], rows=3)), SMALL), 0)
    with torch.no_grad():
        prior.out.weight.mul_(8)  # odds far from even
        pairs = torch.cartesian_prod(torch.arange(2), torch.arange(2))
        wanted = prior(pairs).log_softmax(2).gather(2, pairs[..., None]).sum((1, 2)).exp()
    found = prior.draw(20_000, seeded()) @ torch.tensor([2, 1])
    assert wanted.sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(found.bincount(minlength=4) / 20_000, wanted, atol=0.015, rtol=0)


def test_a_prior_learns_which_codes_go_together_and_repeats_by_seed(vqvae: ImageRun) -> None:
    few = PriorConfig(hidden=8, embedding=4, steps=3)
    draws = [train_prior(vqvae, few, seed=seed).sample(6, seeded()) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    first = train_prior(vqvae, SMALL, seed=0)
    codes = code_indices(vqvae.model, vqvae.images("train").all())
    odds = torch.nn.functional.one_hot(codes, 8).float().mean(0)
    alone = -(odds * odds.clamp_min(1e-9).log()).sum().item()
    with torch.no_grad():
        assert first.prior.nats(codes).mean() < alone
    assert first.sample(6, seeded()).shape == (6, 64)
    assert first.evaluations == 17


def test_two_levels_of_codes_are_sampled_and_decoded(vqvae2: ImageRun) -> None:
    model = train_prior(vqvae2, PriorConfig(hidden=8, embedding=4, steps=2), seed=0)
    found = model.sample(3, seeded())
    assert found.shape == (3, 64)
    assert found.isfinite().all()
    assert model.evaluations == 21


def test_indices_decode_to_the_models_own_reconstructions(vqvae: ImageRun) -> None:
    x = vqvae.images("heldout", limit=20).all()
    torch.testing.assert_close(decode_indices(vqvae.model, code_indices(vqvae.model, x)), vqvae.model(x).reconstruction)


def test_a_run_without_a_codebook_is_refused(vae: ImageRun) -> None:
    with pytest.raises(ConfigError, match="--variant vae has no codebook; expected vqvae or vqvae2"):
        train_prior(vae, SMALL, seed=0)
