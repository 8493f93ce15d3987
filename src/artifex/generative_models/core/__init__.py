"""Endpoints, devices, configs, checkpoints and errors; knows nothing of inference."""

from artifex.generative_models.core.devices import DeviceManager
from artifex.generative_models.core.endpoint import Endpoint, Model
from artifex.generative_models.core.specs import Option, TensorSpec

__all__ = ["DeviceManager", "Endpoint", "Model", "Option", "TensorSpec"]
