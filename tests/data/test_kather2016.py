from __future__ import annotations

import hashlib
import http.server
import io
import stat
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo_export.data import kather2016, open_data
from histo_export.errors import HistoError, UsageError
from histo_export.files import cache_folder

from .conftest import noise_tile


def small_archive() -> bytes:
    """Same layout as the real one: eight folders, six tiles each."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for k, c in enumerate(kather2016.ALL_CLASSES):
            for i in range(6):
                tile = io.BytesIO()
                Image.fromarray(noise_tile(k, i, side=150)).save(tile, "TIFF")
                folder = f"{kather2016.FOLDER}/{k + 1:02d}_{c}"
                file.writestr(f"{folder}/{i}AF_CRC-Prim-HE-0{i}.tif_Row_1_Col_{i}.tif", tile.getvalue())
    return out.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`; misbehaves as told."""

    body: bytes = b""
    ranges = True
    status = 0
    stop_after: list[int]
    """Close the connection after so many bytes, once per entry."""
    asked: list[str | None]
    """The Range header of every request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/files"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.status or self.path != f"/files/{kather2016.ARCHIVE}":
            self.send_error(server.status or 404)
            return
        body = server.body
        start = 0
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = server.stop_after.pop(0) if server.stop_after else None
        self.wfile.write(body[start:] if cut is None else body[start : start + cut])

    def log_message(self, *args: object) -> None:
        pass


BODY = small_archive()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked, server.stop_after, server.body = [], [], BODY
        monkeypatch.setenv("HISTO_KATHER2016_URL", server.url)
        monkeypatch.setattr(kather2016, "ARCHIVE_MD5", hashlib.md5(BODY).hexdigest())
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def left_in(cache: Path) -> set[str]:
    return {p.name for p in cache.iterdir()} - {f"{kather2016.FOLDER}.lock"}


def test_fresh_download(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = open_data("kather2016", cache=tmp_path / "c", split=(4, 1, 1))
    assert data.classes == ("TUMOR", "STROMA", "COMPLEX", "LYMPHO", "DEBRIS", "MUCOSA")
    assert data.train.classes == data.classes
    assert np.bincount(data.train.labels).tolist() == [4] * 6
    assert (data.mpp, data.tile_size, data.synthetic, data.name) == (0.495, 150, False, "kather2016")
    assert "CC BY 4.0" in data.description
    assert "ten slides" in data.notes[-1]
    assert left_in(tmp_path / "c") == {kather2016.FOLDER, kather2016.ARCHIVE}
    assert capsys.readouterr().out == ""
    again = open_data("kather2016", cache=tmp_path / "c", split=(4, 1, 1))
    assert again.fingerprint == data.fingerprint
    assert server.asked == [None]


def test_any_subset(server: Server, tmp_path: Path) -> None:
    data = open_data("kather2016", cache=tmp_path, classes=["empty", "07_ADIPOSE"], split=(4, 1, 1))
    assert data.classes == ("EMPTY", "ADIPOSE")
    expected = {noise_tile(7, i, side=150).tobytes() for i in range(6)}
    assert data.train.tile(0).tobytes() in expected
    with pytest.raises(UsageError, match="Did you mean STROMA"):
        open_data("kather2016", cache=tmp_path, classes=["STOMA", "TUMOR"])
    with pytest.raises(HistoError, match="has 6 tiles, but the split 425/100/100"):
        open_data("kather2016", cache=tmp_path)


def test_dropped_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    server.stop_after = [100_000, 5, 300_000]
    kather2016.fetch(tmp_path)
    assert server.asked == [None, "bytes=100000-", "bytes=100005-", "bytes=400005-"]


def test_resumed_by_the_next_run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.stop_after = [100_000]
    monkeypatch.setattr(kather2016, "ATTEMPTS", 1)
    with pytest.raises(HistoError, match=r"connection lost after 100,000 of .* 0\.1 MB are kept.*Run again"):
        kather2016.fetch(tmp_path)
    assert left_in(tmp_path) == {kather2016.ARCHIVE + ".part"}
    kather2016.fetch(tmp_path)
    assert server.asked[1] == "bytes=100000-"
    assert kather2016.ARCHIVE + ".part" not in left_in(tmp_path)


def test_server_that_ignores_range(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.stop_after = [100_000]
    assert kather2016.fetch(tmp_path).is_dir()
    assert server.asked == [None, "bytes=100000-"]


def test_partial_file_is_whole_or_too_long(server: Server, tmp_path: Path) -> None:
    part = tmp_path / (kather2016.ARCHIVE + ".part")
    part.write_bytes(BODY)
    assert kather2016.fetch(tmp_path).is_dir()
    assert len(server.asked) == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / part.name).write_bytes(BODY + b"more")
    assert kather2016.fetch(other).is_dir()
    assert server.asked[1:] == [f"bytes={len(BODY) + 4}-", None]


def test_damaged_download_is_deleted(server: Server, tmp_path: Path) -> None:
    server.body = BODY[:-1] + b"?"
    with pytest.raises(HistoError, match=r"was damaged .* has been deleted. Run again"):
        kather2016.fetch(tmp_path)
    assert left_in(tmp_path) == set()
    server.body = BODY
    assert kather2016.fetch(tmp_path).is_dir()


def test_archive_placed_by_hand(server: Server, tmp_path: Path) -> None:
    (tmp_path / kather2016.ARCHIVE).write_bytes(BODY)
    assert kather2016.fetch(tmp_path).is_dir()
    assert server.asked == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 4)])
def test_server_errors(server: Server, tmp_path: Path, status: int, requests: int) -> None:
    server.status = status
    with pytest.raises(HistoError, match=rf"answered {status} .* by hand and put it at {tmp_path}"):
        kather2016.fetch(tmp_path)
    assert len(server.asked) == requests
    assert left_in(tmp_path) == set()


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(HistoError, match=r"could not be downloaded .*refused.*by hand"):
        kather2016.fetch(tmp_path, url="http://127.0.0.1:9")
    with pytest.raises(UsageError, match="not an http"):
        kather2016.fetch(tmp_path, url="file:///etc")


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HistoError, match=r"cannot be written .* HISTO_CACHE"):
        kather2016.fetch(tmp_path / "file" / "cache")


def test_cache_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTO_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("HISTO_CACHE")
    assert cache_folder() == Path.home() / ".cache/histo-export"


def test_two_at_once(server: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=kather2016.fetch, args=(tmp_path,)) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(server.asked) == 1
    assert left_in(tmp_path) == {kather2016.FOLDER, kather2016.ARCHIVE}


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"{kather2016.FOLDER}/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("../evil.tif", "leads out"),
        (f"{kather2016.FOLDER}/../../evil.tif", "leads out"),
        ("/tmp/evil.tif", "absolute"),
        ("C:/evil.tif", "absolute or foreign"),
        ("..\\evil.tif", "absolute or foreign"),
        (link(), "is a link"),
    ],
)
def test_unsafe_members(tmp_path: Path, member: str | zipfile.ZipInfo, reason: str) -> None:
    cache = tmp_path / "a" / "cache"
    cache.mkdir(parents=True)
    archive = cache / kather2016.ARCHIVE
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"{kather2016.FOLDER}/01_TUMOR/ok.tif", b"x")
        file.writestr(member, b"/etc/passwd")
    with pytest.raises(HistoError, match=f"not safe to unpack: .*{reason}"):
        kather2016.unpack(archive, cache / kather2016.FOLDER)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [kather2016.ARCHIVE]


def test_archive_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{kather2016.FOLDER}/zeros.tif", bytes(1 << 20))
    monkeypatch.setattr(kather2016, "MAX_UNPACKED", 1 << 19)
    with pytest.raises(HistoError, match="1,048,576 bytes in all"):
        kather2016.unpack(archive, tmp_path / "out")
    monkeypatch.setattr(kather2016, "MAX_UNPACKED", 1 << 30)
    # One that lies about its size in the directory is caught by zipfile's own count or checksum.
    lying = archive.read_bytes().replace((1 << 20).to_bytes(4, "little"), (1 << 10).to_bytes(4, "little"))
    archive.write_bytes(lying)
    with pytest.raises(HistoError, match="not a sound zip"):
        kather2016.unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_not_a_zip_or_another_one(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"<html>please log in</html>")
    with pytest.raises(HistoError, match="not a sound zip"):
        kather2016.unpack(archive, tmp_path / "out")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("other/a.tif", b"x")
    with pytest.raises(HistoError, match="holds no folder"):
        kather2016.unpack(archive, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]
