"""What nobody should send: it is refused in one sentence, before anything is sampled, and the server goes on."""

import base64
import importlib
import json
import re
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

import loong_jax.serving
from loong_jax.config import ConfigError, ServeJob
from loong_jax.serving.server import _listen, _read_token
from loong_jax.video import write_image

PAGE = Path(loong_jax.serving.__file__).parent / "page"
GOOD = {"prompt": "a red 7", "seconds": 1}
REFUSED = [
    ({"prompt": ""}, "prompt must be some text"),
    ({"prompt": " \n\t"}, "prompt must be some text"),
    ({"prompt": "a" * 501}, "501 characters"),
    ({"prompt": "seven " * 60}, "the model reads 8"),
    ({"prompt": 7}, "prompt: Input should be a valid string"),
    ({"prompt": None}, "prompt:"),
    ({"seconds": 61}, "at most 60"),
    ({"seconds": 0}, "seconds:"),
    ({"seconds": -1}, "seconds:"),
    ({"seconds": 1e300}, "at most 60"),
    ({"seconds": float("nan")}, "seconds:"),
    ({"seconds": float("inf")}, "seconds:"),
    ({"seconds": "a day"}, "seconds:"),
    ({"seed": -1}, "seed:"),
    ({"seed": 2**31}, "seed:"),
    ({"seed": 1.5}, "seed:"),
    ({"seed": [0]}, "seed:"),
    ({"temperature": 0}, "temperature:"),
    ({"temperature": 1e-300}, "temperature:"),
    ({"temperature": float("inf")}, "temperature:"),
    ({"top_k": -5}, "top_k:"),
    ({"top_k": 2**64}, "top_k:"),
    ({"guidance_scale": 0.5}, "guidance_scale:"),
    ({"guidance_scale": 1e30}, "guidance_scale:"),
    ({"negative_prompt": "a blue 3"}, "needs a guidance_scale above 1"),
    ({"changes": [{"second": 5, "prompt": "a 3"}]}, "the video ends at 1"),
    ({"changes": [{"second": 0.5, "prompt": ""}]}, "must be some text"),
    ({"changes": [{"second": 0.5, "prompt": "a 3"}, {"second": 0.2, "prompt": "a 4"}]}, "begin with 0 and grow"),
    ({"changes": [{"second": 0.5}]}, "changes.0.prompt:"),
    ({"changes": 40 * [{"second": 0.5, "prompt": "a 3"}]}, "at most 16"),
    ({"changes": "all"}, "changes:"),
    ({"text_change": "fade"}, "text_change:"),
    ({"image": "../../../etc/passwd"}, "not base64"),
    ({"image": base64.b64encode(b"/etc/passwd").decode()}, "image cannot be read"),
    ({"image": base64.b64encode(b"#EXTM3U\nfile:///etc/passwd\n").decode()}, "image cannot be read"),
    ({"image": ""}, "image cannot be read"),
    ({"continuation": "anchor"}, "continuation: Extra inputs"),
    ({"__proto__": {"admin": True}}, "Extra inputs"),
]
RAW = [b"", b"{", b"null", b"[]", b'"a"', b"\xff\xfe\x00", b"[" * 100_000, b'{"prompt": "\\ud800"}', b"0" * 10_000]
RAW += [b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}", b'{"prompt": "a"' + b',"a":1' * 10_000 + b"}"]
# No harm is in them: texts like any other.
TEXTS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "../../etc/passwd",
    "'; DROP TABLE",
    "$(rm -rf /)",
    "{{7*7}} %s %n",
    "\u202e7 der",
    "a\x007",
    "🐉🐉",
    "𝕬 7",
]
PATHS = [
    "/api/videos/../../etc/passwd",
    "/api/videos/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/api/videos/%00",
    "/..%2f..%2fsetup.py",
    "/page/../api.py",
    "/api/videos/" + "a" * 5000,
    "/docs",
    "/page.py",
]


