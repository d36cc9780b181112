"""Updates: only what changed is fetched, it is said what that is, and who signed must sign again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import edgepack
from edgepack.cli import execute
from edgepack.errors import CheckFailedError, UsageError
from edgepack.packaging.signing import generate_key, sign_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from file_server import FileServer


@pytest.fixture
def here(tmp_path: Path, server: FileServer, make_archive: Callable[..., Path]) -> Path:
    """A folder with an archive that was fetched."""
    folder = tmp_path / "here"
    folder.mkdir()
    server.add("/model.edgepack", make_archive().read_bytes())
    edgepack.fetch(server.url("/model.edgepack"), folder)
    return folder / "model.edgepack"


def test_a_new_chat_template_costs_kilobytes_and_is_named(
    here: Path, server: FileServer, make_archive: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    new = make_archive("new.edgepack", template="{{ messages[0] }}").read_bytes()
    server.files["/model.edgepack"].content = new
    assert execute(["update", str(here), "--check", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["differs"]
    assert told["metadata"] == {"tokenizer.chat_template": "changed"}
    assert told["tensors"] == {}
    assert told["fetched"] is None
    assert here.read_bytes() != new
    assert execute(["update", str(here)]) == 0
    assert "metadata: tokenizer.chat_template changed" in capfd.readouterr().err
    assert here.read_bytes() == new
    server.files["/model.edgepack"].spans = []
    assert execute(["update", str(here)]) == 0
    assert "is the version that the server has" in capfd.readouterr().err


def test_an_update_receives_only_what_differs(
    here: Path, server: FileServer, make_archive: Callable[..., Path]
) -> None:
    served = server.files["/model.edgepack"]
    served.content = make_archive("new.edgepack", template="{{ messages[0] }}").read_bytes()
    result = edgepack.update(here)
    assert result.fetched is not None
    assert result.missing_bytes < 20_000
    assert result.fetched.received_bytes < 20_000
    assert result.fetched.copied_bytes > 0.9 * len(served.content)
    served.content = make_archive("newer.edgepack", template="{{ messages[0] }}", seed=3).read_bytes()
    result = edgepack.update(here)
    assert list(result.changes.tensors) == ["blk.0.attn_q.weight"]
    assert here.read_bytes() == served.content


def test_a_file_that_is_here_under_another_name_gives_its_parts(
    here: Path, server: FileServer, make_archive: Callable[..., Path], tmp_path: Path
) -> None:
    served = server.add("/next.edgepack", make_archive("next.edgepack", template="x").read_bytes())
    result = edgepack.fetch(server.url("/next.edgepack"), tmp_path / "next.edgepack", bases=[here])
    assert (tmp_path / "next.edgepack").read_bytes() == served.content
    assert result.copied_bytes > 0.9 * len(served.content)


def test_an_archive_from_elsewhere_needs_an_address(make_archive: Callable[..., Path], server: FileServer) -> None:
    own = make_archive("own.edgepack")
    with pytest.raises(UsageError, match="--from"):
        edgepack.update(own)
    server.add("/own.edgepack", own.read_bytes())
    assert not edgepack.update(own, sources=[server.url("/own.edgepack")]).differs


def test_the_next_version_must_be_signed_as_this_one_is(
    here: Path, server: FileServer, make_archive: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("author", "stranger"):
        generate_key(tmp_path / name)
    sign_archive(here, tmp_path / "author")
    url = server.url("/model.edgepack")
    unsigned = make_archive("new.edgepack", template="x")
    before = here.read_bytes()
    for content in (unsigned, sign_copy(unsigned, tmp_path / "stranger")):
        server.files["/model.edgepack"].content = content.read_bytes()
        with pytest.raises(CheckFailedError):
            edgepack.update(here, sources=[url])
        assert here.read_bytes() == before
    edgepack.update(here, sources=[url], trusted=[tmp_path / "stranger.pub"])
    server.files["/model.edgepack"].content = sign_copy(unsigned, tmp_path / "author").read_bytes()
    edgepack.update(here, sources=[url], trusted=[tmp_path / "author.pub"])
    assert here.read_bytes() == server.files["/model.edgepack"].content


def sign_copy(archive: Path, key: Path) -> Path:
    copy = archive.with_name(f"{key.name}.edgepack")
    sign_archive(archive, key, copy)
    return copy
