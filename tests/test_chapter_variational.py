"""The chapter's second half: exact checks of its formulas, and every experiment in its quick form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import sae.book.chapter.all  # noqa: F401  makes the experiments known
from sae.book.chapter.base import EXPERIMENTS, Finding, Setting
from sae.book.chapter.convolutional import CHAPTER_SHAPE, blur_said, convolutional_vae, power_beyond, stages, times
from sae.book.chapter.latent_space import (
    AE_REBUILT,
    GAUSSIAN,
    REAL,
    VAE_PRIOR,
    VAE_REBUILT,
    different_pairs,
    gaps_said,
    interpolation_said,
    mixture_draws,
)
from sae.book.chapter.latent_space_arithmetic import BY_AE, BY_PIXELS, BY_VAE, RANDOM, Flips, arithmetic_said
from sae.book.chapter.measure import untrained
from sae.book.chapter.quantised import use_said
from sae.book.chapter.variational import check_gradient, check_kl, gradient_estimates, rises_said
from sae.config import VisionConfig
from sae.evaluation.bootstrap import Interval
from sae.evaluation.variational import bounds
from sae.models.autoencoder import Autoencoder

SHAPE = (1, 4, 4)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(out=tmp_path_factory.mktemp("chapter"), data="digits", seeds=(0, 1), quick=True)


def found(setting: Setting, name: str) -> Finding:
    """The experiment's finding, whose pictures can be drawn."""
    finding = EXPERIMENTS[name].run(setting)
    for i, picture in enumerate(finding.pictures):
        path = Path(setting.out) / f"{name}-{i}.png"
        picture.figure.savefig(path, dpi=40)
        assert picture.caption
    assert finding.text
    return finding


def small_vae(**settings: object) -> tuple[Autoencoder, VisionConfig, torch.Tensor]:
    """An untrained one whose posteriors are not the prior, and images."""
    config = VisionConfig(variant="vae", width=3, k=3, hidden=(8,), **settings)  # type: ignore[arg-type]
    model = untrained(config, SHAPE, 0)
    with torch.no_grad():
        model.W_enc.mul_(8)
    return model, config, torch.rand(6, 16, generator=torch.Generator().manual_seed(0))


def importance(model: Autoencoder, config: VisionConfig, x: torch.Tensor, draws: int) -> torch.Tensor:
    """The importance-weighted bound [N]."""
    bound = bounds(model, config, x, samples=draws, generator=torch.Generator().manual_seed(draws)).importance
    assert bound is not None
    return bound


def test_closed_form_divergence_is_what_monte_carlo_gives() -> None:
    model, _, x = small_vae()
    check = check_kl(model, x, draws=4000, generator=torch.Generator().manual_seed(1))
    assert check.closed.min() > 0.1
    assert check.scores.abs().max() < 4
    # and the errors are small enough to tell
    assert (check.error < 0.05 * check.closed).all()


def test_gradient_goes_through_the_draw() -> None:
    model, _, x = small_vae()
    config = VisionConfig(variant="vae", likelihood="bernoulli", output="sigmoid")
    check = check_gradient(model, config, x, seed=0)
    assert check.error < 0.02
    assert check.automatic[:, 3:].norm() > 0, "the log-variances get none"


def test_score_function_has_the_same_mean_and_a_larger_variance() -> None:
    model, _, x = small_vae()
    config = VisionConfig(variant="vae", likelihood="bernoulli", output="sigmoid")
    estimates = gradient_estimates(model, config, x[0], samples=20_000, generator=torch.Generator().manual_seed(0))
    path = estimates["pathwise"]
    for name in ("score function", "score, baseline"):
        other = estimates[name]
        error = ((path.var(0) + other.var(0)) / len(path)).sqrt()
        assert ((path.mean(0) - other.mean(0)).abs() < 4.5 * error).all(), name
        assert other.var(0).sum() > 3 * path.var(0).sum(), name
    assert estimates["score, baseline"].var(0).sum() < estimates["score function"].var(0).sum()


