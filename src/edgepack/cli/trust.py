"""`edgepack trust`: whose archives this machine takes; the store is `packaging.trust.store`'s."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import click

from edgepack.cli.output import json_option, note, print_json, say


@click.group()
def command() -> None:
    """List the keys whose archives this machine takes, add and remove them (EDGEPACK_TRUST names the store).

    With at least one key in the store, every command refuses archives that none of them signed.
    """


@command.command("list")
@json_option
def list_keys(as_json: bool) -> None:
    """Print every trusted key."""
    from edgepack.packaging.trust.policy import today
    from edgepack.packaging.trust.store import read_store, store_path

    keys = read_store()
    if as_json:
        print_json({"store": str(store_path()), "keys": [asdict(key) for key in keys]})
        return
    for key in keys:
        against = key.reason_against(today())
        until = f"  until {key.expires}" if key.expires and not against else ""
        whose = f" <{key.identity}>" if key.identity else ""
        refused = f"  NOT TRUSTED: {against}" if against else ""
        say(f"ed25519 {key.key}  {key.added}  {key.name}{whose}{until}{refused}")
    note(f"{len(keys)} keys in {store_path()}{'' if keys else ': archives of anybody are taken'}")


@command.command("add")
@click.argument("key", type=click.Path(path_type=Path))
@click.option("--name", help="What you call it [the file's name].")
@click.option("--identity", default="", help="Whose it is: an address, a page, a repository.")
@click.option("--expires", default="", metavar="YYYY-MM-DD", help="The last day on which what it signed is taken.")
@json_option
def add_key(key: Path, name: str | None, identity: str, expires: str, as_json: bool) -> None:
    """Trust archives that KEY (keygen's KEY.pub) signed."""
    from edgepack.packaging.trust.signatures import load_public_key
    from edgepack.packaging.trust.store import TrustedKey, added, check_day, read_store, write_store

    if expires:
        check_day(expires, "--expires")
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    new = TrustedKey(load_public_key(key).hex(), name or key.stem, now, identity, expires)
    store = write_store(added(read_store(), new))
    if as_json:
        print_json({"store": str(store), "key": asdict(new)})
        return
    note(f"{store}: trusts ed25519 {new.key} as '{new.name}'")


@command.command("remove")
@click.argument("which", metavar="NAME|KEY")
@json_option
def remove_key(which: str, as_json: bool) -> None:
    """Trust a key no more: by its name, or by the first 8 or more digits of the key."""
    from edgepack.packaging.trust.store import read_store, removed, write_store

    left, gone = removed(read_store(), which)
    store = write_store(left)
    if as_json:
        print_json({"store": str(store), "key": asdict(gone)})
        return
    note(f"{store}: no longer trusts ed25519 {gone.key} ('{gone.name}')")


@command.command("revoke")
@click.argument("which", metavar="NAME|KEY")
@json_option
def revoke_key(which: str, as_json: bool) -> None:
    """Take no archive of a key any more, and say so by its name: it stays in the store, unlike one that is removed."""
    from edgepack.packaging.trust.store import read_store, revoked, write_store

    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    keys, gone = revoked(read_store(), which, now)
    store = write_store(keys)
    if as_json:
        print_json({"store": str(store), "key": asdict(gone)})
        return
    note(f"{store}: ed25519 {gone.key} ('{gone.name}') is revoked")
