import numpy as np
import pytest

from artifex.generative_models.core import Endpoint, TensorSpec
from artifex.generative_models.core.errors import InputError
from artifex.generative_models.core.sampling.labels import Labelled
from artifex.generative_models.inference import Executor
from artifex.generative_models.inference.offline.latents import decoded_name, encoded_name

ROW, NUMBER = TensorSpec((2,), np.float32), TensorSpec((), np.float32, default=1.0)


def encoding(*names: str) -> Executor:
    """Encodes to outputs of these names."""
    endpoint = Endpoint(lambda model, keys, inputs: dict.fromkeys(names, inputs["x"]), {"x": ROW})
    return Executor(None, {"encode": endpoint}, batch_sizes=(1,))


def decoding(**inputs: TensorSpec) -> Executor:
    """Decodes from these inputs."""
    label = {"label": TensorSpec((), np.int32)}
    endpoint = Endpoint(lambda m, k, given: {"x": given["label"]}, {**inputs, **label}, says=Labelled(3))
    return Executor(None, {"decode": endpoint}, batch_sizes=(1,))


@pytest.mark.parametrize(
    ("names", "wanted"), [(["mean", "log_var"], "mean"), (["mean"], "mean"), (["codes"], "codes")]
)
def test_pictures_are_encoded_to_means_or_to_the_only_output(names: list[str], wanted: str) -> None:
    assert encoded_name(encoding(*names)) == wanted


def test_which_output_is_meant_has_to_be_plain() -> None:
    with pytest.raises(
        InputError, match="encode: expected one output, or one by the name mean or z; it gives"
    ):
        encoded_name(encoding("first", "second"))


def test_pictures_are_decoded_from_the_only_input_that_must_be_given() -> None:
    assert decoded_name(decoding(codes=ROW)) == "codes"
    assert decoded_name(decoding(z=ROW, scale=NUMBER)) == "z"


@pytest.mark.parametrize(
    ("inputs", "words"), [({"z": ROW, "y": ROW}, "it takes z, y"), ({"scale": NUMBER}, "it takes none")]
)
def test_which_input_is_meant_has_to_be_plain(inputs: dict[str, TensorSpec], words: str) -> None:
    with pytest.raises(InputError, match=f"decode: expected one input, {words}"):
        decoded_name(decoding(**inputs))


def test_there_may_be_no_such_endpoint() -> None:
    for name_of in (encoded_name, decoded_name):
        with pytest.raises(InputError, match="no endpoint"):
            name_of(Executor(None, {"other": Endpoint(lambda m, k, i: i, {"x": ROW})}, batch_sizes=(1,)))
