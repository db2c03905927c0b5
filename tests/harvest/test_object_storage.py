"""Stores in object storage, on a local S3 server: as on the disk; dropped connections, lost objects, two writers."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from sae.base import remote_objects
from sae.base.files import CorruptError, sha256_of
from sae.base.objects import StorageError
from sae.base.remote_objects import RemoteObjects
from sae.base.storage import open_objects
from sae.cli.main import main
from sae.config import ConfigError
from sae.harvest.store import DiskStore, Worker

ARGUMENTS = ["--tokens", 3000, "--context", 64, "--contexts", 4]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an empty S3 server with the bucket `bucket`."""
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patched.setenv(name, value)
        # all servers of a process share their buckets, those of other tests included
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield f"http://{host}:{port}"
    started.stop()


@pytest.fixture
def bucket(server: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of a test's own, its local copies in a folder of its own."""
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_objects, "FIRST_PAUSE", 0.01)
    return f"s3://bucket/{abs(hash(request.node.name))}"


def remote(place: str, cache: Path) -> RemoteObjects:
    opened = open_objects(place, cache=cache)
    assert isinstance(opened, RemoteObjects)
    return opened


def test_objects_are_written_whole_read_listed_and_made_once(bucket: str, tmp_path: Path) -> None:
    files = remote(bucket, tmp_path / "copies")
    assert files.read("a/one") is None
    assert files.names("a") == {}
    files.write("a/one", b"1")
    files.write("a/one", b"11")
    assert files.create("a/two", b"2")
    assert not files.create("a/two", b"other")
    assert files.read("a/one") == b"11"
    assert files.read("a/two") == b"2"
    assert files.names("a") == {"one": 2, "two": 1}
    assert files.where("a/one") == f"{bucket}/a/one"


