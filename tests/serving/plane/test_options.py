"""Options that clients choose: traced beside the event loop, refused by name, and not without end."""

import base64
import io
import threading

import numpy as np
import pytest
from PIL import Image
from served import error_of, live

from artifex.generative_models.core import Endpoint, Option, TensorSpec
from artifex.generative_models.inference import Executor
from artifex.serving import create_app
from artifex.serving.plane import loaded_model

SIDE = 4
PICTURE = TensorSpec((SIDE, SIDE, 1), np.float32, image_range=(0.0, 1.0))


class Traced:
    """The endpoint, and the threads on which it was traced."""

    def __init__(self):
        self.threads = []

    def __call__(self, model, keys, inputs, *, parts, steps):
        self.threads.append(threading.current_thread())
        return {"y": inputs["x"] * (1 // parts) * steps}


@pytest.fixture
def traced():
    return Traced()


@pytest.fixture
def server(traced, monkeypatch):
    monkeypatch.setattr(loaded_model, "_MAX_CHOICES", 3)
    options = {"parts": 1, "steps": Option(1, minimum=1, maximum=50, doc="How many.")}
    executor = Executor(None, {"run": Endpoint(traced, {"x": PICTURE}, options)}, batch_sizes=(1,))
    with live(create_app({"plain": executor})) as server:
        yield server


def as_floats():
    return {"datatype": "FP32", "shape": [1, SIDE, SIDE, 1], "data": [1.0] * SIDE * SIDE}


def as_file():
    file = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE), 255, np.uint8)).save(file, "PNG")
    return {"datatype": "BYTES", "shape": [1], "data": [base64.b64encode(file.getvalue()).decode()]}


def ask(server, form, **options):
    content = {"inputs": [{"name": "x", **form()}], "parameters": options}
    return server.client.post("/v2/models/plain.run/infer", json=content)


forms = pytest.mark.parametrize("form", [as_floats, as_file])


@forms
def test_new_options_are_traced_beside_the_event_loop(server, traced, form):
    loop = server._thread
    traced.threads.clear()
    assert ask(server, form, steps=2).json()["outputs"][0]["data"] == [2.0] * SIDE * SIDE
    for other in (as_file, as_floats):
        assert ask(server, other, steps=2).status_code == 200
    assert traced.threads
    assert loop not in traced.threads


@forms
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parts": 0}, "it does not take these options"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"steps": 100_000}, "steps: expected at most 50, got 100000"),
        ({"steps": "two"}, "steps: expected int"),
    ],
)
def test_what_the_endpoint_does_not_take_is_refused(server, form, options, words):
    answer = ask(server, form, **options)
    assert answer.status_code == 400
    assert words in error_of(answer)


@forms
def test_clients_choose_so_many_and_no_more(server, form):
    for steps in (2, 3, 4):
        assert ask(server, form, steps=steps).status_code == 200
    refused = ask(server, form, steps=5)
    assert refused.status_code == 400
    assert "this server compiles 3 choices of options" in error_of(refused)
    assert ask(server, form, steps=1).status_code == 200  # the default
    assert ask(server, form, steps=3).status_code == 200
