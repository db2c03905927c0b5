"""Who decides how many threads there are: the user, torch, the CPUs a process may use, its quota; never an op."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import run_sae
from sae.base.threads import Quota, cpu_quota

KERNELS = """
import torch
from sae_kernels import Parameters, fused_forward, fused_update, sparse_decode, topk_encode

def run():
    x, W = torch.randn(600, 64), torch.nn.functional.normalize(torch.randn(700, 64))
    params, m, v = (Parameters(t.clone(), torch.zeros(700), t.clone(), torch.zeros(64)) for t in (W, W * 0, W * 0))
    fused_update(params, m, v, fused_forward(params, x, 4), step=1, lr=1e-3)
    codes = topk_encode(x, W, torch.zeros(700), 4)
    sparse_decode(codes, W, torch.zeros(64))  # enough work for all threads
    import numba
    return numba.get_num_threads()
"""


def python(code: str, env: dict[str, str] | None = None) -> list[str]:
    """Words that a fresh interpreter prints, without a number of threads in its environment unless `env` has one."""
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**clean, **(env or {})}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_an_op_keeps_what_omp_num_threads_says() -> None:
    assert python(KERNELS + "print(run(), torch.get_num_threads())", {"OMP_NUM_THREADS": "1"}) == ["1", "1"]


def test_an_op_keeps_what_torch_was_told_for_the_thread_that_calls() -> None:
    code = """
import threading
torch.set_num_threads(1)
print(run(), torch.get_num_threads())  # told before numba's threads are started
torch.set_num_threads(5)
print(run(), torch.get_num_threads())
def one():
    torch.set_num_threads(1)
    print(run(), torch.get_num_threads())
thread = threading.Thread(target=one)
thread.start()
thread.join()
print(run(), torch.get_num_threads())
"""
    cpus = str(min(5, len(os.sched_getaffinity(0))))
    assert python(KERNELS + code) == ["1", "1", cpus, "5", "1", "1", cpus, "5"]


def test_an_op_keeps_to_the_processors_of_taskset() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + KERNELS
    assert python(code + "print(run(), torch.get_num_threads())") == ["1", "1"]


# --- control groups ---


def group_files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = {
    "proc/self/mounts": "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n",
    "proc/self/cgroup": "0::/app/worker\n",
}
V1 = {
    "proc/self/mounts": (
        "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n"
        "cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    ),
    "proc/self/cgroup": "9:cpuset:/\n2:cpu,cpuacct:/docker/0123\n0::/\n",
}
UNIFIED, LEGACY = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"
GROUP = f"{LEGACY}/docker/0123"


@pytest.mark.parametrize(
    ("files", "cpus", "threads"),
    [
        ({**V2, f"{UNIFIED}/app/worker/cpu.max": "150000 100000\n"}, 1.5, 2),
        ({**V2, f"{UNIFIED}/app/worker/cpu.max": "10000 100000\n"}, 0.1, 1),
        # a parent's quota holds for its children
        ({**V2, f"{UNIFIED}/app/worker/cpu.max": "max 100000\n", f"{UNIFIED}/app/cpu.max": "300000 100000\n"}, 3.0, 3),
        # inside a container the group's own path may not be there, and the mount's root is the container's group
        ({**V2, f"{UNIFIED}/cpu.max": "200000 100000\n"}, 2.0, 2),
        ({**V1, f"{GROUP}/cpu.cfs_quota_us": "50000\n", f"{GROUP}/cpu.cfs_period_us": "25000\n"}, 2.0, 2),
        ({**V1, f"{LEGACY}/cpu.cfs_quota_us": "100000\n", f"{LEGACY}/cpu.cfs_period_us": "100000\n"}, 1.0, 1),
    ],
)  # fmt: skip
def test_a_quota_is_read(files: dict[str, str], cpus: float, threads: int, tmp_path: Path) -> None:
    quota = cpu_quota(group_files(tmp_path, files))
    assert isinstance(quota, Quota)
    assert (quota.cpus, quota.threads) == (pytest.approx(cpus), threads)
    assert quota.path.is_file()


@pytest.mark.parametrize(
    "files",
    [
        {},
        V2,
        {**V2, f"{UNIFIED}/app/worker/cpu.max": "max 100000\n"},
        {**V1, f"{LEGACY}/docker/0123/cpu.cfs_quota_us": "-1\n"},
    ],
)
def test_no_quota_is_none(files: dict[str, str], tmp_path: Path) -> None:
    assert cpu_quota(group_files(tmp_path, files)) is None


def test_every_library_keeps_to_a_quota(tmp_path: Path) -> None:
    root = group_files(tmp_path, {**V2, f"{UNIFIED}/app/worker/cpu.max": "100000 100000\n"})
    code = f"""
