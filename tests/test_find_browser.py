"""A browser is found by starting it, installed where there is none, and missed loudly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
from playwright.sync_api import Playwright

import find_browser
from find_browser import candidates, install, installers, launch, search

ROOT = Path(__file__).parent.parent
T = TypeVar("T")


def script(path: Path, body: str) -> Path:
    """An executable that stands for a browser."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def beside_a_running_loop(use: Callable[[Playwright], T]) -> T:
    """What `use` makes of a playwright in a thread of its own: other tests may keep one running in this one."""

    def started() -> T:
        with find_browser.sync_playwright() as playwright:
            return use(playwright)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(started).result()


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """An environment with an empty PATH, in which playwright has downloaded nothing."""
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "downloads"))
    return {**os.environ, "PATH": ""}


@pytest.fixture(scope="session")
def real() -> Path:
    """The browser of this machine."""
    result = search(os.environ)
    if result.path is None:
        pytest.skip(result.message)
    return result.path


def test_names_on_path_come_before_places_and_a_file_counts_once(tmp_path: Path) -> None:
    edge = script(tmp_path / "bin/microsoft-edge", "exit 0")
    chromium = script(tmp_path / "bin/chromium", "exit 0")
    place = script(tmp_path / "Applications/Google Chrome.app/Contents/MacOS/Google Chrome", "exit 0")
    (tmp_path / "bin/chromium-browser").symlink_to(chromium)
    (tmp_path / "bin/google-chrome").write_text("not executable")
    (tmp_path / "bin/msedge").mkdir()
    environment = {"PATH": str(tmp_path / "bin")}
    assert candidates(environment, [str(place), str(chromium), str(tmp_path / "none")]) == [chromium, edge, place]


def test_places_may_hold_variables_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = script(tmp_path / "Program Files (x86)/Microsoft/Edge/Application/msedge.exe", "exit 0")
    mac = script(tmp_path / "Applications/Chromium.app/Contents/MacOS/Chromium", "exit 0")
    monkeypatch.setenv("PROGRAMFILES(X86)", str(tmp_path / "Program Files (x86)"))
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = candidates({"PATH": ""})
    assert windows in paths
    assert mac in paths


@pytest.mark.parametrize("by_name", [True, False])
def test_the_variable_shuts_out_every_other_browser(tmp_path: Path, by_name: bool) -> None:
    script(tmp_path / "chromium", "exit 0")
    mine = script(tmp_path / "mine", "exit 0")
    environment = {"PATH": str(tmp_path), "SAE_BROWSER": "mine" if by_name else str(mine)}
    assert candidates(environment) == [mine]


def test_what_does_not_start_is_passed_over_with_its_reason(
    tmp_path: Path, real: Path, no_download: dict[str, str]
) -> None:
    snap = script(tmp_path / "bin/google-chrome", 'echo "snap: cannot open /tmp/playwright" >&2; exit 46')
    stub = script(tmp_path / "bin/chromium", "echo 'requires the chromium snap to be installed' >&2; exit 1")
    result = search({**no_download, "PATH": str(tmp_path / "bin")}, [str(real)])
    assert result.path == real
    assert [line.split(":")[0] for line in result.refused] == [str(snap), str(stub)]
    assert "cannot open /tmp/playwright" in result.refused[0]
    assert "requires the chromium snap" in result.refused[1]


def test_a_browser_that_answers_its_version_alone_is_none(
    tmp_path: Path, no_download: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "bin/chromium", 'if [ "$1" = --version ]; then echo "Chromium 156"; else /bin/sleep 60; fi')
    monkeypatch.setattr(find_browser, "START_SECONDS", 1)
    result = search({**no_download, "PATH": str(tmp_path / "bin")}, [])
    assert result.path is None
    assert "1000ms exceeded" in result.refused[0]


def test_playwright_s_own_download_is_found(tmp_path: Path, real: Path, no_download: dict[str, str]) -> None:
    download = beside_a_running_loop(lambda playwright: Path(playwright.chromium.executable_path))
    assert download.is_relative_to(tmp_path / "downloads")
    assert search(no_download, []).path is None
    script(download, f'exec "{real}" "$@"')
    assert search(no_download, []).path == download


def test_installing_goes_on_until_a_browser_starts(
    tmp_path: Path, real: Path, no_download: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "usr/bin/chromium"
    commands = [
        ["/bin/sh", "-c", "echo 'Error: getaddrinfo ENOTFOUND'; exit 1"],
        ["/bin/sh", "-c", "exit 0"],  # an Ubuntu whose package brings no browser
        ["/bin/sh", "-c", f'/bin/mkdir -p "{place.parent}"; /bin/ln -s "{real}" "{place}"'],
        ["/bin/sh", "-c", f'/bin/touch "{tmp_path}/too-far"'],
    ]
    assert install(no_download, commands, [str(place)]).path == place
    assert not (tmp_path / "too-far").exists()
    assert "it failed: Error: getaddrinfo ENOTFOUND" in capsys.readouterr().out


def test_a_machine_without_a_network_or_root_is_not_asked_to_install() -> None:
    nobody = "http://127.0.0.1:9"
    assert installers(root=False, downloads=nobody) == []
    assert all("playwright" not in command for command in installers(root=True, downloads=nobody))


def test_packages_are_for_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "apt-get", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(find_browser, "reachable", lambda address: True)
    download, libraries, package = installers(root=True, downloads="")
    assert installers(root=False, downloads="") == [download]
    assert download[1:] == ["-m", "playwright", "install", "chromium"]
    assert libraries[1:] == ["-m", "playwright", "install-deps", "chromium"]
    assert "apt-get install" in package[-1]


def test_without_a_browser_the_other_tests_run_and_the_end_says_so(tmp_path: Path) -> None:
    broken = script(tmp_path / "browser", "echo 'no such display' >&2; exit 1")
    tests = ["tests/browser/test_looks.py::test_numbers_have_three_significant_digits", "tests/data/test_cache.py"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests],
        env={**os.environ, "SAE_BROWSER": str(broken)}, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout
    end = run.stdout.strip().splitlines()[-12:]
    assert f"  {broken}: no such display" in end
    assert any(line.startswith("Install Chrome, Chromium or Edge") for line in end)
    assert any("playwright install --with-deps chromium" in line for line in end)
    assert any("tests of the page did not run" in line for line in end)
    assert "passed" in end[-1]
    assert "error" not in end[-1]
    assert "failed" not in end[-1]


def test_the_browser_found_shows_a_page(real: Path) -> None:
    def shown(playwright: Playwright) -> str:
        browser = launch(playwright.chromium, real)
        page = browser.new_page()
        page.set_content("<p id=a>seen</p>")
        text = page.inner_text("#a")
        browser.close()
        return text

    assert beside_a_running_loop(shown) == "seen"
