"""Downloads from a server that misbehaves: resumed or begun anew, never accepted unless they are right."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import httpx2
import pytest

from capbench.base import downloads
from capbench.base.downloads import Remote, download
from capbench.base.errors import CapbenchError, StoppedError
from tests.servers import Server, serving, silent, status, well, whole

ROOT = Path(__file__).parents[1]
BODY = b"PK" + Random(0).randbytes(300_000)
OTHER = b"PK" + Random(1).randbytes(300_000)
HASH = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0.001)
    monkeypatch.setattr(downloads, "LONGEST_PAUSE", 0.01)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def remote(*servers: Server, body: bytes = BODY) -> Remote:
    return Remote(tuple(f"{server.address}/a.zip" for server in servers), hashlib.sha256(body).hexdigest(), len(body))


def left(folder: Path) -> list[str]:
    """What lies in the folder, but for locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_whole_file_gets_its_name_and_its_progress_is_shown(tmp_path, capsys):
    with serving(well(BODY)) as server:
        path = download(remote(server), tmp_path / "sub" / "a.zip")
    assert path.read_bytes() == BODY
    assert left(tmp_path / "sub") == ["a.zip"]
    assert "a.zip" in capsys.readouterr().err
    assert server.ranges == [None]


@pytest.mark.fault("download cut off")
def test_a_cut_connection_is_continued_where_it_broke(tmp_path):
    with serving(well(BODY, 100_000), well(BODY, 200_000), well(BODY)) as server:
        assert download(remote(server), tmp_path / "a.zip").read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]


@pytest.mark.fault("server that cannot continue a download")
@pytest.mark.parametrize(
    "answers",
    [
        (well(BODY, 100_000), whole(BODY)),  # ignores Range
        (well(OTHER, 100_000), well(BODY)),  # has another file by now, and knows If-Range
        (whole(BODY[:100_000], Content_Length=len(BODY), ETag='W/"weak"'), well(BODY)),  # what cannot be continued
        (well(BODY, 100_000), status(206, Content_Range="bytes 5-9/10"), well(BODY)),  # another range than was asked
        (well(BODY, 100_000), status(416), well(BODY)),
        (status(503), status(429, Retry_After=1000), well(BODY)),
    ],
    ids=["no-range", "changed", "weak-etag", "other-range", "416", "503-429"],
)
def test_what_cannot_be_continued_begins_anew(tmp_path, answers):
    with serving(*answers) as server:
        assert download(remote(server), tmp_path / "a.zip").read_bytes() == BODY
    assert len(server.asked) == len(answers)
    assert left(tmp_path) == ["a.zip"]


@pytest.mark.fault("file that changes during a download")
def test_pieces_of_two_files_are_seen_and_fetched_once_more(tmp_path):
    def careless(request):  # continues another file without a look at If-Range
        request.head(206, Content_Length=len(BODY) - 1000, Content_Range=f"bytes 1000-{len(BODY) - 1}/{len(BODY)}")
        request.wfile.write(BODY[1000:])

    with serving(well(OTHER, 1000), careless, well(BODY)) as server:
        assert download(remote(server), tmp_path / "a.zip").read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-", None]


