"""Commands for people to copy: they run as they are in a shell."""

from __future__ import annotations

import shlex
from json import dumps

import numpy as np

from artifex.serving.pages.examples import (
    field_defaults,
    generate_example,
    infer_example,
    needed_fields,
    needed_inputs,
)
from artifex.serving.plane.loaded_model import ServedEndpoint

_NUM_SAMPLES = 16
_FIELD_DTYPES = {"BYTES": "object", "BOOL": "bool", "INT64": "np.int64", "FP32": "np.float32"}


def curl_commands(
    base_url: str, model: str, endpoint: ServedEndpoint, max_rows: int
) -> list[tuple[str, str]]:
    """What to do with an endpoint, and the command for it.

    The first commands of a model that draws pictures write `picture.png`, which later ones read.

    Args:
        model: The name that requests give.
        max_rows: Rows of one request, at most.
    """
    url = f"{base_url}/v2/models/{model}"
    png = ["-H", "Accept: image/png"] if endpoint.picture_outputs else []
    if not needed_inputs(endpoint):
        return _draws(url, endpoint, png, min(_NUM_SAMPLES, max_rows))
    file = f"{endpoint.name}.png"
    saved = [*png, "-o", file] if png else []
    if len(endpoint.picture_inputs) == 1 and len(needed_inputs(endpoint)) == 1:
        (name,) = endpoint.picture_inputs
        upload = ["--data-binary", "@picture.png", "-H", "Content-Type: image/png"]
        both = ["-F", f"{name}=@picture.png"] * min(2, max_rows)
        return [
            ("A picture file of any size", _curl(f"{url}/generate?resize=true", *upload, *saved)),
            ("Several picture files, as JSON", _curl(f"{url}/generate", *both)),
        ]
    body = generate_example(endpoint)
    if body is None:
        return []
    commands = [("JSON", _curl(f"{url}/generate", "-d", dumps(body)))]
    if png:
        commands.append(("A picture file", _curl(f"{url}/generate", "-d", dumps(body), *saved)))
    return commands


def tritonclient_snippet(base_url: str, model: str, endpoint: ServedEndpoint) -> str:
    """Python that runs an endpoint by way of `tritonclient[http]`."""
    scheme, _, address = base_url.partition("://")
    where = repr(address) + (", ssl=True" if scheme == "https" else "")
    lines = [
        "import numpy as np",
        "import tritonclient.http as triton",
        "",
        f"client = triton.InferenceServerClient({where})",
        "inputs = []",
    ]
    metadata = {tensor["name"]: tensor for tensor in endpoint.tensors[0]}
    said = needed_fields(endpoint)
    for name in [*needed_inputs(endpoint), *said, *(["seed"] if endpoint.draws else [])]:
        shape = [4, *metadata[name]["shape"][1:]]
        datatype = metadata[name]["datatype"]
        if name in said:
            rows = f"np.full({shape}, {said[name]!r}, {_FIELD_DTYPES[datatype]})"
        else:
            rows = "np.arange(4)" if name == "seed" else f"np.zeros({shape}, {_dtype(endpoint, name)})"
        lines += [
            f"inputs.append(triton.InferInput({name!r}, {shape}, {datatype!r}))",
            f"inputs[-1].set_data_from_numpy({rows})",
        ]
    lines += [
        f"result = client.infer({model!r}, inputs)",
        *(f"print(result.as_numpy({name!r}))" for name in endpoint.texts),
        *(f"print(result.as_numpy({name!r}).shape)" for name in endpoint.outputs),
    ]
    return "\n".join(lines)


def _draws(url: str, endpoint: ServedEndpoint, png: list[str], num_samples: int) -> list[tuple[str, str]]:
    """Commands for an endpoint that needs no input."""
    seed = needed_fields(endpoint) | ({"seed": 1} if endpoint.draws else {})
    many, few, one = (dumps({"num_samples": n, **seed}) for n in (num_samples, min(4, num_samples), 1))
    commands = [
        ("JSON", _curl(f"{url}/generate", "-d", one)),
        ("A row at a time", _curl(f"{url}/generate_stream", "-d", few, options="-sN")),
        *_said(url, endpoint, seed),
        ("The protocol's own form", _curl(f"{url}/infer", "-d", dumps(infer_example(endpoint)))),
    ]
    if not png:
        return commands
    return [
        ("Pictures", _curl(f"{url}/generate", *png, "-d", many, "-o", "pictures.png")),
        ("One picture", _curl(f"{url}/generate", *png, "-d", one, "-o", "picture.png")),
        *commands,
    ]


def _said(url: str, endpoint: ServedEndpoint, seed: dict[str, int]) -> list[tuple[str, str]]:
    """The command that says what is so by default."""
    said = field_defaults(endpoint)
    return [("With its fields", _curl(f"{url}/generate", "-d", dumps({**seed, **said})))] if said else []


def _curl(url: str, *arguments: str, options: str = "-s") -> str:
    return shlex.join(["curl", options, url, *arguments])


def _dtype(endpoint: ServedEndpoint, name: str) -> str:
    dtype = np.dtype(endpoint.inputs[name].dtype)
    return "np.float32" if dtype.kind == "V" else f"np.{dtype.name}"  # the client takes these for BF16
