"""Trajectories of diffusers' schedulers on a network that is none of theirs, for `samplers.npz`.

Run in an environment of its own, with torch and diffusers 0.42: `python tests/golden/make_samplers.py`.
"""

import importlib
import json
import warnings
from pathlib import Path

import diffusers
import numpy as np
import torch

warnings.filterwarnings("ignore")
diffusers.logging.set_verbosity_error()

HERE = Path(__file__).parent
SHAPE = (2, 3, 2, 2)  # rows, channels, height, width
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # Stable Diffusion's
ZERO_SNR = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1, **STABLE}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
THRESHOLD = {"thresholding": True, "sample_max_value": 1.5}
KARRAS = {"use_karras_sigmas": True, **STABLE}

# Scheduler, steps, settings, and parameters of its steps.
CASES = [
    ("DDPMScheduler", 10, {}, {}),
    ("DDPMScheduler", 50, {}, {}),
    ("DDPMScheduler", 25, {"variance_type": "fixed_large", "prediction_type": "v_prediction", **STABLE}, {}),
    ("DDPMScheduler", 25, {"variance_type": "fixed_small_log", **COSINE}, {}),
    ("DDPMScheduler", 25, {"variance_type": "learned_range", "timestep_spacing": "trailing"}, {}),
    ("DDPMScheduler", 25, {"beta_schedule": "sigmoid", "prediction_type": "sample"}, {}),
    ("DDPMScheduler", 25, {"timestep_spacing": "linspace", "clip_sample": False, **THRESHOLD}, {}),
    ("DDPMScheduler", 25, {"clip_sample_range": 2.0, **ZERO_SNR}, {}),
    *(
        ("DDIMScheduler", steps, {"timestep_spacing": spacing, "clip_sample": False, **STABLE}, {})
        for spacing, steps in [("leading", 10), ("linspace", 50), ("trailing", 30)]
    ),
    ("DDIMScheduler", 20, {"set_alpha_to_one": False, "clip_sample": False, **LEADING}, {}),
    ("DDIMScheduler", 20, {}, {"eta": 0.7}),
    ("DDIMScheduler", 20, {"clip_sample_range": 1.5}, {"eta": 1.0}),
    ("DDIMScheduler", 20, {"clip_sample": False, **ZERO_SNR}, {}),
    ("DDIMScheduler", 20, {"prediction_type": "sample"}, {}),
    ("DDIMScheduler", 20, {"clip_sample": False, **THRESHOLD}, {}),
    ("EulerDiscreteScheduler", 20, {}, {}),
    ("EulerDiscreteScheduler", 20, KARRAS, {}),
    ("EulerDiscreteScheduler", 20, {"use_exponential_sigmas": True}, {}),
    ("EulerDiscreteScheduler", 20, LEADING, {}),
    ("EulerDiscreteScheduler", 20, ZERO_SNR, {}),
    ("EulerDiscreteScheduler", 20, {"final_sigmas_type": "sigma_min"}, {}),
    ("EulerDiscreteScheduler", 20, {"interpolation_type": "log_linear", **STABLE}, {}),
    ("EulerAncestralDiscreteScheduler", 20, {}, {}),
    ("EulerAncestralDiscreteScheduler", 20, LEADING, {}),
    ("EulerAncestralDiscreteScheduler", 20, ZERO_SNR, {}),
    ("HeunDiscreteScheduler", 12, {}, {}),
    ("HeunDiscreteScheduler", 12, {"clip_sample": True, **KARRAS}, {}),
    ("HeunDiscreteScheduler", 12, {"prediction_type": "v_prediction", **LEADING}, {}),
    ("DPMSolverMultistepScheduler", 5, STABLE, {}),
    ("DPMSolverMultistepScheduler", 20, STABLE, {}),
    ("DPMSolverMultistepScheduler", 50, KARRAS, {}),
    ("DPMSolverMultistepScheduler", 20, LEADING, {}),
    ("DPMSolverMultistepScheduler", 20, ZERO_SNR, {}),
    ("DPMSolverMultistepScheduler", 20, {"algorithm_type": "sde-dpmsolver++", **STABLE}, {}),
    ("DPMSolverMultistepScheduler", 20, {"algorithm_type": "sde-dpmsolver++", **KARRAS}, {}),
    ("DPMSolverMultistepScheduler", 20, {"final_sigmas_type": "sigma_min"}, {}),
    ("DPMSolverMultistepScheduler", 20, {"solver_order": 1, **COSINE}, {}),
    ("DPMSolverMultistepScheduler", 20, {"euler_at_final": True, **THRESHOLD}, {}),
    ("DPMSolverMultistepScheduler", 20, {"use_exponential_sigmas": True}, {}),
    ("DPMSolverMultistepScheduler", 20, FLOW, {}),
    ("UniPCMultistepScheduler", 5, STABLE, {}),
    ("UniPCMultistepScheduler", 20, {"prediction_type": "v_prediction", **STABLE}, {}),
    ("UniPCMultistepScheduler", 20, KARRAS, {}),
    ("UniPCMultistepScheduler", 20, LEADING, {}),
    ("UniPCMultistepScheduler", 20, {"final_sigmas_type": "sigma_min", **STABLE}, {}),
    ("UniPCMultistepScheduler", 20, {"solver_order": 1}, {}),
    ("UniPCMultistepScheduler", 20, FLOW, {}),
    ("FlowMatchEulerDiscreteScheduler", 1, {}, {}),
    ("FlowMatchEulerDiscreteScheduler", 10, {"shift": 3.0}, {}),
    ("FlowMatchEulerDiscreteScheduler", 28, {"shift": 3.0, "shift_terminal": 0.1}, {}),
    ("FlowMatchEulerDiscreteScheduler", 10, {"use_karras_sigmas": True}, {}),
    ("LCMScheduler", 1, {}, {}),
    ("LCMScheduler", 4, {}, {}),
    ("LCMScheduler", 8, {"prediction_type": "v_prediction", "clip_sample": True}, {}),
    ("CMStochasticIterativeScheduler", 1, {}, {}),
    ("CMStochasticIterativeScheduler", 5, {}, {}),
]
# Of `DDIMInverseScheduler`: steps and settings.
INVERSES = [
    (10, {"clip_sample": False, **STABLE}),
    (20, {"set_alpha_to_one": False, "clip_sample": False, **LEADING}),
    (20, {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    (25, {"prediction_type": "sample", "set_alpha_to_one": False, "clip_sample_range": 2.0}),
]
KEPT = 4  # states of each trajectory, evenly spaced, the last among them


def constants() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    size = int(np.prod(SHAPE[1:]))
    mix, mix_variance = rng.normal(size=(2, size, size)) / 4
    return {
        "mix": mix.astype(np.float32),
        "mix_variance": mix_variance.astype(np.float32),
        "start": rng.normal(size=SHAPE).astype(np.float32),
        "noise": rng.normal(size=(64, *SHAPE)).astype(np.float32),
    }


def trajectory(name: str, steps: int, settings: dict, parameters: dict, given: dict[str, np.ndarray]):
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(steps)
    module = importlib.import_module(type(scheduler).__module__)
    x = torch.tensor(given["start"]) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    states = []
    for k, time in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
        flat = scaled.reshape(len(x), -1)
        o = torch.tanh(flat @ torch.tensor(given["mix"]) + time.float() / 1000).reshape(x.shape)
        if settings.get("variance_type") == "learned_range":
            o = torch.cat([o, torch.tanh(flat @ torch.tensor(given["mix_variance"])).reshape(x.shape)], 1)
        if hasattr(module, "randn_tensor"):
            module.randn_tensor = lambda *_, k=k, **__: torch.tensor(given["noise"][k])
        x = scheduler.step(o, time, x, return_dict=False, **parameters)[0]
        states.append(x.numpy().astype(np.float32))
    kept = np.linspace(len(states) - 1, 0, KEPT, dtype=int)[::-1]
    largest = max(np.abs(state).max() for state in states)
    return np.stack([states[k] for k in kept]), kept, largest, dict(scheduler.config)


def main() -> None:
    arrays, cases = constants(), []
    for number, (name, steps, settings, parameters) in enumerate(CASES):
        states, kept, largest, config = trajectory(name, steps, settings, parameters, arrays)
        config = {key: value for key, value in config.items() if key != "_use_default_values"}
        config.pop("trained_betas", None)
        cases.append(
            {
                "config": {"_class_name": name, **json.loads(json.dumps(config, default=str))},
                "steps": steps,
                "parameters": parameters,
                "kept": kept.tolist(),
                "largest": float(largest),
            }
        )
        arrays[f"states_{number}"] = states
    arrays["cases"] = np.array(json.dumps(cases))
    inverses = []
    for number, (steps, settings) in enumerate(INVERSES):
        states, kept, largest, _ = trajectory("DDIMInverseScheduler", steps, settings, {}, arrays)
        inverses.append(
            {"config": settings, "steps": steps, "kept": kept.tolist(), "largest": float(largest)}
        )
        arrays[f"inverse_states_{number}"] = states
    arrays["inverses"] = np.array(json.dumps(inverses))
    np.savez_compressed(HERE / "samplers.npz", **arrays)


if __name__ == "__main__":
    main()
