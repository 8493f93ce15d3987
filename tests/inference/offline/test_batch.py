import jax
import numpy as np
import pytest
from flax import nnx
from shared import TOLERANCE, decode

from artifex.generative_models.core.errors import InputError, InputTypeError
from artifex.generative_models.inference import (
    Executor,
    InferencePipeline,
    batch_encode_images,
    batch_generate_samples,
    encode_images_jit,
    generate_samples_jit,
    inference_with_jit,
    memory_efficient_inference,
    parallel_batch_inference,
)

ROWS = (
    77  # two whole batches of 32 and a ragged one; odd, so an even number of devices cannot share it evenly
)


@pytest.fixture(scope="module")
def means(mnist_vae, pictures):
    return np.asarray(mnist_vae.encode(jax.numpy.asarray(pictures[:ROWS]))["mean"])


@pytest.mark.parametrize(
    "encode", [batch_encode_images, parallel_batch_inference, memory_efficient_inference]
)
def test_every_encoder_gives_every_row(encode, mnist_vae, pictures, means):
    np.testing.assert_allclose(encode(mnist_vae, pictures[:ROWS]), means, **TOLERANCE)


@pytest.mark.eight_devices
@pytest.mark.parametrize("num_devices", [None, 1, 2, 5])
def test_devices_do_not_change_the_rows(mnist_vae, pictures, means, num_devices):
    encoded = parallel_batch_inference(mnist_vae, pictures[:ROWS], num_devices, batch_size=8)
    np.testing.assert_allclose(encoded, means, **TOLERANCE)


@pytest.mark.eight_devices
@pytest.mark.parametrize("num_devices", [0, 9, -1])
def test_more_devices_than_there_are(mnist_vae, pictures, num_devices):
    with pytest.raises(InputError, match="expected 1 to 8"):
        parallel_batch_inference(mnist_vae, pictures[:4], num_devices)


def uneven_arrays(images):
    return (part for part in np.split(images, [1, 1, 40, 41]))


@pytest.mark.parametrize("form", ["numpy", "jax", "memmap", "iterator", "list of rows"])
def test_images_come_in_any_form(form, mnist_vae, pictures, means, tmp_path):
    images = pictures[:ROWS]
    if form == "memmap":
        np.save(tmp_path / "images.npy", images)
        given = np.load(tmp_path / "images.npy", mmap_mode="r")
    else:
        given = {
            "numpy": images,
            "jax": jax.numpy.asarray(images),
            "iterator": uneven_arrays(images),
            "list of rows": [images[i : i + 1] for i in range(ROWS)],
        }[form]
    encoded = batch_encode_images(mnist_vae, given)
    assert isinstance(encoded, jax.Array)
    np.testing.assert_allclose(encoded, means, **TOLERANCE)


def test_how_an_iterator_deals_its_rows_changes_no_bit(mnist_vae, pictures):
    images = pictures[:ROWS]
    whole = batch_encode_images(mnist_vae, images)
    np.testing.assert_array_equal(batch_encode_images(mnist_vae, uneven_arrays(images)), whole)


@pytest.mark.parametrize("batch_size", [1, 7, 32, 200])
def test_the_batch_size_changes_nothing(mnist_vae, pictures, means, batch_size):
    np.testing.assert_allclose(
        batch_encode_images(mnist_vae, pictures[:ROWS], batch_size), means, **TOLERANCE
    )


def test_results_go_where_the_caller_wants_them(mnist_vae, pictures, means, tmp_path):
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.float32, (ROWS, 32))
    assert batch_encode_images(mnist_vae, pictures[:ROWS], out=out) is out
    out.flush()
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), means, **TOLERANCE)


@pytest.mark.parametrize("shape", [(ROWS - 1, 32), (ROWS + 1, 32), (ROWS, 31)])
def test_an_out_that_does_not_fit_is_refused(mnist_vae, pictures, shape):
    with pytest.raises(InputError, match="out: "):
        batch_encode_images(mnist_vae, pictures[:ROWS], out=np.empty(shape, np.float32))


def test_sample_i_depends_on_the_seed_and_on_i_alone(mnist_vae):
    whole = np.asarray(batch_generate_samples(mnist_vae, ROWS, rngs=nnx.Rngs(42)))
    assert whole.shape == (ROWS, 28, 28, 1)
    few = batch_generate_samples(mnist_vae, 5, batch_size=2, rngs=nnx.Rngs(42))
    np.testing.assert_allclose(few, whole[:5], **TOLERANCE)
    many = batch_generate_samples(mnist_vae, ROWS, batch_size=128, rngs=nnx.Rngs(42))
    np.testing.assert_allclose(many, whole, **TOLERANCE)
    executor = Executor(mnist_vae, batch_sizes=(1,))
    alone = executor("generate", keys=jax.random.fold_in(nnx.Rngs(42).sample(), 50)[None])["x"]
    np.testing.assert_allclose(alone, whole[50:51], **TOLERANCE)


