"""Writes what the installed edgepack consists of as a CycloneDX 1.6 bill of materials: dist/edgepack-VERSION.cdx.json.

Versions, licences and who needs whom come from the environment, hashes from constraints.txt. The same environment
gives the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import uuid
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("compress", "calibrate", "clients", "sigstore", "dev")


def normal(name: str) -> str:
    """A package's name as indexes compare names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _requires(name: str, extras: tuple[str, ...]) -> list[str]:
    """Requirements of an installed package; edgepack's own stand in pyproject.toml, which an installation may lag."""
    if normal(name) != "edgepack":
        return importlib.metadata.requires(name) or []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(text for extra in extras for text in optional[extra])]


def needed(name: str, extras: tuple[str, ...] = ()) -> list[str]:
    """What an installed package needs here, by its own metadata; markers are evaluated for this machine."""
    found = set()
    for text in _requires(name, extras):
        requirement = Requirement(text)
        environments = [{"extra": extra} for extra in extras or ("",)]
        if requirement.marker is None or any(requirement.marker.evaluate(each) for each in environments):
            found.add(normal(requirement.name))
    return sorted(found)


def closure(name: str, extras: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Every package that is reached from one that is installed: name → what it needs."""
    graph: dict[str, list[str]] = {}
    pending = [(name, extras)]
    while pending:
        current, wanted = pending.pop()
        if normal(current) in graph:
            continue
        try:
            graph[normal(current)] = needed(current, wanted)
        except importlib.metadata.PackageNotFoundError:
            continue
        pending += [(other, ()) for other in graph[normal(current)]]
    return graph


def locked() -> dict[str, tuple[str, list[str]]]:
    """Name → (version, SHA-256s) of constraints.txt."""
    found = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / "constraints.txt").read_text()):
        if match := re.match(r"([\w.-]+)==([^\s;\\]+)", entry):
            found[normal(match[1])] = (match[2], re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
    return found


def _component(name: str, hashes: list[str]) -> dict[str, Any]:
    meta = importlib.metadata.metadata(name)
    version = importlib.metadata.version(name)
    purl = f"pkg:pypi/{normal(name)}@{version}"
    component: dict[str, Any] = {
        "type": "library", "bom-ref": purl, "name": normal(name), "version": version, "purl": purl,
    }  # fmt: skip
    if licence := meta.get("License-Expression") or meta.get("License"):
        component["licenses"] = [{"license": {"name": licence.splitlines()[0][:100]}}]
    if hashes:
        component["externalReferences"] = [{
            "type": "distribution", "url": f"https://pypi.org/project/{normal(name)}/{version}/",
            "hashes": [{"alg": "SHA-256", "content": digest} for digest in hashes],
        }]  # fmt: skip
    return component


def bill() -> dict[str, Any]:
    """The bill of materials of this environment."""
    graph, pins = closure("edgepack", EXTRAS), locked()
    components = {name: _component(name, pins.get(name, ("", []))[1]) for name in sorted(graph)}
    refs = {name: component["bom-ref"] for name, component in components.items()}
    own = {**components.pop("edgepack"), "type": "application"}
    dependencies = [
        {"ref": refs[name], "dependsOn": sorted(refs[other] for other in graph[name] if other in refs)}
        for name in sorted(graph)
    ]
    body = {"metadata": {"component": own}, "components": list(components.values()), "dependencies": dependencies}
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1, **body}


def main() -> None:
    """Write the file, or print it with `-`."""
    found = bill()
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    if sys.argv[1:] == ["-"]:
        print(text, end="")
        return
    version = found["metadata"]["component"]["version"]
    path = ROOT / "dist" / f"edgepack-{version}.cdx.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    print(f"{path}: {len(found['components'])} packages")


if __name__ == "__main__":
    main()
