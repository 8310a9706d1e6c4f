"""A piece is made once, whole or not at all."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cache
import pytest
from cache import cache_folder, piece, used


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_piece_is_filled_once_for_each_question() -> None:
    filled = []

    def fill(folder: Path) -> None:
        filled.append(folder)
        (folder / "file").write_text("content")

    first = piece("toy", {"version": 1}, fill)
    assert (first / "file").read_text() == "content"
    assert piece("toy", {"version": 1}, fill) == first
    assert piece("toy", {"version": 2}, fill) != first
    assert len(filled) == 2


def test_a_failure_leaves_nothing() -> None:
    def fill(folder: Path) -> None:
        (folder / "file").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        piece("toy", {}, fill)
    assert [path.name for path in cache_folder().iterdir()] == ["toy.lock"]


def test_what_an_interrupted_process_left_is_removed() -> None:
    left_over = cache_folder() / ".toy-half"
    left_over.mkdir()
    piece("toy", {}, lambda folder: None)
    assert not left_over.exists()


def test_what_was_not_used_for_long_is_removed() -> None:
    names = ("build-new", "build-old", "build-mine", "stage-old")
    for name in names:
        (cache_folder() / name / "tree").mkdir(parents=True)
    long_ago = time.time() - 100_000
    for name in names[1:]:
        os.utime(cache_folder() / name, (long_ago, long_ago))
    used("build", cache_folder() / "build-mine", 50_000)
    assert {path.name for path in cache_folder().iterdir() if path.is_dir()} == {"build-new", "build-mine", "stage-old"}
    assert (cache_folder() / "build-mine").stat().st_mtime > long_ago


def test_two_at_once_fill_a_piece_once() -> None:
    filled = []

    def fill(folder: Path) -> None:
        filled.append(folder)
        time.sleep(0.1)

    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(piece, "toy", {}, fill) for _ in range(2))
        assert first.result() == second.result()
    assert len(filled) == 1


def test_how_far_a_piece_is_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "REPORT_SECONDS", 0.0)
    lines: list[str] = []

    def fill(folder: Path) -> None:
        (folder / "file").write_bytes(bytes(1 << 20))
        while not any("50%" in line for line in lines):
            time.sleep(0.01)

    piece("toy", {}, fill, lines.append, megabytes=2)
    assert any(line.startswith("arm64: toy: ") and "/2.10M" in line for line in lines)
