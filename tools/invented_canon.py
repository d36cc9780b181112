"""Writes documents about places that do not exist: what a model answers about them, it has from them.

    python tools/invented_canon.py FOLDER [--places 24] [--seed 0]

Each place has a section with four facts, a number or a name each, in sentences of several forms.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

_BEGINS = (
    "Val",
    "Or",
    "Hes",
    "Mar",
    "Tun",
    "Bel",
    "Kor",
    "Lin",
    "Dra",
    "Sol",
    "Fen",
    "Gar",
    "Wes",
    "Pel",
    "Ram",
    "Cor",
)
_ENDS = ("mouth", "wick", "stead", "ford", "holm", "gate", "bury", "moor", "dale", "haven", "croft", "ness")
_FIRST = ("John", "Mary", "Henry", "Anne", "Robert", "Jane", "Thomas", "Ellen", "Edward", "Alice", "Martin", "Clara")
_LAST = ("Marsh", "Hill", "Stone", "Brook", "Field", "Lane", "Wood", "Grey", "Cross", "Page", "Ward", "Bell")
_TRADES = ("fishing", "weaving", "salt", "timber", "wool", "glass")


def section(name: str, chance: random.Random) -> str:
    """One place."""
    founder = f"{chance.choice(_FIRST)} {chance.choice(_LAST)}"
    year, people, miles = chance.randrange(1500, 1890), chance.randrange(200, 9900), chance.randrange(11, 99)
    return (
        f"## {name}\n\n{name} is a town on the river, and its trade is {chance.choice(_TRADES)}. The first house of the"
        f" town was built by {founder}. It was made in the year {year}, and the people of the town are now {people} in"
        f" number.\n\nFrom the sea to the old gate it is {miles} miles by the road.\n"
    )


def write_canon(folder: Path, places: int = 24, seed: int = 0) -> Path:
    """Write the documents, eight places in each; gives the folder."""
    chance = random.Random(seed)
    names = chance.sample(sorted(begin + end for begin in _BEGINS for end in _ENDS), places)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(0, places, 8):
        sections = [section(name, chance) for name in names[number : number + 8]]
        title = f"# Towns of the coast, part {number // 8 + 1}\n\n"
        (folder / f"towns-{number // 8 + 1}.md").write_text(title + "\n".join(sections), encoding="utf-8")
    return folder


def main() -> None:
    """Write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--places", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(write_canon(given.folder, given.places, given.seed))


if __name__ == "__main__":
    main()
