"""Compiled code that is kept on disk."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from numba.core import event

from lidar_semseg_ros.network import machine_code

SOURCE = """
from lidar_semseg_ros.network.machine_code import compiled

@compiled
def doubled(number):
    return 2 * number
"""


def loaded(folder: Path) -> ModuleType:
    """Load the module anew, as another process does."""
    path = folder / "kernel.py"
    if not path.exists():
        path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("kernel", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def hits(module: ModuleType) -> int:
    return sum(module.doubled.stats.cache_hits.values())


def kept(folder: Path, ending: str) -> list[Path]:
    return [*(folder / "cache").rglob(f"*{ending}")]


def test_what_one_process_compiled_the_next_one_loads(folder: Path) -> None:
    first = loaded(folder)
    assert first.doubled(21) == 42 and hits(first) == 0 and len(kept(folder, ".nbc")) == 1
    second = loaded(folder)
    assert second.doubled(21) == 42 and hits(second) == 1


def test_whoever_waits_for_the_compiler_hears_of_it_and_nobody_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    progress, now_s = machine_code._Progress(), 0.0
    monkeypatch.setattr(machine_code, "time", SimpleNamespace(monotonic=lambda: now_s))
    event.register("numba:compile", progress)
    try:
        with caplog.at_level(logging.INFO):
            first = loaded(folder)
            first.doubled(1)
            now_s = 4.0
            first.doubled(1.5)
            now_s = 7.0
            first.doubled(1j)
            for number in (1, 1.5, 1j):
                first.doubled(number)
                loaded(folder).doubled(number)
    finally:
        event.unregister("numba:compile", progress)
    assert caplog.messages == [
        "compiling for this processor; what is compiled is kept for later starts",
        "still compiling: 2 functions in 7 s",
    ]


def test_what_was_compiled_is_not_used_once_a_module_beside_it_changes(folder: Path) -> None:
    beside = folder / "called.py"
    beside.write_text("one = 1")
    loaded(folder).doubled(1)
    beside.write_text("one = 11")
    machine_code._stamp_of.cache_clear()  # which another process begins without
    changed = loaded(folder)
    assert changed.doubled(21) == 42 and hits(changed) == 0
    assert hits(again := loaded(folder)) == 0 and again.doubled(21) == 42 and hits(again) == 1


def test_code_of_old_sources_is_not_taken_for_new_by_what_a_kill_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = folder / "called.py"
    beside.write_text("one = 1")
    loaded(folder).doubled(1)
    old = kept(folder, ".nbc")
    beside.write_text("one = 11")
    machine_code._stamp_of.cache_clear()
    with monkeypatch.context() as killed:
        killed.setattr("numba.core.caching.IndexDataCacheFile._save_data", lambda *_: None)
        assert loaded(folder).doubled(21) == 42
    after = loaded(folder)
    assert after.doubled(21) == 42 and hits(after) == 0
    assert len(kept(folder, ".nbc")) == 1 and kept(folder, ".nbc") != old


def test_code_of_a_function_that_has_moved_does_not_stay(folder: Path) -> None:
    loaded(folder).doubled(1)
    old = kept(folder, ".nbc")
    (folder / "kernel.py").write_text(f"\n{SOURCE}")
    machine_code._stamp_of.cache_clear()
    assert loaded(folder).doubled(21) == 42
    assert len(kept(folder, ".nbc")) == len(kept(folder, ".nbi")) == 1 and kept(folder, ".nbc") != old


def test_what_an_editor_leaves_beside_the_modules_does_no_harm(folder: Path) -> None:
    (folder / ".#kernel.py").symlink_to("someone@somewhere.1")
    (folder / "gone.py").symlink_to(folder / "nowhere.py")
    assert loaded(folder).doubled(21) == 42


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
@pytest.mark.parametrize("left", [b"", b"\x80\x04broken"])
def test_files_that_a_power_cut_emptied_are_made_anew_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, ending: str, left: bytes
) -> None:
    loaded(folder).doubled(1)
    for file in kept(folder, ending):
        file.write_bytes(left)
    with caplog.at_level(logging.WARNING):
        assert loaded(folder).doubled(21) == 42
    assert len(caplog.messages) == 1 and "is damaged and made anew" in caplog.text
    third = loaded(folder)
    assert third.doubled(21) == 42 and hits(third) == 1


def test_where_nothing_can_be_written_it_computes_all_the_same(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    with caplog.at_level(logging.WARNING):
        assert loaded(folder).doubled(21) == 42
    assert "No space left on device" in caplog.text