import os
os.sched_getaffinity = lambda pid: set(range(64))
from pathlib import Path
import sae.base.threads
sae.base.threads.keep_to_quota(Path({str(root)!r}))
import numpy, sklearn.cluster, threadpoolctl
{KERNELS}
print(run(), torch.get_num_threads(), *(pool["num_threads"] for pool in threadpoolctl.threadpool_info()))
print(sae.base.threads.reason(torch.get_num_threads()))
"""
    words = python(code)
    counts = [word for word in words if word.isdigit()][:-1]
    assert len(counts) >= 4, "numba, torch, OpenBLAS, OpenMP"
    assert set(counts) == {"1"}
    assert " ".join(words).endswith(f"a quota of 1 CPUs ({root / UNIFIED / 'app/worker/cpu.max'})")


def test_what_the_user_set_stays(tmp_path: Path) -> None:
    root = group_files(tmp_path, {**V2, f"{UNIFIED}/app/worker/cpu.max": "100000 100000\n"})
    code = f"""
import os
from pathlib import Path
import sae.base.threads
sae.base.threads.keep_to_quota(Path({str(root)!r}))
print(os.environ["OMP_NUM_THREADS"])
"""
    assert python(code, {"OMP_NUM_THREADS": "3"}) == ["3"]


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A control group of this machine with a quota of half a CPU, where the system lets us make one."""
    legacy = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}
    kinds = {"": {"cpu.max": "50000 100000"}, "cpu": legacy, "cpu,cpuacct": legacy}
    for name, limits in kinds.items():
        group = Path("/sys/fs/cgroup", name, f"sae-test-{os.getpid()}")
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                for file, value in limits.items():
                    (group / file).write_text(value)
                (group / "cgroup.procs").read_text()
                yield group
                return
            finally:
                group.rmdir()
    pytest.skip("no control group can be made here: not root, or the file system is read-only")


def test_a_real_group_s_quota_is_kept(real_group: Path) -> None:
    code = f"""
import os
open({str(real_group / "cgroup.procs")!r}, "w").write(str(os.getpid()))
import sae
{KERNELS}
print(run(), torch.get_num_threads())
"""
    assert python(code) == ["1", "1"]


# --- doctor ---


def test_doctor_says_how_many_and_why() -> None:
    assert '"threads": "1, from OMP_NUM_THREADS=1"' in run_sae("doctor", "--json", env={"OMP_NUM_THREADS": "1"}).stdout


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_several_threads_may_call_kernels_whatever_numba_runs_on(layer: str) -> None:
    # without libgomp numba takes its own work queue, which ends the process when two threads enter it
    code = """
import threading, torch
from sae_kernels import topk_encode
x, W, b = torch.randn(2048, 64), torch.randn(1024, 64), torch.zeros(1024)
expected = topk_encode(x, W, b, 8).values
equal = []
def work():
    for _ in range(10):
        equal.append(topk_encode(x, W, b, 8).values.equal(expected))
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert equal == [True] * 40
"""
    environment = {**os.environ, "NUMBA_THREADING_LAYER": layer, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
