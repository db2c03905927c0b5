from pathlib import Path

from sae.data.cache import cache_dir


def test_sae_cache_comes_before_xdg_before_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("SAE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path("/home/someone/.cache/sparsight")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/sparsight")
    monkeypatch.setenv("SAE_CACHE", "~/own")
    assert cache_dir() == Path("/home/someone/own")