def a_sentence(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/json"
    sentence = answer.json()["error"]
    assert list(answer.json()) == ["error"] and len(sentence) < 400 and "\n" not in sentence
    assert "Traceback" not in sentence and "/work" not in sentence
    return sentence


def test_what_is_not_possible_is_refused_before_anything_is_sampled(serve, gate):
    client = serve()
    for change, said in REFUSED:
        headers = {"Content-Type": "application/json"}
        answer = client.post("/api/videos", content=json.dumps(GOOD | change), headers=headers)
        assert answer.status_code == 422, (change, answer.text)
        assert said in a_sentence(answer), change
    for content in RAW:
        answer = client.post("/api/videos", content=content, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500, content[:40]
        a_sentence(answer)
    for path in PATHS:
        answer = client.get(path)
        assert answer.status_code in (404, 405), path
        a_sentence(answer)
    for method in ("PUT", "PATCH", "DELETE", "TRACE"):
        assert client.request(method, "/api/videos").status_code == 405
    as_form = client.post("/api/videos", content=json.dumps(GOOD), headers={"Content-Type": "text/plain"})
    assert as_form.status_code == 422  # which a foreign page could send without asking
    assert not gate.requests and len(REFUSED) + len(RAW) + len(PATHS) > 50
    gate.let()
    assert client.post("/api/videos", json=GOOD).status_code == 202


def test_strange_texts_are_texts(serve, gate):
    client = serve(max_waiting=100)
    gate.let()
    for text in TEXTS:
        answer = client.post("/api/videos", json=GOOD | {"prompt": text})
        assert answer.status_code == 202 or "text ids is too long" in a_sentence(answer)
        assert "<" not in answer.text


def test_what_is_too_large_is_not_read(serve, gate, tmp_path):
    client = serve(max_body_mib=1, max_image_pixels=10_000)
    stated = client.post("/api/videos", content=b"x" * 2**21)
    assert stated.status_code == 413 and "at most 1 MiB" in a_sentence(stated)
    in_pieces = client.post("/api/videos", content=(b"x" * 2**16 for _ in range(32)))
    assert in_pieces.status_code == 413
    write_image(tmp_path / "image.png", np.zeros((200, 200, 3), np.uint8))  # small as a file
    image = base64.b64encode((tmp_path / "image.png").read_bytes()).decode()
    answer = client.post("/api/videos", json=GOOD | {"image": image})
    assert answer.status_code == 422 and "at most 0.01 million pixels" in a_sentence(answer)
    assert not gate.requests


def test_a_token_is_asked_for(serve, tmp_path):
    client = serve(token="correct horse battery")
    assert client.get("/").status_code == 200
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic correct horse battery"}):
        for method, path in (("GET", "/api/model"), ("POST", "/api/videos"), ("GET", "/api/openapi.json")):
            answer = client.request(method, path, headers=given)
            assert answer.status_code == 401 and "token" in a_sentence(answer)
    assert client.get("/api/model", headers={"Authorization": "Bearer correct horse battery"}).status_code == 200
    (tmp_path / "token").write_text("short\n")
    with pytest.raises(ValueError, match="16 or more"):
        _read_token(str(tmp_path / "token"))
    (tmp_path / "token").write_text("correct horse battery\n")
    assert _read_token(str(tmp_path / "token")) == "correct horse battery"


def test_a_foreign_name_does_not_lead_here(serve):
    assert serve().get("/api/model", headers={"Host": "evil.example"}).status_code == 400


def test_the_page_runs_nothing_but_its_own_file(serve):
    client = serve()
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    html, script = (PAGE / "index.html").read_text(), (PAGE / "page.js").read_text()
    assert not re.search(r"\son\w+=|<script(?![^>]*src=\"page.js\")|<style|\sstyle=|javascript:", html)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", script)
    assert not re.search(r"(src|href)=\"(https?:)?//", html) and "http://" not in script and "https://" not in script
    assert "default-src" in client.get("/api/videos/none").headers["content-security-policy"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"port": -1}, "port=-1"), ({"host": ""}, "host=''"), ({"limits": {"max_waiting": 0}}, "max_waiting=0")],
)
def test_impossible_settings(settings, said):
    from loong_jax.config_dict import from_config_dict

    with pytest.raises(ConfigError, match=said):
        from_config_dict({"task": "serve"} | settings)


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in ("api", "server"):
        monkeypatch.delitem(sys.modules, f"loong_jax.serving.{name}")
    with pytest.raises(ValueError, match=r'Serving needs the package fastapi: pip install "loong_jax\[demo\]"'):
        importlib.import_module("loong_jax.serving.server")


def test_an_address_that_cannot_be_had():
    job = ServeJob()
    with _listen(job.host, 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"Port {port} of 127.0.0.1 cannot be had .*--config.port=0"):
            _listen(job.host, port)
    for port in (70_000, 2**40):
        with pytest.raises(ValueError, match="cannot be had"):
            _listen(job.host, port)
