"""Gaussian data, whose exact denoisers are known, as networks of every prediction."""

import jax
import jax.numpy as jnp
import numpy as np

from artifex.generative_models.core.sampling.samplers import noise_settings, prediction_of
from artifex.generative_models.core.sampling.schedules import alphas_squared

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


def diffusion(prediction="epsilon", **settings):
    return {
        "_class_name": "DDPMScheduler",
        "prediction_type": prediction,
        "clip_sample": False,
        **settings,
    }


def denoiser(config, mean, covariance):
    """The exact network of rows of the size of the mean, whatever their shape; times lie between integers."""
    prediction, total = prediction_of(config), noise_settings(config)["num_train_timesteps"]
    variances, axes = (np.asarray(part, np.float32) for part in np.linalg.eigh(covariance))
    mean = np.asarray(mean, np.float32)
    log_snr = None
    if prediction != "flow_prediction":
        left = alphas_squared(noise_settings(config), ends_at_zero=False)
        log_snr = np.asarray(np.log(left) - np.log1p(-left), np.float32)

    def posterior(x, alpha, sigma):
        along = (x - alpha * mean[None]) @ axes / (alpha**2 * variances[None] + sigma**2)
        return mean[None] + alpha * ((along * variances[None]) @ axes.T), sigma * (along @ axes.T)

    def network(model, x, time, guidance, inputs):
        if log_snr is None:
            alpha, sigma = 1 - time / total, time / total
        else:
            at = jnp.interp(time, jnp.arange(total, dtype=jnp.float32), jnp.asarray(log_snr))
            alpha, sigma = jnp.sqrt(jax.nn.sigmoid(at)), jnp.sqrt(jax.nn.sigmoid(-at))
        alpha, sigma = alpha[:, None], sigma[:, None]
        sample, noise = posterior(x.reshape(len(x), -1), alpha, sigma)
        found = {
            "epsilon": noise,
            "sample": sample,
            "v_prediction": alpha * noise - sigma * sample,
            "flow_prediction": noise - sample,
        }[prediction]
        return found.reshape(x.shape)

    return network
