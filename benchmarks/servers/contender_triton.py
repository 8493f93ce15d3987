"""NVIDIA Triton through PyTriton: Triton's own HTTP front and dynamic batcher, the model in this process.

Triton starts a process per endpoint, the stub, which hands batches to this one. The stub answers with empty
tensors under NumPy 2 and JAX needs NumPy 2, so that the environment has the older one and this process
alone takes the newer from the environment's folder `own`: the model runs on the same JAX everywhere.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(sys.prefix) / "own"))

import numpy as np
from model import MAX_BATCH_SIZE, SIDE, Model
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def inference(function: Callable, name: str, row: tuple[int, ...]) -> Callable:
    """What PyTriton calls with a merged batch."""

    @batch
    def infer(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        return function(inputs[name].reshape(-1, *row))

    return infer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay", type=int, default=0, help="microseconds that a batch waits to fill")
    parser.add_argument("--instances", type=int, default=2, help="batches in flight per endpoint")
    parser.add_argument("--http-threads", type=int, default=2, help="Triton's own default is 8")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    model = Model()
    picture, latent = (SIDE, SIDE, 1), (32,)
    served = {
        "encode": (("x", picture, picture), {"mean": latent, "log_var": latent}),
        "generate": (("temperature", (1,), ()), {"x": picture}),
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # by way of the `with`, which stops Triton
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=arguments.port,
        http_thread_count=arguments.http_threads,
        allow_grpc=False,
        allow_metrics=False,
    )
    with Triton(config=config, workspace=Path("workspace")) as triton:
        for endpoint, ((name, shape, row), outputs) in served.items():
            function = inference(getattr(model, endpoint), name, row)
            triton.bind(
                model_name=f"mnist-vae.{endpoint}",
                infer_func=[function] * arguments.instances,
                inputs=[Tensor(name=name, dtype=np.float32, shape=shape)],
                outputs=[Tensor(name=name, dtype=np.float32, shape=shape) for name, shape in outputs.items()],
                config=ModelConfig(
                    max_batch_size=MAX_BATCH_SIZE,
                    batcher=DynamicBatcher(max_queue_delay_microseconds=arguments.delay),
                ),
                strict=False,
            )
        triton.serve()


if __name__ == "__main__":
    main()