@pytest.mark.parametrize("samples", [1, 5, 64])
def test_bound_takes_exactly_so_many_draws_in_chunks_as_well(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, x = small_vae()
    config = VisionConfig(variant="vae", likelihood="bernoulli", output="sigmoid")
    decoded: list[int] = []
    assert model.head is not None
    model.head.register_forward_pre_hook(lambda _, rows: decoded.append(len(rows[0])))
    for numbers in (x.numel(), 7 * x.numel(), 20_000_000):
        monkeypatch.setattr("sae.evaluation.variational.CHUNK_NUMBERS", numbers)
        decoded.clear()
        assert importance(model, config, x, samples).shape == (len(x),)
        assert sum(decoded) == (samples + 1) * len(x), "one more draw is the ELBO's"


def test_bound_reaches_a_likelihood_that_is_known() -> None:
    """A linear decoder under a Gaussian: x ~ N(b, W Wᵀ + σ² I)."""
    config = VisionConfig(
        variant="vae", width=2, k=2, stem="none", head="mlp", hidden=(), output="linear", likelihood="gaussian"
    )
    model = untrained(config, SHAPE, 0)
    with torch.no_grad():
        model.W_enc[2:].zero_()
    W, b = model.dictionary.W.detach(), model.dictionary.b.detach()
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(2))
    covariance = W.T @ W + 0.5 * torch.eye(16)
    exact = torch.distributions.MultivariateNormal(b, covariance).log_prob(x).double()
    gaps = [(exact - importance(model, config, x, k)).mean().item() for k in (1, 64, 4096)]
    assert gaps[0] > gaps[1] > gaps[2] > -0.02
    assert gaps[2] < 0.1


def test_stages_are_the_chapters() -> None:
    rows = stages(untrained(convolutional_vae(upsampling=False), CHAPTER_SHAPE, 0), CHAPTER_SHAPE)
    shapes = [shape for _, shape in rows]
    assert shapes == [
        [3, 64, 64], [32, 32, 32], [64, 16, 16], [128, 8, 8], [8192], [16, 16],
        [128, 8, 8], [64, 16, 16], [32, 32, 32], [3, 64, 64],
    ]  # fmt: skip
    kinds = [name for name, _ in rows]
    assert kinds[1:4] == ["Conv2d, kernel 4, stride 2, padding 1"] * 3
    assert kinds[-3:] == ["ConvTranspose2d, kernel 4, stride 2, padding 1"] * 3
    with pytest.raises(ValueError, match="convolutional"):
        stages(small_vae()[0], SHAPE)


def test_mixture_follows_its_codes_and_pairs_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[-9.0, 0.0], [9.0, 0.0]])
    codes = centres[torch.arange(400) % 2] + torch.randn(400, 2, generator=generator)
    drawn = mixture_draws(codes, 300, 2, 0)
    assert (drawn[:, 0].abs() > 4).all(), "a draw fell into the gap"
    labels = torch.arange(10) // 5
    assert all(labels[i] != labels[j] for i, j in different_pairs(labels, 20))
    with pytest.raises(ValueError, match="two classes"):
        different_pairs(torch.zeros(4, dtype=torch.int64), 1)


def test_reparameterisation(setting: Setting) -> None:
    numbers = found(setting, "reparameterisation").numbers
    assert numbers["kl_closed"] == pytest.approx(numbers["kl_monte_carlo"], rel=0.03)
    assert numbers["kl_inside_95"] > 0.8
    assert numbers["gradient_relative_error"] < 0.05
    assert numbers["variance_ratio"]["score function"] > numbers["variance_ratio"]["score, baseline"] > 3


def test_squared_error_is_a_gaussian(setting: Setting) -> None:
    numbers = found(setting, "squared_error_and_kl").numbers
    assert numbers["constant"] == pytest.approx(32 * math.log(math.pi))
    assert numbers["largest_loss_difference"] < 1e-3
    assert numbers["largest_weight_difference"] < 1e-4


