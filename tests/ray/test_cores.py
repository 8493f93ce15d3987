import os
import sys
import tempfile
import threading

import forked
import pytest

from artifex.ray.cores import claimed_cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no process to cores")


@pytest.fixture
def _own_claims(monkeypatch, tmp_path):
    """Keeps the claims of others, such as actors that are about to end, out of a test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.mark.usefixtures("_own_claims")
def test_claims_do_not_overlap_and_end():
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("one core cannot be shared out")
    with claimed_cores(1):
        first = os.sched_getaffinity(0)
        assert len(first) == 1
        assert first < before
        seen: list[set[int]] = []
        thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
        assert seen == [first]
        others = other_process(len(before) - 1, before)
        assert others == before - first
        assert other_process(len(before), before) == before  # too many: it may use all
    assert os.sched_getaffinity(0) == before
    assert other_process(len(before), before) == before


def other_process(count: int, before: set[int]) -> set[int]:
    """The cores that another process gets, which then dies with its claim."""
    code = f"""
import os, signal
os.sched_setaffinity(0, {before})
from artifex.ray.cores import claimed_cores
with claimed_cores({count}):
    print(*os.sched_getaffinity(0), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = forked.run(["-c", code], env=os.environ)
    return {int(core) for core in done.stdout.split()}