@pytest.mark.fault("wrong answer of a server")
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (whole(OTHER), rf"the answer is of no type, 300,002 bytes with SHA-256 \w{{16}}... instead of {HASH[:16]}"),
        (whole(BODY[:9], Content_Length=9), "the server offers 9 bytes, and 300,002 are published"),
        (whole(BODY[:900], Content_Length=len(BODY)), "no whole answer"),
        (lambda request: (request.head(), request.wfile.write(BODY[:900])), "900 of 300,002 bytes came"),
        (lambda request: (request.head(), request.wfile.write(BODY + OTHER)), "more than the 300,002 bytes"),
        (whole(BODY, Content_Type="text/html"), "the answer is text/html that begins with b'PK"),
        (whole(b"<!DOCTYPE html>".ljust(len(BODY))), "begins with b'<!DOCTYPE html>.*and no file"),
        (whole(b"%PDF".ljust(len(BODY))), "begins with b'%PDF"),
        (status(404), "the server answers 404 Not Found"),
        (status(503), "the server answers 503"),
        (status(302, Location="file:///etc/hostname"), "redirects to file:///etc/hostname, which is refused"),
        (status(302, Location="ftp://127.0.0.1/a.zip"), "redirects to ftp://127.0.0.1/a.zip, which is refused"),
        (status(302, Location="/a.zip"), "redirects more than 5 times"),
        (status(302, Location="http://[/"), "no address to download from|no whole answer"),
    ],
)
def test_a_wrong_answer_is_never_accepted_and_any_mirror_is_as_good(tmp_path, answer, said):
    with serving(answer) as server, pytest.raises(CapbenchError, match=said) as caught:
        download(remote(server), tmp_path / "a.zip")
    assert f"cannot download {server.address}/a.zip" in str(caught.value)
    assert f"Any mirror's a.zip whose SHA-256 is {HASH} is as good" in str(caught.value)
    assert "a.zip" not in left(tmp_path)
    with serving(answer) as bad, serving(well(BODY)) as good:
        assert download(remote(bad, good), tmp_path / "a.zip").read_bytes() == BODY
    assert left(tmp_path) == ["a.zip"]


def test_a_file_of_a_wrong_hash_leaves_nothing(tmp_path):
    with serving(whole(OTHER)) as server, pytest.raises(CapbenchError):
        download(remote(server), tmp_path / "a.zip")
    assert left(tmp_path) == []
    assert len(server.asked) == 1


def test_the_tries_are_bounded_but_a_server_that_brings_something_is_tried_further(tmp_path, monkeypatch):
    with serving(well(BODY, 100)) as server, pytest.raises(CapbenchError):
        download(remote(server), tmp_path / "a.zip")
    assert len(server.asked) == downloads.TRIES
    monkeypatch.setattr(downloads, "PROGRESS", 20_000)
    pieces = [well(BODY, end) for end in range(30_000, len(BODY), 30_000)]
    assert len(pieces) > downloads.TRIES
    with serving(*pieces, well(BODY)) as server:
        assert download(remote(server), tmp_path / "a.zip").read_bytes() == BODY


@pytest.mark.fault("redirect to another scheme")
def test_a_redirect_from_https_to_http_is_refused_and_one_to_https_is_followed(tmp_path, monkeypatch):
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/back":
            return httpx2.Response(301, headers={"Location": f"http://host{request.url.path}"})
        if request.url.scheme == "http":
            return httpx2.Response(301, headers={"Location": "https://host/a.zip"})
        return httpx2.Response(200, stream=httpx2.ByteStream(BODY))

    monkeypatch.setattr(downloads, "_client", lambda: httpx2.Client(transport=httpx2.MockTransport(answer)))
    with pytest.raises(CapbenchError, match="redirects to http://host/back, which is refused"):
        download(Remote(("https://host/back",), HASH), tmp_path / "a.zip")
    assert download(Remote(("http://host/a.zip",), HASH), tmp_path / "a.zip").read_bytes() == BODY


@pytest.mark.fault("silent or slow server")
def test_a_server_that_says_nothing_or_sends_too_slowly_is_left_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TRIES", 1)
    monkeypatch.setattr(downloads, "TIMEOUT", 0.1)
    with serving(silent(0.5)) as server, pytest.raises(CapbenchError, match=r"no whole answer \(timed out\)"):
        download(remote(server), tmp_path / "a.zip")
    monkeypatch.setattr(downloads, "PATIENCE", 0.2)
    trickle = well(BODY, pause=0.03, piece=10)
    with serving(trickle) as server, pytest.raises(CapbenchError, match=r"the server sends \d+ bytes a second"):
        download(remote(server), tmp_path / "a.zip")
    assert (tmp_path / "a.zip.part").stat().st_size > 0


