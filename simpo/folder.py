"""Output folders that survive a kill: a lock, a record of the settings, journals of finished work.

Finished work is appended to a journal as it comes; the final file is written beside its place and renamed. A later run
of the same command reads both and does only what is missing.
"""

import json
import os
import shutil
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from simpo.console import UserError, is_main_process, warn
from simpo.files import flush_to_disk, parse_row, read_own, write_json, write_rows, writing

LOCK = ".lock"
JOURNALS = "journal"
PATIENCE = 30  # seconds in which a network disk shows another node's new file (acdirmin of nfs(5))
FLUSH_SECONDS = 1  # what a power loss can take, beside what the disk itself loses


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create the folder and hold it; the lock goes with the process, however that ends. An empty folder goes as well.

    Raises:
        UserError: another run holds it, or it cannot be written.
    """
    created = not folder.exists()
    lock = FileLock(folder / LOCK)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise UserError(
                f"{folder}: another run is writing to this folder; wait for it, or choose another"
            ) from error
    try:
        yield
    finally:
        if created and os.listdir(folder) == [LOCK]:  # nothing came of it
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def check_writable(folder: Path) -> None:
    """Check that a folder can be made and written to, without either.

    Raises:
        UserError: it cannot.
    """
    folder = folder.absolute()
    place = next(part for part in (folder, *folder.parents) if part.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"{folder}: {place} {'cannot be written to' if place.is_dir() else 'is not a folder'}")


def check_shared(folder: Path) -> None:
    """Refuse a folder that not every process sees, as on nodes that do not share their disks.

    Every process of the torch.distributed group calls this, the main one while it holds the folder.

    Raises:
        UserError: in every process.
    """
    import torch.distributed

    if not torch.distributed.is_initialized():
        return
    agreed = [f".seen-by-all-{uuid.uuid4().hex}", str(folder.resolve())]
    torch.distributed.broadcast_object_list(agreed)  # the main process's
    name, place = agreed
    token = folder / name
    if is_main_process():
        with writing(token):
            token.touch()
    torch.distributed.barrier()
    seen: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(seen, appears(token))
    if is_main_process():
        token.unlink()
    blind = [str(rank) for rank, sees in enumerate(seen) if not sees]
    if blind:
        raise UserError(
            f"output_dir: what process 0 writes to {place}, process {', '.join(blind)} cannot see; it must "
            "be one folder on a disk that all nodes share"
        )


def appears(path: Path) -> bool:
    """Whether a file is there, or soon is."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def check_settings(record: Path, settings: dict[str, Any], has_output: bool) -> None:
    """Record what a folder's output is made with; refuse to continue it with anything else.

    Args:
        record: the JSON file of the record.
        settings: JSON values.
        has_output: whether the folder holds anything that the recorded settings made.

    Raises:
        UserError: the earlier output was made with other settings, which are named, or nothing tells with which.
    """
    known = read_own(record)
    if has_output:
        if known is None:
            raise UserError(
                f"{record.parent}: holds output without a record of how it was made (a whole {record.name}); "
                "choose another folder"
            )
        changed = [
            f"{key} was {shorten(known.get(key))}, now {shorten(settings.get(key))}"
            for key in sorted(known.keys() | settings.keys())
            if known.get(key) != settings.get(key)
        ]
        if changed:
            raise UserError(
                f"{record.parent}: holds output of other settings ({'; '.join(changed)}); choose another folder or "
                "remove it"
            )
    if known != settings:
        write_json(record, settings)


def recorded_settings(record: Path) -> dict[str, Any]:
    """What `check_settings` recorded; nothing where there is no whole record."""
    return read_own(record) or {}


def shorten(value: Any, width: int = 80) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else f"{text[: width // 2]}...{text[-width // 2 :]}"


class Journal:
    """Appends JSON lines to a file in folder/journal. One process writes a journal; its threads may share it.

    Args:
        fields: what every record has, and of which type; a line of an earlier run without them is broken.

    A line is the system's when `append` returns, so a killed process loses none; it is on the disk a second later.

    Raises:
        UserError: the file cannot be opened, or there is no room for a line. Nothing of that line stays.
    """

    def __init__(self, folder: Path, name: str, fields: dict[str, type] | None = None):
        self.path = folder / JOURNALS / name
        self.lock = threading.Lock()
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            repair(self.path, fields or {})
            self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            weakref.finalize(self, os.close, self.file)
            for place in (self.path.parent, folder):
                flush_to_disk(place)
        self.flushed = time.monotonic()

    def append(self, *records: dict[str, Any]) -> None:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        rest = lines.encode(errors="backslashreplace")  # half a character becomes JSON's own \udXXX
        with self.lock, writing(self.path):
            end = os.fstat(self.file).st_size
            try:
                while rest:  # a disk that fills up takes a part first, and refuses the next
                    rest = rest[os.write(self.file, rest) :]
                if time.monotonic() - self.flushed > FLUSH_SECONDS:
                    os.fsync(self.file)
                    self.flushed = time.monotonic()
            except OSError:
                os.ftruncate(self.file, end)
                raise

    @staticmethod
    def read(folder: Path, pattern: str, fields: dict[str, type] | None = None) -> Iterator[dict[str, Any]]:
        """The records of the folder's journals whose names match the pattern.

        A line that is torn, or lacks one of the fields (or has it in another type), is left out, and so is done again;
        how many there are is said.

        Raises:
            UserError: a journal cannot be read.
        """
        for path in sorted((folder / JOURNALS).glob(pattern)):
            broken = 0
            for line in read_lines(path):
                record = parse_row(line, fields or {})
                if record is not None:
                    yield record
                elif line.endswith(b"\n"):  # else still being written, or cut by a kill
                    broken += 1
            if broken:
                warn(f"{path}: {broken} broken lines left out; what they held is done again")

    @staticmethod
    def remove(folder: Path, pattern: str) -> None:
        for path in (folder / JOURNALS).glob(pattern):
            path.unlink()


def read_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; it must be a file that you may read") from error


def repair(path: Path, fields: dict[str, type]) -> None:
    """Move a journal's broken lines to NAME.broken beside it, so that the next line starts on its own."""
    if not path.exists():
        return
    lines = list(read_lines(path))
    records = [parse_row(line, fields) for line in lines]
    if all(record is not None and line.endswith(b"\n") for record, line in zip(records, lines, strict=True)):
        return
    with path.with_name(f"{path.name}.broken").open("ab") as aside:
        aside.writelines(line.rstrip(b"\n") + b"\n" for r, line in zip(records, lines, strict=True) if r is None)
        aside.flush()
        os.fsync(aside.fileno())
    write_rows(path, [record for record in records if record is not None])
