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


OTHERS = ["a link", "open to others", "a file", "a link within"]


@pytest.mark.usefixtures("_own_claims")
@pytest.mark.parametrize("other", OTHERS)
def test_what_others_put_in_the_place_of_claims_is_not_written_to(tmp_path, other):
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    (victim / "0").write_text("precious")
    claims = tmp_path / f"artifex-cores-{os.getuid()}"
    if other == "a link":
        claims.symlink_to(victim)
    elif other == "open to others":
        claims.mkdir()
        claims.chmod(0o777)
    elif other == "a file":
        claims.write_text("precious")
    else:
        claims.mkdir(mode=0o700)
        for core in os.sched_getaffinity(0):
            (claims / str(core)).symlink_to(victim / "0")
    before = os.sched_getaffinity(0)
    with claimed_cores(1):
        assert os.sched_getaffinity(0) == before
    assert [path.name for path in victim.iterdir()] == ["0"]
    assert (victim / "0").read_text() == "precious"


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
