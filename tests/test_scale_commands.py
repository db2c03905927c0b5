"""The commands of docs/scale.md in their order, at small size: harvest, sweep; then two ranks train, eval, collect."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

import forked
from sae.base.files import read_json
from sae.features.store.store import FeatureStore

PAGE = (Path(__file__).parents[1] / "docs/scale.md").read_text()
SMALL = {
    "harvest": "--context 64 --contexts 4",
    "sweep": "--width 64 --batch 256 --context 64 --contexts 4 --evaluate-tokens 512 --downstream-tokens 256",
    "train": "--width 64 --k 4 --batch 256 --context 64 --contexts 4 --checkpoint-every 1024 --log-every 4",
    "eval": "--tokens 1024 --downstream-tokens 256 --pca-tokens 512 --resamples 20",
    "features": "",
}
"""What makes a command of the page small."""


def command(name: str, line: str, model: Path, corpus: Path, folder: Path) -> list[str]:
    """A command of the page in other folders, with other numbers."""
    line = line.replace("--model demo --dataset demo", f"--model {model} --dataset {corpus}")
    line = line.replace("--layer 6,9", "--layer 1,2").replace("--layer 9", "--layer 2").replace("16,32", "4,8")
    line = re.sub(r"--tokens \d+", "--tokens 8192", line).replace(" stores/", f" {folder}/stores/")
    line = line.replace(" runs/", f" {folder}/runs/")
    words = f"{line} {SMALL[name]}".split()
    python = [sys.executable, "-m"]
    # standalone: a free port, whatever else runs on the machine
    launcher = [*python, "torch.distributed.run", "--standalone"]
    return [*launcher, *words[1:]] if words[0] == "torchrun" else [*python, *words]


def test_the_page_s_commands_run_and_a_stopped_job_goes_on(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    """Of more than 10 s: nine processes in a row; those of torchrun for training import torch and transformers."""
    block = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)[0]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for line in block.splitlines():
        name = re.sub(r".*\bsae (\w+).*", r"\1", line)
        if name == "browse":
            continue
        words = command(name, line, tiny_model, corpus, tmp_path)
        if name == "train":
            assert stopped(words, tmp_path / "runs/two", environment) == 2, "both ranks say so"
            words += ["--resume"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=environment)
        else:
            done = forked.run(words, env=environment)
        assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
    run = tmp_path / "runs/two"
    assert (run / "sae.safetensors").exists()
    assert read_json(run / "eval.json")["downstream"]["tokens"] > 0
    assert FeatureStore(run).info["finished"]


def test_two_ranks_train_from_a_bucket(
    tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more than 10 s: three processes in a row, each of which imports torch and transformers."""
    lines = [line for line in PAGE.splitlines() if "s3://bucket/demo" in line and "-m sae train" in line]
    lines = [line for line in PAGE.splitlines() if line.startswith("sae harvest") and "s3://" in line] + lines
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        bucket = {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}", "SAE_CACHE": str(tmp_path / "cache")}
        for name, value in bucket.items():
            monkeypatch.setenv(name, value)
        # all servers of a process share their buckets, those of other tests included
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        assert len(lines) == 2
        for line in lines:
            name = re.sub(r".*\bsae (\w+).*", r"\1", line)
            words = command(name, line, tiny_model, corpus, tmp_path)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=environment)
            assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
    finally:
        server.stop()
    assert (tmp_path / "runs/three/sae.safetensors").exists()


def stopped(words: list[str], run: Path, environment: dict[str, str]) -> int:
    """Send SIGINT to the launcher at the first checkpoint; how many ranks say how to continue."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment) as job:
        deadline = time.monotonic() + 200
        while not any((run / "checkpoints").glob("[0-9]*")):
            assert job.poll() is None, job.communicate()[1][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        job.send_signal(signal.SIGINT)
        said = job.communicate(timeout=100)[1]
    assert not (run / "sae.safetensors").exists()
    return len(re.findall(r"^stopped by SIGINT; continue with: .*--resume", said, re.MULTILINE))