def test_a_second_call_on_the_same_generators_draws_new_samples(mnist_vae):
    rngs = nnx.Rngs(0)
    first, second = (np.asarray(batch_generate_samples(mnist_vae, 3, rngs=rngs)) for _ in range(2))
    assert np.abs(first - second).max() > 0.1


def test_a_temperature_among_what_else_is_said_holds(mnist_vae):
    def drawn(**how):
        chunks = InferencePipeline(mnist_vae).generate_chunks(2, key=jax.random.key(1), **how)
        return np.concatenate(list(chunks))

    wanted = drawn(temperature=0.5)
    np.testing.assert_array_equal(drawn(given={"temperature": 0.5}), wanted)
    np.testing.assert_array_equal(drawn(given={"temperature": [0.5, 1.0]})[0], wanted[0])
    with pytest.raises(InputError, match="temperature: it is given twice"):
        drawn(temperature=0.5, given={"temperature": 0.5})


def test_a_call_takes_one_temperature_for_all_and_none_below_0(mnist_vae):
    pipeline = InferencePipeline(mnist_vae)
    one = pipeline.call("generate", num_rows=2, rngs=1, temperature=0.5)["x"]
    each = pipeline.call("generate", rngs=1, temperature=np.float32([0.5, 0.5]))["x"]
    np.testing.assert_array_equal(one, each)
    for wrong in (-1.0, -1, np.float32([0.5, -1.0])):
        with pytest.raises(InputError, match="temperature: expected numbers from 0, got -1"):
            pipeline.call("generate", num_rows=2, rngs=1, temperature=wrong)
    with pytest.raises(InputError, match="temperature: expected numbers from 0, got -1"):
        pipeline.executor("generate", {"temperature": -1.0}, num_rows=2, key=jax.random.key(0))


def test_temperature_zero_is_the_mean_of_the_prior(mnist_vae):
    samples = batch_generate_samples(mnist_vae, 3, rngs=nnx.Rngs(0), temperature=0.0)
    mode = decode(mnist_vae, jax.numpy.zeros((1, 32)))
    np.testing.assert_allclose(samples, np.repeat(mode, 3, axis=0), **TOLERANCE)


def test_progress_goes_to_stderr(mnist_vae, pictures, capsys):
    batch_encode_images(mnist_vae, pictures[:ROWS], progress=True)
    batch_generate_samples(mnist_vae, 3, rngs=nnx.Rngs(0), progress=True)
    assert capsys.readouterr().out == ""


def test_compiled_calls_take_any_number_of_rows(mnist_vae, pictures, means):
    np.testing.assert_allclose(encode_images_jit(mnist_vae, pictures[:5]), means[:5], **TOLERANCE)
    np.testing.assert_allclose(
        generate_samples_jit(mnist_vae, means[:5]), decode(mnist_vae, means[:5]), **TOLERANCE
    )


def test_inference_with_jit_tells_compilation_from_running(mnist_vae, capsys):
    assert inference_with_jit(mnist_vae, 3).shape == (3, 28, 28, 1)
    assert "first call" in capsys.readouterr().out


BAD = {
    "no rows": (lambda m, x: batch_encode_images(m, x[:0]), InputError, "at least one row"),
    "an empty iterator": (lambda m, x: batch_encode_images(m, iter([])), InputError, "at least one row"),
    "uint8": (lambda m, x: batch_encode_images(m, (x * 255).astype(np.uint8)), InputTypeError, "uint8"),
    "one picture": (lambda m, x: batch_encode_images(m, x[0]), InputError, "batch axis"),
    "another size": (lambda m, x: batch_encode_images(m, x[:, 2:]), InputError, "28, 28, 1"),
    "batch size": (lambda m, x: batch_encode_images(m, x, 0), InputError, "batch_size"),
    "numbers": (lambda m, x: batch_encode_images(m, iter([1, 2])), InputError, "iterator of arrays"),
    "no samples": (lambda m, x: batch_generate_samples(m, 0, rngs=nnx.Rngs(0)), InputError, "num_samples"),
    "temperature": (
        lambda m, x: batch_generate_samples(m, 2, rngs=nnx.Rngs(0), temperature=-1.0),
        InputError,
        "temperature",
    ),
    "a bad pixel": (
        lambda m, x: batch_encode_images(m, np.where(np.arange(ROWS)[:, None, None, None] == 70, np.nan, x)),
        InputError,
        "row 70",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(call, error, message, mnist_vae, pictures):
    with pytest.raises(error, match=message):
        call(mnist_vae, pictures[:ROWS])
