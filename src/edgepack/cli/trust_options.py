"""`--trusted` and `--allow-untrusted`, declared once for every command that takes an archive.

What they mean is `packaging.trust.policy`'s; a command sees one `trusted`, which it hands to the API.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

_OPTIONS = (
    click.option("--trusted", multiple=True, type=click.Path(path_type=Path), metavar="KEY.pub",
                 help="A public key that must have signed, instead of the trust store's; repeatable."),
    click.option("--allow-untrusted", is_flag=True, help="Take archives that no key of the trust store signed."),
)  # fmt: skip


def trust_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add both options; the command gets their policy as `trusted`."""

    @functools.wraps(command)
    def with_policy(*arguments: Any, trusted: tuple[Path, ...], allow_untrusted: bool, **values: Any) -> Any:
        from edgepack.packaging.trust.policy import chosen_policy

        return command(*arguments, trusted=chosen_policy(trusted, anyone=allow_untrusted), **values)

    for option in reversed(_OPTIONS):
        with_policy = option(with_policy)
    return with_policy
