"""Directories by the names that people type, behind links, and with the files of others."""

import os
from pathlib import Path

import pytest

from artifex.generative_models.core.directories import foreign_weights, name_of, real_path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `current` is a link to a hidden directory."""
    (tmp_path / ".worktrees/abc").mkdir(parents=True)
    (tmp_path / "current").symlink_to(".worktrees/abc")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("current", "current"),
        ("current/", "current"),
        ("./current/.", "current"),
        (".worktrees/abc", "abc"),
        (".worktrees/abc/..", ".worktrees"),
        ("mnist-vae", "mnist-vae"),
    ],
)
def test_a_name_is_what_was_typed(typed: str, name: str) -> None:
    assert name_of(typed) == name


def test_here_goes_by_the_name_of_the_folder(folder: Path) -> None:
    assert name_of(".") == folder.name


def test_links_are_followed(folder: Path) -> None:
    assert real_path(Path("current")) == (folder / ".worktrees/abc").resolve()
    assert real_path(Path("nothing")) == folder / "nothing"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system has none")
def test_links_that_only_the_kernel_can_follow_stay(folder: Path) -> None:
    descriptor = os.open(".worktrees/abc", os.O_RDONLY)
    try:
        Path(".worktrees/abc").rmdir()
        Path(".worktrees/abc").mkdir()  # where the link's words lead
        path = Path(f"/proc/self/fd/{descriptor}")
        assert real_path(path) == path
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", ["checkpoint_100", "flax_model.msgpack", "m.safetensors", "m.bin", "m.npz"])
def test_weights_of_others_are_told_by_their_files(folder: Path, name: str) -> None:
    Path(".worktrees/abc/notes.txt").touch()
    assert foreign_weights(folder / "current") is None
    Path("current", name).touch()
    assert f"({name}): " in str(foreign_weights(folder / "current"))
    assert foreign_weights(folder / "current" / name) == foreign_weights(folder / "current")


def test_a_directory_by_such_a_name_is_something_else(folder: Path) -> None:
    Path("current/checkpoint_100").mkdir()
    assert foreign_weights(folder / "current") is None
