"""`edgepack verify`: every byte of an archive against its digests, and who signed it; the work is `packaging`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli.output import json_option, note, print_json, terminal_progress
from edgepack.errors import IntegrityError

if TYPE_CHECKING:
    from edgepack.packaging.signing import SignatureReport
    from edgepack.packaging.verify import Problem


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Also restore everything in memory and check chunks, tensors and files.")
@click.option(
    "--trusted", multiple=True, type=click.Path(path_type=Path), help="A public key that must have signed; repeatable."
)
@json_option
def command(file: Path, deep: bool, trusted: tuple[Path, ...], as_json: bool) -> int:
    """Check FILE (an archive): exit code 0 when it is whole, 1 with the damaged places named.

    A GGUF carries no digests: of one, only the structure is checked.
    """
    problems, report = _check(file, deep, trusted)
    if as_json:
        signature = None if report is None else {"state": report.state.value, "keys": report.keys}
        listed = [{"where": problem.where, "what": problem.what} for problem in problems]
        print_json({"ok": not problems, "problems": listed, "signature": signature})
        return int(bool(problems))
    for problem in problems:
        note(f"{problem.where}: {problem.what}")
    if problems:
        raise IntegrityError(f"'{file}': {len(problems)} problem{'s' if len(problems) > 1 else ''}")
    note(f"{file}: sound, {report.state.value}{_key_list(report)}" if report else f"{file}: sound in its structure")
    return 0


def _check(file: Path, deep: bool, trusted: tuple[Path, ...]) -> tuple[list[Problem], SignatureReport | None]:
    from edgepack.packaging.plain_gguf import is_gguf, verify_gguf
    from edgepack.packaging.signing import load_public_key
    from edgepack.packaging.verify import Problem, verify_archive

    keys = [load_public_key(path) for path in trusted]
    if is_gguf(file):
        unsigned = [Problem("signature", "a GGUF cannot be signed; pack it first")] if keys else []
        return [*verify_gguf(file), *unsigned], None
    problems = list(verify_archive(file, deep=deep, progress=terminal_progress))
    report = None if any(problem.where == "structure" for problem in problems) else _judge(file, keys)
    if report is not None and (complaint := _complaint(report, required=bool(keys))):
        problems.append(Problem("signature", complaint))
    return problems, report


def _judge(file: Path, keys: list[bytes]) -> SignatureReport:
    from edgepack.packaging.archive import open_archive
    from edgepack.packaging.signing import judge_signatures

    with open_archive(file) as archive:
        return judge_signatures(archive, keys)


def _complaint(report: SignatureReport, required: bool) -> str:
    """What is wrong with the signatures, or nothing; an unsigned archive is wrong only where a key is required."""
    from edgepack.packaging.signing import SignatureState

    bad = {SignatureState.INVALID} | ({SignatureState.UNSIGNED, SignatureState.STRANGER} if required else set())
    return f"the archive is {report.state.value}{_key_list(report)}" if report.state in bad else ""


def _key_list(report: SignatureReport | None) -> str:
    return f" (ed25519 {', '.join(report.keys)})" if report and report.keys else ""
