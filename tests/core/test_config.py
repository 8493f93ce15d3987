import json
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx

from artifex.generative_models.core import config
from artifex.generative_models.core.config import (
    abstract_model,
    installed_class,
    model_type_of,
    model_types,
    read_json,
    write_json,
)
from artifex.generative_models.core.errors import ConfigError, UnknownModelTypeError
from artifex.generative_models.models.vae import VAE

OWN = [
    *("autoencoder_tiny", "autoregressive", "classifier", "dcgan", "denoiser", "ebm", "gpt2", "realnvp"),
    *("stylegan", "vae", "vqvae"),
]
CONFIG: Mapping[str, Any] = {"input_shape": [8, 8, 1], "latent_dim": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*: No such file"),
        (b"", "is not JSON"),
        (b"{'latent_dim': 4}", "is not JSON"),
        (b'{"latent_dim": 4', "is not JSON"),
        (b"\xff\xfe\x00\x01", "is not JSON"),
        (b'{"final_loss": NaN}', "NaN is not a JSON number"),
        (b'{"final_loss": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"final_loss": 1e999}', "1e999 is not a JSON number"),
        (b'{"latent_dim": ' + b"1" * 10_000 + b"}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": ' * 100_000, "is not JSON"),
        (b"{" + b" " * (2 << 20) + b"}", "is larger than 1048576 bytes"),
        (b"[1, 2]", "expected a JSON object, got list"),
        (b'"vae"', "expected a JSON object, got str"),
        (b"null", "expected a JSON object, got NoneType"),
    ],
)
def test_files_that_hold_no_object(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_json(path)
    assert str(path) in str(error.value)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        read_json(tmp_path)


@pytest.mark.parametrize("value", [{}, {"a": [1, 2.5, None, True], "ä": {"b": "x\n"}}])
def test_json_round_trip(tmp_path: Path, value: dict[str, Any]) -> None:
    write_json(tmp_path / "facts.json", value)
    assert read_json(tmp_path / "facts.json") == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, {(1, 2): 3}])
def test_values_without_a_form_in_json(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"facts\.json"):
        write_json(tmp_path / "facts.json", {"value": value})
    assert not (tmp_path / "facts.json").exists()


def test_installed_families() -> None:
    assert model_types() == OWN
    assert model_type_of(abstract_model("vae", CONFIG)) == "vae"
    with pytest.raises(
        UnknownModelTypeError, match=r"flax.*Linear is no installed family \(autoencoder_tiny, autoregressive"
    ):
        model_type_of(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))


def test_sources_that_are_not_installed_have_the_own_families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "entry_points", lambda group: ())
    monkeypatch.setattr(config, "_table", config._table.__wrapped__)  # read anew, and not kept
    assert model_types() == OWN
    assert model_type_of(abstract_model("vae", CONFIG)) == "vae"


def test_families_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    added = EntryPoint("linear", "flax.nnx:Linear", "artifex.models")
    monkeypatch.setattr(config, "entry_points", lambda group: (added,) if group == added.group else ())
    monkeypatch.setattr(config, "_table", config._table.__wrapped__)
    assert model_types() == sorted([*OWN, "linear"])


def test_classes_of_packages_that_have_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_class(VAE.__module__, "VAE") is VAE
    for module, name in (
        ("json", "JSONDecoder"),  # of no such package
        ("artifex.nowhere", "VAE"),
        (VAE.__module__, "VAE.nothing"),
        (VAE.__module__, "nnx"),  # which is no class
    ):
        assert installed_class(module, name) is None
    other = EntryPoint("other", "json.decoder:Other", "artifex.models")
    monkeypatch.setattr(config, "_table", lambda: {"other": other})
    assert installed_class("json", "JSONDecoder") is json.JSONDecoder


def test_an_abstract_model_has_the_structure_and_no_weights(tiny_vae: VAE) -> None:
    abstract = nnx.state(abstract_model("vae", tiny_vae.config))
    concrete = nnx.state(tiny_vae)
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    for leaf, weight in zip(jax.tree.leaves(abstract), jax.tree.leaves(concrete), strict=True):
        assert isinstance(leaf, jax.ShapeDtypeStruct)
        assert (leaf.shape, leaf.dtype) == (weight.shape, weight.dtype)


@pytest.mark.parametrize(
    "model_type",
    [
        "",
        "VAE",
        "vae ",
        "gan",
        "__import__('os').system('x')",
        "os:system",
        "this",
        "../../etc",
        "vae\0",
        "é",
    ],
)
def test_nothing_is_imported_because_a_file_says_so(model_type: str) -> None:
    abstract_model("vae", CONFIG)
    before = set(sys.modules)
    with pytest.raises(
        UnknownModelTypeError, match=r"unknown model_type .*; installed are autoencoder_tiny, autoregressive"
    ):
        abstract_model(model_type, CONFIG)
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"missing keys \['input_shape', 'latent_dim'\]; it takes input_shape, latent_dim, enc"),
        ({"input_shape": [8, 8, 1]}, r"unknown keys \[\], missing keys \['latent_dim'\]"),
        (CONFIG | {"rngs": 0}, r"unknown keys \['rngs'\]"),
        (CONFIG | {"self": 0, "__class__": "os"}, r"unknown keys \['__class__', 'self'\]"),
    ],
)
def test_keys_of_a_config(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        abstract_model("vae", config)


HOSTILE = [
    *[None, True, -1, 0, 1.0, 1e999, 10**12, 10**30],
    *["4", "__import__('os').system('x')", "../../etc", {}, {"a": 1}, [], [[4]], [4] * 10_000],
    json.loads("[" * 900 + "]" * 900),
]


@pytest.mark.parametrize("name", ["latent_dim", "input_shape", "encoder_features", "decoder_features"])
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:20])
def test_hostile_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: expected .*, got "):
        abstract_model("vae", CONFIG | {name: value})


@pytest.mark.parametrize("name", ["input_shape", "encoder_features", "decoder_features"])
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:20])
def test_hostile_values_inside_lists_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: expected .*, got "):
        abstract_model("vae", CONFIG | {name: [8, 8, value]})


def test_the_largest_config_costs_no_memory() -> None:
    largest = {"input_shape": [2**14] * 3, "latent_dim": 2**16, "encoder_features": [2**16]}
    state = nnx.state(abstract_model("vae", largest))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) > 2**50


class Layers(nnx.Module):
    def __init__(self, depth: int, *, rngs: nnx.Rngs):
        self.layers = [nnx.Linear(1, 1, rngs=rngs) for _ in range(depth)]  # which Flax refuses


class Fixed(nnx.Module):
    def __init__(self, depth: int):
        self.depth = depth


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (f"{__name__}:Layers", "Layers of family 'other' cannot be made: ValueError: "),
        (f"{__name__}:Fixed", "Fixed of family 'other': its constructor takes no rngs"),
        (f"{__name__}:Missing", "family 'other' cannot be imported: AttributeError: "),
        ("no_such_module:Missing", "family 'other' cannot be imported: ModuleNotFoundError: "),
    ],
)
def test_families_that_fail_say_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, target: str, message: str
) -> None:
    added = EntryPoint("other", target, "artifex.models")
    monkeypatch.setattr(config, "_table", lambda: {"other": added})
    with pytest.raises(ConfigError, match=message) as error:
        abstract_model("other", {"depth": 2})
    assert "\n" not in str(error.value)
