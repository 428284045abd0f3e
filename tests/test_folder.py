"""simpo/files.py and simpo/folder.py: what is written is whole or not there, what comes back torn is set aside."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from crashes import contents, stops_of

from simpo.console import UserError
from simpo.files import read_own, write_json, write_rows
from simpo.folder import Journal, check_settings, lock_folder

ROWS = [{"a": 1, "text": "é"}, {"a": 2, "text": "half a pair: \ud83d"}, {"a": 3, "text": "\u2028"}]
FULL = OSError(errno.ENOSPC, "No space left on device")


def fill_disk(monkeypatch, room: int) -> None:
    """From here on the disk takes `room` bytes; then it is full."""
    write, left = os.write, [room]

    def limited(descriptor: int, content: bytes) -> int:
        if not left[0]:
            raise FULL
        written = write(descriptor, content[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", limited)


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_full_disk_tears_no_line(tmp_path, monkeypatch, room):
    journal = Journal(tmp_path, "x.jsonl")
    journal.append(ROWS[0])
    with monkeypatch.context() as patch:
        fill_disk(patch, room)
        with pytest.raises(
            UserError, match=r"x\.jsonl: cannot be written: No space left on device.*same command again"
        ):
            journal.append(*ROWS[1:])
    journal.append(ROWS[2])  # there is room again
    Journal(tmp_path, "x.jsonl").append(ROWS[1])
    assert list(Journal.read(tmp_path, "x.jsonl")) == [ROWS[0], ROWS[2], ROWS[1]]
    assert os.listdir(tmp_path / "journal") == ["x.jsonl"]


def test_threads_share_a_journal(tmp_path):
    journal = Journal(tmp_path, "x.jsonl")
    threads = [
        threading.Thread(target=lambda i=i: [journal.append({"i": i, "n": n}) for n in range(50)]) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = list(Journal.read(tmp_path, "x.jsonl"))
    assert sorted((row["i"], row["n"]) for row in rows) == [(i, n) for i in range(8) for n in range(50)]


BROKEN = {
    "glued": b'{"a": 5, "te{"a": 6, "text": "x"}\n',
    "zeros": b"\0" * 40 + b"\n",
    "null": b"null\n",
    "list": b"[1]\n",
    "bytes": b'{"a": 5, "text": "\xff"}\n',
    "deep": b"[" * 100_000 + b"\n",
    "no field": b'{"a": 5}\n',
    "other type": b'{"a": "5", "text": "x"}\n',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_lines_are_counted_kept_and_left_out(tmp_path, capsys, kind):
    Journal(tmp_path, "x.jsonl").append(ROWS[0])
    path = tmp_path / "journal" / "x.jsonl"
    with path.open("ab") as file:
        file.write(BROKEN[kind])
    Journal(tmp_path, "y.jsonl").append(ROWS[1])
    fields = {"a": int, "text": str}
    assert list(Journal.read(tmp_path, "*.jsonl", fields)) == ROWS[:2]
    assert f"{path}: 1 broken lines left out" in capsys.readouterr().err
    Journal(tmp_path, "x.jsonl", fields).append(ROWS[2])
    assert list(Journal.read(tmp_path, "x.jsonl", fields)) == [ROWS[0], ROWS[2]]
    assert capsys.readouterr().err == "" and (path.parent / "x.jsonl.broken").read_bytes() == BROKEN[kind]


def test_a_line_cut_by_a_kill(tmp_path, capsys):
    whole, cut = json.dumps(ROWS[0]).encode(), b'{"a": "\xc3'
    path = tmp_path / "journal" / "x.jsonl"
    path.parent.mkdir()
    path.write_bytes(whole + b"\n" + cut)
    assert list(Journal.read(tmp_path, "x.jsonl")) == [ROWS[0]]
    assert capsys.readouterr().err == ""  # another process may be writing it just now
    Journal(tmp_path, "x.jsonl").append(ROWS[2])
    assert list(Journal.read(tmp_path, "x.jsonl")) == [ROWS[0], ROWS[2]]
    path.write_bytes(whole)  # all but the end of its line
    Journal(tmp_path, "x.jsonl").append(ROWS[2])
    assert list(Journal.read(tmp_path, "x.jsonl")) == [ROWS[0], ROWS[2]]


def test_a_folder_in_a_journals_place(tmp_path):
    (tmp_path / "journal" / "x.jsonl").mkdir(parents=True)
    for use in (lambda: list(Journal.read(tmp_path, "x.jsonl")), lambda: Journal(tmp_path, "x.jsonl")):
        with pytest.raises(UserError, match=r"journal/x\.jsonl: cannot be read: Is a directory"):
            use()


# ---- whole files -------------------------------------------------------------------------------------------------


def test_whole_files_or_none(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x.json"
    write_json(path, ROWS)
    assert json.loads(path.read_text(encoding="utf-8")) == ROWS
    write_rows(path.with_suffix(".jsonl"), ROWS)
    assert [json.loads(line) for line in path.with_suffix(".jsonl").open(encoding="utf-8")] == ROWS

    def full(descriptor: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"x\.json: cannot be written: No space left on device"):
        write_json(path, [])
    assert json.loads(path.read_text(encoding="utf-8")) == ROWS
    assert sorted(os.listdir(path.parent)) == ["x.json", "x.jsonl"]


def test_a_folder_in_a_files_place_is_set_aside(tmp_path, capsys):
    path = tmp_path / "x.json"
    for number in ("", "2"):
        (path / "inner").mkdir(parents=True)
        write_json(path, {"a": 1})
        assert read_own(path) == {"a": 1} and (tmp_path / f"x.json.broken{number}" / "inner").is_dir()
        assert f"{path}: is a folder; moved to x.json.broken{number}" in capsys.readouterr().err
        path.unlink()


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"null", b"[1]", b"\xff\xfe", b"\0" * 100, b"[" * 100_000])
def test_torn_state_is_set_aside(tmp_path, capsys, content):
    path = tmp_path / "x.json"
    assert read_own(path) is None and capsys.readouterr().err == ""
    path.write_bytes(content)
    assert read_own(path) is None
    assert capsys.readouterr().err.startswith(f"warning: {path}: ")
    assert not path.exists() and (tmp_path / "x.json.broken").read_bytes() == content


# ---- settings and locks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tear", [lambda p: p.write_text('{"a'), lambda p: p.write_text(""), Path.unlink, None])
def test_torn_settings(tmp_path, tear):
    record = tmp_path / "settings.json"
    check_settings(record, {"a": 1}, has_output=False)
    if tear is None:
        record.unlink()
        record.mkdir()
    else:
        tear(record)
    with pytest.raises(UserError, match=r"without a record of how it was made \(a whole settings\.json\)"):
        check_settings(record, {"a": 1}, has_output=True)
    check_settings(record, {"a": 1}, has_output=False)
    check_settings(record, {"a": 1}, has_output=True)
    with pytest.raises(UserError, match="a was 1, now 2"):
        check_settings(record, {"a": 2}, has_output=True)


def test_a_lock_that_nothing_came_of_leaves_nothing(tmp_path):
    with lock_folder(tmp_path / "new"), pytest.raises(UserError, match="another run is writing"):
        lock_folder(tmp_path / "new").__enter__()
    assert not (tmp_path / "new").exists()
    with lock_folder(tmp_path / "new"):
        write_json(tmp_path / "new" / "x.json", 1)
    assert (tmp_path / "new" / "x.json").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written: File exists"):
        lock_folder(tmp_path / "file").__enter__()


# ---- kills -------------------------------------------------------------------------------------------------------


def test_kills_lose_and_double_nothing(tmp_path):
    """A command as all of them are: journal what is finished, then write the whole file."""
    folder = tmp_path / "out"
    asked = []

    def main() -> None:
        with lock_folder(folder):
            done = list(Journal.read(folder, "x.jsonl", {"n": int}))
            check_settings(folder / "settings.json", {"a": 1}, has_output=bool(done))
            journal = Journal(folder, "x.jsonl", {"n": int})
            for n in range(len(done), 4):
                asked.append(n)
                journal.append({"n": n, "text": f"answer {n}"})
            write_rows(folder / "all.jsonl", Journal.read(folder, "x.jsonl", {"n": int}))

    stops = stops_of(main, folder, tmp_path / "stops")
    assert asked == [0, 1, 2, 3]
    whole = contents(folder, "*.json*", "journal/*.jsonl")
    assert len(whole) == 3 and {"its end", "os.rename all.jsonl", "writing x.jsonl"} <= {stop.before for stop in stops}
    again = []
    for stop in stops:
        stop.restore()
        asked.clear()
        main()
        assert contents(folder, "*.json*", "journal/*.jsonl") == whole, stop
        again.append(len(asked))
    assert again == sorted(again, reverse=True) and set(again) == set(range(5))  # only what was in flight


def test_journal_survives_a_torn_line(tmp_path):
    Journal(tmp_path, "x.jsonl").append({"a": 1}, {"a": "\u00e9"})
    with (tmp_path / "journal" / "x.jsonl").open("ab") as file:
        file.write(b'{"a": "\xc3')
    assert list(Journal.read(tmp_path, "x*")) == [{"a": 1}, {"a": "\u00e9"}]
    Journal(tmp_path, "x.jsonl").append({"a": 3})
    assert list(Journal.read(tmp_path, "x*")) == [{"a": 1}, {"a": "\u00e9"}, {"a": 3}]
