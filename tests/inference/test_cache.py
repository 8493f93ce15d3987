import os
import stat
from pathlib import Path

import jax
import pytest

from artifex.generative_models.core.errors import CacheError
from artifex.generative_models.inference import cache

SOMEONE_ELSE = 12345

pytestmark = pytest.mark.usefixtures("compiles_anew")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory that is not there yet."""
    path = tmp_path / "some" / "cache"
    monkeypatch.setenv("ARTIFEX_CACHE_DIR", str(path))
    return path


def test_the_directory_is_where_the_system_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ARTIFEX_CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert cache.cache_dir() == tmp_path / ".cache" / "artifex"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg" / "artifex"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache.cache_dir() == tmp_path / "Library" / "Caches" / "artifex"
    monkeypatch.setenv("ARTIFEX_CACHE_DIR", "~/mine")
    assert cache.cache_dir() == tmp_path / "mine"


def test_what_is_written_is_read_by_its_owner_alone(root: Path):
    assert cache.read("tuning/a.json") is None
    cache.write("tuning/a.json", b"one")
    cache.write("tuning/a.json", b"two")
    assert cache.read("tuning/a.json") == b"two"
    modes = [stat.S_IMODE((root / name).stat().st_mode) for name in ("", "tuning", "tuning/a.json")]
    assert modes == [0o700, 0o700, 0o600]
    assert [path.name for path in (root / "tuning").iterdir()] == ["a.json"]


def writable_by_the_group(root: Path) -> None:
    root.mkdir(parents=True)
    root.chmod(0o770)


def writable_by_all(root: Path) -> None:
    root.mkdir(parents=True)
    root.chmod(0o1777)


def of_someone_else(root: Path) -> None:
    root.mkdir(parents=True, mode=0o700)
    os.chown(root, SOMEONE_ELSE, -1)


def link_to_one_that_all_can_write_to(root: Path) -> None:
    writable_by_all(root.parent / "target")
    root.symlink_to(root.parent / "target")


def a_file(root: Path) -> None:
    root.parent.mkdir()
    root.touch()


def below_a_file(root: Path) -> None:
    root.parent.touch()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.mark.parametrize(
    "make",
    [
        writable_by_the_group,
        writable_by_all,
        pytest.param(of_someone_else, marks=needs_root),
        link_to_one_that_all_can_write_to,
        a_file,
        below_a_file,
    ],
)
def test_a_directory_that_others_could_fill_is_refused(root: Path, make, caplog: pytest.LogCaptureFixture):
    make(root)
    for use in (cache.cache_dir, lambda: cache.read("a"), lambda: cache.write("a", b"")):
        with pytest.raises(CacheError, match="ARTIFEX_CACHE_DIR"):
            use()
    assert cache.try_read("a") is None
    cache.try_write("a", b"")
    assert cache.enable_compilation_cache() is None
    assert [record.name for record in caplog.records] == ["artifex"]
    assert str(root) in caplog.text


def test_a_link_to_a_private_directory_will_do(root: Path):
    (root.parent / "target").mkdir(parents=True, mode=0o700)
    root.symlink_to(root.parent / "target")
    cache.write("a", b"content")
    assert cache.read("a") == b"content"


def test_a_cache_that_cannot_be_written_to_is_read(root: Path, monkeypatch: pytest.MonkeyPatch):
    cache.write("a", b"content")

    def read_only(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")  # which chmod is not for root, whom tests may run as

    monkeypatch.setattr("tempfile.mkstemp", read_only)
    monkeypatch.setattr("os.utime", read_only)
    with pytest.raises(CacheError, match="Read-only"):
        cache.write("a", b"other")
    assert cache.read("a") == b"content"


def test_an_entry_that_others_could_have_made_is_refused(root: Path):
    cache.write("a", b"content")
    (root / "a").chmod(0o620)
    with pytest.raises(CacheError, match="only you can write"):
        cache.read("a")
    (root / "a").unlink()
    (root / "a").symlink_to("/etc/hostname")
    with pytest.raises(CacheError, match="delete it"):
        cache.read("a")
    (root / "a").unlink()
    (root / "a").mkdir()
    with pytest.raises(CacheError, match="delete it"):
        cache.read("a")


@needs_root
def test_an_entry_of_someone_else_is_refused(root: Path):
    cache.write("a", b"content")
    os.chown(root / "a", SOMEONE_ELSE, -1)
    with pytest.raises(CacheError, match="only you can write"):
        cache.read("a")


def test_a_failed_write_leaves_what_was_there(root: Path, monkeypatch: pytest.MonkeyPatch):
    cache.write("a", b"content")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CacheError, match="No space left"):
        cache.write("a", b"other")
    assert cache.read("a") == b"content"
    assert [path.name for path in root.iterdir()] == ["a"]


def test_entries_used_longest_ago_go_first(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "MAX_BYTES", 10)
    for age, name in ((30, "x/old"), (20, "y/middle"), (10, "z/new")):
        cache.write(name, b"123")
        os.utime(root / name, (0, 1e9 - age))
    assert cache.read("x/old") == b"123"  # so it is the newest now
    cache.write("w", b"4567")
    assert cache.read("y/middle") is None
    assert [cache.read(name) for name in ("x/old", "z/new", "w")] == [b"123", b"123", b"4567"]


def test_jax_keeps_what_it_compiles(root: Path):
    assert cache.enable_compilation_cache() == root / "xla"
    jax.jit(lambda x: x * 3 + 1).lower(2.0).compile()
    kept = set((root / "xla").iterdir())
    assert kept
    with cache.without_compilation_cache():
        jax.jit(lambda x: x * 5 + 2).lower(2.0).compile()
    assert set((root / "xla").iterdir()) == kept
    jax.jit(lambda x: x * 7 + 3).lower(2.0).compile()
    assert set((root / "xla").iterdir()) > kept
    assert cache.enable_compilation_cache() == root / "xla"
