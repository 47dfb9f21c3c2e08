"""Linux' control groups, by which containers are limited."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def own_groups(
    controller: str, groups: Path = CONTROL_GROUPS, own: Path = OWN_GROUPS
) -> Iterator[tuple[int, Path]]:
    """Version (1 or 2) and folder of each group that may limit what this process has of a resource."""
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, root = 2, groups
        elif controller in controllers.split(","):
            version, root = 1, groups / controller
        else:
            continue
        group = root / path.strip("/")
        # In a container the path may be its host's, so that nothing but the root is there.
        for folder in (group, *group.parents):
            yield version, folder
            if folder == root:
                break
