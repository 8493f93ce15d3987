"""Directories of diffusers: what they give equals what diffusers gives, and what is refused."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from shared import randomised, without_drawing_keys

import artifex
from artifex.generative_models.core.convolutions import forms_for, shapes_of_convolutions
from artifex.generative_models.core.errors import (
    ArtifexError,
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
    InputError,
    InputTypeError,
)
from artifex.generative_models.core.sampling import linear
from artifex.generative_models.core.sharding import WeightLayout
from artifex.generative_models.inference import Executor, load_exported_model
from artifex.generative_models.inference.executor.settings import Setting, Tuned
from artifex.generative_models.inference.formats import restoring
from artifex.generative_models.inference.formats.diffusers import current_name, described, find_diffusers
from artifex.generative_models.inference.formats.diffusers_export import export_diffusers
from artifex.generative_models.inference.formats.safetensors import stored_arrays, write_arrays
from artifex.generative_models.inference.pipeline import load_pipeline
from artifex.generative_models.models.denoiser import Denoiser
from artifex.generative_models.models.vae import VAE

FOLDER = Path(__file__).parents[2] / "golden" / "diffusers"
NETWORKS = ["unet-ddpm", "unet-attention", "unet-scale-shift", "unet-fourier", "dit"]
PIPELINES = ["pipeline-ddpm", "pipeline-ddim", "pipeline-dit"]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def golden(name):
    with np.load(FOLDER / name / "golden.npz") as arrays:
        return dict(arrays)


def error(found, wanted):
    """The largest, over the deviation of the output."""
    assert found.shape == wanted.shape
    return np.abs(found - wanted).max() / wanted.std()


@pytest.fixture
def copied(tmp_path):
    """Copies a golden directory, to be changed."""

    def copy(name):
        return shutil.copytree(FOLDER / name, tmp_path / name, ignore=shutil.ignore_patterns("golden.npz"))

    return copy


@functools.cache
def loaded(name):
    """One of them, for tests that only read it."""
    return load_exported_model(FOLDER / name)


@functools.cache
def plain(name, endpoint):
    """The model, what an endpoint of it gives, and the shapes of the convolutions in that."""
    model = loaded(name)[0]
    arrays = golden(name)
    inputs = {"z": arrays["mean"]} if endpoint == "decode" else {k: v for k, v in arrays.items() if k != "y"}
    executor = Executor(model, batch_sizes=(2,), tuned=False)
    with shapes_of_convolutions() as shapes:
        found = next(executor.map(endpoint, [inputs]))["x"]
    return model, inputs, found, shapes


def changed(file, **values):
    """Changes a file of JSON; `...` removes a key."""
    content = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def rewritten(file, change):
    """Changes the arrays of a file."""
    arrays = {name: array.read() for name, array in stored_arrays(file).items()}
    change(arrays)
    write_arrays(file, arrays)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_equal_those_of_diffusers(name):
    assert error(plain(name, "denoise")[2], golden(name)["y"]) <= 1e-4


def test_a_tiny_autoencoder_equals_that_of_diffusers():
    arrays = golden("autoencoder-tiny")
    pipeline = load_pipeline(FOLDER / "autoencoder-tiny", batch_size=2)
    assert error(np.asarray(pipeline.encode(arrays["x"])), arrays["mean"]) <= 1e-4
    pictures = pipeline.call("decode", z=arrays["mean"])["x"]
    assert error(pictures, arrays["y"]) <= 1e-4
    np.testing.assert_array_equal(pipeline.decode(arrays["mean"]), pipeline.postprocess_fn(pictures))


# A network of each kind: those of the other U-Nets have the same convolutions.
REWRITTEN = {"unet-ddpm": "denoise", "autoencoder-tiny": "decode"}


# The larger tiles round more, so they are tried in both.
@pytest.mark.parametrize(("name", "largest"), [*((name, 4) for name in REWRITTEN), ("autoencoder-tiny", 2)])
def test_they_do_with_every_convolution_rewritten(name, largest):
    """The forms take other sums, so that the results are not the same bits."""
    endpoint = REWRITTEN[name]
    model, inputs, plainly, shapes = plain(name, endpoint)
    forms = tuple((shape, min(largest, max(forms_for(shape)))) for shape in sorted(shapes))
    assert len(forms) > 2
    assert any(shape.doubles for shape in shapes)
    tuned = {endpoint: Tuned(2, 1, {2: Setting(convolutions=forms)})}
    rewritten = Executor(model, batch_sizes=(2,), tuned=tuned)
    found = next(rewritten.map(endpoint, [inputs]))["x"]
    assert error(found, golden(name)["y"]) <= 1e-4
    assert not np.array_equal(found, plainly)


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_equal_those_of_diffusers(name, monkeypatch):
    arrays = golden(name)
    added, wanted = jnp.asarray(arrays.pop("added")), arrays.pop("y")

    def fed(keys, step, shape):
        return jnp.broadcast_to(added[step[0]][None], (len(step), *shape))

    monkeypatch.setattr(linear, "drawn_noise", fed)
    model, _, metadata = loaded(name)
    pipeline = artifex.InferencePipeline(model, batch_size=2)
    guidance = {"guidance_scale": 3.0} if name == "pipeline-dit" else {}
    found = pipeline.call("from_noise", **arrays, num_steps=len(added), **guidance)["x"]
    assert error(found, wanted) <= 1e-3
    assert metadata["not_run"] == (["vae"] if name == "pipeline-dit" else [])


def test_what_a_pipeline_does_where_nobody_says_anything():
    defaults = {name: loaded(name)[0].endpoints()["generate"].says.fields for name in PIPELINES}
    said = {
        name: [fields["num_steps"].default, fields["sampler"].default] for name, fields in defaults.items()
    }
    assert said == {
        "pipeline-ddpm": [1000, "ddpm"],
        "pipeline-ddim": [50, "ddim"],
        "pipeline-dit": [50, "ddim"],
    }
    assert defaults["pipeline-dit"]["guidance_scale"].default == 4
    assert "guidance_scale" not in defaults["pipeline-ddim"]


def test_classes_without_one_for_none_need_a_label_and_know_no_guidance():
    model = loaded("unet-attention")[0]
    (endpoint,) = model.endpoints().values()
    assert endpoint.says.fields["label"].default == 0
    scheduler = {"_class_name": "DDIMScheduler"}
    with without_drawing_keys():
        made = nnx.eval_shape(
            lambda: Denoiser("unet", model.config["arguments"], scheduler, num_labels=3, rngs=nnx.Rngs(0))
        )
    fields = made.endpoints()["generate"].says.fields
    assert fields["label"].default == 0
    assert "guidance_scale" not in fields


def test_missing_keys_are_the_defaults_of_the_class(copied):
    directory = copied("dit")
    changed(directory / "config.json", activation_fn=..., norm_eps=..., attention_bias=...)
    arrays = golden("dit")
    wanted = arrays.pop("y")
    assert error(load_pipeline(directory, batch_size=2).call("denoise", **arrays)["x"], wanted) <= 1e-4


def test_a_dit_of_before_it_had_a_class_of_its_own(copied):
    directory = copied("dit")
    changed(
        directory / "config.json",
        _class_name="Transformer2DModel",
        cross_attention_dim=None,
        only_cross_attention=False,
    )
    assert load_exported_model(directory)[1]["network"] == "dit"
    changed(directory / "config.json", only_cross_attention=True)
    with pytest.raises(ConfigError, match="only_cross_attention: expected False, got True"):
        load_exported_model(directory)


def test_names_of_early_versions():
    assert current_name("mid_block.attentions.0.query.weight") == "mid_block.attentions.0.to_q.weight"
    assert current_name("mid_block.attentions.0.proj_attn.bias") == "mid_block.attentions.0.to_out.0.bias"
    assert current_name("down_blocks.0.attentions.1.key.bias") == "down_blocks.0.attentions.1.to_k.bias"


def test_weights_under_names_of_early_versions(copied):
    directory = copied("unet-ddpm")

    def as_once(arrays):
        for name in [name for name in arrays if ".to_q." in name]:
            arrays[name.replace(".to_q.", ".query.")] = arrays.pop(name)

    rewritten(directory / WEIGHTS, as_once)
    load_exported_model(directory)

    def twice(arrays):
        (name,) = [name for name in arrays if name.endswith("mid_block.attentions.0.query.weight")]
        arrays[name.replace(".query.", ".to_q.")] = arrays[name]

    rewritten(directory / WEIGHTS, twice)
    with pytest.raises(CheckpointCorruptError, match=r"to_q\.weight is there twice"):
        load_exported_model(directory)


def test_variants_and_shards(copied):
    directory = copied("autoencoder-tiny")
    arrays = {name: array.read() for name, array in stored_arrays(directory / WEIGHTS).items()}
    narrow = {name: array.astype(np.float16) for name, array in arrays.items()}
    write_arrays(directory / "diffusion_pytorch_model.fp16.safetensors", narrow)
    with pytest.raises(CheckpointNotFoundError, match=r"no variant 'bf16' .* it has .*fp16"):
        load_exported_model(directory, variant="bf16")
    (directory / WEIGHTS).unlink()
    for variant in (None, "fp16"):  # the only one that is there need not be named
        model, _, metadata = load_exported_model(directory, variant=variant)
        assert metadata["weights"] == "diffusion_pytorch_model.fp16.safetensors"
        kernel = model.encoder.layers[0].kernel
        assert kernel.dtype == jnp.float32
        np.testing.assert_array_equal(
            kernel[...], narrow["encoder.layers.0.weight"].transpose(2, 3, 1, 0).astype(np.float32)
        )
    names = sorted(arrays)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        write_arrays(directory / shard, {name: arrays[name] for name in part})
        index |= dict.fromkeys(part, shard)
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    with pytest.raises(CheckpointNotFoundError, match="no variant 'bf16'"):
        load_exported_model(directory, variant="bf16")
    assert load_exported_model(directory)[2]["weights"] == f"{WEIGHTS}.index.json"
    (directory / shard).unlink()
    with pytest.raises(CheckpointNotFoundError, match=f"lacks {shard} of 2 shards"):
        load_exported_model(directory)


def test_weights_in_another_dtype_and_over_a_mesh():
    model = load_exported_model(FOLDER / "autoencoder-tiny", dtype="bfloat16")[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(jnp.bfloat16)}
    mesh = jax.make_mesh((1, 2), ("data", "model"), (jax.sharding.AxisType.Auto,) * 2)
    cut = load_exported_model(FOLDER / "autoencoder-tiny", sharding=WeightLayout(mesh, "model"))[0]
    kernel, whole = (made.encoder.layers[0].kernel[...] for made in (cut, model))
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 3, 3, 4)}
    np.testing.assert_array_equal(np.asarray(kernel).astype(jnp.bfloat16), np.asarray(whole))


def test_few_arrays_are_under_way_at_a_time(monkeypatch):
    """However little may be: a thread waits until the others have placed theirs."""
    monkeypatch.setattr(restoring, "_UNDER_WAY_BYTES", 1)
    under_way, most = set(), []
    read = restoring.StoredArray.read

    def noted(array):
        under_way.add(array.offset)
        most.append(len(under_way))
        return read(array)

    placed = restoring._placed

    def done(values, *where):
        found = placed(values, *where)
        under_way.pop()
        return found

    monkeypatch.setattr(restoring.StoredArray, "read", noted)
    monkeypatch.setattr(restoring, "_placed", done)
    load_exported_model(FOLDER / "autoencoder-tiny")
    assert set(most) == {1}


def test_a_second_start_has_no_need_of_the_file(copied, monkeypatch):
    directory = copied("pipeline-dit")
    first = load_pipeline(directory, batch_size=2)
    samples = first.generate(2, rngs=0, num_steps=2, label=1)
    assert (samples.dtype, samples.shape) == (np.float32, (2, 4, 4, 4))  # latents, which stay as they are

    def unread(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(restoring.StoredArray, "read", unread)
    again = load_pipeline(directory, batch_size=2)
    np.testing.assert_array_equal(again.generate(2, rngs=0, num_steps=2, label=1), samples)
    network = directory / "transformer"
    shutil.copy(network / WEIGHTS, network / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(AssertionError, match="read again"):  # another variant is another start
        load_pipeline(directory, variant="fp16")


def refused(error, words, directory, **settings):
    with pytest.raises(error) as caught:
        artifex.load(directory) if not settings else load_exported_model(directory, **settings)
    assert isinstance(caught.value, ArtifexError)
    for word in words.split(" .. "):
        assert word in str(caught.value)


def test_classes_that_are_not_run_are_named_with_those_that_are(copied):
    directory = copied("unet-ddpm")
    changed(directory / "config.json", _class_name="UNet2DConditionModel")
    words = "UNet2DConditionModel .. not run here .. UNet2DModel .. DiTTransformer2DModel .. DDPMPipeline"
    refused(ConfigError, words, directory)
    changed(directory / "config.json", _class_name="Transformer2DModel", norm_type="layer_norm")
    refused(ConfigError, "Transformer2DModel .. not run here", directory)
    changed(directory / "config.json", _class_name=["UNet2DModel"])
    refused(ConfigError, "not run here", directory)
    directory = copied("pipeline-ddpm")
    changed(directory / "model_index.json", _class_name="StableDiffusionPipeline")
    refused(ConfigError, "StableDiffusionPipeline .. DDIMPipeline .. AutoencoderTiny", directory)
    changed(directory / "model_index.json", _class_name="DDPMPipeline", unet=[None, None])
    refused(ConfigError, "a DDPMPipeline without unet", directory)


@pytest.mark.parametrize(
    ("name", "file", "values", "words"),
    [
        ("unet-ddpm", "config.json", {"use_magic": True}, "UNet knows no use_magic"),
        ("unet-ddpm", "config.json", {"act_fn": "tanh"}, "act_fn: expected one of"),
        ("unet-ddpm", "config.json", {"sample_size": None}, "sample_size"),
        ("unet-ddpm", "config.json", {"class_embed_type": "timestep"}, "class_embed_type: expected null"),
        ("unet-ddpm", "config.json", {"down_block_types": ["SkipDownBlock2D"] * 2}, "down_block_types[0]"),
        ("dit", "config.json", {"pos_embed_type": "rope"}, "DiT knows no pos_embed_type"),
        (
            "autoencoder-tiny",
            "config.json",
            {"upsample_fn": "bilinear"},
            "upsample_fn: expected one of nearest",
        ),
        ("autoencoder-tiny", "config.json", {"upsampling_scaling_factor": 4}, "expected 2, got 4"),
        ("autoencoder-tiny", "config.json", {"num_decoder_blocks": [1, 1]}, "expected 2 items, got 3"),
        ("autoencoder-tiny", "config.json", {"decoder_block_out_channels": [8, 8, 4]}, "one number for all"),
        ("autoencoder-tiny", "config.json", {"block_out_channels": [4]}, "block_out_channels: expected"),
        ("autoencoder-tiny", "config.json", {"magic": 1}, "magic"),
        ("pipeline-ddpm", "scheduler/scheduler_config.json", {"magic": 1}, "unknown setting 'magic'"),
        (
            "pipeline-ddpm",
            "scheduler/scheduler_config.json",
            {"_class_name": "PNDMScheduler"},
            "PNDMScheduler",
        ),
        ("pipeline-ddpm", "scheduler/scheduler_config.json", {"num_train_timesteps": "many"}, "'many'"),
    ],
)
def test_settings_that_are_not_supported_are_named(copied, name, file, values, words):
    directory = copied(name)
    changed(directory / file, **values)
    refused(ConfigError, words, directory)


def test_weights_that_do_not_fit_are_all_listed(copied):
    directory = copied("unet-ddpm")

    def broken(arrays):
        del arrays["conv_in.weight"]
        arrays["conv_on.weight"] = np.zeros(3, np.float32)
        arrays["conv_out.bias"] = np.zeros(4, np.float32)
        arrays["time_embedding.linear_1.weight"] = arrays["time_embedding.linear_1.weight"].T
        arrays["conv_norm_out.bias"] = np.zeros(4, np.int64)

    rewritten(directory / WEIGHTS, broken)
    words = (
        "does not fit the model .. missing: conv_in.weight .. left over: conv_on.weight .. of another shape: "
        "conv_out.bias is [4] where the model has [3], time_embedding.linear_1.weight is [4, 16] where the "
        "model has [16, 4] .. of another dtype: conv_norm_out.bias is int64"
    )
    refused(CheckpointMismatchError, words, directory)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16, jnp.float8_e5m2])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(copied, dtype, value):
    directory = copied("dit")

    def broken(arrays):
        arrays.update({name: array.astype(dtype) for name, array in arrays.items()})
        arrays["pos_embed.proj.weight"][1, 1, 1, 1] = value

    rewritten(directory / WEIGHTS, broken)
    refused(CheckpointCorruptError, "pos_embed.proj.weight holds a NaN or an infinity", directory)


def test_large_weights_are_finite(copied):
    directory = copied("unet-ddpm")
    rewritten(directory / WEIGHTS, lambda arrays: arrays["conv_in.bias"].fill(3e38))
    assert np.all(load_exported_model(directory)[0].network.conv_in.bias[...] == np.float32(3e38))


def test_damaged_files(copied):
    directory = copied("dit")
    whole = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(whole[:-10])
    refused(CheckpointCorruptError, f"{WEIGHTS} is damaged", directory)
    (directory / WEIGHTS).write_bytes((2**60).to_bytes(8, "little") + whole[8:])
    refused(CheckpointCorruptError, f"{WEIGHTS} is damaged", directory)


def test_pickles_are_refused_with_what_converts_them(copied):
    directory = copied("unet-ddpm")
    (directory / WEIGHTS).rename(directory / "diffusion_pytorch_model.bin")
    words = f"no {WEIGHTS} .. diffusion_pytorch_model.bin is a pickle .. UNet2DModel.from_pretrained("
    refused(CheckpointNotFoundError, words, directory)
    (directory / "diffusion_pytorch_model.bin").unlink()
    refused(CheckpointNotFoundError, f"no {WEIGHTS}", directory)


def test_steps_and_variants_where_there_are_none():
    refused(InputError, "step: .. which has no training steps", FOLDER / "dit", step=3)
    refused(InputError, "variant: expected none but of diffusers, got 'fp16'", "mnist-vae", variant="fp16")


def test_what_a_directory_is(copied):
    told = described(FOLDER / "pipeline-dit")
    assert (told["class"], told["is_run"]) == ("DiTPipeline", True)
    assert told["runs"] == {"scheduler": "DDIMScheduler", "transformer": "DiTTransformer2DModel"}
    assert told["does_not_run"] == {"vae": "AutoencoderKL: DiTPipeline is run without it"}
    assert described(FOLDER / "dit")["is_run"]
    directory = copied("pipeline-ddpm")
    changed(
        directory / "model_index.json",
        _class_name="StableDiffusionPipeline",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
    )
    told = described(directory)
    assert not told["is_run"]
    assert told["runs"] == {"unet": "UNet2DModel, as a model of its own"}
    assert told["does_not_run"]["safety_checker"] == "StableDiffusionSafetyChecker is not run here"
    (directory / "unet" / WEIGHTS).rename(directory / "unet" / "diffusion_pytorch_model.bin")
    assert "is a pickle" in described(directory)["does_not_run"]["unet"]


@pytest.mark.parametrize("name", [*NETWORKS, "autoencoder-tiny"])
def test_what_is_written_is_what_was_read(name, tmp_path):
    """The same names, shapes and bits, and a config that diffusers would write."""
    model = loaded(name)[0]
    written = export_diffusers(model, tmp_path / "written")
    before, after = stored_arrays(FOLDER / name / WEIGHTS), stored_arrays(written / WEIGHTS)
    assert before.keys() == after.keys()
    for weight, array in before.items():
        np.testing.assert_array_equal(array.read(), after[weight].read())
    read, config = (json.loads((path / "config.json").read_text()) for path in (FOLDER / name, written))
    assert {key: config[key] for key in read.keys() & config.keys()} == {
        key: value for key, value in read.items() if key != "_diffusers_version"
    }
    assert export_diffusers(model, written) == written  # in its own place


def test_a_pipeline_that_is_written_gives_the_same_samples(tmp_path):
    network = {**loaded("dit")[1]["arguments"], "in_channels": 3, "out_channels": 3}
    scheduler = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}

    def build():
        return Denoiser(
            "dit",
            network,
            scheduler,
            num_labels=4,
            num_steps=3,
            sampler="euler",
            guidance_scale=2.0,
            rngs=nnx.Rngs(0),
        )

    model = randomised(build)
    again = load_pipeline(export_diffusers(model, tmp_path / "written"), batch_size=2)
    assert again.config == model.config
    assert again.metadata["image_range"] == [-1, 1]
    pipeline = artifex.InferencePipeline(model, batch_size=2)
    samples = [made.call("generate", num_rows=2, rngs=0, label=1)["x"] for made in (pipeline, again)]
    np.testing.assert_array_equal(*samples)
    assert again.generate(2, rngs=0, label=1).dtype == np.uint8


def test_what_cannot_be_written(tmp_path):
    vae = nnx.eval_shape(lambda: VAE((8, 8, 1), 4, [4], [4], rngs=nnx.Rngs(0)))
    with pytest.raises(InputTypeError, match="VAE has no form in diffusers"):
        export_diffusers(vae, tmp_path / "written")
    (tmp_path / "mine").mkdir()
    model = loaded("dit")[0]
    with pytest.raises(ArtifexError, match="is no directory of diffusers"):
        export_diffusers(model, tmp_path / "mine")


def test_narrower_weights_are_written(tmp_path):
    model = loaded("dit")[0]
    written = export_diffusers(model, tmp_path / "written", dtype="bfloat16")
    assert {array.dtype for array in stored_arrays(written / WEIGHTS).values()} == {jnp.dtype(jnp.bfloat16)}
    assert find_diffusers(written).load().network.pos_embed.proj.kernel.dtype == jnp.float32
