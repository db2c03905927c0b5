"""The launch parameters of the Triton kernels: by rule from the sizes, or measured once and stored on disk.

The rules need no measurement and are reasonable on any device. `sae_kernels.tune` times a few alternatives of each
encode, and `measure` stores the best in a JSON file that later processes read, in ~/.cache/sae_kernels or
SAE_KERNELS_CACHE.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU: what launch parameters depend on, and the rates of the cost model."""

    name: str
    """Architecture: sm_90, gfx942, ..."""
    shared: int
    """Shared memory one program may use, bytes."""
    cache: int
    """Last-level cache, bytes."""
    bandwidth: float
    """Memory bandwidth, bytes a second."""
    flops: float
    """Dense bf16 tensor-core operations a second (a multiply-add is two)."""
    flops_fp32: float
    """The same in exact fp32, which NVIDIA's tensor cores do not offer."""


DEVICES = {
    "sm_80": Device(name="sm_80", shared=166_912, cache=40 << 20, bandwidth=2.0e12, flops=312e12, flops_fp32=19.5e12),
    "sm_90": Device(name="sm_90", shared=232_448, cache=50 << 20, bandwidth=3.35e12, flops=800e12, flops_fp32=60e12),
    "sm_100": Device(name="sm_100", shared=232_448, cache=126 << 20, bandwidth=8.0e12, flops=2250e12, flops_fp32=75e12),
    "gfx942": Device(name="gfx942", shared=65_536, cache=256 << 20, bandwidth=5.3e12, flops=1307e12, flops_fp32=163e12),
}


