"""The code blocks of README and docs, run as a reader would: a page's blocks share one session."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).parent.parent
BRIEFLY = f"""
import runpy, sys
sys.path.append({str(ROOT / "tests")!r})
import brief
brief.measure_briefly()
runpy.run_path("session.py", run_name="__main__")
"""
# The commands of a page in one process, which starts as each of them would.
COMMANDS = """
import json, sys
from artifex.cli import main
for sys.argv[1:] in json.loads(sys.argv[1]):
    try:
        main()
    except SystemExit as end:
        assert not end.code, sys.argv
"""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
pytestmark = pytest.mark.slow

BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page):
    return BLOCK.findall(page.read_text())


def commands(page):
    """The commands of a page, those that set up the machine left out."""
    scripts = "".join(code for language, code in blocks(page) if language == "bash")
    return [line for line in scripts.splitlines() if line.startswith("artifex ")]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_code_blocks_run(page, tmp_path):
    environment = {**os.environ, "PATH": PATH}
    python = ["session.py"]
    if "tune" in "".join(code for _, code in blocks(page)):  # what it finds is the page's own
        environment["ARTIFEX_CACHE_DIR"] = str(tmp_path / "cache")
        python = ["-c", BRIEFLY]
    session = "\n".join(code for language, code in blocks(page) if language == "python")
    if session:
        (tmp_path / "session.py").write_text(session)
        forked.run(python, cwd=tmp_path, env=environment, check=True)
    said = [shlex.split(command, comments=True)[1:] for command in commands(page)]
    forked.run(["-c", COMMANDS, json.dumps(said)], cwd=tmp_path, env=environment, check=True)


def test_a_command_runs_in_a_shell(tmp_path):
    command = commands(ROOT / "README.md")[0]
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, env=os.environ | {"PATH": PATH}, check=True)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert all(f": {page.name}" in navigation for page in PAGES[1:])
