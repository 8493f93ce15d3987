"""What JAX compiles while tests run, kept for all processes of one session and for no other."""

import os
import threading
from pathlib import Path

import jax
from jax._src.lru_cache import LRUCache
from jax.experimental.compilation_cache import compilation_cache

_WORTH_KEEPING = 0.1  # seconds of compiling; of less, writing takes too much
FOLDER = "ARTIFEX_TESTS_COMPILED"  # the variable that names the folder, for a session's processes


def share_compilations() -> None:
    """Has this process look in the session's folder before it compiles; without a folder it compiles."""
    LRUCache.put = _put
    jax.config.update("jax_compilation_cache_dir", os.environ.get(FOLDER))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()


def _put(cache: LRUCache, key: str, value: bytes) -> None:
    """Adds an entry at once: JAX writes it piece by piece, and another process may read half of it."""
    path = Path(cache.path, f"{key}-cache")
    if not path.exists():
        part = path.with_name(f".{key}-{os.getpid()}-{threading.get_ident()}")
        part.write_bytes(value)
        part.replace(path)
