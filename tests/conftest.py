"""What all tests share: the bundled model, the models beside the checkout, a llama.cpp that stays silent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from small_disk import small_disk  # noqa: F401 (a fixture)
from wheels import wheel, wheelhouse  # noqa: F401 (fixtures)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xdist.remote import Producer
    from xdist.scheduler import LoadGroupScheduling

# A busy machine is no failure: no example is timed. Examples are the same on every run, so CI is not a lottery;
# HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("edgepack", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "edgepack"))

ROOT = Path(__file__).resolve().parent.parent
BOOKS = ROOT / "tests/data/books-llama-6m"
SHARED = ROOT.parent / "shared"


# Tests of one worker each, by the beginning of their names: what they start (a browser, a cluster, ggml's tables) is made
# once and is not to stand beside another. xdist's own mark for it is lost with pytest 9.2, whose items keep their names.
TOGETHER = {
    "tests/edge/page/": "chat page",
    "tests/pipeline/cluster/test_ray.py": "ray",
    # ggml builds its tables for the IQ types once a process, in many seconds.
    "tests/export/test_type_choice.py::test_bytes_equal_those_of_llama_quantize": "iq tables",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadGroupScheduling | None:
    """With `--dist loadgroup` a scheduler that knows `TOGETHER`."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    config.option.loadscopereorder = False  # what needs a warm machine does not come first

    class Together(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((group for start, group in TOGETHER.items() if nodeid.startswith(start)), nodeid)

    return Together(config, log)


@pytest.fixture(scope="session", autouse=True)
def _as_on_a_fresh_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees, or writes, the trust store of who runs it; no model is tried in a process of its own first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_PROBE", "off")  # a process for each file; tests of what it does turn it on
        patch.setenv("EDGEPACK_TRUST", str(tmp_path_factory.mktemp("trust") / "trust.json"))
        yield


@pytest.fixture(scope="session")
def books() -> Path:
    """The bundled trained Llama (every row a multiple of 256)."""
    return BOOKS


@pytest.fixture(scope="session")
def stories() -> Path:
    """stories260K (rows of 64 and 172: every K-quant falls back); skips where it is absent."""
    folder = SHARED / "models/stories260k"
    if not folder.is_dir():
        pytest.skip("../shared/models/stories260k is absent")
    return folder


@pytest.fixture(scope="session")
def eval_text() -> str:
    """English text that the bundled model never saw; skips where it is absent."""
    path = SHARED / "text/eval.txt"
    if not path.is_file():
        pytest.skip("../shared/text/eval.txt is absent")
    return path.read_text(encoding="utf-8")