def test_bound_does_not_fall(setting: Setting) -> None:
    finding = found(setting, "importance_weighted")
    assert finding.numbers["falls"] == 0
    assert finding.numbers["certain"] > 0
    assert [row["seed"] for row in finding.tables[0]] == [0, 1, "mean over seeds"]


def test_gaps(setting: Setting) -> None:
    distance = found(setting, "gaps").numbers["frechet"]
    assert distance[VAE_PRIOR] < distance["AE, N(0, 1)"]
    assert distance["AE, mixture"] < distance[GAUSSIAN] < distance["AE, N(0, 1)"]
    assert distance[AE_REBUILT] < distance[GAUSSIAN]
    assert distance[REAL] < min(distance[name] for name in (GAUSSIAN, VAE_PRIOR))


def test_gaps_are_what_drawing_adds_beyond_other_images() -> None:
    def said(gaussian: list[float], prior: list[float]) -> str:
        ones = [1.0] * len(prior)
        return gaps_said({GAUSSIAN: gaussian, VAE_PRIOR: prior, AE_REBUILT: ones, VAE_REBUILT: ones, REAL: ones})

    assert "drawing adds 4.0 for the autoencoder, which has gaps, and 0.5 for the VAE, which has none" in said(
        [5], [1.5]
    )
    assert "more than the distance of training images, 1.0); the autoencoder's is more." in said([5], [1.5])
    assert said([5], [1.5]).endswith("holds here.")
    both = said([3], [5])
    assert "nearer than those of the VAE's prior" in both
    assert "the VAE's is more." in both
    assert both.endswith("does not hold here.")
    assert "the difference is not significant" in said([3, 5], [5, 3])
    assert "which has none that are significant" in said([0, 9], [9, 9])


def test_interpolation_is_told_as_it_came_out() -> None:
    def row(path: str, ends: float, middle: float, confidence: float) -> dict[str, Any]:
        distances = {"nearest image, ends": ends, "nearest image, middle": middle}
        return {"path": path, **distances, "confidence, ends": 1.0, "confidence, middle": confidence}

    near, far = row("line", 0.1, 0.12, 0.9), row("blend", 0.15, 0.2, 0.6)
    assert ", nearer than the blend" in interpolation_said(near, near, far)
    said = interpolation_said(far, far, near)
    for word in ("no nearer than the blend", "leads the codes no less far from", "the line loses no less"):
        assert word in said


def test_interpolation(setting: Setting) -> None:
    finding = found(setting, "interpolation")
    line, _, blend = finding.tables[0]
    assert line["nearest image, ends"] < line["nearest image, middle"]
    assert blend["confidence, middle"] < blend["confidence, ends"]
    assert len(finding.pictures) == 5


def test_arithmetic_is_told_beside_its_control() -> None:
    def said(own: tuple[float, float], random: tuple[float, float]) -> str:
        flips = {BY_VAE: own, BY_AE: own, BY_PIXELS: (0.5, 0.15), RANDOM: random}
        tensors = {name: (torch.full((2, 2), rate), near) for name, (rate, near) in flips.items()}
        return arithmetic_said({name: Flips(*found) for name, found in tensors.items()})

    good = said((0.8, 0.1), (0.01, 0.2))
    assert "more often than by the control" in good
    assert "farther than the arithmetic's" in good
    bad = said((0.1, 0.2), (0.2, 0.1))
    assert "no more often than by the control" in bad
    assert "no farther than the arithmetic's" in bad
    assert "succeed no more often than the same sum of pixels" in bad
    assert "0.150 from the nearest training image, no farther from it" in bad


def test_arithmetic(setting: Setting) -> None:
    rates = found(setting, "latent_arithmetic").numbers["flip_rates"]
    assert rates["VAE's codes"] > 0.5
    assert rates["VAE's codes, random direction"] < 0.2


