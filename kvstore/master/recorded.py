"""Waiting until the directory has what nodes have answered already."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kvstore.errors import Status, error_for
from kvstore.master.core_api import MasterCoreApi
from kvstore.tasks import called_back

_LONGEST_S = 5.0  # the core answers within a second, unless it has been stopped
_SENTENCES = {
    Status.Unavailable: "a node that may have stored such keys does not answer; try again",
    Status.Overloaded: "too many requests wait for the announcements of nodes; try again later",
}


async def recorded(
    core: MasterCoreApi, tenant: str, namespace: str, keys: Sequence[str] = ()
) -> None:
    """Wait until puts that were answered are in the directory; no thread waits with it.

    A node answers a put of a new key when its announcement is on the way.

    Args:
        core: the directory.
        tenant: owner of the namespace.
        namespace: of the keys.
        keys: that are asked for; none: any of the namespace.

    Raises:
        UnavailableError: A node that may have answered such a put does not answer the master.
        OverloadedError: Too many requests wait already.
    """
    waited: asyncio.Future[int]
    waited, done = called_back()
    core.recorded_then(tenant, namespace, list(keys), done)
    try:
        code = await asyncio.wait_for(waited, _LONGEST_S)
    except asyncio.TimeoutError:
        code = Status.Unavailable
    if code != Status.Ok:
        raise error_for(code, _SENTENCES[Status(code)])
