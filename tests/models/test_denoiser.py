"""The family of denoisers: its endpoints, and what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from said import call
from shared import randomised

from artifex.generative_models.core.config import abstract_model
from artifex.generative_models.core.denoisers import denoiser_endpoints
from artifex.generative_models.core.errors import ArtifexError, ConfigError, InputError, NonFiniteError
from artifex.generative_models.core.sampling.denoising import Denoising
from artifex.generative_models.inference import Executor, batch_generate_samples
from artifex.generative_models.inference.pipeline import picture_pipeline
from artifex.generative_models.models.denoiser import Denoiser

DIT = {
    "num_attention_heads": 1,
    "attention_head_dim": 8,
    "in_channels": 1,
    "num_layers": 1,
    "sample_size": 4,
    "patch_size": 2,
    "num_embeds_ada_norm": 3,
}
UNET = {
    "sample_size": 4,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [4],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 2,
    "attention_head_dim": 4,
}
DDPM = {"_class_name": "DDPMScheduler", "prediction_type": "v_prediction"}
CONFIG = {"network": "dit", "arguments": DIT, "scheduler": DDPM, "num_labels": 3}
KEY = jax.random.key(0)


def made(**changes):
    return randomised(lambda: Denoiser(**CONFIG | changes, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def executor():
    return Executor(made(), batch_sizes=(2,))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)


def test_its_endpoints():
    drawing = {"generate", "from_noise", "inpaint", "denoise"}
    assert set(made().endpoints()) == drawing | {"invert", "interpolate", "log_prob"}
    assert [name for name, endpoint in made().endpoints().items() if endpoint.ahead] == ["generate"]
    consistency = {"_class_name": "CMStochasticIterativeScheduler"}
    assert set(made(scheduler=consistency).endpoints()) == drawing


def test_callers_give_inputs_and_fields_but_no_tables():
    for name, endpoint in made().endpoints().items():
        taken = set(endpoint.fields)
        assert taken.isdisjoint({"table", "noise_scale", "max_steps"})
        assert {"label"} <= taken
        pictures = {"inpaint": {"x", "mask"}, "interpolate": {"x", "y"}, "generate": set()}
        pictures |= {"from_noise": {"noise"}, "denoise": {"x", "time"}}
        assert set(endpoint.given) == pictures.get(name, {"x"})


def test_a_label_and_none_count(executor, x):
    none, one, other = (
        call(executor, "from_noise", {"noise": x}, key=KEY, num_steps=3, **said)["x"]
        for said in ({}, {"label": 1}, {"label": [0, 1]})
    )
    assert np.abs(one - none).max() > 1e-5
    assert np.abs(other[0] - one[0]).max() > 1e-5
    np.testing.assert_array_equal(other[1], one[1])


def test_the_label_reaches_the_network_in_every_endpoint(x):
    """One of so little work that it compiles fast."""

    def network(model, x, time, guidance, inputs):
        return jnp.tanh(x + 0.1 * inputs["label"].astype(jnp.float32)[:, None, None, None])

    fields = Denoising(json.dumps(DDPM), num_labels=3)
    executor = Executor(None, denoiser_endpoints(network, (4, 4, 1), fields), batch_sizes=(2,))
    mask = np.ones((2, 4, 4, 1), np.float32)
    inputs = {
        "from_noise": {"noise": x},
        "inpaint": {"x": x, "mask": mask},
        "denoise": {"x": x, "time": np.full(2, 300, np.float32)},
        "invert": {"x": x},
        "interpolate": {"x": x, "y": x[::-1].copy()},
        "log_prob": {"x": x},
    }
    for name, given in inputs.items():
        steps = {"num_steps": 3} if "num_steps" in executor.endpoints[name].says.fields else {}
        none, *others = (
            next(iter(call(executor, name, given, key=KEY, **steps, **said).values()))
            for said in ({}, {"label": [0, 1]}, {"label": 1})
        )
        assert np.abs(others[0] - none).max() > 1e-5, name
        np.testing.assert_array_equal(others[0][1], others[1][1])
        assert np.abs(others[0][0] - others[1][0]).max() > 1e-5, name


def test_a_mask_is_as_people_draw_it(x):
    """uint8 pictures: black is kept, and white is made, whatever the range of the model."""
    pipeline = picture_pipeline(made(), image_range=(-1, 1), batch_size=2)
    pictures = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 1), dtype=np.uint8)
    mask = np.zeros((2, 4, 4, 1), np.uint8)
    mask[0, :2], mask[1, 2:] = 255, 1
    found = call(pipeline.executor, "inpaint", {"x": pictures, "mask": mask}, key=KEY, num_steps=3)["x"]
    np.testing.assert_allclose(found[mask == 0], pictures[mask == 0] / 127.5 - 1, atol=1e-6)
    assert np.abs(found[mask > 0] - (pictures[mask > 0] / 127.5 - 1)).min() > 1e-4


def refused(error, words, act):
    with pytest.raises(error) as caught:
        act()
    for word in words.split(" .. "):
        assert word in str(caught.value)
    assert isinstance(caught.value, ArtifexError)


SAMPLERS = "ddpm, ddim, euler, euler_a, heun, dpm++2m, dpm++2m_sde, unipc, lcm"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"sampler": "dpm"}, f"generate: sampler: expected one of {SAMPLERS}, got 'dpm'"),
        ({"sampler": ["ddim", "flow_euler"]}, f"sampler: expected one of {SAMPLERS}, got 'flow_euler'"),
        ({"sampler": "consistency"}, f"sampler: expected one of {SAMPLERS}"),
        ({"sampler": 5}, "sampler: expected .. got 5"),
        ({"sampler": [b"\xff", b"ddim"]}, "sampler: expected UTF-8"),
        ({"steps": 5}, "steps is not taken; it takes num_steps, sampler, eta, label, guidance_scale"),
        ({"num_steps": 0}, "num_steps: expected from 1 to 1000, got 0"),
        ({"num_steps": [5, 1001]}, "num_steps: expected from 1 to 1000, got 1001"),
        ({"num_steps": -(2**70)}, "num_steps: expected an integer"),
        ({"num_steps": 20.0}, "num_steps: expected an integer .. got 20.0"),
        ({"num_steps": True}, "num_steps: expected .. got True"),
        ({"num_steps": "20"}, "num_steps: expected .. got '20'"),
        ({"num_steps": [5, None]}, "num_steps: expected .. got .. None"),
        ({"num_steps": [5, 6, 7]}, "num_steps: expected one value, or 2, got shape [3]"),
        ({"num_steps": []}, "num_steps: expected"),
        ({"num_steps": [[5, 6]]}, "num_steps: expected one value, or 2, got shape [1, 2]"),
        ({"num_steps": [[5], [6, 7]]}, "num_steps: expected an integer"),
        ({"num_steps": 51, "sampler": "lcm"}, "num_steps: expected at most 50"),
        ({"label": 3}, "label: expected from 0 to 2, got 3"),
        ({"label": [-1, 0]}, "label: expected from 0 to 2, got -1"),
        ({"label": 1.0}, "label: expected .. got 1.0"),
        ({"label": False}, "label: expected .. got False"),
        ({"label": [0, 1, 2]}, "label: expected one value, or 2, got shape [3]"),
        ({"guidance_scale": -0.5}, "guidance_scale: expected from 0, got -0.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale: expected a finite number, got nan"),
        ({"guidance_scale": [1.0, float("inf")]}, "guidance_scale: expected a finite number, got inf"),
        ({"guidance_scale": 1e39}, "guidance_scale: expected a finite number"),
        ({"guidance_scale": "2"}, "guidance_scale: expected .. got '2'"),
        ({"guidance_scale": True}, "guidance_scale: expected .. got True"),
        ({"guidance_rescale": 1.5}, "guidance_rescale: expected from 0 to 1, got 1.5"),
        ({"guidance_start": -0.1}, "guidance_start: expected from 0 to 1, got -0.1"),
        ({"guidance_start": 0.5, "guidance_stop": 0.25}, "guidance_start: expected at most guidance_stop"),
        ({"eta": 1.5, "sampler": "ddim"}, "eta: expected from 0 to 1, got 1.5"),
        ({"eta": float("nan"), "sampler": "ddim"}, "eta: expected a finite number, got nan"),
        ({"eta": 0.5, "sampler": ["ddim", "euler"]}, "eta: the sampler euler takes none"),
        ({"temperature": 0.5}, "temperature: this model takes none"),
    ],
)
def test_what_callers_may_not_say(executor, said, words):
    refused(InputError, words, lambda: batch_generate_samples(executor, 2, rngs=0, **said))


def test_a_model_without_classes_takes_neither_label_nor_guidance():
    executor = Executor(made(network="unet", arguments=UNET, num_labels=0), batch_sizes=(2,))
    for name in ("label", "guidance_scale", "guidance_rescale"):
        words = f"{name} is not taken; it takes num_steps, sampler, eta"
        refused(InputError, words, lambda n=name: batch_generate_samples(executor, 2, rngs=0, **{n: 1}))


def test_a_table_is_longer_than_any_has_room_for():
    executor = Executor(made(scheduler=DDPM | {"num_train_timesteps": 4000}), batch_sizes=(2,))
    words = "num_steps: expected at most 2048 evaluations of the network, got 4095"
    said = {"num_steps": 2048, "sampler": "heun"}
    refused(InputError, words, lambda: batch_generate_samples(executor, 2, rngs=0, **said))


@pytest.mark.parametrize(
    ("name", "changes", "said", "words"),
    [
        ("inpaint", {"mask": None}, {}, "inpaint: missing input 'mask'"),
        ("inpaint", {"mask": np.ones((2, 4, 4), np.float32)}, {}, "mask: expected float32 [rows, 4, 4, 1]"),
        (
            "inpaint",
            {"mask": np.full((2, 4, 4, 1), np.nan, np.float32)},
            {},
            "inpaint: mask: row 0 has a NaN",
        ),
        (
            "inpaint",
            {"x": np.full((2, 4, 4, 1), np.inf, np.float32)},
            {},
            "inpaint: x: row 0 has a NaN or inf",
        ),
        ("inpaint", {"x": np.ones((2, 5, 4, 1), np.float32)}, {}, "x: expected float32 [rows, 4, 4, 1]"),
        ("inpaint", {}, {"num_steps": 0}, "inpaint: num_steps: expected from 1 to 1000, got 0"),
        ("inpaint", {}, {"guidance_scale": -1}, "inpaint: guidance_scale: expected from 0"),
        ("invert", {}, {"num_steps": 1001}, "invert: num_steps: expected from 1 to 1000"),
        ("interpolate", {}, {"weight": 1.25}, "interpolate: weight: expected from 0 to 1, got 1.25"),
        ("interpolate", {}, {"weight": [0.5] * 3}, "weight: expected one value, or 2, got shape [3]"),
        ("interpolate", {"y": None}, {}, "interpolate: missing input 'y'"),
        ("log_prob", {}, {"label": 7}, "log_prob: label: expected from 0 to 2, got 7"),
        ("log_prob", {}, {"divergence": "both"}, "divergence: expected one of exact, estimate, got 'both'"),
        ("log_prob", {}, {"probes": 0}, "log_prob: probes: expected at least 1, got 0"),
        ("log_prob", {}, {"tolerance": 0.0}, "log_prob: tolerance: expected at least 1e-07, got 0.0"),
        ("log_prob", {}, {"tolerance": "fine"}, "log_prob: tolerance: expected .. got 'fine'"),
        ("denoise", {}, {"label": [0, 3]}, "denoise: label: expected from 0 to 2, got 3"),
    ],
)
def test_what_other_endpoints_may_not_get(executor, x, name, changes, said, words):
    known = {"x": x, "y": x, "mask": np.ones_like(x), "time": np.ones(2, np.float32)}
    given = {key: known[key] for key in executor.endpoints[name].given}
    given = {key: value for key, value in (given | changes).items() if value is not None}
    refused(InputError, words, lambda: call(executor, name, given, key=KEY, **said))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "mlp"}, "network: expected one of unet, dit, got 'mlp'"),
        ({"arguments": DIT | {"depth": 3}}, "arguments: DiT knows no depth"),
        ({"arguments": [1]}, "arguments: expected settings by name, got [1]"),
        ({"arguments": DIT | {"out_channels": 3}}, "out_channels: expected 1 or 2 .. got 3"),
        ({"arguments": UNET | {"sample_size": None}, "network": "unet", "num_labels": 0}, "sample_size: exp"),
        ({"scheduler": DDPM | {"variance_type": "learned_range"}}, "out_channels: expected 2 .. got 1"),
        ({"scheduler": "ddpm"}, "scheduler: expected settings by name, got 'ddpm'"),
        (
            {"scheduler": {"_class_name": "PNDMScheduler"}},
            "_class_name: expected one of CMStochasticIter .. PNDM",
        ),
        ({"scheduler": DDPM | {"betas": 3}}, "unknown setting 'betas'; known are .. beta_start"),
        ({"scheduler": DDPM | {"beta_schedule": "laplace"}}, "beta_schedule: expected one of linear, scaled"),
        (
            {"scheduler": DDPM | {"timestep_spacing": "log"}},
            "timestep_spacing: expected one of linspace, lead",
        ),
        ({"scheduler": DDPM | {"use_beta_sigmas": True}}, "use_beta_sigmas: expected False, got True"),
        (
            {"scheduler": DDPM | {"prediction_type": "noise"}},
            "prediction_type: expected one of epsilon, flow_",
        ),
        ({"scheduler": DDPM | {"num_train_timesteps": "1000"}}, "num_train_timesteps: expected an integer"),
        ({"scheduler": DDPM | {"num_train_timesteps": True}}, "num_train_timesteps: expected an integer"),
        ({"scheduler": DDPM | {"num_train_timesteps": 0}}, "num_train_timesteps: expected an integer from 1"),
        ({"scheduler": DDPM | {"beta_end": float("nan")}}, "beta_end: expected a finite number, got nan"),
        ({"scheduler": DDPM | {"beta_end": "0.02"}}, "beta_end: expected a finite number, got '0.02'"),
        ({"scheduler": DDPM | {"clip_sample": 1}}, "clip_sample: expected true or false, got 1"),
        ({"scheduler": DDPM | {"beta_schedule": 2}}, "beta_schedule: expected .. got 2"),
        ({"scheduler": DDPM | {"trained_betas": ["a"]}}, "trained_betas: expected a list of numbers"),
        ({"scheduler": DDPM | {"variance_type": "learned"}}, "variance_type: expected one of fixed_small"),
        ({"num_labels": 4}, "num_labels: expected from 1 to 3, since the network has classes; got 4"),
        ({"num_labels": -1}, "num_labels: expected an integer from 0"),
        ({"num_labels": True}, "num_labels: expected an integer from 0"),
        ({"num_steps": 0}, "num_steps: expected from 1 to 1000, got 0"),
        ({"num_steps": 20.0}, "num_steps: expected an integer .. got 20.0"),
        ({"num_steps": True}, "num_steps: expected .. got True"),
        ({"num_steps": 60, "sampler": "lcm"}, "num_steps: expected at most 50"),
        ({"sampler": "dpm"}, f"sampler: expected one of {SAMPLERS}, got 'dpm'"),
        ({"sampler": "flow_euler"}, f"sampler: expected one of {SAMPLERS}"),
        ({"guidance_scale": float("nan")}, "guidance_scale: expected a finite number, got nan"),
        ({"guidance_scale": "2"}, "guidance_scale: expected .. got '2'"),
    ],
)
def test_what_configs_may_not_say(changes, words):
    refused(ConfigError, words, lambda: made(**changes))
    refused(ConfigError, words, lambda: abstract_model("denoiser", CONFIG | changes))


def test_config_keys_that_it_does_not_know():
    words = "unknown keys ['steps'] .. it takes network, arguments, scheduler, num_labels, num_steps, sampler"
    refused(ConfigError, words, lambda: abstract_model("denoiser", CONFIG | {"steps": 5}))


@pytest.mark.parametrize("shape", [(4, 4, 3), (4, 2, 1), (16,)])
def test_a_network_whose_output_does_not_fit(shape):
    def network(model, x, time, guidance, inputs):
        return jnp.zeros((len(x), *shape), jnp.float32)

    endpoints = denoiser_endpoints(network, (4, 4, 1), Denoising('{"_class_name": "DDPMScheduler"}'))
    executor = Executor(None, endpoints, batch_sizes=(2,))
    words = f"the network: expected [2, 4, 4, 1] .. got {[2, *shape]}"
    refused(InputError, words, lambda: batch_generate_samples(executor, 2, rngs=0))


def test_states_that_are_not_finite_are_told_and_not_returned(x):
    def network(model, x, time, guidance, inputs):
        late = (time < 500) & (inputs["label"] == 1)
        return jnp.where(late[:, None, None, None], jnp.nan, jnp.zeros_like(x))

    fields = Denoising('{"_class_name": "DDPMScheduler"}', num_labels=2)
    executor = Executor(None, denoiser_endpoints(network, (4, 4, 1), fields), batch_sizes=(2,))
    mask = np.ones((2, 4, 4, 1), np.float32)
    for name, given in (
        ("from_noise", {"noise": x}),
        ("inpaint", {"x": x, "mask": mask}),
        ("invert", {"x": x}),
    ):
        step = 1 if name == "invert" else 11
        words = f"{name}: row 1 came out NaN or infinite at step {step}"
        said = {"label": [0, 1], "num_steps": 20}
        refused(NonFiniteError, words, lambda n=name, g=given, s=said: call(executor, n, g, key=KEY, **s))
