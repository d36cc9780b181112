"""Whom the API's functions trust: files of public keys, or a policy. What follows is `packaging.trust.policy`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, Union

from edgepack.api.values import FilePath, paths
from edgepack.packaging.trust.policy import TrustPolicy, policy_of

if TYPE_CHECKING:
    from collections.abc import Sequence

# Files of public keys, one of which must have signed; none for the user's trust store. Or a policy.
Trusted: TypeAlias = Union["Sequence[FilePath]", TrustPolicy]


def policy_for(trusted: Trusted) -> TrustPolicy:
    """The policy that is meant; raises UsageError where a file is no public key."""
    return trusted if isinstance(trusted, TrustPolicy) else policy_of(paths(trusted))
