"""Public sets: downloaded from a server that misbehaves, checked, unpacked, opened, listed and removed."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import json
import shutil
import stat
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histo_export.data import download, open_data, public, unpack
from histo_export.data.public_sets import SETS, Archive, PublicSet
from histo_export.errors import HistoError, UsageError
from histo_export.export.card import model_card
from histo_export.files import cache_folder
from histo_export.training.provenance import data_facts

from .conftest import noise_tile

Histo = Callable[..., tuple[int, str, str]]
KATHER = SETS["kather2016"]
ARCHIVE = KATHER.archives[0]


def zipped(folders: dict[str, int], inside: str, side: int, suffix: str = "tif") -> bytes:
    """A zip archive: folder → number of tiles."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(f"{inside}/readme.txt", "not a tile")
        for k, (folder, tiles) in enumerate(folders.items()):
            for i in range(tiles):
                tile = io.BytesIO()
                Image.fromarray(noise_tile(len(inside), k, i, side=side)).save(tile, {"tif": "TIFF"}.get(suffix, "PNG"))
                file.writestr(f"{inside}/{folder}/{i}AF_CRC-Prim-HE-0{i}.{suffix}", tile.getvalue())
    return out.getvalue()


def medmnist(side: int, labels_shape: tuple[int, ...] = (-1, 1)) -> bytes:
    """An .npz file as MedMNIST makes it: two tiles of each class in each split."""
    labels = np.repeat(np.arange(9, dtype=np.uint8), 2)
    arrays = {}
    for s, split in enumerate(("train", "val", "test")):
        arrays[f"{split}_images"] = np.stack([noise_tile(s, i, side=side) for i in range(18)])
        arrays[f"{split}_labels"] = labels.reshape(labels_shape)
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; misbehaves as told."""

    files: dict[str, bytes]
    ranges = True
    etag: str | None = '"1"'
    statuses: list[int]
    """Answers before the first good one."""
    stop_after: list[int]
    """Close the connection after so many bytes, once per entry."""
    stall = 0.0
    """Seconds to wait after those, before the connection is closed."""
    asked: list[str | None]
    """The Range header of every request."""
    redirect = ""
    no_length = False
    reason: str | None = None
    """The text after the status of an error."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/files"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        if server.redirect and self.path.startswith("/files/"):
            self.send_response(302)
            self.send_header("Location", server.redirect + self.path.removeprefix("/files"))
            self.end_headers()
            return
        server.asked.append(wanted)
        body = server.files.get(self.path.rpartition("/")[2])
        if server.statuses or body is None:
            self.send_response(server.statuses.pop(0) if server.statuses else 404, server.reason)
            self.send_header("Retry-After", "7")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = self._start(wanted, body)
        if start is None:
            return
        if not server.no_length:
            self.send_header("Content-Length", str(len(body) - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        cut = server.stop_after.pop(0) if server.stop_after else None
        self.wfile.write(body[start:] if cut is None else body[start : start + cut])
        if cut is not None:
            threading.Event().wait(server.stall)

    def _start(self, wanted: str | None, body: bytes) -> int | None:
        """Sends the status line; the first byte that follows, None if none does."""
        if not (wanted and self.server.ranges) or self.headers.get("If-Range", self.server.etag) != self.server.etag:
            self.send_response(200)
            return 0
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        return start

    def log_message(self, *args: object) -> None:
        pass


BODY = zipped(dict.fromkeys(KATHER.classes.values(), 6), "Kather", side=150)
WAITED: list[float] = []


def replace_record(monkeypatch: pytest.MonkeyPatch, record: PublicSet, **md5: str | None) -> PublicSet:
    """The record with other checksums: archive's folder → md5."""
    archives = tuple(dataclasses.replace(a, md5=md5.get(a.folder, a.md5)) for a in record.archives)
    changed = dataclasses.replace(record, archives=archives)
    monkeypatch.setitem(SETS, record.name, changed)  # type: ignore[arg-type]
    return changed


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked, server.stop_after, server.statuses = [], [], []
        server.files = {ARCHIVE.file: BODY}
        monkeypatch.setenv("HISTO_KATHER2016_URL", server.url)
        WAITED.clear()
        monkeypatch.setattr(time, "sleep", WAITED.append)
        monkeypatch.setattr(download, "MARGIN", 0)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def kather(monkeypatch: pytest.MonkeyPatch) -> PublicSet:
    """The record with the checksum of `BODY`."""
    return replace_record(monkeypatch, KATHER, **{ARCHIVE.folder: hashlib.md5(BODY).hexdigest()})


def left_in(cache: Path) -> set[str]:
    return {p.name for p in cache.iterdir()} - {f"{ARCHIVE.folder}.lock"}


PART = ARCHIVE.file + ".part"


def test_every_record_is_complete() -> None:
    assert next(iter(SETS)) == "kather2016"
    for name, record in SETS.items():
        assert name == record.name
        assert name == name.lower()
        assert set(record.default_classes) <= set(record.classes)
        assert all([record.licence, record.citation, record.about, record.note, record.tiles])
        for archive in record.archives:
            assert archive.md5 is None or (len(archive.md5) == 32 and int(archive.md5, 16))
            assert (archive.url is None) == (archive.md5 is None), "what a program downloads has a checksum"
            assert archive.url is None or archive.url.startswith("https://")


def test_fresh_download(server: Server, kather: PublicSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "c"
    data = open_data("kather2016", cache=cache, split=(4, 1, 1))
    assert data.classes == ("TUMOR", "STROMA", "COMPLEX", "LYMPHO", "DEBRIS", "MUCOSA")
    assert data.train.classes == data.classes
    assert np.bincount(data.train.labels).tolist() == [4] * 6
    assert (data.mpp, data.tile_size, data.synthetic, data.name) == (0.495, 150, False, "kather2016")
    assert "CC BY 4.0" in data.description
    assert "ten slides" in data.notes[-1]
    assert (data.licence, data.citation[:9]) == ("CC BY 4.0", "Kather JN")
    assert left_in(cache) == {ARCHIVE.folder}
    assert capsys.readouterr().out == ""
    assert open_data("kather2016", cache=cache, split=(4, 1, 1)).fingerprint == data.fingerprint
    assert server.asked == [None]
    sums = (cache / ARCHIVE.folder / unpack.SUMS).read_text(encoding="utf-8").splitlines()
    digest, name = sums[0].split("  ")
    assert hashlib.sha256((cache / ARCHIVE.folder / name).read_bytes()).hexdigest() == digest
    assert len(sums) == 48


def test_the_split_is_that_of_earlier_versions(server: Server, kather: PublicSet, tmp_path: Path) -> None:
    """A run of an earlier version goes on, and its checkpoint finds its tiles: by the names of folders, as ever."""
    folder = public.fetch(kather, tmp_path)[0]
    before = open_data(folder, classes=[f"0{i}_{c}" for i, c in enumerate(KATHER.default_classes, 1)], split=(4, 1, 1))
    now = open_data("kather2016", cache=tmp_path, split=(4, 1, 1))
    assert now.fingerprint == before.fingerprint
    assert [now.test.tile(i).tobytes() for i in range(6)] == [before.test.tile(i).tobytes() for i in range(6)]


def test_any_subset(server: Server, kather: PublicSet, tmp_path: Path) -> None:
    data = open_data("kather2016", cache=tmp_path, classes=["empty", "07_ADIPOSE"], split=(4, 1, 1))
    assert data.classes == ("EMPTY", "ADIPOSE")
    expected = {noise_tile(6, 7, i, side=150).tobytes() for i in range(6)}
    assert data.train.tile(0).tobytes() in expected
    with pytest.raises(UsageError, match="Did you mean STROMA"):
        open_data("kather2016", cache=tmp_path, classes=["STOMA", "TUMOR"])
    with pytest.raises(HistoError, match="has 6 tiles, but the split 425/100/100"):
        open_data("kather2016", cache=tmp_path)


def test_dropped_connections_are_resumed(server: Server, kather: PublicSet, tmp_path: Path) -> None:
    """However many there are, as long as each brings something."""
    server.stop_after = [100_000, 5, 300_000, 7, 7, 7, 7, 7]
    public.fetch(kather, tmp_path)
    assert server.asked[:4] == [None, "bytes=100000-", "bytes=100005-", "bytes=400005-"]


def test_resumed_by_the_next_run(
    server: Server, kather: PublicSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.stop_after = [100_000, 0]
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(HistoError, match=r"connection lost after 100,000 of .* 0\.1 MB are kept.*Run again"):
        public.fetch(kather, tmp_path)
    assert left_in(tmp_path) == {PART, PART + ".json"}
    assert public.state_of(kather, tmp_path) == ("part", 100_000)
    public.fetch(kather, tmp_path)
    assert server.asked[2] == "bytes=100000-"
    assert left_in(tmp_path) == {ARCHIVE.folder}


def test_a_changed_file_starts_anew(server: Server, kather: PublicSet, tmp_path: Path) -> None:
    """The server has another version of the file: its first part must not be mixed with ours."""
    server.files[ARCHIVE.file] = bytes(len(BODY))
    server.stop_after = [100_000, 0, 0, 0, 0]
    with pytest.raises(HistoError, match="kept"):
        public.fetch(kather, tmp_path)
    server.files[ARCHIVE.file], server.etag, server.stop_after = BODY, '"2"', []
    assert public.fetch(kather, tmp_path)[0].is_dir()


def test_a_server_without_versions(server: Server, kather: PublicSet, tmp_path: Path) -> None:
    server.etag = None
    server.stop_after = [100_000]
    assert public.fetch(kather, tmp_path)[0].is_dir()
    assert server.asked == [None, "bytes=100000-"]


def test_server_that_ignores_range(server: Server, kather: PublicSet, tmp_path: Path) -> None:
    server.ranges = False
    server.stop_after = [100_000]
    assert public.fetch(kather, tmp_path)[0].is_dir()
    assert server.asked == [None, "bytes=100000-"]


def test_slow_server(server: Server, kather: PublicSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends nothing for long is left, and asked for the rest."""
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    server.stop_after, server.stall = [100_000], 1.0
    start = time.monotonic()
    assert public.fetch(kather, tmp_path)[0].is_dir()
    assert server.asked == [None, "bytes=100000-"]
    assert time.monotonic() - start < 1.0


def test_partial_file_is_complete_or_too_long(server: Server, kather: PublicSet, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(BODY)
    assert public.fetch(kather, tmp_path)[0].is_dir()
    assert len(server.asked) == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / PART).write_bytes(BODY + b"more")
    assert public.fetch(kather, other)[0].is_dir()
    assert server.asked[1:] == [f"bytes={len(BODY) + 4}-", None]


def test_damaged_download_is_deleted(server: Server, kather: PublicSet, tmp_path: Path) -> None:
    server.files[ARCHIVE.file] = BODY[:-1] + b"?"
    with pytest.raises(HistoError, match=r"was damaged .* has been deleted. Run again"):
        public.fetch(kather, tmp_path)
    assert left_in(tmp_path) == set()
    server.files[ARCHIVE.file] = BODY
    assert public.fetch(kather, tmp_path)[0].is_dir()


def test_archive_placed_by_hand(server: Server, kather: PublicSet, tmp_path: Path) -> None:
    """It is checked, and it stays."""
    archive = tmp_path / ARCHIVE.file
    archive.write_bytes(BODY[:-1])
    with pytest.raises(HistoError, match=r"is damaged .*Delete it and run again"):
        public.fetch(kather, tmp_path)
    assert archive.is_file()
    archive.write_bytes(BODY)
    assert public.fetch(kather, tmp_path)[0].is_dir()
    assert server.asked == []
    assert left_in(tmp_path) == {ARCHIVE.folder, ARCHIVE.file}


def test_an_archive_of_the_user_beside_a_part_stays(server: Server, kather: PublicSet, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE.file).write_bytes(BODY)
    (tmp_path / PART).write_bytes(BODY[:9])
    (tmp_path / (PART + ".json")).write_text("{}")
    public.fetch(kather, tmp_path)
    assert (tmp_path / ARCHIVE.file).read_bytes() == BODY


def source_at(url: str, most: int = 1 << 20) -> download.Source:
    return download.Source(url, "a.zip", None, most, "Get it by hand")


def test_headers_that_are_no_numbers(server: Server, tmp_path: Path) -> None:
    """They count as absent: U+00B2 is a digit for str.isdigit, and int() takes at most 4,300 digits."""
    from email.message import Message

    for text in ("\u00b2", "9" * 5000, "-1", "1.5", ""):
        headers = Message()
        headers["Retry-After"] = text
        assert download._retry_after(headers) is None
        assert download._number(text) is None


@pytest.mark.parametrize("stated", [True, False])
def test_a_server_that_sends_too_much_is_left(server: Server, tmp_path: Path, stated: bool) -> None:
    """Without a length it might go on until the disk is full."""
    server.no_length = not stated
    with pytest.raises(HistoError, match=r"sends [0-9,]+ bytes or more, and a\.zip has fewer than 1,000\. Get it"):
        download.download(source_at(f"{server.url}/{ARCHIVE.file}", most=1000), tmp_path / "a.zip")
    assert left_in(tmp_path) == set()


def test_room_is_checked_while_a_download_without_a_length_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.no_length = True
    free = [1 << 40, 1]
    usage = lambda _: shutil._ntuple_diskusage(0, 0, free.pop(0))  # type: ignore[attr-defined]  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(download, "MARGIN", 1000)
    with pytest.raises(HistoError, match="Free some space"):
        download.download(source_at(f"{server.url}/{ARCHIVE.file}", most=1 << 30), tmp_path / "a.zip")


def test_an_answer_is_no_command_to_the_terminal(server: Server, kather: PublicSet, tmp_path: Path) -> None:
    server.statuses, server.reason = [404], "gone\x1b[2J"
    with pytest.raises(HistoError, match=r"answered 404 gone\[2J\."):
        public.fetch(kather, tmp_path)


@pytest.mark.parametrize("target", ["http://[", "http://a..b/x", "ftp://127.0.0.1/x"])
def test_redirects_to_what_is_no_address(server: Server, kather: PublicSet, tmp_path: Path, target: str) -> None:
    server.redirect = target
    with pytest.raises(HistoError, match=r"no address|which is not http or https"):
        public.fetch(kather, tmp_path)
    assert left_in(tmp_path) == set()


def test_a_mirror_that_is_no_address(kather: PublicSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTO_KATHER2016_URL", "http://[")
    with pytest.raises(UsageError, match=r"is not an http or https address\. Correct HISTO_KATHER2016_URL"):
        public.fetch(kather, tmp_path)


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 4), (429, 4)])
def test_server_errors(server: Server, kather: PublicSet, tmp_path: Path, status: int, requests: int) -> None:
    server.statuses = [status] * 9
    with pytest.raises(HistoError, match=rf"answered {status} .* by hand and put it at {tmp_path}"):
        public.fetch(kather, tmp_path)
    assert len(server.asked) == requests
    assert left_in(tmp_path) == set()


def test_a_busy_server_is_waited_for(server: Server, kather: PublicSet, tmp_path: Path) -> None:
    server.statuses = [429]
    assert public.fetch(kather, tmp_path)[0].is_dir()
    assert WAITED == [7.0]


def test_redirects(server: Server, kather: PublicSet, tmp_path: Path) -> None:
    server.redirect = server.url.replace("/files", "/elsewhere")
    server.stop_after = [100_000]
    assert public.fetch(kather, tmp_path)[0].is_dir()
    assert server.asked == [None, "bytes=100000-"]


def test_no_redirect_from_https_to_http() -> None:
    request = urllib.request.Request("https://a.example/x.zip")
    with pytest.raises(HistoError, match=r"leads to http://b.example/x.zip, which is not https"):
        download._NoDowngrade().redirect_request(
            request, io.BytesIO(), 302, "", http.client.HTTPMessage(), "http://b.example/x.zip"
        )


def test_no_network(tmp_path: Path, kather: PublicSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HISTO_KATHER2016_URL", "http://127.0.0.1:9")
    with pytest.raises(HistoError, match=r"could not be downloaded .*refused.*by hand"):
        public.fetch(kather, tmp_path)
    monkeypatch.setenv("HISTO_KATHER2016_URL", "file:///etc")
    with pytest.raises(UsageError, match=r"not an http.*Correct HISTO_KATHER2016_URL"):
        public.fetch(kather, tmp_path)


def test_one_mirror_for_all_sets(
    server: Server, kather: PublicSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HISTO_KATHER2016_URL")
    monkeypatch.setenv(public.MIRROR, server.url + "/")
    assert public.fetch(kather, tmp_path)[0].is_dir()


@pytest.mark.parametrize(("room", "what"), [(len(BODY) - 1, "download"), (len(BODY), "unpacked set")])
def test_full_disk(
    server: Server, kather: PublicSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, what: str
) -> None:
    """It is known before anything is written; what has arrived is kept."""

    def usage(folder: Path) -> object:
        used = sum(file.stat().st_size for file in Path(folder).iterdir())
        return shutil._ntuple_diskusage(0, 0, room - used)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(HistoError, match=rf"GB free, and the {what} needs .* Free some space, or .* HISTO_CACHE"):
        public.fetch(kather, tmp_path)
    assert left_in(tmp_path) == (set() if what == "download" else {ARCHIVE.file, PART + ".json"})
    monkeypatch.undo()
    if what == "unpacked set":  # the archive is nobody's but this program's: it goes, as it does without the failure
        monkeypatch.setattr(download, "MARGIN", 0)
        public.fetch(kather, tmp_path)
        assert left_in(tmp_path) == {ARCHIVE.folder}


def test_cache_that_cannot_be_written(tmp_path: Path, kather: PublicSet) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HistoError, match=r"cannot be written .* HISTO_CACHE"):
        public.fetch(kather, tmp_path / "file" / "cache")


def test_cache_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTO_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("HISTO_CACHE")
    assert cache_folder() == Path.home() / ".cache/histo-export"


def test_three_at_once(server: Server, kather: PublicSet, tmp_path: Path) -> None:
    threads = [threading.Thread(target=public.fetch, args=(kather, tmp_path)) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(server.asked) == 1
    assert left_in(tmp_path) == {ARCHIVE.folder}


def test_medmnist(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its .npz becomes arrays; its splits are kept; the crop is the tile, which is smaller than 128 pixels."""
    body = medmnist(64)
    server.files["pathmnist_64.npz"] = body
    monkeypatch.setenv("HISTO_PATHMNIST_URL", server.url)
    replace_record(monkeypatch, SETS["pathmnist"], pathmnist_64=hashlib.md5(body).hexdigest())
    data = open_data("pathmnist", cache=tmp_path)
    assert data.classes[0] == "adipose"
    assert data.classes[8] == "colorectal adenocarcinoma epithelium"
    assert (data.tile_size, data.mpp, data.one_size) == (64, 1.75, True)
    assert [len(part) for part in (data.train, data.val, data.test)] == [18, 18, 18]
    assert data.train.labels.tolist() == np.repeat(np.arange(9), 2).tolist()
    assert (data.val.tile(3) == noise_tile(1, 3, side=64)).all()
    assert open_data("pathmnist", cache=tmp_path, classes=["debris", "mucus"]).train.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(UsageError, match="split by its publisher"):
        open_data("pathmnist", cache=tmp_path, split=(0.6, 0.2, 0.2))


def test_medmnist_with_pickles_or_without_an_array(tmp_path: Path) -> None:
    archive = tmp_path / "a.npz"
    labels = np.array([{}], dtype=object)
    parts = {f"{split}_images": np.zeros((1, 4, 4, 3), np.uint8) for split in ("train", "val", "test")}
    np.savez(archive, **parts, train_labels=labels, val_labels=labels, test_labels=labels)
    with pytest.raises(HistoError, match=r"not a sound zip archive .*allow_pickle"):
        unpack.unpack_medmnist(archive, tmp_path / "out", ["a"])
    labels = np.zeros((1, 2), np.uint8)
    np.savez(archive, **parts, train_labels=labels, val_labels=labels, test_labels=labels)
    with pytest.raises(HistoError, match=r"not a sound zip archive .*labels of shape"):
        unpack.unpack_medmnist(archive, tmp_path / "out", ["a"])
    np.savez(archive, **parts)
    with pytest.raises(HistoError, match="holds no array test_labels"):
        unpack.unpack_medmnist(archive, tmp_path / "out", ["a"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_train_and_test_of_different_patients(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nct-crc-he is trained on one archive and tested on the other."""
    record = SETS["nct-crc-he"]
    sums = {}
    for archive, tiles in zip(record.archives, (10, 3), strict=True):
        body = zipped(dict.fromkeys(record.classes, tiles), archive.folder, side=8)
        server.files[archive.file] = body
        sums[archive.folder] = hashlib.md5(body).hexdigest()
    record = replace_record(monkeypatch, record, **sums)
    replace_record(monkeypatch, SETS["crc-val-he"], **sums)
    monkeypatch.setenv(public.MIRROR, server.url)
    data = open_data("nct-crc-he", cache=tmp_path, crop=8)
    assert [len(part) for part in (data.train, data.val, data.test)] == [81, 9, 27]
    assert {name.split("/")[0] for name in data.test.names} == {"CRC-VAL-HE-7K"}
    assert {name.split("/")[0] for part in (data.train, data.val) for name in part.names} == {"NCT-CRC-HE-100K"}
    assert not set(data.train.names) & set(data.val.names)
    assert "50 other patients" in data.notes[-1]
    assert len(open_data("crc-val-he", cache=tmp_path, crop=8).test) == 9
    assert len(server.asked) == 2, "an archive of two sets is downloaded once"
    assert public.remove(record, tmp_path) == ["crc-val-he"]
    assert public.state_of(record, tmp_path)[0] == "missing"


def test_a_set_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No program can download LC25000: how to get it is told, and it is opened from where it was put."""
    record = SETS["lc25000"]
    with pytest.raises(
        HistoError, match=r"cannot be downloaded by a program. To get it, download LC25000.zip from https.*run again"
    ):
        public.fetch(record, tmp_path)
    body = zipped({f"lung_image_sets/{c}": 7 for c in record.classes}, "lung_colon_image_set", side=8, suffix="jpeg")
    (tmp_path / "LC25000.zip").write_bytes(body)
    data = open_data("lc25000", cache=tmp_path, crop=8)
    assert data.classes == ("colon_aca", "colon_n", "lung_aca", "lung_n", "lung_scc")
    assert "LC25000.zip was not checked: its publisher states no checksum" in capsys.readouterr().err
    assert data.mpp is None
    assert "turned copies of training tiles are in the test" in data.notes[-1]
    assert (tmp_path / "LC25000.zip").is_file()


def test_the_model_card_and_the_report_name_the_set(
    server: Server, kather: PublicSet, tmp_path: Path, bundle: Path
) -> None:
    from histo_export.export.bundle import open_bundle, spec_of

    data = open_data("kather2016", cache=tmp_path, split=(4, 1, 1))
    facts = data_facts(data)
    assert (facts["name"], facts["licence"], facts["citation"]) == ("kather2016", "CC BY 4.0", data.citation)
    opened = open_bundle(bundle)
    block = opened.config.histo.model_copy(update={"training": {"data": facts}})
    card = model_card(opened.config.model_copy(update={"histo": block}), spec_of(opened))
    assert "- Licence of the data: CC BY 4.0" in card
    assert f"- Cite the data: {data.citation}" in card


# --- histo data ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HISTO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def listed(histo: Histo) -> dict[str, Any]:
    code, out, _ = histo("data", "--json")
    assert code == 0
    return {each["name"]: each for each in json.loads(out)["sets"]}


def test_histo_data(histo: Histo, server: Server, kather: PublicSet, cache: Path) -> None:
    code, out, err = histo("data")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert set(SETS) <= rows.keys()
    assert "missing, by hand" in rows["lc25000"]
    assert "11.7 GB" not in rows["nct-crc-he"]
    assert "12.5 GB" in rows["nct-crc-he"]
    assert not cache.exists(), "a list writes nothing"
    server.stop_after = [100_000, 0, 0, 0, 0]
    assert histo("data", "kather2016")[0] == 1
    assert (listed(histo)["kather2016"]["state"], listed(histo)["kather2016"]["bytes_here"]) == ("part", 100_000)
    code, out, err = histo("data", "kather2016")
    assert code == 0
    assert all(
        text in out for text in (str(cache / ARCHIVE.folder), "CC BY 4.0", "Scientific Reports", kather.note[:40])
    )
    assert listed(histo)["kather2016"]["state"] == "complete"


def test_histo_data_verify_and_remove(histo: Histo, server: Server, kather: PublicSet, cache: Path) -> None:
    assert histo("data", "--verify")[:2] == (0, "No public set is in the cache.\n")
    code, _, err = histo("data", "kather2016", "--verify")
    assert (code, "is not in the cache. Run histo data kather2016" in err) == (1, True)
    histo("data", "kather2016")
    assert histo("data", "--verify")[:2] == (0, "kather2016: every file is as it was unpacked\n")
    tiles = sorted((cache / ARCHIVE.folder / "01_TUMOR").iterdir())
    tiles[0].write_bytes(tiles[0].read_bytes()[:-1] + b"?")
    tiles[1].unlink()
    (tiles[0].parent / "new.tif").touch()
    code, out, err = histo("data", "--verify", "kather2016")
    assert (code, out) == (1, "kather2016: 3 faults\n")
    assert all(text in err for text in ("is missing", "was added", "has changed", "Run histo data --remove kather2016"))
    shutil.rmtree(cache / ARCHIVE.folder / "01_TUMOR")
    assert listed(histo)["kather2016"]["state"] == "damaged"
    with pytest.raises(HistoError, match=r"lacks 01_TUMOR. Run histo data --remove kather2016"):
        open_data("kather2016")
    code, out, _ = histo("data", "--remove", "kather2016")
    assert (code, out) == (0, "Removed kather2016 from the cache.\n")
    assert left_in(cache) == set()


def test_histo_data_of_an_older_version(histo: Histo, kather: PublicSet, cache: Path) -> None:
    """It is used as it is; only its files can't be compared with a record."""
    unpack_to = cache / ARCHIVE.folder
    with zipfile.ZipFile(io.BytesIO(BODY)) as file:
        for member in file.namelist():
            place = unpack_to / member.partition("/")[2]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read(member))
    assert listed(histo)["kather2016"]["state"] == "complete"
    assert len(open_data("kather2016", split=(4, 1, 1)).train) == 24
    code, _, err = histo("data", "--verify")
    assert (code, "has no record of its files" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kather2106"], "The set kather2106: is unknown. Did you mean kather2016?"),
        (["--remove"], "--remove: needs the name of a set"),
        (["--remove", "--verify", "kather2016"], "--verify: contradicts --remove"),
    ],
)
def test_histo_data_used_wrongly(histo: Histo, cache: Path, arguments: list[str], message: str) -> None:
    code, out, err = histo("data", *arguments)
    assert (code, out) == (2, "")
    assert message in err


# --- unpacking -------------------------------------------------------------------------------------------------------


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("a/01_TUMOR/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("../evil.tif", "leads out"),
        ("a/../../evil.tif", "leads out"),
        ("/tmp/evil.tif", "absolute"),
        ("C:/evil.tif", "absolute or foreign"),
        ("..\\evil.tif", "absolute or foreign"),
        ("a/01_TUMOR/new\nline.tif", "cannot be printed"),
        (link(), "is a link"),
    ],
)
def test_unsafe_members(tmp_path: Path, member: str | zipfile.ZipInfo, reason: str) -> None:
    cache = tmp_path / "a" / "cache"
    cache.mkdir(parents=True)
    archive = cache / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/01_TUMOR/ok.tif", b"x")
        file.writestr(member, b"/etc/passwd")
    with pytest.raises(HistoError, match=f"not safe to unpack: .*{reason}"):
        unpack.unpack_folders(archive, cache / "out", {"01_TUMOR"})
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.zip"]


def test_archive_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/01_TUMOR/zeros.tif", bytes(1 << 20))
    monkeypatch.setattr(unpack, "MAX_UNPACKED", 1 << 19)
    with pytest.raises(HistoError, match="1,048,576 bytes in all"):
        unpack.unpack_folders(archive, tmp_path / "out", {"01_TUMOR"})
    monkeypatch.setattr(unpack, "MAX_UNPACKED", 1 << 30)
    # One that lies about its size in the directory is caught by zipfile's own count or checksum.
    lying = archive.read_bytes().replace((1 << 20).to_bytes(4, "little"), (1 << 10).to_bytes(4, "little"))
    archive.write_bytes(lying)
    with pytest.raises(HistoError, match="not a sound zip"):
        unpack.unpack_folders(archive, tmp_path / "out", {"01_TUMOR"})
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as file:
        file.writestr("a/01_TUMOR/ok.tif", b"x")
    with pytest.raises(HistoError, match="is compressed by another method than Deflate"):
        unpack.unpack_folders(tmp_path / "a.zip", tmp_path / "out", {"01_TUMOR"})


def test_a_member_before_the_begin_of_the_archive(tmp_path: Path) -> None:
    """Its place, which is seeked, is negative: the archive is at fault, and not the cache."""
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/01_TUMOR/ok.tif", b"x")
    content = bytearray(archive.read_bytes())
    content[-6:-2] = (0x7FFFFFFF).to_bytes(4, "little")  # where the directory is said to begin
    archive.write_bytes(content)
    with pytest.raises(HistoError, match="not a sound zip"):
        unpack.unpack_folders(archive, tmp_path / "out", {"01_TUMOR"})


def test_not_a_zip_or_another_one(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"<html>please log in</html>")
    with pytest.raises(HistoError, match="not a sound zip"):
        unpack.unpack_folders(archive, tmp_path / "out", {"a"})
    for names, message in (
        (["other/a.tif"], "holds no folder a"),
        (["x/a/1.tif", "y/a/1.tif"], "two files of one name"),
    ):
        with zipfile.ZipFile(archive, "w") as file:
            for name in names:
                file.writestr(name, b"x")
        with pytest.raises(HistoError, match=message):
            unpack.unpack_folders(archive, tmp_path / "out", {"a"})
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_an_archive_has_a_page(tmp_path: Path) -> None:
    """What the message of a failed download tells people to do."""
    by_hand = public._by_hand(
        Archive("a.zip", "a", "https://a.example", "https://a.example/files", "0" * 32, 1), tmp_path
    )
    assert by_hand.startswith("Run again to go on, or download a.zip from https://a.example by hand and put it at")
