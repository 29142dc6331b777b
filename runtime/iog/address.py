"""Where a server is, as people write it."""

from __future__ import annotations

import re

# Of gRPC's schemes, those for which a name and a port would not do.
_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")


def check_address(target: str) -> str:
    """The target, if it is "host:port" or one of gRPC's URIs. Raises ValueError.

    Without a port gRPC would call 443.
    """
    found = re.fullmatch(r"(\[[0-9a-fA-F:.%\w]+\]|[^\s:/\[\]]+):(\d{1,5})", target)
    if target.startswith(_SCHEMES) or (found and 0 < int(found[2]) < 1 << 16):
        return target
    raise ValueError(f"{target!r} is no server's address; expected host:port, such as localhost:50051 or [::1]:50051")


def is_here(target: str) -> bool:
    """Whether it names this machine, for which no proxy is asked."""
    return target.startswith(("localhost:", "127.", "[::1]:", "unix:"))
