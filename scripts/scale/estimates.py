"""Bytes, GPU hours and cost of an autoencoder on a 2B and on a 70B model, with the arithmetic.

python -m scripts.scale.estimates
"""

from __future__ import annotations

from sae.harvest.precision import stored_bytes
from sae.harvest.rows import PLACE_BYTES
from scripts.scale.model import flops, state_bytes
from scripts.scale.settings import CASES, OF_BARE_PASS, SHARE_OF_DENSE, SHARE_OF_MEMORY, Case, memory_of


def estimate(case: Case) -> dict[str, tuple[str, str]]:
    """Quantity -> its arithmetic, with the letters of the case's fields, and its value."""
    gpu, tokens = case.gpu, case.tokens
    rate, memory = SHARE_OF_DENSE * gpu.dense, SHARE_OF_MEMORY * gpu.memory
    harvest = 2 * case.parameters * tokens
    harvest_hours = harvest / (rate * OF_BARE_PASS) / 3600
    products = flops(tokens, case.latents, case.d, case.k)
    steps = tokens / case.rows
    state = state_bytes(case.latents, case.d) * steps
    train_hours = (products / rate + state / memory) / 3600
    whole = harvest_hours + train_hours
    return {
        "tokens T": ("", f"{tokens:.0e}"),
        "store, one site, float16": ("(2 d + 21) T", _terabytes("float16", case)),
        "store, one site, int8": ("(d + 4 + outliers + 21) T", _terabytes("int8", case)),
        "FLOPs of the harvest": ("2 P T", f"{harvest:.1e}"),
        "GPU hours of the harvest": (
            f"2 P T / ({SHARE_OF_DENSE} x peak x {OF_BARE_PASS}) / 3600",
            f"{harvest_hours:.1f}",
        ),
        "FLOPs of training": ("(2 F d + 8 k d) T", f"{products:.1e}"),
        "bytes of weights, gradients, moments": ("80 F d T / N", f"{state:.1e}"),
        "GPU hours of training": (
            f"(FLOPs / ({SHARE_OF_DENSE} x peak) + bytes / ({SHARE_OF_MEMORY} x bandwidth)) / 3600",
            f"{train_hours:.1f}",
        ),
        "memory of one GPU, without a mesh": ("2 x loaded + 32 F d + rows", f"{memory_of(case, 1, 1) / 1e9:,.0f} GB"),
        "cost of harvest and one autoencoder": (
            "GPU hours x price",
            f"{whole:.1f} h x ${gpu.dollars:.2f} = ${whole * gpu.dollars:,.0f}",
        ),
        "cost of 8 autoencoders from one store": (
            "(harvest + 8 x training) x price",
            f"${(harvest_hours + 8 * train_hours) * gpu.dollars:,.0f}",
        ),
        "cost of 8 that each harvest": ("8 x (harvest + training) x price", f"${8 * whole * gpu.dollars:,.0f}"),
    }


def _terabytes(precision: str, case: Case) -> str:
    row = stored_bytes(precision, case.d) + PLACE_BYTES
    return f"{row:,} B x T = {row * case.tokens / 1e12:.1f} TB"


def settings(case: Case) -> str:
    """The letters of a case."""
    gpu = case.gpu
    return (
        f"{case.name}: P = {case.parameters:.2g}, loaded {case.loaded:.2g}, d = {case.d:,}, F = {case.latents:,}, "
        f"k = {case.k}, N = {case.rows:,}; {gpu.name}, peak {gpu.dense / 1e12:.0f} TFLOP/s, "
        f"{gpu.memory / 1e12:.2f} TB/s, {gpu.capacity / 1e9:.0f} GB, ${gpu.dollars:.2f} an hour"
    )


def table() -> str:
    """The estimates of all cases side by side."""
    columns = [estimate(case) for case in CASES]
    lines = [["", "arithmetic", *(case.name for case in CASES)], ["---"] * (2 + len(CASES))]
    lines += [[name, columns[0][name][0], *(column[name][1] for column in columns)] for name in columns[0]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    print("".join(f"- {settings(case)}\n" for case in CASES))
    print(table())
