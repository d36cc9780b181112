"""What is installed is verified, restored once, shared between processes, and found when it is damaged."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import Shape, write_random

from edgepack.cli import execute as run
from edgepack.edge.install import native
from edgepack.edge.install.cache import ModelCache, prune
from edgepack.edge.install.native_cache import cached_native
from edgepack.errors import ArchiveError, CheckFailedError, GGUFError, IntegrityError, ResourceError
from edgepack.files.names import partial_path
from edgepack.files.opened import try_lock
from edgepack.packaging.archive import open_archive
from edgepack.packaging.pack import pack_archive
from edgepack.packaging.restore import unpack as unpack_module

INSTALL = (
    "import sys; from pathlib import Path; from edgepack.edge.install.cache import ModelCache\n"
    "installed = ModelCache(note=lambda text: print(text, file=sys.stderr)).install(Path(sys.argv[1]))\n"
    "print(installed.model, installed.fresh)\n"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(layers=4, width=256, heads=4, head_width=64, feed_forward=1024)
    return write_random(tmp_path_factory.mktemp("source") / "model.gguf", shape)


@pytest.fixture(scope="module")
def archive(source: Path) -> Path:
    return pack_archive(source, source.with_suffix(".edgepack"), threads=1).output


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCache:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    return ModelCache()


def test_installing_restores_the_bytes_under_their_own_digest(cache: ModelCache, archive: Path, source: Path) -> None:
    installed = cache.install(archive)
    assert installed.fresh
    assert installed.model.read_bytes() == source.read_bytes()
    assert installed.model.stem == hashlib.sha256(source.read_bytes()).hexdigest()


def test_a_second_start_restores_nothing(cache: ModelCache, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.install(archive)
    monkeypatch.setattr("edgepack.edge.install.cache.restore_member", None)  # calling it would fail
    second = cache.install(archive)
    assert (second.model, second.fresh) == (first.model, False)
    assert cache.install(archive, verify=True).fresh is False


def test_equal_models_of_two_archives_share_one_file(cache: ModelCache, archive: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other-name.edgepack"
    shutil.copy(archive, copy)
    assert cache.install(archive).model == cache.install(copy).model
    assert len(cache.entries()) == 1


@pytest.mark.parametrize("verify", [False, True])
def test_a_damaged_entry_is_found_named_and_rebuilt(
    cache: ModelCache, archive: Path, source: Path, verify: bool
) -> None:
    path = cache.install(archive).model
    stamp = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-100 if verify else 40] ^= 1  # near the end only a check of every byte finds it
    path.write_bytes(raw)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    notes: list[str] = []
    again = ModelCache(note=notes.append).install(archive, verify=verify)
    assert again.fresh
    assert again.model.read_bytes() == source.read_bytes()
    assert len(notes) == 1
    assert str(path) in notes[0]
    assert "damaged" in notes[0]


def test_cache_list_verify_names_the_damaged_entry(
    cache: ModelCache, archive: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = cache.install(archive).model
    assert run(["cache", "list", "--verify"]) == 0
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)
    capfd.readouterr()
    assert run(["cache", "list", "--verify", "--json"]) == 1
    (entry,) = json.loads(capfd.readouterr().out)["entries"]
    assert "SHA-256" in entry["problem"]


def test_a_truncated_entry_is_rebuilt(cache: ModelCache, archive: Path, source: Path) -> None:
    path = cache.install(archive).model
    with path.open("r+b") as stream:
        stream.truncate(1000)
    assert cache.install(archive).model.read_bytes() == source.read_bytes()


def test_a_file_without_its_record_is_checked_and_kept(cache: ModelCache, archive: Path) -> None:
    path = cache.install(archive).model
    path.with_suffix(".json").unlink()
    assert cache.install(archive).fresh is False
    assert path.with_suffix(".json").exists()


def test_two_processes_at_once_install_one_file_and_both_succeed(archive: Path, source: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "EDGEPACK_CACHE": str(tmp_path / "cache")}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", INSTALL, archive],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    ends = [(run.communicate(timeout=60), run.returncode) for run in runs]
    assert [code for _, code in ends] == [0, 0, 0], ends
    paths, fresh = zip(*(out.split() for (out, _err), _code in ends), strict=True)
    assert len(set(paths)) == 1
    assert sorted(fresh) == ["False", "False", "True"]
    assert Path(paths[0]).read_bytes() == source.read_bytes()


def test_a_killed_installation_is_continued(
    cache: ModelCache, archive: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_archive(archive) as opened:
        digest, whole = opened.main.sha256, opened.main.bytes
    partial = partial_path(cache.folder / f"{digest}.gguf")
    partial.write_bytes(source.read_bytes()[: whole * 2 // 3] + b"torn")
    kept: list[int] = []
    original = unpack_module.restore_member

    def spy(*args: object, **options: object) -> object:
        result = original(*args, **options)
        kept.append(result.kept_bytes)
        return result

    monkeypatch.setattr("edgepack.edge.install.cache.restore_member", spy)
    assert cache.install(archive).model.read_bytes() == source.read_bytes()
    assert kept[0] > 0
    assert not partial.exists()


def test_a_lock_whose_holder_was_killed_is_free(archive: Path, tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    with open_archive(archive) as opened:
        lock = cache.folder / f"{opened.main.sha256}.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; from pathlib import Path\n"
         "from edgepack.edge.install.lock import locked\n"
         "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)", lock],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
    assert cache.install(archive).fresh


def test_a_full_disk_is_an_error_with_both_sizes_and_leaves_nothing(
    cache: ModelCache, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(ResourceError, match=r"needs .+ more, the disk has 5 kB free; `edgepack cache prune`"):
        cache.install(archive)
    assert not list(cache.folder.glob("*.gguf"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a size limit on files")
def test_a_disk_that_becomes_full_while_installing_leaves_no_model(archive: Path, tmp_path: Path) -> None:
    script = (
        "import errno, sys; from edgepack.files import opened; import os\n"
        "def full(_descriptor): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "opened.os.fsync = full\n" + INSTALL
    )
    environment = {**os.environ, "EDGEPACK_CACHE": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", script, archive], env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert "ResourceError" in result.stderr
    assert not list((tmp_path / "models").glob("*.gguf"))
    result = subprocess.run([sys.executable, "-c", INSTALL, archive], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_damaged_archive_installs_nothing(cache: ModelCache, archive: Path, tmp_path: Path) -> None:
    raw = archive.read_bytes()
    for position in (3, len(raw) // 3, len(raw) // 2, len(raw) - 4):
        damaged = bytearray(raw)
        damaged[position] ^= 1
        path = tmp_path / "damaged.edgepack"
        path.write_bytes(damaged)
        with pytest.raises((ArchiveError, IntegrityError, CheckFailedError)):
            cache.install(path)
        assert not list(cache.folder.glob("*.gguf"))


def test_adapters_of_the_archive_are_installed_beside_the_model(
    cache: ModelCache, source: Path, tiny: Path, tmp_path: Path
) -> None:
    packed = pack_archive(source, tmp_path / "both.edgepack", include=(tiny,), threads=1).output
    installed = cache.install(packed)
    assert [path.read_bytes() for path in installed.adapters] == [tiny.read_bytes()]


def test_prune_removes_the_longest_unused_first(cache: ModelCache, archive: Path, tiny: Path, tmp_path: Path) -> None:
    old = cache.install(archive).model
    other = pack_archive(tiny, tmp_path / "tiny.edgepack", threads=1).output
    new = cache.install(other).model
    past = time.time() - 90 * 86400
    os.utime(old.with_suffix(".json"), (past, past))
    assert prune(cache) == []
    assert [entry.path for entry in prune(cache, keep_bytes=new.stat().st_size)] == [old]
    assert not old.exists()
    assert new.exists()
    assert prune(cache, older_than=86400) == []
    (removed,) = prune(cache, everything=True)
    assert removed.path == new
    assert not list(cache.folder.glob("*.gguf"))


def test_the_cache_commands_print_and_prune(
    cache: ModelCache, archive: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ModelCache().install(archive)
    (cache.folder / f".{'0' * 64}.gguf.partial").write_bytes(b"half")
    assert run(["cache", "list"]) == 0
    out = capfd.readouterr().out
    assert "model.gguf" in out
    assert "not finished" in out
    assert run(["cache", "prune"]) == 0
    assert len(cache.entries()) == 1
    assert run(["cache", "prune", "--older-than", "1x"]) == 2
    assert run(["cache", "prune", "--all", "--json"]) == 0
    assert cache.entries() == []


def test_peak_disk_is_the_model_alone(cache: ModelCache, archive: Path, source: Path) -> None:
    """Watched from within: every time progress is told, the cache holds no more than the model and five per cent."""
    peak = 0

    def watch(_label: str, _total: int, _unit: str = "B") -> object:
        from contextlib import contextmanager

        @contextmanager
        def stretch() -> object:
            def look(_amount: int) -> None:
                nonlocal peak
                peak = max(peak, sum(path.stat().st_size for path in cache.folder.iterdir()))

            yield look

        return stretch()

    cache.install(archive, progress=watch)
    assert 0 < peak <= 1.05 * source.stat().st_size


def test_run_installs_an_archive_and_says_the_same_as_the_gguf(
    cache: ModelCache, archive: Path, source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for file in (archive, archive, source):
        assert run(["run", str(file), "--prompt", "hello", "--temperature", "0", "--max-tokens", "6",
                    "--threads", "1", "--json"]) == 0  # fmt: skip
        texts.append(json.loads(capfd.readouterr().out)["text"])
    assert texts[0] == texts[1] == texts[2]


def test_what_replaces_an_archive_while_it_is_installed_does_not_get_its_name(
    cache: ModelCache, archive: Path, source: Path, tmp_path: Path
) -> None:
    """The archive is opened once: what another process puts under its name while it waits is never looked at."""
    mine, other = tmp_path / "mine.edgepack", tmp_path / "other.edgepack"
    shutil.copy(archive, mine)
    pack_archive(write_random(tmp_path / "other.gguf", Shape(layers=1)), other)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    descriptor = os.open(cache.folder / f"{digest}.lock", os.O_RDWR | os.O_CREAT)
    assert try_lock(descriptor)

    def replace_and_let_go(_text: str) -> None:
        other.replace(mine)
        os.close(descriptor)

    installed = ModelCache(note=replace_and_let_go).install(mine)
    assert installed.model.stem == digest
    assert hashlib.sha256(installed.model.read_bytes()).hexdigest() == digest


@pytest.mark.skipif(sys.platform == "win32", reason="locks are not shared there")
def test_pruning_everything_leaves_what_is_installed_for_somebody_until_it_is_let_go(
    cache: ModelCache, archive: Path
) -> None:
    held = ModelCache()
    installed = held.install(archive)
    assert prune(cache, everything=True) == []
    assert installed.model.exists()
    del held
    gc.collect()
    assert len(prune(ModelCache(), everything=True)) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="locks are not shared there")
def test_installing_beside_a_process_that_prunes_everything_always_gives_a_file_that_can_be_opened(
    cache: ModelCache, archive: Path
) -> None:
    script = (
        "import sys; from edgepack.edge.install.cache import ModelCache, prune\n"
        "print('ready', flush=True)\n"
        "while True: prune(ModelCache(), everything=True)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as pruning:
        assert pruning.stdout is not None
        pruning.stdout.readline()
        try:
            for _ in range(25):
                held = ModelCache()
                with held.install(archive).model.open("rb") as stream:
                    assert stream.read(4) == b"GGUF"
        finally:
            pruning.kill()


def test_a_variant_that_is_replaced_while_it_is_decoded_leaves_no_link(
    cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = Path(__file__).parent.parent / "golden" / "variant"
    mine, other = tmp_path / "mine.gguf", tmp_path / "other.gguf"
    shutil.copy(golden / "v1-nf4.gguf", mine)
    shutil.copy(golden / "v1-seedlm4.gguf", other)

    def plan(path: Path) -> native.NativePlan:
        other.replace(path)
        return original(path)

    original = native.plan_native
    monkeypatch.setattr(native, "plan_native", plan)
    with pytest.raises(GGUFError, match="another file lies there now"):
        cached_native(mine, cache)
    assert not list(cache.folder.glob("*.native"))
