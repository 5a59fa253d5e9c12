"""POST /classify: images in, classes out."""

from __future__ import annotations

import base64
import csv
import io
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from histo_export.data.images import decode_image
from histo_export.serve.settings import Limits, ServeSettings
from histo_export.serve.uploads import tile_or_fault
from histo_export.spec import ModelSpec

from .conftest import BOUNDARY, SIDE, Pixels, Server, form, png, serving

Histo = Callable[..., tuple[int, str, str]]
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def row(result: dict[str, Any], key: str) -> bytes:
    """The bits of a result's numbers."""
    return np.array(list(result[key].values()), np.float32).tobytes()


def test_answers_are_those_of_histo_predict_to_the_bit(
    server: Server, histo: Histo, bundle: Path, tiles: Pixels, logits: Any, probabilities: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i, tile in enumerate(tiles):
        (folder / f"{i}.png").write_bytes(png(tile))
    answer = server.classify([(f"{i}.png", png(tile)) for i, tile in enumerate(tiles)])
    assert answer.status == 200
    results = answer.json["results"]
    assert [row(result, "logits") for result in results] == [each.tobytes() for each in logits]
    assert [row(result, "probabilities") for result in results] == [each.tobytes() for each in probabilities]
    assert histo("predict", bundle, folder, "--out", tmp_path / "out", "--threads", 1)[0] == 0
    with (tmp_path / "out/in/tiles.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [each["class"] for each in rows] == [result["class"] for result in results]
    for each, result in zip(rows, results, strict=True):
        for name, probability in result["probabilities"].items():
            text = each[f"prob_{name}"]
            digits = len(re.sub(r"^[0.]*|e.*$", "", text).replace(".", ""))
            assert float(text) == pytest.approx(probability, rel=10.0 ** (1 - max(digits, 1)), abs=1e-6)


def test_one_bad_image_fails_alone(server: Server, tiles: Pixels, logits: Any) -> None:
    good = [png(tile) for tile in tiles[:2]]
    small = png(tiles[0][:64, :64])
    files = [("a", good[0]), ("b", b"no image"), ("c", small), ("d", b""), ("e", good[1]), ("f", good[1][:500])]
    answer = server.classify(files)
    assert answer.status == 200
    results = answer.json["results"]
    assert [row(results[i], "logits") for i in (0, 4)] == [each.tobytes() for each in logits[:2]]
    assert results[1]["error"].startswith("image 2: is not a JPEG, PNG or TIFF image")
    assert results[2]["error"].startswith("image 3: is 64×64 pixels, and the model takes 75×75. Start the server with")
    assert results[3]["error"] == "image 4: is empty (0 bytes). Leave it out."
    assert results[5]["error"].startswith("image 6: ")
    answer = server.classify([("a", b"no image")])
    assert (answer.status, list(answer.json["results"][0])) == (422, ["error"])


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "BMP", "JPEG2000", "AVIF"])
def test_few_kinds_of_images_are_decoded_for_strangers(tiles: Pixels, kind: str) -> None:
    """Each decoder more is one that a stranger's file could attack; `histo predict` reads all of these."""
    if not features.check({"JPEG2000": "jpg_2000", "AVIF": "avif"}.get(kind, "webp")):
        pytest.skip(f"this Pillow is built without {kind}")
    file = io.BytesIO()
    Image.fromarray(tiles[0]).save(file, kind)
    spec = ModelSpec(1, ("a", "b"), crop=SIDE, tile_size=SIDE)
    found = tile_or_fault(file.getvalue(), 1, spec, ServeSettings())
    assert decode_image(file.getvalue()).shape == tiles[0].shape
    if kind in ("WEBP", "TIFF"):
        assert not isinstance(found, str)
    else:
        assert found == (
            "image 1: is not a JPEG, PNG or TIFF image, nor WebP, or its header is damaged. Repair it, or leave it out."
        )


