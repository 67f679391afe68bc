"""A person's path through the page in Chromium: prompt, frames, queue, stop, playing video; without a network."""

import contextlib
import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from test_hostile_requests import TEXTS

from loong_jax.video import write_image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_MISSING = "the package playwright" if importlib.util.find_spec("playwright") is None else "Chromium"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or _MISSING != "Chromium", reason=f"{_MISSING} is not installed"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def browse(tmp_path) -> Iterator[Callable[[Any], "Browser"]]:
    """Open the page of a server, ``browse(client)``, each time in a window of its own; nothing may go wrong in it."""
    from playwright.sync_api import sync_playwright

    with contextlib.ExitStack() as stack:
        chromium = stack.enter_context(sync_playwright()).chromium
        browsers: list[Browser] = []

        def browse(client) -> Browser:
            folder = tmp_path / f"user_{len(browsers)}"
            window = chromium.launch_persistent_context(folder, executable_path=CHROMIUM, headless=True, args=FLAGS)
            stack.callback(window.close)
            browsers.append(Browser(window.new_page(), str(client.base_url)))
            return browsers[-1]

        yield browse
        for browser in browsers:
            assert browser.wrong == []


class Browser:
    """One user's page."""

    def __init__(self, page: Any, address: str):
        self.page, self.wrong = page, []
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", lambda dialog: self.wrong.append(f"a dialog says {dialog.message}"))
        page.on("request", lambda request: self._check(request.url, address))
        page.goto(address)

    def _check(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.wrong.append(f"{url} is asked for")

    def text(self, name: str) -> str:
        return self.page.evaluate("name => document.getElementById(name).textContent", name)

    def wait(self, expression: str, seconds: float = 20) -> None:
        """Until an expression is true; the page itself may not evaluate text, so that it is asked again and again."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"{expression}: {self.text('status')} {self.text('problem')}"
            time.sleep(0.02)

    def wait_for(self, state: str) -> None:
        self.wait(f"document.getElementById('stage').dataset.state === '{state}'")

    def sample(self, prompt: str, seconds: float = 3) -> None:
        self.wait("document.getElementById('facts').textContent !== ''")
        self.page.fill("#prompt", prompt)
        self.page.fill("#seconds", str(seconds))
        self.page.click("#go")

    @property
    def middle(self) -> int:
        """Of the canvas, how bright the pixel in the middle is."""
        return self.page.evaluate(
            "() => document.getElementById('screen').getContext('2d').getImageData(16, 16, 1, 1).data[0]"
        )


def test_from_a_prompt_to_a_playing_video(serve, gate, browse, tmp_path):
    user = browse(serve())
    user.sample("a red 7")
    user.wait_for("sampling")
    assert user.middle == 0
    gate.let(1)
    user.wait("document.getElementById('status').textContent.includes('frame 4 of 20')")
    assert user.middle == 49  # the fourth frame, while the rest waits
    gate.let(1)
    user.wait("document.getElementById('left').textContent.includes('left')")
    gate.let()
    user.wait_for("done")
    assert user.text("status") == "Done: 20 frames, 3.1 s."
    user.wait("document.getElementById('player').currentTime > 0.2")
    shown = user.page.evaluate(
        "() => { const p = document.getElementById('player'); return [p.videoWidth, p.duration, p.hidden, p.paused]; }"
    )
    assert shown[0] == 256 and abs(shown[1] - 20 / 6.5) < 0.2 and shown[2:] == [False, False]
    with user.page.expect_download() as download:
        user.page.click("#download")
    assert download.value.suggested_filename == "a_red_7.mp4"
    download.value.save_as(tmp_path / "saved.mp4")
    [stored] = (tmp_path / "videos").iterdir()
    assert (tmp_path / "saved.mp4").read_bytes() == stored.read_bytes()


def test_everything_that_can_be_set_is_asked_for(serve, gate, browse, tmp_path):
    user = browse(serve())
    write_image(tmp_path / "first.png", np.full((48, 64, 3), 200, np.uint8))
    gate.let()
    settings = {"seed": 5, "temperature": 0.5, "top_k": 7, "guidance_scale": 2}
    for name, value in settings.items():
        user.page.fill(f"#{name}", str(value))
    user.page.fill("#negative_prompt", "a blue 3")
    user.page.click("#add-change")
    user.page.fill(".change .second", "1.5")
    user.page.fill(".change .text", "a 9")
    user.page.click("#add-change")
    user.page.click(".change:last-child .remove")
    assert user.page.input_value("#text_change") == "continue"  # as the model has it
    user.page.select_option("#text_change", "cut")
    user.page.set_input_files("#image", tmp_path / "first.png")
    user.sample("a red 7")
    user.wait_for("done")
    [request] = gate.requests
    rules = request.sampling
    assert (rules.temperature, rules.top_k, rules.guidance_scale) == (0.5, 7, 2) and rules.negative_prompt == "a blue 3"
    assert request.seeds == [5] and request.changes == (10,) and (request.start == 200).all()
    assert rules.text_change == "cut"


def test_stop_and_a_second_user_who_waits(serve, gate, browse):
    client = serve(max_waiting=1)
    first, second, third = browse(client), browse(client), browse(client)
    first.sample("a red 7")
    first.wait_for("sampling")
    second.sample("a blue 3", seconds=30)
    second.wait("document.getElementById('status').textContent === 'Waiting: 1 video is before yours.'")
    third.sample("a green 1")
    third.wait("document.getElementById('problem').textContent.startsWith('The server is busy')")
    gate.let(2)
    first.wait("document.getElementById('status').textContent.includes('frame 8 of 20')")
    first.page.click("#stop")
    gate.let(1)
    first.wait_for("stopped")
    assert first.text("status") == "Stopped as asked. 12 frames, 1.8 s."
    first.wait("document.getElementById('player').currentTime > 0.2")
    second.wait_for("sampling")
    second.page.goto("about:blank")  # who leaves frees the place
    third.page.click("#go")
    for _ in range(40):  # of 49 pieces: the server may hear of it while it samples the next one
        if third.page.evaluate("document.getElementById('stage').dataset.state") == "sampling":
            break
        gate.let(1)
        time.sleep(0.1)
    third.wait_for("sampling")
    gate.let()
    third.wait_for("done")


def test_strange_texts_do_not_break_the_page(serve, gate, browse):
    user = browse(serve())
    gate.let(10_000)
    for text in TEXTS:
        user.sample(text)
        user.wait("['done', 'empty'].includes(document.getElementById('stage').dataset.state)")
        assert user.text("problem") == "" or "too long" in user.text("problem")
    user.sample("a red 7", seconds=61)  # which the form does not send
    assert user.page.evaluate("() => document.getElementById('seconds').validity.rangeOverflow")
    user.page.set_input_files("#image", {"name": "<b>.png", "mimeType": "image/png", "buffer": b"<script>"})
    user.sample("a red 7")
    user.wait("document.getElementById('problem').textContent.startsWith('The image cannot be read')")
    assert user.text("image-name") == "First frame: <b>.png"
    user.page.click("#clear-image")
    user.sample("a red 7")
    user.wait_for("done")


def test_a_token_is_asked_for_once(serve, gate, browse):
    user = browse(serve(token="correct horse battery"))
    gate.let()
    user.page.fill("#prompt", "a red 7")
    user.page.fill("#seconds", "3")
    user.page.fill("#token", "wrong")
    user.page.click("#go")
    user.wait("document.getElementById('problem').textContent.includes('token')")
    user.page.fill("#token", "correct horse battery")
    user.page.click("#go")
    user.wait_for("done")
    user.page.reload()
    user.sample("a red 7")
    user.wait_for("done")