def test_rises_are_counted_by_their_intervals() -> None:
    rises = [Interval(1.0, 0.5, 1.5), Interval(0.1, -0.1, 0.3), Interval(-1.0, -2.0, -0.5)]
    assert "rose in 1 of 3 steps and fell in 1" in rises_said(rises)
    assert "the lowest interval is -1.00 nats [-2.00, -0.50]" in rises_said(rises)


def test_codebook_is_told_by_all_four_ways() -> None:
    names = ("moving averages, resets", "moving averages", "gradient, resets", "gradient")
    for values, concluded in (
        ((90, 50, 88, 40), ": resets, then moving averages in place of the gradient."),
        ((90, 88, 50, 40), ": moving averages in place of the gradient, then resets."),
        ((90, 50, 95, 60), ": resets."),
        ((40, 50, 60, 70), ": neither, significantly."),
    ):
        assert use_said({name: [value] for name, value in zip(names, values, strict=True)}, 128).endswith(concluded)
    unsure = use_said({name: [0.0, 9.0] if name == names[0] else [5.0, 5.0] for name in names}, 128)
    assert unsure.endswith("neither, significantly.")


def test_power_beyond_the_cutoff_counts_corners_and_words_follow_it() -> None:
    i = torch.arange(8)
    corner = (1 - 2 * ((i[:, None] + i) % 2)).float()  # half a cycle both ways: outside of all rings
    slow = torch.cos(2 * torch.pi * i / 8).expand(8, 8)
    assert power_beyond((corner + slow).view(1, 64), (1, 8, 8)) == pytest.approx(64)
    assert power_beyond(slow.reshape(1, 64), (1, 8, 8)) == pytest.approx(0, abs=1e-9)
    kept = {"data": 1.0, "AE, reconstructions": 0.9, "VAE, reconstructions": 0.5, "VAE, samples": 0.6}
    assert ", less than by the autoencoder" in blur_said(kept)
    sharp = blur_said({**kept, "VAE, reconstructions": 1.2})
    assert ", no less than by the autoencoder" in sharp
    assert "Smoother than the data: AE, reconstructions; VAE, samples." in sharp
    assert times(540.0) == "540 times less"
    assert times(0.5) == "2.0 times more"


def test_blur(setting: Setting) -> None:
    kept = found(setting, "blur").numbers["kept"]
    assert kept["VAE, reconstructions"] < kept["AE, reconstructions"] < 1


def test_checkerboards(setting: Setting) -> None:
    numbers = found(setting, "checkerboards").numbers
    assert numbers["untrained_ratio"] > 20
    assert numbers["trained_ratio"] > 20
    assert numbers["lattice"][0]["ratio"] > 20


def test_convolutional_vae(setting: Setting) -> None:
    finding = found(setting, "convolutional_vae")
    assert finding.numbers["images"] == 256
    assert finding.tables[0][0] == {"stage": "image", "shape": "3 x 64 x 64"}


def test_codebook(setting: Setting) -> None:
    numbers = found(setting, "codebook").numbers
    assert all(1 < value <= numbers["atoms"] for value in numbers["perplexity"].values())


def test_beta_sweep(setting: Setting) -> None:
    numbers = found(setting, "beta_sweep").numbers
    assert {"capacity, 4 nats", "β-TCVAE, β = 10", "true factors", "shuffled labels"} < set(numbers)
    assert numbers["true factors"]["DCI-D"] > 0.7 > 0.3 > numbers["shuffled labels"]["DCI-D"]
    assert numbers["β-VAE, β = 4"]["KL (nats)"] < numbers["β-VAE, β = 1"]["KL (nats)"]


def test_traversals(setting: Setting) -> None:
    finding = found(setting, "traversals")
    kl = finding.numbers["kl"]
    assert kl == sorted(kl, reverse=True)
    assert len(finding.tables[0]) == len(kl)
