"""Who may ask the server for what: other sites, other hosts, strangers and hostile requests get nothing."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from sae.browser.app import STATIC, create_app, page_files
from sae.browser.guard import LARGEST_BODY

TOKEN = "a-token-of-the-test"
ORIGIN = "http://127.0.0.1"
HEADERS = {"Origin": ORIGIN, "Content-Type": "application/json"}
ANNOTATION = "/api/runs/0/latents/3/annotation"


@pytest.fixture(scope="module")
def app_folder(run: Path) -> Path:
    return run


@pytest.fixture
def stranger(app_folder: Path) -> Iterator[TestClient]:
    """A client that knows no token."""
    with TestClient(create_app([app_folder], token=TOKEN, device="cpu"), base_url=ORIGIN) as client:
        yield client


@pytest.fixture
def client(stranger: TestClient) -> TestClient:
    """A client that came in with the token and has the cookie."""
    assert stranger.get("/", params={"token": TOKEN}).status_code == 200
    return stranger


def test_nothing_is_served_without_the_token(stranger: TestClient) -> None:
    for path in ("/", "/?token=wrong", "/?token=", "/static/main.js", "/api/runs", f"/api/runs?token={TOKEN}"):
        answer = stranger.get(path)
        assert answer.status_code == 403, path
        assert "sae browse" in answer.json()["error"]
    stranger.cookies.set("sparsight-00000000", TOKEN)
    assert stranger.get("/api/runs").status_code == 403


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_do_not_see(stranger: TestClient) -> None:
    answer = stranger.get("/", params={"token": TOKEN})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert stranger.get("/api/runs").status_code == 200
    assert "set-cookie" not in stranger.get("/").headers
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    page = answer.text
    assert not re.search(r"<script(?![^>]*\ssrc=)|\son\w+=|<style|\sstyle=", page), "inline code"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "0.0.0.0", "localhost.", "", "[::1]"])
def test_another_host_name_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/api/runs", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "https://127.0.0.1", "http://127.0.0.1:81"])
@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH"])
def test_a_change_must_come_from_the_page_itself(client: TestClient, origin: str | None, method: str) -> None:
    headers = {"Content-Type": "application/json"} | ({"Origin": origin} if origin else {})
    answer = client.request(method, ANNOTATION, json={"label": "mine"}, headers=headers)
    assert answer.status_code == 403
    assert client.get("/api/runs/0/latents/3").json()["annotation"]["label"] is None


def test_a_form_of_another_site_cannot_send_json(client: TestClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.put(ANNOTATION, content='{"label": "mine"}', headers={**HEADERS, "Content-Type": kind})
        assert answer.status_code == 415


def test_reading_changes_nothing(client: TestClient, app_folder: Path) -> None:
    kept = ("annotations.sqlite", "features.sqlite", "features.scalars.npy", "config.json", "sae.safetensors")
    before = {name: (app_folder / name).read_bytes() for name in kept}
    for path in ("", "/logits", "/neighbours", "/coactive", "/matches", "/annotation"):
        client.get(f"/api/runs/0/latents/3{path}")
    for path in ("latents?text=a", "search?text=river", "report", "info", "documents/0", "export/csv"):
        client.get(f"/api/runs/0/{path}")
    assert before == {name: (app_folder / name).read_bytes() for name in kept}


@pytest.mark.parametrize(
    "path",
    [
        "../app.py",
        "..%2fapp.py",
        "%2e%2e/app.py",
        "vendor/../../app.py",
        "//etc/passwd",
        "/etc/passwd",
        "....//app.py",
        "main.js%00.css",
        "vendor",
        "vendor/LICENSE.htm",
        "x" * 5000,
        "%ff%fe",
    ],
)
def test_paths_cannot_leave_the_page(client: TestClient, path: str) -> None:
    answer = client.get(f"/static/{path}")
    assert answer.status_code in (404, 400)
    assert "import" not in answer.text


def test_a_link_in_the_folder_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret.js").write_text("secret")
    link = STATIC / "escape.js"
    link.symlink_to(tmp_path / "secret.js")
    try:
        assert "main.js" in page_files()
        assert "escape.js" not in page_files()
    finally:
        link.unlink()


def test_large_bodies_are_refused(client: TestClient) -> None:
    for content in (b'{"label": "' + b"x" * LARGEST_BODY + b'"}', iter([b"x" * 40_000, b"x" * 40_000])):
        assert client.put(ANNOTATION, content=content, headers=HEADERS).status_code == 413
    lying = {**HEADERS, "Content-Length": "-1"}
    assert client.put(ANNOTATION, content=b"{}", headers=lying).status_code == 413


NASTY = ["-1", "128", "9" * 30, "9" * 5000, "1e3", "nan", "x", "%00", "..", "'", "<b>", "%F0%9F%A6%84", "0x10", " "]
ROUTES = [
    "/api/runs/{}/report",
    "/api/runs/0/latents/{}",
    "/api/runs/0/latents/{}/logits",
    "/api/runs/0/latents/{}/matches",
    "/api/runs/0/documents/{}",
    "/api/runs/0/search?text={}",
    "/api/runs/0/latents?start={}",
    "/api/runs/0/latents?count={}",
    "/api/runs/0/latents?find={}",
    "/api/runs/0/latents?sort={}",
    "/api/runs/0/latents?mark={}",
    "/api/runs/0/latents?text={}",
    "/api/runs/0/latents?filter={}",
    "/api/runs/0/latents?filter=max:{}..",
    "/api/runs/0/latents?filter=density:..{}",
    "/api/runs/0/export/{}",
    "/api/runs/0/export/csv?latents={}",
    "/api/runs/0/export/python?latents={}",
    "/api/{}",
]


@pytest.mark.parametrize("route", ROUTES)
def test_nasty_addresses_get_a_clean_answer(client: TestClient, route: str) -> None:
    for value in NASTY:
        answer = client.get(route.format(value))
        assert answer.status_code < 500, (route, value)
        if answer.status_code >= 400:
            assert answer.json()["error"], (route, value)


BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"[" * 20_000,
    b'{"label": 3}',
    b'{"label": "\\ud800"}',
    b'{"other": "x"}',
    b'{"bookmark": "maybe"}',
    b"\xff\xfe",
    b'{"label": "' + b"y" * 501 + b'"}',
    b'{"text": ""}',
    b'{"text": "\\ud800"}',
    b'{"prompt": "x", "interventions": []}',
    b'{"prompt": "x", "interventions": [{"latent": 1e99}]}',
    b'{"prompt": "x", "interventions": [{"latent": 1, "strength": NaN}]}',
    b'{"prompt": "x", "interventions": [{"latent": 500, "strength": 1}]}',
    b'{"prompt": "x", "interventions": [{"latent": 1}], "tokens": 100000}',
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[:40].decode("latin-1"))
def test_nasty_bodies_get_a_clean_answer(client: TestClient, body: bytes) -> None:
    for method, path in (("PUT", ANNOTATION), ("POST", "/api/runs/0/prompt"), ("POST", "/api/runs/0/steer")):
        answer = client.request(method, path, content=body, headers=HEADERS)
        assert 400 <= answer.status_code < 500, (path, answer.text)
        assert answer.json()["error"]


def test_a_label_of_any_text_comes_back_as_it_was(client: TestClient) -> None:
    label = "a\x00b \u202e <script> 日本 \U0001f984 ' \" \\"
    answer = client.put(ANNOTATION, json={"label": label, "bookmark": True}, headers=HEADERS)
    assert answer.json() == {"label": label, "bookmark": True, "note": None}
    answer = client.put(ANNOTATION, json={"note": "n"}, headers=HEADERS)
    assert answer.json() == {"label": label, "bookmark": True, "note": "n"}
    answer = client.put(ANNOTATION, json={"label": None, "bookmark": False, "note": None}, headers=HEADERS)
    assert answer.json() == {"label": None, "bookmark": False, "note": None}


def test_a_cell_of_the_table_cannot_become_a_formula(client: TestClient) -> None:
    client.put(ANNOTATION, json={"label": '=HYPERLINK("http://x")'}, headers=HEADERS)
    assert ",'=HYPERLINK" in client.get("/api/runs/0/export/csv?latents=3").text.replace('"', "", 1)
    client.put(ANNOTATION, json={"label": None}, headers=HEADERS)


def test_too_many_waiting_prompts_are_refused(app_folder: Path) -> None:
    import asyncio
    import threading

    from sae.browser.worker import WAITING, BusyError, LanguageWorker

    async def ask() -> None:
        worker, busy, release = LanguageWorker("cpu"), threading.Event(), threading.Event()

        def slow(*_: object) -> str:
            busy.set()
            release.wait(30)
            return "done"

        first = asyncio.ensure_future(worker.do(app_folder, slow))
        await asyncio.to_thread(busy.wait, 60)
        waiting = [asyncio.ensure_future(worker.do(app_folder, lambda *_: "done")) for _ in range(WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="wait already"):
            await worker.do(app_folder, slow)
        waiting.pop().cancel()
        release.set()
        assert await asyncio.gather(first, *waiting) == ["done"] * WAITING

    with ThreadPoolExecutor(1) as thread:  # in this one the browser of other tests may have a loop running
        thread.submit(asyncio.run, ask()).result()


def test_the_command_serves_until_it_is_stopped(app_folder: Path) -> None:
    import urllib.request

    command = [sys.executable, "-m", "sae", "browse", str(app_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", address)
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert b"Sparsight" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["/nowhere"], "no run folder"),
        ([], "none given"),
        (["RUN", "--port", "70000"], "--port 70000"),
        (["RUN", "--port", "-1"], "--port -1"),
    ],
)
def test_a_wrong_call_is_refused_at_once(arguments: list[str], told: str, app_folder: Path) -> None:
    from sae.browser.serve import serve
    from sae.config import ConfigError

    runs = [str(app_folder) if a == "RUN" else a for a in arguments if not a.startswith("--") and a != arguments[-1]]
    runs = runs or [a for a in arguments if a == "/nowhere"]
    port = int(arguments[-1]) if "--port" in arguments else 0
    with pytest.raises(ConfigError, match=told):
        serve(runs, port=port)
