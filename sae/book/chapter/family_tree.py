"""The chapter's family tree of autoencoders: every node with the command lines that train it; docs/family-tree.md.

python -m sae.book.chapter.family_tree > docs/family-tree.md
"""

from __future__ import annotations

import re
from typing import NamedTuple

from matplotlib.figure import Figure

from sae.book.chapter.base import Finding, Picture, Setting, experiment

RUNS = "runs/tree"


class Node(NamedTuple):
    """One autoencoder of the tree."""

    year: int
    name: str
    adds: str
    """What it adds to its parents."""
    source: str
    """Paper."""
    commands: tuple[str, ...]
    """Command lines."""
    parents: tuple[str, ...] = ()
    """Names."""

    @property
    def title(self) -> str:
        """Its heading."""
        return f"{self.year}: {self.name}"

    @property
    def anchor(self) -> str:
        """The fragment of a link to the heading."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


def _image(variant: str, out: str, settings: str = "") -> str:
    return " ".join(f"sae image train --data digits --variant {variant} {settings} --out {RUNS}/{out}".split())


def _chapter(experiment: str) -> str:
    return f"sae image chapter --data digits --seeds 1 --only {experiment} --out {RUNS}/chapter"


TREE = (
    Node(
        2006,
        "Deep autoencoder",
        "A bottleneck of few numbers behind several layers; not linear, as PCA is.",
        "Hinton & Salakhutdinov 2006, Science 313",
        (_image("ae", "deep", "--hidden 128 64 --width 16"),),
    ),
    Node(
        2008,
        "Denoising autoencoder",
        "The input is corrupted, the clean image stays the target.",
        "Vincent et al. 2008, ICML",
        (_image("denoising", "denoising", "--corruption masking"),),
        ("Deep autoencoder",),
    ),
    Node(
        2013,
        "Sparse autoencoder",
        "More latents than are ever on together: held to a low rate, or the k largest kept.",
        "Ng 2011, lecture notes; Makhzani & Frey 2013, arXiv:1312.5663",
        (_image("kl_sparse", "sparse-rate", "--width 128"), _image("topk", "sparse-topk", "--width 256 --k 8")),
        ("Deep autoencoder",),
    ),
    Node(
        2014,
        "VAE",
        "The code is a distribution held to a prior, from which new images are drawn.",
        "Kingma & Welling 2014, arXiv:1312.6114",
        (_image("vae", "vae", "--width 16"),),
        ("Deep autoencoder",),
    ),
    Node(
        2017,
        "β-VAE",
        "The divergence from the prior weighs more, so that latents part the causes of an image.",
        "Higgins et al. 2017, ICLR",
        (_image("beta_vae", "beta-vae", "--width 10"),),
        ("VAE",),
    ),
    Node(
        2017,
        "VQ-VAE",
        "The code is one atom of a codebook for every place of a feature map.",
        "van den Oord et al. 2017, arXiv:1711.00937",
        (_image("vqvae", "vqvae", "--width 64 --code-dim 16 --channels 32"),),
        ("VAE",),
    ),
    Node(
        2020,
        "VQ-VAE-2",
        "Two levels of codes, coarse and fine, and a prior over both to draw new ones (the paper is of 2019).",
        "Razavi et al. 2019, arXiv:1906.00446",
        (_image("vqvae2", "vqvae2", "--width 64 --code-dim 16 --channels 32"), _chapter("vqvae2_samples")),
        ("VQ-VAE",),
    ),
    Node(
        2022,
        "Latent diffusion",
        "Diffusion among the latents of a frozen autoencoder: the basis of Stable Diffusion.",
        "Rombach et al. 2022, arXiv:2112.10752",
        (_chapter("generative_families"),),
        ("VAE", "VQ-VAE"),
    ),
    Node(
        2024,
        "Sparse autoencoder for language models",
        "A sparse dictionary of a language model's activations, whose latents can be read.",
        "Bricken et al. 2023; Templeton et al. 2024; Gao et al. 2024, arXiv:2406.04093",
        ("sae train --model demo --dataset demo --layer 9 --variant topk --width 4608 --k 32 --out runs/tree/llm",),
        ("Sparse autoencoder",),
    ),
)


def markdown() -> str:
    """docs/family-tree.md."""
    lines = [
        "# Family tree of autoencoders",
        "",
        "Each of them is a line in one table over the same parts (corruption, stem, encoder, code, dictionary, head,",
        "loss terms), or a model over the latents of one. The command lines train them, on data that are drawn or come",
        "in a Python package; the last one fetches the demo's language model and text.",
        "",
        "```mermaid",
        "graph TD",
    ]
    keys = {node.name: f"n{i}" for i, node in enumerate(TREE)}
    lines += [f'  {keys[node.name]}["{node.title}"]' for node in TREE]
    lines += [f"  {keys[parent]} --> {keys[node.name]}" for node in TREE for parent in node.parents]
    lines += ["```", "", "| year | autoencoder | what it adds |", "|---|---|---|"]
    lines += [f"| {node.year} | [{node.name}](#{node.anchor}) | {node.adds} |" for node in TREE]
    for node in TREE:
        lines += ["", f"## {node.title}", "", f"{node.adds} ({node.source})", "", "```", *node.commands, "```"]
    return "\n".join(lines) + "\n"


@experiment("family_tree", rows=(28,), title="The family tree of autoencoders")
def family_tree(setting: Setting) -> Finding:
    """The tree as a table of command lines; nothing is trained."""
    del setting
    table = [
        {"year": str(node.year), "autoencoder": node.name, "adds": node.adds, "command": command}
        for node in TREE
        for command in node.commands
    ]
    text = (
        "Every autoencoder of the chapter's tree is a setting of one model, and latent diffusion a model over the "
        "latents of one; the command lines train them."
    )
    numbers = {"nodes": len(TREE), "commands": len(table)}
    return Finding(text, numbers, [table], [Picture(draw_tree(), "Ancestors and descendants, by year.")])


def draw_tree() -> Figure:
    """Nodes from left to right in their order, an arrow from every parent."""
    figure = Figure(figsize=(12.0, 4.2))
    axis = figure.subplots()
    # one lane for each branch, so that no arrow crosses a name
    lanes = {node.name: lane for node, lane in zip(TREE, (3, 4, 2, 3, 5, 4, 4, 3, 2), strict=True)}
    place = {node.name: (i, lanes[node.name]) for i, node in enumerate(TREE)}
    for node in TREE:
        for parent in node.parents:
            axis.annotate(
                "",
                place[node.name],
                place[parent],
                arrowprops={"arrowstyle": "->", "shrinkA": 32, "shrinkB": 32, "color": "0.5"},
            )
        words = node.title.replace(": ", "\n").replace(" for ", "\nfor ").replace(" autoencoder", "\nautoencoder")
        axis.annotate(words, place[node.name], ha="center", va="center", fontsize=8)
    axis.set_xlim(-0.6, len(TREE) - 0.4)
    axis.set_ylim(1.5, 5.5)
    axis.set_axis_off()
    return figure


if __name__ == "__main__":
    print(markdown(), end="")
