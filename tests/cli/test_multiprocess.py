"""Commands as two real processes, which write one output; the same command alone gives the reference."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from every_family import FAMILIES
from served import START_SECONDS
from several import finish, free_address, start

from artifex.generative_models.core.checkpointing import save_checkpoint, setup_checkpoint_manager
from artifex.generative_models.inference import export_model, load_exported_model

MAIN = "from artifex.cli import main; main()"
LATE = ["--join-timeout", 1]


def start_two(
    *args: object, address: str = "", each: tuple[list[object], list[object]] = ([], []), code=(MAIN, MAIN)
):
    """Starts a command as two processes: `code` of each, and in `each` what it is told besides."""
    address = address or free_address()
    joining = ["--coordinator", address, "--num-processes", 2]
    return [start(["-c", code[i], *args, *joining, "--process-id", i, *each[i]]) for i in range(2)]


def error_of(said: tuple[int, str, str]) -> str:
    """The one line that a command which failed says."""
    status, out, error = said
    (line,) = error.splitlines()
    assert (status, out) == (1, "")
    return line.removeprefix("artifex: error: ")


@pytest.fixture
def images(small: np.ndarray) -> Path:
    np.save("images.npy", small)
    return Path("images.npy")


def test_two_encode_one_file_bit_for_bit(model, images, cli):
    batch_size = 16  # 70 rows: two whole batches each, and a ragged one
    first, second = finish(
        start_two("encode", model, images, "-o", "two.npy", "--batch-size", batch_size, "--json")
    )
    assert (first[0], first[2], second) == (0, "", (0, "", ""))
    facts = json.loads(first[1])
    assert (facts["rows"], facts["processes"], facts["resumed_at"]) == (70, 2, 0)
    cli("encode", model, images, "-o", "one.npy", "--batch-size", batch_size)
    assert Path("two.npy").read_bytes() == Path("one.npy").read_bytes()
    assert sorted(path.name for path in Path().iterdir()) == ["images.npy", "one.npy", "two.npy"]


SMALL_ROUNDS = f"""
from artifex.generative_models.inference.offline import npy, together
npy._FLUSH_SECONDS = 0.0
together._ROUND_BATCHES = 1
{MAIN}
"""
STALLS = f"""
import signal
from artifex.generative_models.inference.offline import npy
write = npy.NpyPlace.write
def stalling(self, start, *rest):
    if start >= 96:
        signal.pause()
    write(self, start, *rest)
