"""What is kept of a process's output."""

import resource
from pathlib import Path

import pytest

from worker.logfile import BoundedLog

MOST = 4096


def test_what_fits_is_kept_whole(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "deep" / "log.txt", MOST)
    log.write(b"one\n")
    log.write(b"two\n\n")
    assert (tmp_path / "deep" / "log.txt").read_bytes() == b"one\ntwo\n\n"
    assert log.last_line() == "two"


def test_of_too_much_the_beginning_and_the_end_are_kept_at_every_moment(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    log = BoundedLog(path, MOST)
    lines = [f"line {number}\n".encode() for number in range(5_000)]
    for number, line in enumerate(lines):
        log.write(line)
        if number % 50 == 0:
            assert path.stat().st_size <= MOST
            assert path.read_bytes().endswith(line)
    kept = path.read_bytes().splitlines(keepends=True)
    [cut] = [line for line in kept if b"cut here" in line]
    position = kept.index(cut)
    assert kept[:position] == lines[:position]
    assert kept[position + 1 :] == lines[-(len(kept) - position - 1) :]
    assert position > 100
    missing = sum(map(len, lines)) - sum(map(len, kept)) + len(cut)
    assert f" {missing} bytes" in cut.decode()


def test_a_log_that_cannot_be_cut_goes_on_once_it_can(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    log = BoundedLog(path, MOST)
    log.write(b"start\n")
    log.write(b"x" * (MOST - 100) + b"\n")
    in_the_way = tmp_path / ".log.txt.tmp"
    in_the_way.mkdir()  # a full disk would refuse the new file as well
    with pytest.raises(OSError, match="directory"):
        log.write(b"y" * 500)
    log.write(b"fits\n")
    assert path.read_bytes().endswith(b"x\nfits\n")
    in_the_way.rmdir()
    log.write(b"z" * 500)
    assert path.read_bytes().startswith(b"start\n")
    assert path.read_bytes().endswith(b"fits\n" + b"z" * 500)
    assert path.stat().st_size <= MOST


def test_a_disk_that_has_room_for_a_part_leaves_the_whole_log(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    log = BoundedLog(path, MOST)
    lines = b"".join(f"line {number}\n".encode() for number in range(500))
    log.write(lines[: MOST - 100])
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST // 2, limits[1]))  # as a full disk: the system writes a part
    try:
        with pytest.raises(OSError, match="No space left"):
            log.write(b"y" * 500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["log.txt"]
    log.write(b"z" * 500)
    assert path.read_bytes().startswith(b"line 0\n")
    assert path.read_bytes().endswith(b"z" * 500)


def test_one_piece_that_is_too_large_and_has_no_line(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log.txt", MOST)
    log.write(b"x" * 100_000 + b"\nlast")
    assert (tmp_path / "log.txt").stat().st_size <= MOST
    assert log.last_line() == "last"
    assert (tmp_path / "log.txt").read_bytes().endswith(b"last")
