import subprocess
import sys
import threading
import time

import pytest

from sae.data.prefetch import prefetch


def _threads() -> int:
    return sum(thread.name == "sae-prefetch" for thread in threading.enumerate())


def test_items_arrive_in_order():
    assert list(prefetch(iter(range(1000)), depth=3)) == list(range(1000))


def test_exception_arrives_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise KeyError("lost")

    got = []
    with pytest.raises(KeyError, match="lost"):
        got.extend(prefetch(items(), depth=1))
    assert got == [1, 2]
    assert _threads() == 0


def test_thread_runs_only_so_far_ahead():
    made = []

    def items():
        for item in range(100):
            made.append(item)
            yield item

    stream = prefetch(items(), depth=4)
    next(stream)
    time.sleep(0.3)
    # one taken, four waiting, one in the thread's hand
    assert len(made) == 6
    stream.close()


@pytest.mark.parametrize("how", ["close", "drop"])
def test_thread_ends_and_source_is_closed_when_the_consumer_stops(how):
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    source = items()  # held, so that nothing but the thread closes it
    stream = prefetch(source, depth=2)
    next(stream)
    assert _threads() == 1
    if how == "close":
        stream.close()
    else:
        del stream
    assert closed.is_set()
    assert _threads() == 0


def test_a_process_may_end_while_items_are_prepared():
    code = """
import sys, torch
from sae.data.prefetch import prefetch
def items():
    while True:
        yield [torch.from_numpy(torch.randn(1000).numpy()) + 1 for _ in range(50)]
batches = prefetch(items(), 1_000_000)
next(batches)
sys.modules["kept"] = batches  # alive until Python itself ends
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
