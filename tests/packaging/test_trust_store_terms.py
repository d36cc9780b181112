"""Keys of the trust store end: by a day, by revocation; and an old release of a trusted signer is told from a new one."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from tiny_models import Shape, write_random

from edgepack.cli import execute as run
from edgepack.errors import CheckFailedError, UsageError
from edgepack.packaging.archive import open_archive
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.signing import generate_key, sign_archive
from edgepack.packaging.trust.releases import Release, checked_release, memory_path, rollback
from edgepack.packaging.trust.store import read_store

if TYPE_CHECKING:
    from pathlib import Path

TODAY = datetime.now(timezone.utc).date()


@pytest.fixture
def author(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key, and a trust store of its own."""
    monkeypatch.setenv("EDGEPACK_TRUST", str(tmp_path / "store" / "trust.json"))
    generate_key(tmp_path / "author")
    return tmp_path / "author"


def signed(author: Path, name: str = "m", release: str | None = None) -> Path:
    gguf = author.with_name("model.gguf")
    if not gguf.exists():
        write_random(gguf, Shape())
    archive = author.with_name(f"{name}.edgepack")
    pack_archive(gguf, archive, release=release, threads=1)
    sign_archive(archive, author)
    return archive


def add(author: Path, *options: str) -> None:
    assert run(["trust", "add", f"{author}.pub", *options]) == 0


def test_the_last_day_counts_and_the_day_after_does_not(author: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = signed(author)
    add(author, "--expires", TODAY.isoformat(), "--identity", "https://author.example")
    with open_archive(archive):
        pass
    assert run(["trust", "remove", "author"]) == 0
    add(author, "--expires", (TODAY - timedelta(days=1)).isoformat())
    with pytest.raises(CheckFailedError, match="'author' expired on"):
        open_archive(archive)
    capsys.readouterr()
    assert run(["trust", "list"]) == 0
    assert "NOT TRUSTED: key 'author' expired" in capsys.readouterr().out


def test_a_revoked_key_is_named_and_its_archives_refused(author: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = signed(author)
    add(author)
    assert run(["trust", "revoke", "author", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"]["revoked"]
    with pytest.raises(CheckFailedError, match="'author' was revoked on"):
        open_archive(archive)
    assert run(["trust", "revoke", "author"]) == UsageError.exit_code
    assert run(["verify", str(archive)]) == 1


def test_another_trusted_signature_still_counts_beside_a_revoked_one(author: Path) -> None:
    archive = signed(author)
    generate_key(author.with_name("second"))
    sign_archive(archive, author.with_name("second"))
    add(author)
    add(author.with_name("second"))
    assert run(["trust", "revoke", "author"]) == 0
    with open_archive(archive):
        pass


@pytest.mark.parametrize("day", ["tomorrow", "2026-2-1", "20260201", "2026-02-30"])
def test_a_day_of_another_form_is_refused(author: Path, day: str) -> None:
    assert run(["trust", "add", f"{author}.pub", "--expires", day]) == UsageError.exit_code
    assert read_store() == ()


def test_an_older_release_is_told_and_a_newer_one_remembered(author: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = signed(author, "old", "1.9"), signed(author, "new", "1.10")
    add(author)
    for archive, older in ((old, False), (new, False), (old, True), (new, False)):
        capsys.readouterr()
        assert run(["verify", str(archive), "--json"]) == 0
        assert bool(json.loads(capsys.readouterr().out)["rollback"]) == older
    seen = json.loads(memory_path().read_text())
    assert list(next(iter(seen.values())).values()) == ["1.10"]


def test_nothing_is_remembered_of_whom_nobody_trusts(author: Path) -> None:
    archive = signed(author, release="3")
    from edgepack.packaging.trust.policy import ANYONE

    with open_archive(archive, ANYONE) as opened:
        assert rollback(opened, ANYONE) is None
    assert not memory_path().exists()


def test_versions_are_sorted_as_numbers() -> None:
    orders = [Release("m", version).order for version in ("0.9", "1.0", "1.2", "1.10", "2")]
    assert orders == sorted(orders)
    assert Release("m", "1").order == Release("m", "1.0").order
    for version in ("", "v1", "1.", "1..2", "1.2-rc", "9" * 20):
        with pytest.raises(UsageError):
            checked_release("m", version)