@pytest.mark.fault("disk full in a download")
def test_a_disk_without_room_is_seen_before_and_a_full_one_keeps_what_came(tmp_path):
    huge = 10**16
    with (
        serving(whole(BODY, Content_Length=huge)) as server,
        pytest.raises(CapbenchError, match=r"a\.zip needs 10,000,000\.00 GB and .* GB free: make room"),
    ):
        download(replace(remote(server), size=huge), tmp_path / "a.zip")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving(well(BODY)) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            with pytest.raises(CapbenchError, match=r"cannot write .*a\.zip\.part: File too large; what has come is"):
                download(remote(server), tmp_path / "a.zip")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert download(remote(server), tmp_path / "a.zip").read_bytes() == BODY
    assert server.ranges == [None, "bytes=200000-"]


@pytest.mark.fault("two downloads of one file")
def test_two_downloads_of_one_file_ask_once(tmp_path):
    with serving(well(BODY, pause=0.01, piece=50_000)) as server:
        threads = [threading.Thread(target=download, args=(remote(server), tmp_path / "a.zip")) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert len(server.asked) == 1


def test_the_proxy_of_the_environment_is_asked(tmp_path, monkeypatch):
    with serving(well(BODY)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.address)
        monkeypatch.setenv("http_proxy", proxy.address)
        address = "http://data.invalid/a.zip"
        assert download(Remote((address,), HASH), tmp_path / "a.zip").read_bytes() == BODY
    assert proxy.asked == [(address, None)]


@pytest.mark.fault("no network")
def test_without_a_network_it_is_said_what_is_missing(tmp_path):
    with serving(well(BODY)) as server:
        pass  # nobody listens there any more
    with pytest.raises(CapbenchError, match=r"cannot download .*no whole answer.*Any mirror's a\.zip"):
        download(remote(server), tmp_path / "a.zip")
    assert left(tmp_path) == []


def test_what_was_whole_when_it_was_stopped_is_not_asked_for_again(tmp_path):
    (tmp_path / "a.zip.part").write_bytes(BODY)
    with serving(well(BODY)) as server:
        assert download(remote(server), tmp_path / "a.zip").read_bytes() == BODY
        (tmp_path / "b.zip.part").write_bytes(OTHER)  # of the right length
        assert download(remote(server), tmp_path / "b.zip").read_bytes() == BODY
    assert server.ranges == [None]
    assert left(tmp_path) == ["a.zip", "b.zip"]


@pytest.mark.fault("kill -9 or SIGTERM in a download")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_download_that_was_killed_or_stopped_goes_on_from_what_had_come(number, tmp_path):
    program = f"""
import sys
from pathlib import Path
from capbench.base.downloads import Remote, download
from capbench.base.errors import StoppedError
try: download(Remote((sys.argv[1],), {HASH!r}), Path(sys.argv[2]))
except StoppedError: sys.exit(75)
"""
    path = tmp_path / "a.zip"
    with serving(well(BODY, pause=0.05, piece=20_000), well(BODY)) as server:
        words = [sys.executable, "-c", program, f"{server.address}/a.zip", str(path)]
        process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
        part, end = tmp_path / "a.zip.part", time.monotonic() + 30
        while not (part.is_file() and part.stat().st_size > 50_000) and time.monotonic() < end:
            time.sleep(0.005)
        process.send_signal(number)
        assert process.wait(30) == (-9 if number == signal.SIGKILL else 75)
        came = part.stat().st_size
        assert 0 < came < len(BODY)
        assert download(remote(server), path).read_bytes() == BODY
    assert server.ranges == [None, f"bytes={came}-"]
    assert left(tmp_path) == ["a.zip"]


@pytest.mark.fault("signal while a server is awaited")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_ends_a_download_while_it_waits_for_an_answer(number, tmp_path):
    def stop(request):
        os.kill(os.getpid(), number)
        time.sleep(0.2)

    before = signal.getsignal(number)
    with serving(stop) as server, pytest.raises(StoppedError):
        download(remote(server), tmp_path / "a.zip")
    assert signal.getsignal(number) is before


@pytest.mark.fault("damaged note of a partial download")
def test_a_damaged_note_of_the_part_begins_anew(tmp_path):
    (tmp_path / "a.zip.part").write_bytes(OTHER[:100])
    (tmp_path / "a.zip.part.json").write_text("{")
    with serving(well(BODY)) as server:
        assert download(remote(server), tmp_path / "a.zip").read_bytes() == BODY
    assert server.ranges == [None]
