"""Fetching archives: bit for bit, from servers that cut, lie, redirect, crawl or serve something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import edgepack
from edgepack.cli import execute
from edgepack.errors import ArchiveError, CheckFailedError, IntegrityError, NetworkError, UsageError
from edgepack.packaging.archive import open_archive
from edgepack.packaging.signing import generate_key, sign_archive
from edgepack.packaging.trust.signatures import SignatureState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from file_server import FileServer, Served


def partials(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


@pytest.fixture
def archive(make_archive: Callable[..., Path]) -> Path:
    return make_archive()


@pytest.fixture
def served(server: FileServer, archive: Path) -> Served:
    return server.add("/model.edgepack", archive.read_bytes())


@pytest.mark.parametrize("connections", [1, 4])
def test_what_is_fetched_is_the_served_file_and_each_byte_is_sent_once(
    server: FileServer, served: Served, here: Path, connections: int
) -> None:
    result = edgepack.fetch(server.url("/model.edgepack"), here, connections=connections)
    assert (here / "model.edgepack").read_bytes() == served.content
    assert result.bytes == len(served.content)
    assert served.sent_twice() <= 2 * (1 << 16) + 64  # head and tail are read to open it
    assert not partials(here)


@pytest.mark.parametrize("cut", [0, 1, 63, 100_000])
def test_a_cut_connection_goes_on_at_the_byte_where_it_was_cut(
    server: FileServer, served: Served, here: Path, cut: int
) -> None:
    edgepack.fetch(server.url("/model.edgepack"), here / "whole.edgepack", connections=1)
    twice, served.spans = served.sent_twice(), []
    served.cut_after = [cut] * 5
    edgepack.fetch(server.url("/model.edgepack"), here / "cut.edgepack", connections=1)
    assert (here / "cut.edgepack").read_bytes() == served.content
    assert abs(served.sent_twice() - twice) <= 2 * 64  # the header, which opening asks for twice


def test_a_fetch_that_was_given_up_is_continued_and_keeps_all_records_that_came(
    server: FileServer, served: Served, here: Path
) -> None:
    served.cut_after = [1 << 20] * 5 + [0] * 100
    with pytest.raises(NetworkError, match="7 times"):
        edgepack.fetch(server.url("/model.edgepack"), here, connections=1)
    assert [path.name for path in here.iterdir()] == partials(here)
    served.cut_after, served.spans = [], []
    result = edgepack.fetch(server.url("/model.edgepack"), here, connections=1)
    assert (here / "model.edgepack").read_bytes() == served.content
    assert result.kept_bytes > 1 << 20
    assert result.received_bytes + result.kept_bytes < len(served.content) + (1 << 17)


def test_a_fetch_stopped_at_99_percent_fetches_at_most_one_chunk_twice(
    server: FileServer, served: Served, here: Path, archive: Path
) -> None:
    with open_archive(archive) as opened:
        last = list(opened.chunks(opened.main))[-1]
    open_bytes = 64 + (1 << 16)
    body = last.offset + last.record_bytes - 64
    served.cut_after = [64, 64, 1 << 16, int(body * 0.99), *[0] * 100]
    with pytest.raises(NetworkError):
        edgepack.fetch(server.url("/model.edgepack"), here, connections=1)
    served.cut_after = []
    edgepack.fetch(server.url("/model.edgepack"), here, connections=1)
    assert (here / "model.edgepack").read_bytes() == served.content
    assert served.sent_twice() <= (2 << 20) + 3 * open_bytes


def test_damage_in_what_an_interrupted_fetch_left_is_found_and_fetched_again(
    server: FileServer, served: Served, here: Path
) -> None:
    served.cut_after = [1 << 30, 1 << 30, 1 << 30, 2 << 20, *[0] * 100]
    with pytest.raises(NetworkError):
        edgepack.fetch(server.url("/model.edgepack"), here, connections=1)
    (name,) = partials(here)
    with (here / name).open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"\xff" * 100)
    served.cut_after = []
    edgepack.fetch(server.url("/model.edgepack"), here)
    assert (here / "model.edgepack").read_bytes() == served.content


def test_one_wrong_byte_is_asked_for_again_and_a_server_that_insists_is_an_error(
    server: FileServer, served: Served, here: Path
) -> None:
    served.wrong_at = (1 << 20, 1)
    edgepack.fetch(server.url("/model.edgepack"), here / "a.edgepack")
    assert (here / "a.edgepack").read_bytes() == served.content
    served.wrong_at = (1 << 20, 99)
    with pytest.raises(NetworkError, match="differ from their digest"):
        edgepack.fetch(server.url("/model.edgepack"), here / "b.edgepack")
    assert not (here / "b.edgepack").exists()


def test_a_mirror_takes_over_from_one_that_is_wrong_or_gone(server: FileServer, served: Served, here: Path) -> None:
    bad = server.add("/bad/model.edgepack", served.content)
    bad.wrong_at = (1 << 20, 99)
    notes: list[str] = []
    edgepack.fetch(
        server.url("/bad/model.edgepack"), here, mirrors=[server.url("/model.edgepack")], connections=2,
        note=notes.append,
    )  # fmt: skip
    assert (here / "model.edgepack").read_bytes() == served.content
    assert any("going on with" in note for note in notes)
    edgepack.fetch(server.url("/gone/x.edgepack"), here / "x.edgepack", mirrors=[server.url("/model.edgepack")])
    assert (here / "x.edgepack").read_bytes() == served.content


def test_a_mirror_with_another_version_gives_no_byte_of_it(
    server: FileServer, served: Served, here: Path, make_archive: Callable[..., Path]
) -> None:
    server.add("/old/model.edgepack", make_archive("old.edgepack", seed=2).read_bytes())
    edgepack.fetch(server.url("/model.edgepack"), here, mirrors=[server.url("/old/model.edgepack")], connections=4)
    assert (here / "model.edgepack").read_bytes() == served.content


def test_an_archive_that_is_exchanged_meanwhile_is_fetched_in_its_new_version(
    server: FileServer, served: Served, here: Path, make_archive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepack.edge.fetch import archive_fetch

    new = make_archive("new.edgepack", seed=2).read_bytes()
    real = archive_fetch.open_first

    def then_exchanged(request: archive_fetch.FetchRequest) -> object:
        archive = real(request)
        served.content = new
        return archive

    monkeypatch.setattr(archive_fetch, "open_first", then_exchanged)
    notes: list[str] = []
    edgepack.fetch(server.url("/model.edgepack"), here, note=notes.append)
    assert (here / "model.edgepack").read_bytes() == new
    assert any("another version" in note for note in notes)


@pytest.mark.parametrize("lie", [{"total_lie": 5}, {"total_lie": -5}, {"shift": 1}])
def test_a_server_that_lies_about_ranges_or_lengths_is_an_error(
    server: FileServer, served: Served, here: Path, lie: dict[str, int]
) -> None:
    for name, value in lie.items():
        setattr(served, name, value)
    with pytest.raises((NetworkError, ArchiveError, IntegrityError)):
        edgepack.fetch(server.url("/model.edgepack"), here)
    assert not list(here.glob("*.edgepack"))


@pytest.mark.parametrize("length_lie", [0, 7])
def test_a_server_without_ranges_is_read_in_one_go_and_a_cut_begins_again(
    server: FileServer, served: Served, here: Path, length_lie: int
) -> None:
    served.ranges, served.cut_after, served.total_lie = False, [100, 100_000], length_lie
    notes: list[str] = []
    if length_lie:
        with pytest.raises((NetworkError, ArchiveError)):
            edgepack.fetch(server.url("/model.edgepack"), here, note=notes.append, timeout=0.5)
        assert not list(here.iterdir())
    else:
        edgepack.fetch(server.url("/model.edgepack"), here, note=notes.append)
        assert (here / "model.edgepack").read_bytes() == served.content
    assert any("whole files only" in note for note in notes)


def test_damage_is_found_on_a_server_without_ranges_too(server: FileServer, served: Served, here: Path) -> None:
    served.ranges, served.wrong_at = False, (1 << 20, 99)
    with pytest.raises(IntegrityError):
        edgepack.fetch(server.url("/model.edgepack"), here)
    assert not list(here.iterdir())


def test_redirects_are_followed_but_never_to_files(server: FileServer, served: Served, here: Path) -> None:
    server.add("/moved.edgepack", b"").redirect = server.url("/model.edgepack")
    edgepack.fetch(server.url("/moved.edgepack"), here)
    assert (here / "moved.edgepack").read_bytes() == served.content
    server.add("/trap.edgepack", b"").redirect = "file:///etc/passwd"
    with pytest.raises(NetworkError):
        edgepack.fetch(server.url("/trap.edgepack"), here)
    server.add("/loop.edgepack", b"").redirect = server.url("/loop.edgepack")
    with pytest.raises(NetworkError):
        edgepack.fetch(server.url("/loop.edgepack"), here)


def test_a_busy_server_is_waited_for_and_a_refusal_is_said(server: FileServer, served: Served, here: Path) -> None:
    served.statuses = [503, 429, 500]
    edgepack.fetch(server.url("/model.edgepack"), here)
    assert (here / "model.edgepack").read_bytes() == served.content
    for status in (403, 410):
        served.statuses = [status]
        with pytest.raises(NetworkError, match=str(status)):
            edgepack.fetch(server.url("/model.edgepack"), here / "b.edgepack")


def test_a_stalled_server_counts_as_cut(server: FileServer, served: Served, here: Path) -> None:
    served.pause = 1.0
    with pytest.raises(NetworkError, match="no answer in time"):
        edgepack.fetch(server.url("/model.edgepack"), here, timeout=0.1)


def test_a_slow_mirror_leaves_the_work_to_the_quick_one(server: FileServer, served: Served, here: Path) -> None:
    slow = server.add("/slow/model.edgepack", served.content)
    slow.pause = 0.05
    import edgepack.edge.fetch.stored_records as stored

    stored_run, stored.RUN_BYTES = stored.RUN_BYTES, 1 << 20
    try:
        edgepack.fetch(server.url("/model.edgepack"), here, mirrors=[server.url("/slow/model.edgepack")], connections=2)
    finally:
        stored.RUN_BYTES = stored_run
    assert (here / "model.edgepack").read_bytes() == served.content
    assert 0 < slow.sent < served.sent


def test_signatures_are_judged_before_the_body_is_fetched(
    server: FileServer, archive: Path, here: Path, tmp_path: Path
) -> None:
    for name in ("author", "stranger"):
        generate_key(tmp_path / name)
    sign_archive(archive, tmp_path / "author")
    served = server.add("/signed.edgepack", archive.read_bytes())
    with pytest.raises(CheckFailedError, match="stranger"):
        edgepack.fetch(server.url("/signed.edgepack"), here, trusted=[tmp_path / "stranger.pub"])
    assert served.sent <= 64 * 2 + (1 << 16)
    assert not list(here.iterdir())
    result = edgepack.fetch(server.url("/signed.edgepack"), here, trusted=[tmp_path / "author.pub"])
    assert result.signature is SignatureState.TRUSTED


def test_a_sha256_that_differs_is_an_error_and_one_that_fits_is_accepted(
    server: FileServer, served: Served, here: Path
) -> None:
    import hashlib

    right = hashlib.sha256(served.content).hexdigest()
    edgepack.fetch(server.url("/model.edgepack"), here / "a.edgepack", sha256=right.upper())
    with pytest.raises(IntegrityError, match="expected SHA-256"):
        edgepack.fetch(server.url("/model.edgepack"), here / "b.edgepack", sha256="0" * 64)
    assert not (here / "b.edgepack").exists()
    with pytest.raises(UsageError, match="64 hexadecimal"):
        edgepack.fetch(server.url("/model.edgepack"), here / "c.edgepack", sha256="12")


@pytest.mark.parametrize("content", [b"", b"<html>not here</html>" * 50, b"\x89EPK\r\n\x1a\n" + b"\0" * 500])
def test_what_is_no_archive_leaves_nothing(server: FileServer, here: Path, content: bytes) -> None:
    server.add("/model.edgepack", content)
    with pytest.raises((NetworkError, ArchiveError, IntegrityError)):
        edgepack.fetch(server.url("/model.edgepack"), here)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x.edgepack", "model.edgepack", "http://", "http://h/a b", "http://h:0/x"]
)
def test_addresses_other_than_http_are_refused(url: str, here: Path) -> None:
    with pytest.raises(UsageError, match="expected an address"):
        edgepack.fetch(url, here)


def test_names_that_leave_the_folder_are_refused(server: FileServer, here: Path) -> None:
    for url in ("http://127.0.0.1:9/", "http://127.0.0.1:9/..", "http://127.0.0.1:9/a%2F..", "http://127.0.0.1:9/%00"):
        with pytest.raises(UsageError, match="no name for a file"):
            edgepack.fetch(url, here)


def test_another_file_of_that_name_is_replaced_only_when_asked(server: FileServer, served: Served, here: Path) -> None:
    (here / "model.edgepack").write_bytes(b"mine")
    with pytest.raises(UsageError, match="is there already"):
        edgepack.fetch(server.url("/model.edgepack"), here)
    assert (here / "model.edgepack").read_bytes() == b"mine"
    edgepack.fetch(server.url("/model.edgepack"), here, force=True)
    assert (here / "model.edgepack").read_bytes() == served.content


def test_offline_forbids_even_fetch_and_update(
    server: FileServer, served: Served, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url("/model.edgepack")
    assert execute(["fetch", url, "-o", str(here), "--offline"]) == 2
    monkeypatch.setenv("EDGEPACK_OFFLINE", "1")
    assert execute(["fetch", url, "-o", str(here)]) == 2
    assert execute(["fetch", "hf:org/name", "-o", str(here)]) == 2
    assert execute(["update", str(here / "model.edgepack")]) == 2
    assert not served.requests
    monkeypatch.setenv("EDGEPACK_OFFLINE", "0")
    assert execute(["fetch", url, "-o", str(here)]) == 0


def test_a_host_that_is_not_there_is_one_line_and_exit_code_14(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(["fetch", "http://127.0.0.1:9/model.edgepack", "-o", str(here)]) == 14
    assert capfd.readouterr().err.count("\n") == 1


def test_passwords_in_an_address_are_not_shown(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    execute(["fetch", "http://user:secret@127.0.0.1:9/model.edgepack?token=secret", "-o", str(here)])
    assert "secret" not in capfd.readouterr().err