@functools.cache
def named_device(device: torch.device) -> Device:
    """The description of a torch device: of its family, with its own shared memory where that is smaller."""
    if device.type != "cuda":
        return DEVICES["sm_90"]
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return replace(DEVICES["gfx942"], name=properties.gcnArchName.split(":")[0])
    major, minor = torch.cuda.get_device_capability(device)
    known = DEVICES["sm_100" if major >= 10 else "sm_90" if major == 9 else "sm_80"]
    # consumer GPUs (sm_86, sm_89, sm_120) have 99 KB of shared memory, less than their family's data-centre GPU
    shared = getattr(properties, "shared_memory_per_block_optin", known.shared)
    return replace(known, name=f"sm_{major}{minor}", shared=min(shared, known.shared))


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Launch parameters of an encode's product, and how many entries of it are kept."""

    block_n: int
    """Tokens a tile."""
    block_f: int
    """Latents a tile; a multiple of `bucket`."""
    block_d: int
    """Width of one step of the product."""
    bucket: int
    """Neighbouring latents that form a bucket, a power of two up to 128."""
    kept: int
    """K', the number of entries kept of a bucket; if it equals `bucket`, all are kept and no certificate is needed."""
    group: int
    """Row tiles computed together in one pass over W_enc."""
    warps: int
    stages: int
    chunk: int = 4096
    """Candidates that one program of the second stage selects from."""
    vendor: bool = False
    """Whether the vendor's library makes the product, in chunks that a second kernel reads."""

    def __post_init__(self) -> None:
        if self.bucket > 128:
            raise ValueError(f"bucket = {self.bucket} is over 128: places and counts are stored in bytes")
        if self.block_f % self.bucket:
            raise ValueError(f"block_f = {self.block_f} is no multiple of bucket = {self.bucket}")
        if not (self.kept == self.bucket or 1 <= self.kept <= self.bucket // 2):
            raise ValueError(f"kept = {self.kept} is outside 1..{self.bucket // 2} and not bucket = {self.bucket}")

    @property
    def shared(self) -> int:
        """Bytes of shared memory for the product's pipeline with 2-byte elements (twice that for fp32)."""
        return 2 * self.stages * self.block_d * (self.block_n + self.block_f)


def fallback_probability(F: int, k: int, bucket: int, kept: int) -> float:
    """Probability that a row fails the certificate if its k largest lie at random places (union bound over buckets).

    A bucket fails if `kept` of the k - 1 entries above the k-th fall into it.
    """
    if kept >= bucket:
        return 0.0
    p, buckets = min(bucket / F, 1.0), math.ceil(F / bucket)
    inside = sum(math.comb(k - 1, j) * p**j * (1 - p) ** (k - 1 - j) for j in range(min(kept, k)))
    return min(1.0, buckets * max(0.0, 1.0 - inside))


MOST_FALLBACK = 0.02
"""The rule does not pick configurations for which a larger share of rows is expected to fail."""


@functools.cache
def choose_bucket(F: int, k: int, d: int) -> tuple[int, int]:
    """(bucket, kept) of least modelled cost a row among those that rarely fail; (128, 128) if there is none.

    The cost, in clocks of one multiprocessor: six instructions a latent and kept entry; four clocks a candidate, to
    write and read it; the repair of failing buckets, which reads W_enc at 30 bytes a clock. A candidate takes nearer
    one clock, but the instructions overlap with another tile's product, and candidates are the op's peak memory.
    """
    best, choice = math.inf, (128, 128)
    for bucket in (128, 64, 32):
        buckets = math.ceil(F / bucket)
        for kept in (2, 4, 8, 16):
            last = F - (buckets - 1) * bucket
            enough = (buckets - 1) * kept + min(kept, last) >= k
            rate = fallback_probability(F, k, bucket, kept)
            if kept > bucket // 2 or not enough or rate > MOST_FALLBACK:
                continue
            cost = F * kept * 6 / 128 + 4 * buckets * kept + rate * bucket * d * 2 / 30
            if cost < best:
                best, choice = cost, (bucket, kept)
    return choice


def encode_config(N: int, F: int, d: int, k: int, dtype: torch.dtype, device: Device) -> EncodeConfig:
    """Launch parameters of topk_encode: those measured on this device if there are any, else by rule."""
    bucket, kept = choose_bucket(F, k, d)
    config = _product_config(N, d, bucket, kept, dtype, device)
    measured = _measured().get(measurement_key("topk_encode", F, d, k, dtype, device))
    return config if measured is None else _grouped(replace(config, **measured), d, dtype, device)


def threshold_config(
    N: int, F: int, d: int, dtype: torch.dtype, device: Device, *, op: str = "threshold_encode", k: int = 0
) -> EncodeConfig:
    """Launch parameters of threshold_encode, or of batch_topk_encode with k: measured on this device, else by rule.

    The rule has buckets of 64 with room for four survivors, or for two at a large F, where survivors are rare and room
    is expensive.
    """
    config = _product_config(N, d, 64, 4 if F < 65_536 else 2, dtype, device)
    # on Blackwell, where sums stay in tensor memory, eight warps spill registers
    config = replace(config, warps=4) if device.name.startswith("sm_10") else config
    measured = _measured().get(measurement_key(op, F, d, k, dtype, device))
    return config if measured is None else _grouped(replace(config, **measured), d, dtype, device)


def keep_all(config: EncodeConfig) -> EncodeConfig:
    """The same launch parameters with every entry kept."""
    return replace(config, kept=config.bucket)


def _product_config(N: int, d: int, bucket: int, kept: int, dtype: torch.dtype, device: Device) -> EncodeConfig:
    """Tiles of 128 x 128 and as many pipeline stages as fit into shared memory, up to three (two in fp32).

    A step along d is half as wide in fp32. It is halved again if rows are not a multiple of 16 bytes, since they are
    then loaded element by element, which takes registers.
    """
    wide = dtype == torch.float32
    ragged = d % (4 if wide else 8) != 0
    config = EncodeConfig(
        block_n=32 if N <= 64 else 64 if wide and ragged else 128,
        block_f=128,
        block_d=(32 if wide else 64) // (2 if ragged else 1),
        bucket=bucket,
        kept=kept,
        group=1,
        warps=8,
        stages=2 if wide else 3,
    )
    while config.shared * (2 if wide else 1) > device.shared and config.stages > 1:
        config = replace(config, stages=config.stages - 1)
    return _grouped(config, d, dtype, device)


def _grouped(config: EncodeConfig, d: int, dtype: torch.dtype, device: Device) -> EncodeConfig:
    """The largest group of row tiles whose x fits into seven tenths of the cache: W_enc is read once a group."""
    rows = device.cache * 7 // 10 // max(1, d * (4 if dtype == torch.float32 else 2))
    return replace(config, group=max(1, rows // config.block_n))


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """Launch parameters of a kernel that gathers rows."""

    rows: int
    """Rows loaded together."""
    block_d: int
    """Columns a program."""
    warps: int


@functools.cache
def decode_config(d: int, dtype: torch.dtype) -> RowsConfig:
    """Of sparse_decode: the widest block of columns of which at most an eighth is beyond d; a lane loads 16 bytes."""
    blocks = [b for b in (1024, 512, 256, 128, 64) if math.ceil(d / b) * b <= 1.125 * d]
    block = blocks[0] if blocks else 64
    lanes = block * (4 if dtype == torch.float32 else 2) // 16
    return RowsConfig(rows=8, block_d=block, warps=max(1, min(8, lanes // 32)))


@functools.cache
def sweep_config(d: int) -> RowsConfig:
    """Of latent_sweep: all columns, since g·w is summed over whole rows, and four to eight a thread (more would spill
    registers); two rows at a time instead of four above 4096 columns."""
    block = max(16, 1 << (d - 1).bit_length())
    return RowsConfig(rows=4 if block <= 4096 else 2, block_d=block, warps=max(1, min(16, block // 128)))


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Launch parameters of the fused step's sweep."""

    rows: int
    """Rows of residuals and of inputs loaded together."""
    block_x: int
    """All columns of the encoder's input."""
    block_d: int
    """All columns of the reconstruction."""
    warps: int


@functools.cache
def step_config(d_in: int, d_out: int) -> StepConfig:
    """Of the fused step: as of latent_sweep, but fewer rows at a time, since Adam's state is in registers too."""
    block_x, block_d = (max(16, 1 << (d - 1).bit_length()) for d in (d_in, d_out))
    widest = max(block_x, block_d)
    return StepConfig(
        rows=4 if widest <= 2048 else 2,
        block_x=block_x,
        block_d=block_d,
        warps=max(1, min(16, widest // 128)),
    )


def chunk_of(width: int) -> int:
    """Latents a program of the fused step's sweep: a power of two, at least four, so that there are some 2,048."""
    return max(4, 1 << max(0, (width // 2048).bit_length() - 1))


def encode_alternatives(N: int, F: int, d: int, k: int, dtype: torch.dtype, device: Device) -> list[EncodeConfig]:
    """Of topk_encode: the rule's choice and variations of it that fit into shared memory, all worth timing."""
    base = encode_config(N, F, d, k, dtype, device)
    buckets = {(base.bucket, base.kept), (32, 2), (64, 4), (128, 8)}
    likely = [
        (bucket, kept)
        for bucket, kept in sorted(buckets)
        if F // bucket * kept >= k and fallback_probability(F, k, bucket, kept) <= MOST_FALLBACK
    ]
    return _variations(base, likely, dtype, device)


def threshold_alternatives(
    N: int, F: int, d: int, dtype: torch.dtype, device: Device, *, op: str = "threshold_encode", k: int = 0
) -> list[EncodeConfig]:
    """The same of threshold_encode and batch_topk_encode."""
    base = threshold_config(N, F, d, dtype, device, op=op, k=k)
    return _variations(base, [(64, 2), (64, 4)], dtype, device)


def _variations(
    base: EncodeConfig, buckets: Sequence[tuple[int, int]], dtype: torch.dtype, device: Device
) -> list[EncodeConfig]:
    """`base` with both encoders, and with other tiles and buckets that fit into shared memory."""
    size = 2 if dtype == torch.float32 else 1
    variations = [replace(base, vendor=False), replace(base, vendor=True)]
    for (block_n, block_f, warps), stages in itertools.product(((128, 128, 8), (128, 256, 8), (64, 128, 4)), (2, 3, 4)):
        for bucket, kept in buckets:
            tile = {"block_n": block_n, "block_f": block_f, "warps": warps, "stages": stages}
            config = replace(base, vendor=False, bucket=bucket, kept=kept, **tile)
            if config.shared * size <= device.shared and config not in variations:
                variations.append(config)
    # the vendor's product has its own tiles
    variations += [
        config
        for bucket, kept in buckets
        if (config := replace(base, vendor=True, bucket=bucket, kept=kept)) not in variations
    ]
    return variations


def measurement_key(op: str, F: int, d: int, k: int, dtype: torch.dtype, device: Device) -> str:
    """Name of a measurement in the file."""
    return f"{op} {device.name} {dtype} F={F} d={d} k={k}"


def measure(key: str, alternatives: Sequence[EncodeConfig], time: Callable[[EncodeConfig], float]) -> EncodeConfig:
    """Time every alternative, store the fastest for later processes, and return it.

    Args:
        key: from `measurement_key`.
        alternatives: at least one.
        time: seconds of one run with a configuration; infinite if it does not fit the device.
    """
    best = min(alternatives, key=time)
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = asdict(best)
    # depends on the device's cache and the number of tokens, so it is computed at every call
    fields.pop("group")
    # if two processes measure at once, each replaces the whole file, and the later one wins
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(_read(path) | {key: fields}, indent=1))
    draft.replace(path)
    _measured.cache_clear()
    return best


def _file() -> Path:
    folder = os.environ.get("SAE_KERNELS_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "sae_kernels") / "tuning.json"


@functools.cache
def _measured() -> dict[str, dict[str, int]]:
    return _read(_file())


def _read(path: Path) -> dict[str, dict[str, int]]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        warnings.warn(f"{path} is no JSON ({error}); launch parameters are picked by rule", stacklevel=2)
        return {}
