"""The chapter's convolutional variational autoencoder: its stages, reconstructions, samples, and an interpolation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sae.book.chapter.base import Finding, Picture, Setting, experiment, trained
from sae.book.chapter.latent_space import prior_draws
from sae.book.chapter.measure import fvu, reconstructed
from sae.book.chapter.networks import heldout, untrained
from sae.book.pictures.grids import draw_rows
from sae.book.pictures.latents import draw_interpolation
from sae.config import VisionConfig
from sae.models.autoencoder import Autoencoder
from sae.models.heads import ConvolutionalHead
from sae.models.stems import ConvolutionalStem
from sae.runs.images import ImageRun, decode_dense, dense_codes

CHAPTER_SHAPE = (3, 64, 64)
LATENTS = 16
SHOWN = 10


def convolutional_vae(*, upsampling: bool) -> VisionConfig:
    """Convolutions of kernel 4, stride 2 and padding 1 to 32, 64 and 128 channels, a code, and as many back.

    Args:
        upsampling: doubling and a convolution in place of the chapter's transposed convolutions.
    """
    return VisionConfig(variant="vae", width=LATENTS, stem="convolutional", head="convolutional", upsampling=upsampling)


@torch.no_grad()
def stages(model: Autoencoder, shape: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Every stage's name and the shape of its output, for one image.

    Raises:
        ValueError: stem or head is not convolutional.
    """
    stem, head = model.stem, model.head
    if not isinstance(stem, ConvolutionalStem) or not isinstance(head, ConvolutionalHead):
        raise ValueError("model: expected a convolutional stem and head")
    x = torch.zeros(1, model.dim)
    down, outputs = stem.stages(x), model.select(model.embed(x)).values
    decoded = model.dictionary.decode(model.encode(x))
    rows = [("image", list(shape))]
    rows += [(_kind(layer), list(output.shape[1:])) for layer, output in zip(stem.layers, down, strict=True)]
    rows += [("flatten", [stem.dim]), ("linear: μ and log σ²", [outputs.shape[1] // 2, outputs.shape[1] // 2])]
    rows += [("linear, reshaped", list(decoded.view(-1, *head.map).shape[1:]))]
    up = head.stages(decoded)
    return rows + [(_kind(layer), list(output.shape[1:])) for layer, output in zip(head.layers, up, strict=True)]


def _kind(layer: torch.nn.Module) -> str:
    assert isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
    return f"{type(layer).__name__}, kernel {kernel}, stride {stride}, padding {padding}"


def room_run(setting: Setting, *, upsampling: bool, epochs: int, size: int, limit: int, seed: int = 0) -> ImageRun:
    """A convolutional VAE of rooms with an object, size x size pixels."""
    name = f"convolutional-{'upsampled' if upsampling else 'transposed'}-{epochs}"
    vision, data = convolutional_vae(upsampling=upsampling), f"shapes3d?size={size}"
    return trained(setting, name, vision, data=data, epochs=epochs, limit=limit, seed=seed)


@experiment("convolutional_vae", rows=(17,), title="A convolutional variational autoencoder", seeds="0")
def convolutional(setting: Setting) -> Finding:
    """The chapter's stages on 64 x 64 colour images, and reconstructions and samples of a trained one."""
    rows = stages(untrained(convolutional_vae(upsampling=False), CHAPTER_SHAPE, 0), CHAPTER_SHAPE)
    table = [{"stage": name, "shape": " x ".join(map(str, shape))} for name, shape in rows]
    epochs, size, limit = setting.pick((10, 64, 2000), (1, 16, 256))
    run = room_run(setting, upsampling=True, epochs=epochs, size=size, limit=limit)
    x = heldout(run, setting.pick(500, 50))
    rebuilt = reconstructed(run, x)
    error = fvu(x, rebuilt)
    samples = decode_dense(run.model, prior_draws(SHOWN, run.model.width, 0))
    images = {"held-out": x[:SHOWN], "reconstructed": rebuilt[:SHOWN], "sampled": samples}
    codes = dense_codes(run.model, x[:2])
    pictures = [
        Picture(draw_rows(images, run.shape), "Held-out images, their reconstructions, and samples of the prior."),
        Picture(draw_interpolation(run.model, run.shape, x[:2], codes), "From one held-out image to another."),
    ]
    text = (
        f"Three convolutions reduce 64 x 64 to 8 x 8 while channels grow from 3 to 128, and three transposed ones lead "
        f"back (see the table). Trained with upsampling in place of the transposed convolutions, on "
        f"{run.record['data']['count']:,} images of {run.shape[1]} x {run.shape[2]} for {run.config.epochs} epochs, "
        f"{LATENTS} latents leave {error:.1%} of the variance of held-out images unexplained."
    )
    return Finding(text, {"stages": table, "fvu": error, "images": run.record["data"]["count"]}, [table], pictures)
