"""A node's UCX process: it serves one domain's segment by UCX, and can reach nothing else.

Started by kvstore.node.ucx, with two descriptors: the socket to the node, and the segment.
"""

from __future__ import annotations

import json
import sys

from kvstore import _native
from kvstore.errors import KvstoreError


def main() -> int:
    """Serve until the node closes the socket; 1 with a sentence on stderr when that fails."""
    given = json.loads(sys.argv[1])
    try:
        _native.serve_by_ucx(
            given["socket"],
            given["segment"],
            libraries=given["libraries"],
            settings=[tuple(one) for one in given["settings"]],
            slice_bytes=given["slice_bytes"],
        )
    except KvstoreError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
