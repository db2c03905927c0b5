"""The stages of the GPU kit, each a function that yields rows; see kit.py, which runs them."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]


class Shape(NamedTuple):
    """One size of a training step."""

    model: str
    tokens: int
    d: int
    width: int
    k: int


SHAPES = (
    Shape("GPT-2 small", 8192, 768, 24_576, 32),
    Shape("GPT-2 small", 8192, 768, 131_072, 32),
    Shape("Gemma 2 2B", 4096, 2304, 65_536, 64),
    Shape("Llama 3 8B", 4096, 4096, 131_072, 64),
    Shape("Llama 3 8B, large batch", 16_384, 4096, 131_072, 64),
)
TOY_SHAPES = (Shape("toy", 33, 20, 131, 3),)


class Setting(NamedTuple):
    """Where and how large a stage runs."""

    toy: bool
    seconds: float
    """Its time limit."""

    @property
    def device(self) -> str:
        """The GPU; with `toy` the CPU, where Triton interprets."""
        return "cpu" if self.toy else "cuda"

    @property
    def rounds(self) -> int:
        """Timed rounds of each function."""
        return 1 if self.toy else 9

    def kernels(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, the ops run their Triton kernels on this device."""
        from sae_kernels import use_backend

        return use_backend("gpu") if self.toy else contextlib.nullcontext()


