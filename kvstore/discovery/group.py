"""The file in which RBG lists the roles of a group and their instances.

It lists what is wanted, whether it lives or not. Its addresses name no namespace, and have ports
only where the role has `servicePorts`.
Source: RBG 0.8.0, /etc/rbg/config.yaml.
"""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

from kvstore.addresses import is_host
from kvstore.errors import InvalidArgumentError
from kvstore.limits import MAX_NODES
from kvstore.options import read_small

_MAX_DEPTH = 16
_MAX_ROLES = 256
# Makes text of every scalar, whatever its tag: msgspec makes the numbers. In C where PyYAML has it.
_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class Instance(msgspec.Struct, frozen=True):
    """One pod of a role."""

    address: str
    ports: dict[str, int] = {}

    def __post_init__(self) -> None:
        """Refuse what could be no address."""
        if not self.address or not is_host(self.address):
            raise ValueError(f"{self.address!r} is no host")
        if not all(0 < port < 65536 for port in self.ports.values()):
            raise ValueError(f"{self.address}: a port must be 1 to 65535")


class Role(msgspec.Struct, frozen=True):
    """A role of the group."""

    size: int
    instances: list[Instance]


class GroupInfo(msgspec.Struct, frozen=True):
    """The group itself."""

    name: str


class Group(msgspec.Struct, frozen=True):
    """The file."""

    group: GroupInfo
    roles: dict[str, Role]

    def __post_init__(self) -> None:
        """Refuse more than a cluster can have."""
        if len(self.roles) > _MAX_ROLES:
            raise ValueError(f"more than {_MAX_ROLES} roles")
        if any(len(role.instances) > MAX_NODES for role in self.roles.values()):
            raise ValueError(f"a role of more than {MAX_NODES} instances")

    def role(self, name: str) -> Role:
        """Return a role.

        Raises:
            InvalidArgumentError: There is none of that name, or it has no instance.
        """
        found = self.roles.get(name)
        if found is None or not found.instances:
            lacks = "no role" if found is None else "no instance of role"
            raise InvalidArgumentError(
                f"{lacks} {name!r}; roles: {', '.join(sorted(self.roles)) or 'none'}"
            )
        return found


def read(path: str) -> Group:
    """Read the file.

    Raises:
        InvalidArgumentError: It cannot be read, is too large, or is no file of RBG; the message
            names it.
    """
    where = f"discovery file {path}: "
    raw = read_small(path, where)
    try:
        return msgspec.convert(_load(raw), Group, strict=False)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise InvalidArgumentError(f"{where}not YAML: {said}") from None
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise InvalidArgumentError(f"{where}{error}") from None


def _load(raw: bytes) -> Any:
    """Parse YAML of little depth, without anchors: neither recursion nor copies can explode."""
    depth = 0
    for event in yaml.parse(raw, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("has an alias, which RBG never writes")
    return yaml.load(raw, Loader=_Loader)
