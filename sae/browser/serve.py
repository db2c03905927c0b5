"""`sae browse`: the page behind uvicorn on 127.0.0.1, until Ctrl-C.

serve(["runs/demo"], port=0, ready=print)
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from sae.browser.app import create_app
from sae.config import ConfigError, Device
from sae.models.saved import CONFIG
from sae.runs.base import called, kind_of

HOST = "127.0.0.1"


def serve(
    runs: Sequence[str], *, port: int = 0, device: Device = "auto", ready: Callable[[str], Any] | None = None
) -> dict[str, Any]:
    """Serve the page for these run folders until a signal stops it.

    Args:
        runs: run folders.
        port: 0 takes a free one.
        device: of the language model, which a prompt needs.
        ready: called with the page's address, token included, once the port is open.

    Raises:
        ConfigError: no folder is given or one holds no run, or the port is taken.
    """
    if not runs:
        raise ConfigError("RUN: none given; name at least one run folder")
    folders = [check_run(run) for run in runs]
    listener = listen(port)
    token = secrets.token_urlsafe(24)
    address = f"http://{HOST}:{listener.getsockname()[1]}/?token={token}"
    app = create_app(folders, token=token, device=device)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, ws="none", lifespan="off", limit_concurrency=64
    )
    if ready is not None:
        ready(address)
    # Ctrl-C is the way to stop a server
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
    return {"runs": [str(folder) for folder in folders], "stopped": True}


def listen(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1; 0 takes a free port.

    Raises:
        ConfigError: the port is taken or no port.
    """
    # without the protocol's number asyncio delays small answers, each by the 40 ms of an acknowledgement
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(f"--port {port}: cannot be used ({error}); another number, or 0 for a free one") from error
    return listener


def check_run(run: str) -> Path:
    """The run's folder.

    Raises:
        ConfigError: it is no folder, has no config.json, or is of a kind that the page cannot show.
    """
    folder = Path(run).expanduser()
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{run}: no run folder (it has no {CONFIG}); give a folder that `sae train --out` wrote")
    if kind_of(folder) == "tensors":
        raise ConfigError(f"{run}: {called('tensors')}; the page needs a run on text or images")
    return folder.resolve()
