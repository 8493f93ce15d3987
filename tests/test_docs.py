"""The code blocks of README and docs, run as a reader would: a page's blocks share one session."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pytestmark = pytest.mark.slow

BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page):
    return BLOCK.findall(page.read_text())


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What is compiled for one page serves the others, which run the same model."""
    return tmp_path_factory.mktemp("shared")


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_code_blocks_run(page, tmp_path, shared):
    tunes = "tune" in "".join(code for _, code in blocks(page))  # which is the page's own
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ARTIFEX_CACHE_DIR": str(tmp_path / "cache" if tunes else shared / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(shared / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    session = "\n".join(code for language, code in blocks(page) if language == "python")
    if session:
        (tmp_path / "session.py").write_text(session)
        subprocess.run([sys.executable, "session.py"], cwd=tmp_path, env=environment, check=True)
    for language, code in blocks(page):
        commands = [line for line in code.splitlines() if line.startswith("artifex ")]
        if language == "bash" and commands:
            script = "\n".join(["set -eu", *commands])
            subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert all(f": {page.name}" in navigation for page in PAGES[1:])