def test_what_was_decoded_is_kept_no_longer_than_needed(
    server: Server, tiles: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[weakref.ref[Any]] = []
    kept: list[int] = []

    def wrong_size(*_: object) -> Pixels:
        pixels = np.zeros((SIDE + 1, SIDE, 3), np.uint8)
        kept.append(sum(pixels() is not None for pixels in decoded))
        decoded.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr("histo_export.serve.uploads.decode_image", wrong_size)
    assert server.classify([("a", png(tiles[0]))] * 8).status == 422
    assert max(kept) <= 1  # the one before, in a pool of one thread


def test_the_tile_that_the_network_saw_is_shown(server: Server, tiles: Pixels) -> None:
    answer = server.post("/classify?seen=1", png(tiles[0]), content_type="image/png").json
    left, top, side = (answer["seen"][key] for key in ("left", "top", "side"))
    with Image.open(io.BytesIO(base64.b64decode(answer["results"][0]["seen_png"]))) as seen:
        assert np.array_equal(np.asarray(seen), tiles[0][top : top + side, left : left + side])
    assert (side, answer["tile_size"], answer["mpp"], answer["calibration"]) == (64, SIDE, 0.495, None)
    assert answer["synthetic"] is True
    assert "seen_png" not in server.post("/classify", png(tiles[0]), content_type="image/png").json["results"][0]


def test_other_sizes_are_resampled_where_the_server_allows_it(bundle: Path, tiles: Pixels) -> None:
    small = tiles[0][:60, :60]
    with serving([bundle], threads=1, resize="bilinear") as resizing:
        (result,) = resizing.classify([("a", png(small))]).json["results"]
        assert (result["size"], result["resized"]) == ([60, 60], True)
        from histo_export import load

        expected = load(bundle, threads=1).predict(small, resize="bilinear")
        assert row(result, "logits") == expected.logits.tobytes()


@pytest.mark.parametrize(
    ("kind", "body", "status", "words"),
    [
        ("text/plain", b"a", 415, "content-type: is 'text/plain'"),
        ("", b"a", 415, "content-type: is missing"),
        ("image/png", b"", 400, "is empty"),
        ("multipart/form-data", form([("a", b"b")]), 400, "it states no boundary"),
        (f"{FORM}{'b' * 1000}", form([("a", b"b")]), 400, "The form: can't be read"),
        (FORM, form([("a", b"b")]).replace(b"\r\n\r\n", b"\r\n" + b"X: a\r\n" * 5000 + b"\r\n"), 400, "can't be read"),
        (FORM, b"nonsense", 400, "The form: "),
        (FORM, form([]), 400, "holds no file"),
        (FORM, form([("a", b"b"), ("c", b"d")])[:-8], 400, "is cut off"),
        (FORM, form([("a", b"b")]).replace(b'; filename="a"', b""), 400, "has a field that is not a file"),
        (FORM, form([("a", b"b")] * 300), 413, "has more than 256 images. Send fewer"),
    ],
)
def test_forms_that_are_none_are_refused(server: Server, kind: str, body: bytes, status: int, words: str) -> None:
    answer = server.post("/classify", body, **({"content_type": kind} if kind else {}))
    assert answer.status == status
    assert words in answer.error


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("?model=other", 404, "model 'other': is not served. Choose from bundle."),
        ("?version=0", 404, "version '0' of bundle: is not served"),
        ("?seen=yes", 400, "seen: is 'yes'. Give 1"),
        ("?mode=bundle", 400, "'mode': is not a parameter"),
    ],
)
def test_queries_are_judged(server: Server, query: str, status: int, words: str) -> None:
    answer = server.classify([("a", b"b")], query)
    assert (answer.status, words in answer.error) == (status, True)


def test_uploads_and_names_reach_neither_the_disk_nor_the_log(
    server: Server, tiles: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    def no_disk(*_: object, **__: object) -> None:
        raise AssertionError("a file on the disk")

    for maker in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, maker, no_disk)
    large = bytes(3 << 20)  # many servers put such a file on the disk
    names = ["../../etc/passwd", "Doe^Jane.png", "a\\b.png"]
    answer = server.classify([*((name, png(tiles[0])) for name in names), ("large", large)])
    assert ["error" in result for result in answer.json["results"]] == [False, False, False, True]
    assert "passwd" not in server.log.getvalue()
    assert "Doe" not in server.log.getvalue()
    assert server.logged(tiles=3, refused=1)["model"] == "bundle"


def test_names_are_logged_where_the_user_wants_them(bundle: Path, tiles: Pixels) -> None:
    with serving([bundle], threads=1, log_names=True) as naming:
        naming.classify([("Doe.png", png(tiles[0]))])
        assert naming.logged(route="/classify")["names"] == ["Doe.png"]


def test_images_are_judged_by_their_headers(bundle: Path, tiles: Pixels) -> None:
    with serving([bundle], threads=1, limits=Limits(pixels=SIDE * SIDE, request_bytes=100_000)) as strict:
        larger = png(np.zeros((SIDE + 1, SIDE, 3), np.uint8))
        results = strict.classify([("a", larger), ("b", png(tiles[0]))]).json["results"]
        assert "too large for a tile" in results[0]["error"]
        # A size is judged before the rest is decoded, so that this is not "truncated".
        (cut_off,) = strict.classify([("a", png(tiles[0][:, :-1])[:200])]).json["results"]
        assert cut_off["error"].startswith("image 1: is 74×75 pixels, and the model takes 75×75.")
        assert "class" in results[1]
        answer = strict.post("/classify", bytes(100_001), content_type="image/png")
        assert (answer.status, answer.error) == (413, "The request: has 100,001 bytes. Send at most 0 MiB at a time.")
