"""Finds the browser that the page's tests drive, and installs one where there is none: `python tests/find_browser.py`.

A browser counts when it starts without a window under playwright, as the tests start it: wrappers that cannot (snap's,
a stub, a download without its libraries) are passed over. The order: `SAE_BROWSER`; Chrome, Chromium and Edge where
they usually are; playwright's own download. Where none starts, playwright's download is installed, else Debian's
package (as root).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import Browser, BrowserType, Error, sync_playwright

VARIABLE = "SAE_BROWSER"
NAMES = (
    *("google-chrome", "google-chrome-stable", "chrome", "chromium", "chromium-browser"),
    *("microsoft-edge", "microsoft-edge-stable", "msedge"),
)
PLACES = (
    *("/usr/bin/google-chrome", "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/microsoft-edge"),
    *("/opt/google/chrome/chrome", "/usr/lib/chromium/chromium", "/opt/microsoft/msedge/msedge", "/snap/bin/chromium"),
    "/var/lib/flatpak/exports/bin/org.chromium.Chromium",
    *(
        f"{root}/Applications/{name}.app/Contents/MacOS/{name}"
        for root in ("", "~")
        for name in ("Google Chrome", "Chromium", "Microsoft Edge")
    ),
    *(
        f"{root}/{name}"
        for root in ("$PROGRAMFILES", "${PROGRAMFILES(X86)}", "$LOCALAPPDATA")
        for name in (
            "Google/Chrome/Application/chrome.exe",
            "Chromium/Application/chrome.exe",
            "Microsoft/Edge/Application/msedge.exe",
        )
    ),
)
DOWNLOADS = "https://cdn.playwright.dev"
START_SECONDS, REACH_SECONDS, INSTALL_SECONDS = 20, 5, 600
NONE_STARTS = "No browser that starts was found"
REMEDY = (
    f"Install Chrome, Chromium or Edge, or name one in {VARIABLE}; or run one of:\n"
    "  .venv/bin/python -m playwright install --with-deps chromium\n"
    "  apt-get install chromium libatomic1      (Debian, as root)"
)


class Search(NamedTuple):
    """What a search for a browser gave."""

    path: Path | None
    """The first browser that starts."""
    refused: tuple[str, ...]
    """A line on each one before it: its path, and why it does not start."""

    @property
    def message(self) -> str:
        """What a reader needs to know: the path, or what was tried and the remedies."""
        if self.path is not None:
            return f"Browser: {self.path}"
        tried = "".join(f"  {line}\n" for line in self.refused)
        return f"{NONE_STARTS}.\n{tried}{REMEDY}"


def candidates(environment: Mapping[str, str], places: Iterable[str] = PLACES) -> list[Path]:
    """Executables on PATH and in the usual places, each file once; `SAE_BROWSER` shuts out all others."""
    if named := environment.get(VARIABLE):
        return [Path(shutil.which(named, path=environment.get("PATH")) or named).expanduser()]
    on_path = (shutil.which(name, path=environment.get("PATH", "")) for name in NAMES)
    usual = (os.path.expandvars(os.path.expanduser(place)) for place in places)
    files: dict[Path, Path] = {}
    for path in (Path(path) for path in (*on_path, *usual) if path):
        if path.is_file() and os.access(path, os.X_OK):
            files.setdefault(path.resolve(), path)
    return list(files.values())


def launch(chromium: BrowserType, path: Path) -> Browser:
    """Start a browser without a window.

    Raises:
        playwright's Error: it does not start.
    """
    return chromium.launch(
        executable_path=path,
        timeout=START_SECONDS * 1000,
        # as root there is no sandbox; nothing may be asked of other machines behind the page's back
        args=["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"],
    )


def search(environment: Mapping[str, str], places: Iterable[str] = PLACES) -> Search:
    """The first browser that starts; playwright's own download is tried last."""
    # in a thread of its own: in the caller's, playwright may be running already
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_search, environment, places).result()


def _search(environment: Mapping[str, str], places: Iterable[str]) -> Search:
    try:
        playwright = sync_playwright().start()
    except Exception as error:  # playwright has no class of its own for a driver that does not start
        return Search(None, (f"playwright's own driver does not start ({error}); does it lack libatomic.so.1?",))
    refused = []
    try:
        paths = candidates(environment, places)
        download = Path(playwright.chromium.executable_path)
        if VARIABLE not in environment and download.is_file():
            paths.append(download)
        for path in paths:
            try:
                launch(playwright.chromium, path).close()
            except Error as error:
                refused.append(f"{path}: {_reason(error)}")
            else:
                return Search(path, tuple(refused))
    finally:
        playwright.stop()
    return Search(None, tuple(refused))


def _reason(error: Error) -> str:
    """What the browser itself said last, else what playwright says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line.split("[err]", 1)[1].strip() for line in lines if "[err]" in line]
    return (said or lines)[-1 if said else 0][:200]


def reachable(address: str) -> bool:
    """Whether a server answers at all, so that a machine without a network does not wait for retries."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def installers(*, root: bool, downloads: str) -> list[list[str]]:
    """Commands that may bring a browser, in the order in which they are tried.

    Args:
        root: whether system packages may be installed.
        downloads: the server that playwright downloads from; left out where it does not answer.
    """
    commands = []
    playwright = [sys.executable, "-m", "playwright"]
    packages = root and shutil.which("apt-get") is not None
    if reachable(downloads):
        commands.append([*playwright, "install", "chromium"])
        if packages:  # the download lacks its libraries on a bare machine
            commands.append([*playwright, "install-deps", "chromium"])
    if packages:
        # playwright's driver needs libatomic, which a bare machine lacks
        install = "apt-get install -y -qq --no-install-recommends chromium libatomic1"
        commands.append(["sh", "-c", f"apt-get update -qq && {install}"])
    return commands


def install(environment: Mapping[str, str], commands: Iterable[list[str]], places: Iterable[str] = PLACES) -> Search:
    """Run `commands` until a browser starts, and say what is done."""
    result = Search(None, ())
    for command in commands:
        print(f"No browser yet; running: {' '.join(command)}", flush=True)
        if failure := _run(command, environment):
            print(f"  it failed: {failure}", flush=True)
        result = search(environment, places)
        if result.path is not None:
            break
    return result


def _run(command: list[str], environment: Mapping[str, str]) -> str:
    """Why a command failed; empty where it did not."""
    quiet = {**environment, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, env=quiet, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=INSTALL_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"stopped after {INSTALL_SECONDS} s"
    except OSError as error:
        return str(error)
    lines = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
    return lines[-1].strip() if done.returncode else ""


def main() -> int:
    """Say which browser there is, installing one where there is none; 1 where none can be had."""
    result = search(os.environ)
    if result.path is None and VARIABLE not in os.environ:
        downloads = os.environ.get("PLAYWRIGHT_DOWNLOAD_HOST", DOWNLOADS)
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        if commands := installers(root=root, downloads=downloads):
            result = install(os.environ, commands)
    print(result.message)
    return 0 if result.path else 1


if __name__ == "__main__":
    sys.exit(main())
