"""Two real processes with two devices each, which run one job, against one process and one device."""

import json

import jax
import numpy as np
import pytest
from several import finish, free_address, start
from shared import TOLERANCE

from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference import Executor, load_exported_model

pytestmark = pytest.mark.slow

ROWS = 77  # a ragged number of batches, which do not divide between the processes either
BATCH = 8
ENDPOINTS = {"encode": "x", "decode": "z", "reconstruct": "x", "generate": "temperature"}

SCRIPT = """
import json, sys
import jax, numpy as np
from artifex.generative_models.core.processes import all_of, join_processes, together

address, number, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
join_processes(address, 2, number)

from artifex.generative_models.core import DeviceManager
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.core.errors import ArtifexError
from artifex.generative_models.inference import Batcher, Executor
from artifex.generative_models.inference.pipeline import load_pipeline
from jax.sharding import Mesh

rows = dict(np.load(f"{folder}/rows.npz"))
endpoints = json.loads(sys.argv[4])
batch, key = int(sys.argv[5]), sample_key(7)
facts, arrays = {}, {}

def told(do):
    try:
        do()
    except ArtifexError as error:
        return f"{type(error).__name__}: {error}"

mesh = DeviceManager().mesh()
pipeline = load_pipeline("mnist-vae", batch_size=2 * batch, mesh=mesh)
executor = pipeline.executor
facts["devices"] = [len(jax.devices()), len(jax.local_devices())]
facts["batch_sizes"] = executor.batch_sizes
for endpoint, name in endpoints.items():
    own = executor.local_rows(endpoint, len(rows[name]))
    facts.setdefault("own", [own.start, own.stop])
    chunks = ({name: rows[name][i : min(i + 24, own.stop)]} for i in range(own.start, own.stop, 24))
    outputs = list(executor.map(endpoint, chunks, key=key, first_row=own.start))
    for output in outputs[0]:
        arrays[f"{endpoint}.{output}"] = np.concatenate([chunk[output] for chunk in outputs])

# one call, of which this process has a third or two; rows are numbered through both
part = slice(0, 5) if number == 0 else slice(5, 15)
called = executor("generate", {"temperature": rows["temperature"][part]}, key=key)["x"]
facts["call_is_local"] = called.is_fully_addressable and len(called.sharding.device_set) == 2
arrays["call"] = np.asarray(called)
keys = jax.random.split(key, 15)[part]
arrays["keys"] = np.asarray(executor("generate", {"temperature": rows["temperature"][part]}, keys=keys)["x"])
# one that has no rows at all
mine = rows["x"][:3] if number == 0 else rows["x"][:0]
arrays["few"] = np.asarray(executor("encode", {"x": mine})["mean"])
# a stream, numbered chunk by chunk through both processes
streamed = executor.map("generate", [{"temperature": rows["temperature"][:2]}] * (2 + number), key=key)
arrays["streamed"] = np.concatenate([chunk["x"] for chunk in streamed])

bad = rows["x"][:batch].copy()
bad[2] = np.nan if number else 0
facts["one_fails"] = told(lambda: list(executor.map("encode", [{"x": bad}] * 9)))
facts["next_job"] = np.asarray(executor("encode", {"x": rows["x"][:1]})["mean"]).shape
other = "encode" if number else "reconstruct"
facts["endpoints_differ"] = told(lambda: executor(other, {"x": rows["x"][:2]}))
facts["no_key"] = told(lambda: executor("generate", num_rows=2))
facts["queued"] = told(lambda: Batcher(executor).submit("encode", {"x": rows["x"][:1]}))
devices = np.asarray(jax.devices())
facts["uneven"] = told(lambda: Executor(pipeline.model, mesh=Mesh(devices[[0, 2, 1, 3]], "data")))
facts["unequal"] = told(lambda: Executor(pipeline.model, mesh=Mesh(devices[:3], "data")))
facts["all_of"] = all_of({"number": number, "long": "x" * 100 * number})
facts["together"] = told(lambda: together(lambda: exec("raise ArtifexError('no')") if number else 5))

# weights that no process has whole, restored from disk to where they go
one_copy = load_pipeline("mnist-vae", mesh=DeviceManager().mesh(model_devices=4), shard="model", batch_size=8)
facts["held"] = sum(w.addressable_shards[0].data.nbytes for w in one_copy.executor.weights)
facts["whole"] = sum(w.nbytes for w in one_copy.executor.weights)
arrays["cut"] = np.asarray(one_copy.executor("reconstruct", {"x": rows["x"][:11]})["x"])
others = rows["x"][: 5 + number]
facts["rows_differ"] = told(lambda: one_copy.executor("encode", {"x": others}))

np.savez(f"{folder}/{number}.npz", **arrays)
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def rows(pictures: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x": pictures[:ROWS],
        "z": rng.standard_normal((ROWS, 32)).astype(np.float32),
        "temperature": np.linspace(0.1, 1.5, ROWS, dtype=np.float32),
    }


@pytest.fixture(scope="module")
def job(rows, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], list[dict]]:
    """What each of the two processes said and computed."""
    folder = tmp_path_factory.mktemp("job")
    np.savez(folder / "rows.npz", **rows)
    address, facts = free_address(), [folder, json.dumps(ENDPOINTS), BATCH]
    commands = [["-c", SCRIPT, address, i, *facts] for i in range(2)]
    results = finish([start(command, num_devices=2) for command in commands])
    assert [status for status, _, _ in results] == [0, 0], "\n".join(error[-3000:] for *_, error in results)
    facts = [json.loads(said.splitlines()[-1]) for _, said, _ in results]
    return facts, [dict(np.load(folder / f"{i}.npz")) for i in range(2)]


@pytest.fixture(scope="module")
def alone() -> Executor:
    return Executor(load_exported_model("mnist-vae")[0], batch_sizes=(1, 2, 4, BATCH))


def joined(job, name: str) -> np.ndarray:
    return np.concatenate([arrays[name] for arrays in job[1]])


def test_each_feeds_its_own_rows_and_whole_batches_of_them(job):
    facts, _ = job
    assert [fact["devices"] for fact in facts] == [[4, 2]] * 2
    assert [fact["batch_sizes"] for fact in facts] == [[2, 4, 8, 16]] * 2
    assert [fact["own"] for fact in facts] == [[0, 32], [32, ROWS]]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_two_processes_give_what_one_gives_bit_for_bit(job, alone, rows, endpoint):
    name = ENDPOINTS[endpoint]
    key = sample_key(7) if endpoint == "generate" else None
    # 16 rows of a process are 8 on each of its devices; the last 13 are as many, with padding
    chunks = [{name: rows[name][i : i + BATCH]} for i in range(0, ROWS, BATCH)]
    expected = list(alone.map(endpoint, chunks, key=key))
    for output in expected[0]:
        whole = np.concatenate([chunk[output] for chunk in expected])
        found = joined(job, f"{endpoint}.{output}")
        np.testing.assert_array_equal(found[:72], whole[:72])
        np.testing.assert_allclose(found, whole, **TOLERANCE)


def test_rows_of_a_call_are_numbered_through_the_processes(job, alone, rows):
    temperature = rows["temperature"][:15]
    assert [fact["call_is_local"] for fact in job[0]] == [True, True]
    expected = alone("generate", {"temperature": temperature}, key=sample_key(7))["x"]
    np.testing.assert_allclose(joined(job, "call"), expected, **TOLERANCE)
    keys = jax.random.split(sample_key(7), 15)
    expected = alone("generate", {"temperature": temperature}, keys=keys)["x"]
    np.testing.assert_allclose(joined(job, "keys"), expected, **TOLERANCE)


def test_a_process_may_have_no_rows(job, alone, rows):
    assert [len(arrays["few"]) for arrays in job[1]] == [3, 0]
    np.testing.assert_allclose(joined(job, "few"), alone("encode", {"x": rows["x"][:3]})["mean"], **TOLERANCE)


def test_rows_of_streams_are_numbered_chunk_by_chunk(job, alone, rows):
    numbers = [[0, 1, 4, 5], [2, 3, 6, 7, 8, 9]]
    temperature = np.tile(rows["temperature"][:2], 5)
    whole = np.asarray(alone("generate", {"temperature": temperature}, key=sample_key(7))["x"])
    for arrays, own in zip(job[1], numbers, strict=True):
        np.testing.assert_allclose(arrays["streamed"], whole[own], **TOLERANCE)


def test_one_that_fails_keeps_no_other_waiting(job):
    first, second = job[0]
    assert first["one_fails"] == "ArtifexError: processes [1] of the job failed; they say why"
    assert second["one_fails"].startswith("InputError: encode: x: row ")
    assert [fact["next_job"] for fact in job[0]] == [[1, 32]] * 2


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("endpoints_differ", "InputError: the processes of the job run different endpoints"),
        ("no_key", "InputError: generate draws random numbers"),
        ("queued", "InputError: a mesh of several processes runs whole jobs"),
        ("uneven", "InputError: mesh: expected each process to have an equal, connected part"),
        ("unequal", "InputError: mesh: expected each process to have an equal, connected part"),
        (
            "rows_differ",
            "InputError: processes that share a part of the mesh's 'data' axis feed different rows",
        ),
    ],
)
def test_what_cannot_be_is_an_error_in_both(job, case, message):
    for fact in job[0]:
        assert fact[case].startswith(message)


def test_what_processes_tell_each_other(job):
    told = [{"number": 0, "long": ""}, {"number": 1, "long": "x" * 100}]
    assert [fact["all_of"] for fact in job[0]] == [told, told]
    assert job[0][0]["together"] == "ArtifexError: another process failed; process 1: ArtifexError: no"
    assert job[0][1]["together"] == "ArtifexError: no"


def test_weights_that_no_process_has_whole(job, alone, rows):
    for fact in job[0]:
        assert fact["held"] < 0.26 * fact["whole"]
    expected = alone("reconstruct", {"x": rows["x"][:11]})["x"]
    for arrays in job[1]:  # both are in the one part of the data axis
        np.testing.assert_allclose(arrays["cut"], expected, **TOLERANCE)