def machine(setting: Setting) -> Iterator[Row]:
    """What the device is, and its own rates: a large copy, and the vendor's matrix product in every precision."""
    import torch
    import triton

    from sae_kernels.bench.timing import copy_function, interleaved

    properties = torch.cuda.get_device_properties(0) if not setting.toy else None
    yield {
        "what": "device",
        "value": properties.name if properties else "the interpreter on a CPU",
        "memory GB": round(properties.total_memory / 2**30, 1) if properties else None,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    copy, copied = copy_function(setting.device, 1 if setting.toy else 2048)
    seconds = interleaved({"copy": copy}, setting.rounds, setting.device)["copy"].median / 1e3
    yield {"what": "copy, GB/s", "value": copied / seconds / 1e9}
    side = 64 if setting.toy else 8192
    for name, dtype, precision in (
        ("bfloat16", torch.bfloat16, "highest"),
        ("tf32", torch.float32, "high"),
        ("float32", torch.float32, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
        product = {"product": partial(torch.mm, a, b, out=torch.empty_like(a))}
        seconds = interleaved(product, setting.rounds, setting.device)["product"].median / 1e3
        yield {"what": f"matrix product in {name}, TFLOP/s", "value": 2 * side**3 / seconds / 1e12}


def steps(setting: Setting) -> Iterator[Row]:
    """A training step as `sae train` takes it, against its two floors, a dense PyTorch step and sparsify's."""
    for shape in TOY_SHAPES if setting.toy else SHAPES:
        x = rows_of(shape, setting)
        row = timed_step(shape, x, setting)
        yield row
        for name, make in (("dense PyTorch", dense_step), ("sparsify", sparsify_step)):
            row |= timed_peer(name, make, shape, x, setting)
            yield row


OPTIONS: dict[str, dict[str, Any]] = {
    "graphs off": {"graphs": "off"},
    "moments int8": {"moments": "int8"},
    "weights bfloat16, moments int8": {"weights": "bfloat16", "moments": "int8"},
    "moments bfloat16": {"moments": "bfloat16"},
}
"""Settings of the step beside the default, float32 state and, on a GPU, a CUDA graph."""


def options(setting: Setting) -> Iterator[Row]:
    """The same step with other formats of its state, and without CUDA graphs."""
    for shape in TOY_SHAPES if setting.toy else SHAPES:
        x = rows_of(shape, setting)
        # one is enough to show that the stage works, and a step takes seconds under the interpreter
        for name, optim in list(OPTIONS.items())[2:3] if setting.toy else OPTIONS.items():
            yield {"option": name, **timed_step(shape, x, setting, **optim)}


def rows_of(shape: Shape, setting: Setting) -> Any:
    """A batch of random activations."""
    import torch

    return torch.randn(shape.tokens, shape.d, generator=torch.Generator().manual_seed(0)).to(setting.device)


def timed_step(shape: Shape, x: Any, setting: Setting, **optim: Any) -> Row:
    """Time and peak memory of the step with some settings, against the floor of its state's size."""
    import torch

    from sae_kernels.bench.timing import copy_function, interleaved

    # trainers refer to themselves
    gc.collect()
    before = None if setting.toy else torch.cuda.memory_allocated() - 4 * x.numel()
    with setting.kernels():
        trainer = topk_trainer(shape, x, setting.device, **optim)
        peak_memory(setting)
        # a graph is captured at the third step
        for _ in range(1 if setting.toy else 4):
            trainer.step(x, x)
        memory = peak_memory(setting)
        copy, copied = copy_function(setting.device, 1 if setting.toy else 1024)
        short = trainer.model.W_enc.detach().to(trainer.compute)
        rows, out = (
            x.to(trainer.compute),
            torch.empty(shape.tokens, shape.width, dtype=trainer.compute, device=x.device),
        )
        functions: dict[str, Callable[[], Any]] = {
            "product": partial(torch.mm, rows, short.T, out=out),
            "copy": copy,
            "step": partial(trainer.step, x, x),
        }
        times = interleaved(functions, setting.rounds, setting.device)
    size = sum(t.numel() * t.element_size() for t in (*trainer.model.parameters(), *trainer.optimizer.tensors.values()))
    product, step = times["product"].median, times["step"].median
    # all of it is read and written
    state = times["copy"].median * 2 * size / copied
    row: Row = {
        **shape._asdict(),
        "route": trainer.route.name,
        "graphs": 0 if trainer.graph is None else trainer.graph.captures,
        "product ms": product,
        "state ms": state,
        "floor ms": product + state,
        "step ms": step,
        "x floor": step / (product + state),
        "tokens/s": shape.tokens / step * 1e3,
    }
    if memory is not None and before is not None:
        needed = size + 4 * x.numel()
        row |= {"peak GB": (memory - before) / 2**30, "x weights, moments, batch": (memory - before) / needed}
    return row


def timed_peer(name: str, make: Callable[..., Any], shape: Shape, x: Any, setting: Setting) -> Row:
    """Milliseconds of another implementation's step; why there are none, where it cannot run."""
    import torch

    from sae_kernels.bench.timing import interleaved

    if name == "sparsify" and importlib.util.find_spec("sparsify") is None:
        return {f"{name} ms": "not installed"}
    try:
        step = make(shape, x)
        return {f"{name} ms": interleaved({name: step}, min(3, setting.rounds), setting.device)[name].median}
    except torch.OutOfMemoryError:
        return {f"{name} ms": "out of memory"}
    finally:
        if not setting.toy:
            torch.cuda.empty_cache()


def topk_trainer(shape: Shape, x: Any, device: str, **optim: Any) -> Any:
    """The trainer of `sae train --variant topk`, initialised; weights are drawn on the device, which takes no time."""
    import torch

    from sae.config import OptimConfig, SAEConfig
    from sae.models.language import recipe_of
    from sae.training.trainer import Trainer

    with torch.device(device):
        recipe = recipe_of(SAEConfig(width=shape.width, k=shape.k), [shape.d])
    trainer = Trainer(
        recipe,
        OptimConfig(**optim),
        steps=1000,
        dead_after=10**9,
        auxk=shape.d // 2,
        device=torch.device(device),
        seed=0,
    )

    def draw() -> None:
        atoms = torch.nn.functional.normalize(torch.randn_like(trainer.model.dictionary.W), dim=1)
        for parameter in (trainer.model.dictionary.W, trainer.model.W_enc):
            parameter.data.copy_(atoms)
        trainer.model.b_enc.data.zero_()

    trainer._draw_weights = draw  # type: ignore[method-assign]
    trainer.initialise([x[:2048]], [x[:2048]])
    # the untrained model is not needed, and would count as memory of the step
    trainer.recipe = recipe._replace(model=trainer.model)
    return trainer


def dense_step(shape: Shape, x: Any) -> Callable[[], Any]:
    """A TopK step as PyTorch does it without sparse kernels: dense codes, autocast to bfloat16, fused Adam."""
    import torch

    W_enc, W_dec = (torch.nn.Parameter(torch.randn(shape.width, shape.d, device=x.device) * 0.01) for _ in range(2))
    b_enc = torch.nn.Parameter(torch.zeros(shape.width, device=x.device))
    b_dec = torch.nn.Parameter(torch.zeros(shape.d, device=x.device))
    adam = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], lr=1e-4, fused=x.is_cuda)

    def step() -> None:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            values, indices = ((x - b_dec) @ W_enc.T + b_enc).topk(shape.k, dim=1)
            codes = torch.zeros(len(x), shape.width, device=x.device, dtype=values.dtype)
            loss = (x - codes.scatter(1, indices, values.relu()) @ W_dec - b_dec).float().square().sum(1).mean()
        loss.backward()
        adam.step()
        adam.zero_grad()

    return step


def sparsify_step(shape: Shape, x: Any) -> Callable[[], Any]:
    """The step of EleutherAI's sparsify, as its trainer takes it, under autocast to bfloat16."""
    import torch
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(shape.d, SparseCoderConfig(num_latents=shape.width, k=shape.k), device=x.device)
    adam = torch.optim.Adam(coder.parameters(), lr=1e-4, fused=x.is_cuda)

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            loss = coder(x).fvu
        loss.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return step


def peak_memory(setting: Setting) -> int | None:
    """Bytes at the peak since the last call; None without a GPU."""
    if setting.toy:
        return None
    import torch

    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def training(setting: Setting) -> Iterator[Row]:
    """A randomly initialised GPT-2 small, end to end: tokens a second of the forward pass, harvest, and training."""
    import torch

    from sae.config import HarvestConfig, OptimConfig, SAEConfig, TrainConfig
    from sae.data.documents import open_documents
    from sae.harvest.language_model import load_language_model, locate_model, measure_width
    from sae.harvest.sites import resolve_sites
    from sae.harvest.stream import Harvest
    from sae.training.run import train

    with tempfile.TemporaryDirectory() as folder:
        layer, context, contexts = (1, 32, 4) if setting.toy else (6, 256, 64)
        model = random_model(Path(folder), toy=setting.toy)
        tokens = 2048 if setting.toy else 4_000_000
        text = random_text(Path(folder), words=tokens // 8 if setting.toy else tokens // 4)
        settings = HarvestConfig(
            model=str(model), dataset=str(text), layer=layer, context=context, contexts=contexts, bos="none"
        )
        device = torch.device(setting.device)
        lm = load_language_model(locate_model(settings.model, trust_remote_code=False), device=device, precision="auto")
        site = measure_width(lm.model, resolve_sites(lm.model, ["resid_post"], layer=layer)[0])
        documents = open_documents(settings.dataset, text_field=None, split="train", heldout=0.1)
        harvest = Harvest(lm, [site], documents, settings)
        ids = torch.randint(100, (contexts, context), device=device)
        with torch.no_grad():
            model: Any = lm.model
            bare = rate(partial(model.get_decoder(), input_ids=ids), ids.numel(), setting)
        yield {"what": "bare forward pass, all layers", "tokens/s": bare}
        batches = harvest.batches()
        next(batches)
        yield {"what": f"harvest, layers to {layer}", "tokens/s": rate(partial(next, batches), ids.numel(), setting)}
        del lm, harvest, batches
        with setting.kernels():
            result = train(
                TrainConfig(
                    harvest=settings,
                    sae=SAEConfig(width=64 if setting.toy else 24_576, k=4 if setting.toy else 32),
                    optim=OptimConfig(batch=128 if setting.toy else 8192),
                    tokens=tokens // 8 if setting.toy else tokens,
                    out=Path(folder) / "run",
                    device=setting.device,  # type: ignore[arg-type]
                )
            )
        memory = peak_memory(setting)
        yield {
            "what": f"harvest and training, {result.route} route",
            "tokens/s": result.samples / sum(result.seconds.values()),
            "FVU": result.last["fvu"],
            "peak GB": None if memory is None else memory / 2**30,
        }


def rate(function: Callable[[], Any], tokens: int, setting: Setting) -> float:
    """Tokens a second of a call that reads `tokens` tokens: the median of some calls after two."""
    import torch

    seconds = []
    for turn in range(-1 if setting.toy else -2, 2 if setting.toy else 20):
        begun = time.perf_counter()
        function()
        if not setting.toy:
            torch.cuda.synchronize()
        if turn >= 0:
            seconds.append(time.perf_counter() - begun)
    return tokens / statistics.median(seconds)


def random_model(folder: Path, *, toy: bool) -> Path:
    """A randomly initialised GPT-2 small, or a tiny one, saved with a tokenizer of made-up words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{number}": number + 2 for number in range(2000)}
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1, **words}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    sizes: dict[str, Any] = {"n_embd": 32, "n_head": 2, "n_layer": 3, "vocab_size": 2002} if toy else {}
    transformers.set_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(folder / "model")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>"
    ).save_pretrained(folder / "model")
    return folder / "model"


def random_text(folder: Path, *, words: int) -> Path:
    """A .jsonl file of documents of 300 made-up words each."""
    draw = random.Random(0)
    vocabulary = [f"w{number}" for number in range(2000)]
    with open(folder / "text.jsonl", "w") as file:
        for _ in range(max(40, words // 300)):
            file.write(json.dumps({"text": " ".join(draw.choices(vocabulary, k=300))}) + "\n")
    return folder / "text.jsonl"


def kernels(setting: Setting) -> Iterator[Row]:
    """Every op at GPT-2 small's size, against the device's own copy and product."""
    from sae_kernels.bench.kernels import measure_kernels

    shape = TOY_SHAPES[0] if setting.toy else SHAPES[0]
    with setting.kernels():
        measured = measure_kernels(shape.tokens, shape.d, shape.width, shape.k, setting.rounds, setting.device)
    yield from measured["rows"]


def encoders(setting: Setting) -> Iterator[Row]:
    """Every encode with its fused product and with the vendor's, by the rule's launch parameters."""
    import torch

    from sae_kernels.bench.timing import interleaved
    from sae_kernels.launch import device_of
    from sae_kernels.tune import ENCODES, alternatives, runner

    for shape in TOY_SHAPES if setting.toy else SHAPES[:4]:
        x, W_enc = (
            torch.randn(rows, shape.d, device=setting.device).to(torch.float32 if setting.toy else torch.bfloat16)
            for rows in (shape.tokens, shape.width)
        )
        b_enc = torch.zeros(shape.width, device=setting.device)
        for op in ENCODES:
            fused, vendor = alternatives(op, *x.shape[:1], *W_enc.shape, shape.k, x.dtype, device_of(x))[:2]
            run = runner(op, x, W_enc, b_enc, shape.k)
            calls: dict[str, Callable[[], Any]] = {"fused": partial(run, fused), "vendor": partial(run, vendor)}
            times = interleaved(calls, setting.rounds, setting.device)
            row = {f"{name} ms": time.median for name, time in times.items()}
            yield {"op": op, **shape._asdict(), **row, "wins": min(times, key=lambda name: times[name].median)}


def tests(setting: Setting) -> Iterator[Row]:
    """The tests of the Triton kernels, on the device."""
    yield tested([], "device" if not setting.toy else "interpreter", "certificate" if setting.toy else "")


def memcheck(setting: Setting) -> Iterator[Row]:
    """The same tests at small shapes under compute-sanitizer, which sees every access outside a buffer."""
    sanitizer = shutil.which("compute-sanitizer")
    if setting.toy or sanitizer is None:
        yield {"what": "memcheck", "passed": None, "failed": None, "note": "no compute-sanitizer on this machine"}
        return
    yield tested([sanitizer, "--tool", "memcheck", "--error-exitcode", "9"], "memcheck", "reference and not random")


def tested(before: list[str], what: str, chosen: str) -> Row:
    """pytest over the kernels' tests in this process's mode, counted by its reports.

    Raises:
        SystemExit: a test failed; the row was written.
    """
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("hypothesis") is None:
        note = "pytest or hypothesis is missing: scripts/gpu/pack.sh puts them into .gpu-packages"
        return {"what": what, "passed": None, "failed": None, "note": note}
    with tempfile.TemporaryFile("w+") as reports:
        # as tests/kernel_process.py runs them: in this process's mode, a JSON line a report
        environment = os.environ | {"SPARSIGHT_TEST_REPORTS": str(reports.fileno())}
        command = [*before, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts="]
        files = ["tests/ops/test_gpu_kernels.py", *([] if chosen else ["tests/training/test_gpu_route.py"])]
        command += [*(str(ROOT / file) for file in files), *(["-k", chosen] if chosen else [])]
        process = subprocess.run(command, env=environment, pass_fds=[reports.fileno()], cwd=ROOT, check=False)
        reports.seek(0)
        outcomes = [json.loads(line) for line in reports]
    passed = sum(report["when"] == "call" and report["outcome"] == "passed" for report in outcomes)
    failed = [report["nodeid"].partition("::")[2] for report in outcomes if report["outcome"] == "failed"]
    note = f"exit status {process.returncode}" if process.returncode else ""
    return {"what": what, "passed": passed, "failed": len(failed), "note": " ".join([note, *failed]).strip()}


STAGES: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "machine": machine,
    "steps": steps,
    "training": training,
    "options": options,
    "encoders": encoders,
    "kernels": kernels,
    "tests": tests,
    "memcheck": memcheck,
}


def main() -> None:
    """Run one stage; its rows are written to OUT/STAGE.json as they come."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--toy", action="store_true")
    given = parser.parse_args()
    path = given.out / f"{given.stage}.json"
    rows: list[Row] = []
    if not given.toy and not gpu_is_there():
        sys.exit("no GPU: torch.cuda.is_available() is false; --toy runs the same stages under Triton's interpreter")
    for row in STAGES[given.stage](Setting(given.toy, given.seconds)):
        if not rows or rows[-1] is not row:
            rows.append(row)
        path.write_text(json.dumps({"rows": rows}, indent=1))
    path.write_text(json.dumps({"rows": rows, "status": "done"}, indent=1))
    if any(row.get("failed") for row in rows):
        sys.exit(f"{given.stage}: tests failed")


def gpu_is_there() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
