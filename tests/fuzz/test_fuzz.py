"""No bytes that a stranger hands over end in anything but one of edgepack's errors.

Short here, and the same examples each time; `make fuzz` draws new ones for hours and keeps what it finds in `corpus`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_targets import CORPUS, Target, targets
from mutations import mutated, mutations

TARGETS = {target.name: target for target in targets()}
EXAMPLES = 400  # of each target: about 20 processor seconds for all


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_kept_is_survived(name: str) -> None:
    for data in TARGETS[name].inputs():
        TARGETS[name].survives(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_sound_input_is_read(name: str) -> None:
    """Otherwise a target would fuzz its first check only."""
    if name not in ("reference", "grid", "gguf"):  # whose seeds begin sound and end in a refusal
        for seed in TARGETS[name].seeds:
            TARGETS[name].run(TARGETS[name].seal(seed))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_inputs_end_in_edgepacks_errors(name: str, data: st.DataObject) -> None:
    target: Target = TARGETS[name]
    seed = data.draw(st.sampled_from(target.inputs()))
    changes = data.draw(mutations)
    broken = mutated(seed, changes)
    target.survives(broken)
    if target.seal is not bytes:
        target.survives(target.seal(broken))


def test_every_folder_of_the_corpus_belongs_to_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= set(TARGETS)