npy.NpyPlace.write = stalling
{SMALL_ROUNDS}
"""  # in its fourth round, of 32 rows each


@pytest.mark.parametrize("killed", [0, 1])
def test_one_is_killed_and_both_go_on_where_they_were(model, cli, killed):
    job = ["generate", model, "-n", 317, "-o", "two.npy", "--batch-size", 16]
    code = [STALLS if i == killed else SMALL_ROUNDS for i in range(2)]
    running = start_two(*job, code=code)
    record = Path("two.npy.partial.json")
    deadline = time.monotonic() + START_SECONDS
    while not record.is_file() or json.loads(record.read_text())["rows_done"] != [[0, 96]]:
        assert time.monotonic() < deadline
        assert [process.poll() for process in running] == [None, None]
        time.sleep(0.01)
    os.kill(running[killed].pid, signal.SIGKILL)
    said = finish(running)
    assert said[killed][0] == -signal.SIGKILL
    if killed:  # where the coordinator is killed, JAX ends the others
        assert error_of(said[0]).startswith("another process of the job has gone")
        assert "rows are kept in two.npy.partial, to resume from" in error_of(said[0])
    assert said[1 - killed][0] != 0
    first, second = finish(start_two(*job, "--resume", "--json"))
    assert first[0] == second[0] == 0, (first, second)
    assert json.loads(first[1])["resumed_at"] == 96
    cli("generate", model, "-n", 317, "-o", "one.npy", "--batch-size", 16)
    assert Path("two.npy").read_bytes() == Path("one.npy").read_bytes()


def test_models_that_differ(model, images, tmp_path):
    other = Path(shutil.copytree(model, tmp_path / "there" / model.name))
    with setup_checkpoint_manager(other / "checkpoints")[
        0
    ] as manager:  # of another step, with the same shapes
        save_checkpoint(manager, load_exported_model(model)[0], 4)
    address = free_address()
    joining = ["--coordinator", address, "--num-processes", 2, "--process-id"]
    said = finish(
        [start(["-c", MAIN, "encode", path, images, *joining, i]) for i, path in enumerate((model, other))]
    )
    for path, one in zip((model, other), said, strict=True):
        assert error_of(one) == f"{path}: processes [1] have another model there than process 0"
    assert not Path("latents.npy").exists()


def test_jobs_that_differ(model):
    each = (["--seed", 1, "-n", 5], ["--seed", 2, "-n", 6])
    for one in finish(start_two("generate", model, "-o", "out.npy", each=each)):
        assert error_of(one) == "processes 0 and 1 were given different jobs: rows: 5 and 6; seed: 1 and 2"
    assert list(Path().iterdir()) == []


def test_a_model_that_one_has_not_got(model):
    address = free_address()
    joining = ["-o", "out.npy", "--coordinator", address, "--num-processes", 2, "--process-id"]
    said = finish(
        [start(["-c", MAIN, "generate", path, *joining, i]) for i, path in enumerate((model, "gone"))]
    )
    assert error_of(said[0]).startswith("another process failed; process 1: ConfigError: no model 'gone'")
    assert error_of(said[1]).startswith("no model 'gone'")


def test_an_output_of_another_job(model, cli):
    Path("out.npy.partial").write_bytes(b"rows")
    Path("out.npy.partial.json").write_text('{"rows_done": [[0, 4]], "job": {"seed": 9}}')
    said = finish(start_two("generate", model, "-o", "out.npy", "--resume"))
    assert error_of(said[0]).startswith("cannot resume ")
    assert error_of(said[1]).startswith("another process failed; process 0: OutputError: cannot resume ")
    assert Path("out.npy.partial").read_bytes() == b"rows"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num-processes", 2], "--num-processes and --process-id go with --coordinator"),
        (["--coordinator", "a:1", "-o", "out.png"], "out.png: several processes write a .npy array"),
    ],
)
def test_options_that_do_not_go_together(model, failing_cli, args, message):
    assert failing_cli("generate", model, *args).startswith(message)


@pytest.mark.parametrize(
    ("coordinator", "message"),
    [("a", "coordinator: expected HOST:PORT or auto, got 'a'"), ("auto", "coordinator: found no cluster")],
)
def test_a_coordinator_that_is_none(model, coordinator, message):
    (said,) = finish([start(["-c", MAIN, "generate", model, "-o", "out.npy", "--coordinator", coordinator])])
    assert error_of(said).startswith(message)


def test_a_coordinator_that_cannot_be_reached(model):
    address = free_address()
    joining = ["--coordinator", address, "--num-processes", 2, "--process-id", 1, *LATE]
    (said,) = finish([start(["-c", MAIN, "generate", model, "-o", "out.npy", *joining])])
    assert error_of(said).startswith(f"coordinator: nobody at {address}")


def test_counts_that_differ(model):
    address = free_address()
    command = ["-c", MAIN, "generate", model, "-o", "out.npy", "--coordinator", address]
    said = finish([start([*command, "--num-processes", 2 + i, "--process-id", i]) for i in range(2)])
    for one in said:
        assert error_of(one) == "num_processes: process 1 says 3, process 0 says 2"


@pytest.mark.parametrize("family", ["autoregressive", "realnvp"])  # a loop with a cache, and one of attempts
def test_two_generate_one_file_of_any_family_bit_for_bit(family, tmp_path, cli):
    export = export_model(FAMILIES[family](), tmp_path / family, step=0)
    command = ["generate", export, "-n", 6, "--seed", 3, "--batch-size", 2, "--set", "label=1"]
    first, second = finish(start_two(*command, "-o", "two.npy"))
    assert first[0] == second[0] == 0, (first, second)
    assert first[1].startswith("6 samples in ")
    cli(*command, "-o", "one.npy")
    assert Path("two.npy").read_bytes() == Path("one.npy").read_bytes()