def test_local_copies_stay_within_their_room(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    monkeypatch.setenv("SAE_STORE_CACHE_GB", str(2500 / (1 << 30)))
    files = remote(bucket, tmp_path / "copies")
    contents = {f"part{i}": bytes([i]) * 1000 for i in range(4)}
    for name, content in contents.items():
        files.write(name, content)
    paths = [files.local(n, 1000, hashlib.sha256(c).hexdigest()) for n, c in contents.items()]
    assert [path.exists() for path in paths] == [False, False, True, True]
    again = files.local("part0", 1000, hashlib.sha256(contents["part0"]).hexdigest())
    assert again.read_bytes() == contents["part0"]


def test_a_harvest_and_a_run_give_the_bits_that_they_give_on_the_disk(
    bucket: str, tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    for name, store in (("disk", tmp_path / "store"), ("s3", bucket)):
        common = ["--model", tiny_model, "--dataset", corpus, *ARGUMENTS, "--store", store]
        for worker in ("0/2", "1/2"):
            main([str(a) for a in ("harvest", *common, "--layer", "0,1", "--worker", worker)])
        shape = ("--layer", 1, "--width", 64, "--k", 4, "--batch", 256, "--out", tmp_path / name)
        main([str(a) for a in ("train", *common, *shape)])
    disk, s3 = DiskStore(tmp_path / "store"), DiskStore(bucket)
    assert [shard._replace(name="") for shard in disk.shards] == [shard._replace(name="") for shard in s3.shards]
    assert sha256_of(tmp_path / "disk/sae.safetensors") == sha256_of(tmp_path / "s3/sae.safetensors")


@pytest.fixture
def stored(bucket: str, tiny_model: Path, corpus: Path) -> str:
    """A harvest of one worker."""
    common = ["--model", tiny_model, "--dataset", corpus, *ARGUMENTS, "--layer", 1, "--store", bucket]
    main([str(a) for a in ("harvest", *common)])
    return bucket


def test_a_lost_and_an_altered_shard_are_named_by_their_url(stored: str) -> None:
    files, name = fsspec.filesystem("s3"), f"{stored}/shards/0-of-1/000000.safetensors"
    content = bytearray(files.cat_file(name))
    content[len(content) // 2] ^= 1
    files.pipe_file(name, bytes(content))
    with pytest.raises(CorruptError, match=f"{name}: its SHA-256 is not the one that was written"):
        DiskStore(stored).read(range(10), ["resid_post.1"])
    files.pipe_file(name, bytes(content[:-5]))
    with pytest.raises(CorruptError, match=rf"{name}: \d+ bytes, \d+ were written"):
        DiskStore(stored)
    files.rm_file(name)
    with pytest.raises(CorruptError, match=f"{name}: missing"):
        DiskStore(stored)


class Dropping:
    """A file system whose calls fail a few times."""

    def __init__(self, whole: Any, times: int) -> None:
        self.whole, self.left, self.calls = whole, times, 0

    def __getattr__(self, name: str) -> Any:
        act = getattr(self.whole, name)

        def call(*given: Any, **named: Any) -> Any:
            self.calls += 1
            if self.left > 0:
                self.left -= 1
                raise ConnectionResetError("Connection reset by peer")
            return act(*given, **named)

        return call


def test_dropped_connections_are_tried_again_and_then_named(stored: str, tmp_path: Path) -> None:
    store = DiskStore(stored)
    assert isinstance(store.objects, RemoteObjects)
    whole = store.objects._fs
    store.objects._fs = Dropping(whole, 3)
    assert store.read(range(5), ["resid_post.1"]).size == 5
    assert store.objects._fs.left == 0
    other = DiskStore(stored)
    assert isinstance(other.objects, RemoteObjects)
    other.objects._cache = tmp_path / "other"
    other.objects._fs = Dropping(whole, 10**6)
    named = rf"{stored}/shards/0-of-1/000000.safetensors: cannot be read after 5 attempts \(Connection reset by peer\)"
    with pytest.raises(StorageError, match=f"{named}.*run the same command again"):
        other.read(range(5), ["resid_post.1"])


def test_a_harvest_whose_storage_goes_away_keeps_what_it_wrote_and_goes_on_later(
    bucket: str, tiny_model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sae.harvest import store as stores

    monkeypatch.setattr(stores, "SHARD_ROWS", 512)
    given = [str(a) for a in ("harvest", "--model", tiny_model, "--dataset", corpus, *ARGUMENTS, "--layer", 1)]
    append = DiskStore.append

    def appended_then_gone(self: DiskStore, *values: Any) -> None:
        append(self, *values)
        if len(self.shards) == 2:
            assert isinstance(self.objects, RemoteObjects)
            self.objects._fs = Dropping(self.objects._fs, 10**6)

    with monkeypatch.context() as patched:
        patched.setattr(DiskStore, "append", appended_then_gone)
        with pytest.raises(SystemExit) as stopped:
            main([*given, "--store", bucket])
        assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert f"{bucket}/" in error
    assert "what was stored before is whole: run the same command again" in error
    assert DiskStore(bucket).rows == 1024
    # the lease of this process, which could not give it back, is of a process that lives
    files = remote(bucket, Path("none"))
    files.remove("run.lease.json")
    main([*given, "--store", bucket])
    assert DiskStore(bucket).rows == 3000


def test_a_second_writer_is_refused_and_a_dead_one_is_followed_at_once(stored: str) -> None:
    with (
        DiskStore(stored).writing(),
        pytest.raises(ConfigError, match=rf"another process \(pid {os.getpid()} on .*\) is harvesting into {stored}"),
        DiskStore(stored).writing(),
    ):
        pass
    with DiskStore(stored).writing():
        pass
    files = remote(stored, Path("none"))
    dead = {"token": "t", "pid": 2**22 + 1, "host": os.uname().nodename, "renewed": time.time()}
    for owner, enters in (
        (dead, True),
        ({**dead, "host": "elsewhere"}, False),
        ({**dead, "host": "elsewhere", "renewed": time.time() - 2000}, True),
    ):
        files.write("run.lease.json", json.dumps(owner).encode())
        if enters:
            with DiskStore(stored).writing():
                pass
        else:
            with (
                pytest.raises(ConfigError, match=r"if it has died, wait \d{3} s or delete"),
                DiskStore(stored).writing(),
            ):
                pass


def test_a_writer_that_lost_its_lease_stops_before_it_writes(stored: str) -> None:
    store = DiskStore(stored)
    with store.writing():
        files = remote(stored, Path("none"))
        other = {"token": "t", "pid": 1, "host": "elsewhere", "renewed": time.time()}
        files.write("run.lease.json", json.dumps(other).encode())
        with pytest.raises(ConfigError, match="pid 1 on elsewhere took over"):
            store.append(store.read(range(5), ["resid_post.1"]), store.shards[-1].end)
    assert DiskStore(stored).rows == 3000
    assert files.read("run.lease.json") is not None, "another's lease is left alone"


def test_workers_of_one_store_hold_leases_of_their_own(bucket: str, tmp_path: Path) -> None:
    identity = {"sites": {"s.0": 4}, "precision": "float16"}
    first, second = (DiskStore(bucket, identity, worker=Worker(i, 2)) for i in range(2))
    with first.writing(), second.writing():
        files = open_objects(bucket, cache=tmp_path)
        leases = [f"run-{i}-of-2.lease.json" for i in range(2)]
        assert all(files.read(name) is not None for name in leases)


def test_a_protocol_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_objects.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--store s3://b/x: s3:// needs s3fs: pip install 'sparsight\[s3\]'"):
        open_objects("s3://b/x", cache=tmp_path)
    with pytest.raises(ConfigError, match="--store nosuch://b/x: nosuch:// cannot be opened"):
        open_objects("nosuch://b/x", cache=tmp_path)
