"""Fuzzes every target of tests/fuzz for a while, new inputs each time; what ends in a foreign error is kept.

    python tools/fuzz.py [--seconds N] [TARGET …]       (make fuzz: an hour each)

Exit code 1 when something was found: its input lies in tests/fuzz/corpus/TARGET and is a test from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
import traceback
from pathlib import Path

FUZZ = Path(__file__).resolve().parent.parent / "tests" / "fuzz"
sys.path[:0] = [str(FUZZ), str(FUZZ.parent)]

from fuzz_targets import CORPUS, Target, targets  # noqa: E402
from mutations import KINDS, Mutation, mutated  # noqa: E402


def drawn(rng: random.Random) -> list[Mutation]:
    """One to six random mutations."""
    return [(rng.choice(KINDS), rng.randrange(1_000_000), rng.randrange(2**16)) for _ in range(rng.randint(1, 6))]


def fuzz(target: Target, seconds: float, rng: random.Random) -> tuple[int, int, float]:
    """(inputs tried, of them kept, the longest time that one took)."""
    inputs, tried, kept, worst = target.inputs(), 0, 0, 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(rng.choice(inputs), drawn(rng))
        data = target.seal(data) if rng.random() < 0.5 else data
        begun = time.process_time()
        try:
            target.survives(data)
        except Exception:  # noqa: BLE001 - that is what is looked for
            traceback.print_exc()
            folder = CORPUS / target.name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
            kept += 1
        worst = max(worst, time.process_time() - begun)
        tried += 1
    return tried, kept, worst


def main() -> int:
    """Fuzz, and print a line for each target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    found = 0
    for target in targets():
        if options.targets and target.name not in options.targets:
            continue
        tried, kept, worst = fuzz(target, options.seconds, random.Random(options.seed))
        found += kept
        print(f"{target.name}: {tried:,} inputs, {kept} kept, the slowest took {1000 * worst:.0f} ms", flush=True)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
