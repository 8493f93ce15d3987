"""The studio's files: modules, styles and a sign, as the package has them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import NamedTuple

MEDIA_TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


class File(NamedTuple):
    """A file to send.

    Args:
        content: What is in it.
        media_type: What that is.
        etag: A quoted name of the content.
    """

    content: bytes
    media_type: str
    etag: str


@functools.cache
def studio_files() -> Mapping[str, File]:
    """The files by name; read once, so that a name from outside never becomes a path."""
    files = {}
    for entry in (resources.files("artifex.serving.pages") / "studio").iterdir():
        suffix = entry.name.rpartition(".")[2]
        if suffix in MEDIA_TYPES:
            content = entry.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            files[entry.name] = File(content, MEDIA_TYPES[suffix], etag)
    return dict(sorted(files.items()))
