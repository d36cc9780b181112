"""`edgepack.fetch` and `edgepack.update`: the only functions that open a connection; `edge.fetch` works."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.api.trust import Trusted, policy_for
from edgepack.api.values import FilePath, optional_path, paths
from edgepack.edge.fetch.archive_fetch import DEFAULT_CONNECTIONS, FetchRequest, FetchResult, fetch_archive
from edgepack.edge.fetch.fetched_from import remember
from edgepack.edge.fetch.hub import HUB_PREFIX, HubFiles, fetch_from_hub
from edgepack.edge.fetch.names import output_of
from edgepack.edge.fetch.offline import require_online
from edgepack.edge.fetch.update import UpdateResult, update_archive
from edgepack.edge.fetch.web import DEFAULT_TIMEOUT, Web, check_url
from edgepack.errors import UsageError
from edgepack.files.claim import claimed_output
from edgepack.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgepack.progress import Progress


def fetch(
    source: str,
    output: FilePath | None = None,
    *,
    mirrors: Sequence[str] = (),
    trusted: Trusted = (),
    sha256: str | None = None,
    bases: Sequence[FilePath] = (),
    force: bool = False,
    connections: int = DEFAULT_CONNECTIONS,
    timeout: float = DEFAULT_TIMEOUT,
    include: Sequence[str] = (),
    offline: bool = False,
    note: Callable[[str], object] = lambda _text: None,
    progress: Progress = silent,
) -> FetchResult | HubFiles:
    """Fetch an archive from a web server, or a checkpoint from the Hugging Face hub, every byte checked.

    Args:
        source: `http(s)://…/NAME.edgepack`, or `hf:ORG/NAME` with `@REVISION` behind it where wanted.
        output: the file or, for an archive, the folder that gets it; for a checkpoint the folder. By default the
            address's own name, here.
        mirrors: other addresses of the same archive.
        trusted: public keys, one of which must have signed, judged before the body is fetched; by default the machine's
            trust store.
        sha256: of the whole archive, hexadecimal, as a publisher's SHA256SUMS says it.
        bases: archives on this machine whose equal parts need not be fetched; an older file under the final name is
            one without being named.
        force: replace a file that is there and is another one.
        connections: requests at once.
        timeout: seconds without a byte after which a connection counts as cut.
        include: patterns of further files, for a checkpoint.
        offline: forbid connections, as EDGEPACK_OFFLINE=1 does.
        note: told in lines of mirrors that are given up and the like.
        progress: told of bytes received.

    Returns:
        for an archive what came from where, for a checkpoint its files.

    Raises:
        NetworkError: no server gives it. What came is kept; the next call goes on there.
        CheckFailedError: no trusted key signed, or bytes differ from their digest.
        UsageError: connections are forbidden, or another file is there.
        DependencyError: `hf:` needs the package huggingface_hub.
    """
    require_online("fetch", offline=offline)
    if source.startswith(HUB_PREFIX):
        return fetch_from_hub(source, optional_path(output), include=include, note=note)
    urls = tuple(check_url(url) for url in (source, *mirrors))
    target = output_of(source, optional_path(output))
    if target.exists() and not force:
        raise UsageError(f"'{target}' is there already: `edgepack update` brings it up to date, --force replaces it")
    request = FetchRequest(
        urls, target, policy_for(trusted), _checked_digest(sha256), paths(bases), connections, Web(timeout),
        note, progress,
    )  # fmt: skip
    with claimed_output(target, force=force):
        result = fetch_archive(request)
    remember(result.index_sha256, urls)
    return result


def update(
    file: FilePath,
    *,
    sources: Sequence[str] = (),
    trusted: Trusted = (),
    check: bool = False,
    connections: int = DEFAULT_CONNECTIONS,
    timeout: float = DEFAULT_TIMEOUT,
    offline: bool = False,
    note: Callable[[str], object] = lambda _text: None,
    progress: Progress = silent,
) -> UpdateResult:
    """Bring an archive up to date: fetch what its server has changed, and say what that is.

    Args:
        file: the archive; replaced only when the next version is whole.
        sources: its addresses; by default those that `fetch` got it from.
        trusted: public keys, one of which must have signed; by default those that signed the archive at hand.
        check: only say what differs.
        connections: requests at once.
        timeout: seconds without a byte after which a connection counts as cut.
        offline: forbid connections, as EDGEPACK_OFFLINE=1 does.
        note: told in lines of what goes otherwise than asked.
        progress: told of bytes received.

    Raises:
        UsageError: connections are forbidden, or nobody knows where the archive came from.
        CheckFailedError: the next version is not signed as this one is.
        NetworkError: no server gives it.
    """
    require_online("update", offline=offline)
    urls = tuple(check_url(url) for url in sources)
    request = FetchRequest(urls, Path(file), policy_for(trusted), None, (), connections, Web(timeout), note, progress)
    with nullcontext() if check else claimed_output(Path(file), force=True):
        result = update_archive(request, check_only=check)
    if result.fetched is not None:
        remember(result.fetched.index_sha256, result.urls)
    return result


def _checked_digest(text: str | None) -> str | None:
    if text is not None and (len(text) != 64 or not set(text.lower()) <= set("0123456789abcdef")):
        raise UsageError(f"expected a SHA-256 of 64 hexadecimal digits, got {text!r}")
    return text
