"""Locks that a killed run leaves behind. DeepSpeed compiles an extension at its first start, under a lock file that
nothing removes if the run is killed meanwhile: every later run would wait for it forever."""

import os
from pathlib import Path

from simpo.console import warn


def remove_stale_build_locks() -> None:
    """Remove the compiler's lock files that no process on this machine holds.

    Only for runs on one node: another node may be compiling into a shared home folder.
    """
    if os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")):
        return
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    locks = [lock.resolve() for lock in root.glob("*/*/lock")] + [lock.resolve() for lock in root.glob("*/lock")]
    held = open_files() if locks else set()  # after listing: whoever made a listed lock has it open by now
    for lock in locks:
        if str(lock) not in held:
            warn(f"removing {lock}, left by a run that was killed while compiling")
            lock.unlink(missing_ok=True)


def open_files() -> set[str]:
    """Paths that this user's processes have open (Linux; empty elsewhere)."""
    paths = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            paths.add(os.readlink(descriptor))
        except OSError:  # closed meanwhile, or another user's
            continue
    return paths
