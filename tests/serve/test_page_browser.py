"""The page of `histo serve` in Chromium: no error, no request to another host, and its controls do what they say.

Chromium is the system's (Debian: apt install chromium); HISTO_CHROMIUM names another one.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histo_export.serve.settings import Limits

from .conftest import Pixels, Server, png, serving

playwright = pytest.importorskip("playwright.sync_api", reason='pages need pip install "histo-export[test]"')
CHROMIUM = os.environ.get("HISTO_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("pages need Chromium (apt install chromium, or HISTO_CHROMIUM)", allow_module_level=True)

HOSTILE = "<img src=x onerror=alert(1)>.png"
TOKEN = "a-token"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """A window on the page, which at its end has met no error and asked no other host."""
    yield from opened(browser, server, [])


def opened(browser: Any, server: Server, expected: list[str]) -> Iterator[Any]:
    faults: list[str] = []
    address = f"http://127.0.0.1:{server.port}/"
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith((address, "data:")) else faults.append(f"asked for {request.url}")
        ),
    )
    page.goto(address)
    yield page
    page.close()
    assert [fault for fault in faults if not any(words in fault for words in expected)] == []


def drop(page: Any, files: list[dict[str, Any]]) -> None:
    page.set_input_files("#files", files)


def file(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def status(page: Any, text: str) -> None:
    page.wait_for_function("text => document.getElementById('status').textContent === text", arg=text)


def test_images_are_classified_and_shown_as_the_network_saw_them(page: Any, tiles: Pixels, logits: Any) -> None:
    page.wait_for_selector("#work:visible")
    assert page.inner_text("#lead") == "bundle: 6 classes. The probabilities are not calibrated."
    assert "75 × 75 pixels of 0.495 µm per pixel" in page.inner_text("#wanted")
    assert "made tiles, as a demonstration" in page.inner_text("#warnings")
    many = [file(f"{i}.png", png(tiles[i % 6])) for i in range(18)]  # two requests
    drop(page, [file(HOSTILE, png(tiles[0])), file("bad.png", b"bad"), *many])
    status(page, "20 images done.")
    cards = page.query_selector_all(".card")
    assert len(cards) == 20
    names = ["TUMOR", "STROMA", "ADIPOSE", "LYMPHO", "DEBRIS", "MUCOSA"]
    tops = [card.query_selector("h3").inner_text() for card in cards]
    best = logits.argmax(1)
    assert len(set(tops) & set(names)) >= 1
    assert [tops[2 + i] for i in range(6)] == [tops[8 + i] for i in range(6)]
    assert tops[0] == tops[2]
    assert (tops[2] == tops[3]) == bool(best[0] == best[1])
    source = cards[3].query_selector("img").get_attribute("src")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as seen:
        assert np.array_equal(np.asarray(seen), tiles[1][6:70, 6:70])
    assert "image 2: is not a JPEG, PNG or TIFF" in cards[1].inner_text()
    assert HOSTILE in cards[0].inner_text()
    assert page.inner_text("#counts").count(":") == len({tops[i] for i in range(20) if i != 1})
    page.click("#clear")
    assert page.query_selector_all(".card") == []
    assert page.is_disabled("#clear")


def test_it_works_by_keyboard_and_fits_400_pixels(page: Any, tiles: Pixels) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_function("() => document.getElementById('wanted').textContent !== ''")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    # The browser's own control: Enter opens its dialog, which Chromium without a screen does not do reliably.
    drop(page, [file(f"a rather long name of a file, number {i}.png", png(tiles[i])) for i in range(3)])
    status(page, "3 images done.")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "clear"
    page.keyboard.press("Enter")
    assert page.query_selector_all(".card") == []
    assert page.get_attribute("#status", "role") == "status"


def test_files_that_are_dropped_beside_the_field_are_taken(page: Any, tiles: Pixels) -> None:
    page.wait_for_selector("#work:visible")
    content = base64.b64encode(png(tiles[0])).decode()
    page.evaluate(
        "content => { const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));"
        " const data = new DataTransfer(); data.items.add(new File([bytes], 'dropped.png', { type: 'image/png' }));"
        " document.querySelector('h1').dispatchEvent("
        " new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })) }",
        content,
    )
    status(page, "1 image done.")
    assert "dropped.png" in page.inner_text(".card")


def test_requests_of_the_page_keep_to_the_limits(browser: Any, bundle: Path, tiles: Pixels) -> None:
    sizes = [len(png(tile)) for tile in tiles]
    limits = Limits(images=3, request_bytes=max(sizes) + 1000)  # so that two images are too large together
    with serving([bundle], threads=1, limits=limits) as server:
        for page in opened(browser, server, ["413"]):
            page.wait_for_selector("#work:visible")
            drop(page, [file(f"{i}.png", png(tile)) for i, tile in enumerate(tiles[:4])])
            status(page, "4 images done.")


def test_the_policy_lets_nothing_else_run(server: Server) -> None:
    answer = server.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert (policy["connect-src"], policy["frame-ancestors"], policy["form-action"]) == ("'self'", "'none'", "'none'")
    assert policy["script-src"].startswith("'sha256-")
    assert policy["style-src"].startswith("'sha256-")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert b"http://" not in answer.body
    assert b"https://" not in answer.body


def test_a_token_is_asked_for(browser: Any, bundle: Path, tiles: Pixels) -> None:
    with serving([bundle], threads=1, token=TOKEN) as server:
        for page in opened(browser, server, ["401 (Unauthorized)"]):
            page.wait_for_selector("#token-form:visible")
            assert page.evaluate("document.activeElement.id") == "token"
            page.fill("#token", "wrong")  # keys that are typed blindly get lost on a busy machine
            page.press("#token", "Enter")
            page.wait_for_function(
                "document.getElementById('lead').textContent === \"This is not the server's token.\""
            )
            page.fill("#token", TOKEN)
            page.press("#token", "Enter")
            page.wait_for_selector("#work:visible")
            assert page.is_hidden("#token-form")
            drop(page, [file("a.png", png(tiles[0]))])
            status(page, "1 image done.")


def test_a_server_that_is_gone_is_told(browser: Any, bundle: Path, tiles: Pixels) -> None:
    with serving([bundle], threads=1) as server:
        for page in opened(browser, server, ["ERR_CONNECTION"]):
            page.wait_for_selector("#work:visible")
            server.stop()
            page.wait_for_timeout(300)
            drop(page, [file("a.png", png(tiles[0]))])
            status(page, "The server can't be reached. Start it again, then reload this page.")
