"""LitServe: one API an endpoint, each batched, JSON in and out."""

from __future__ import annotations

import argparse
import signal

import litserve as ls
import numpy as np
from model import MAX_BATCH_SIZE, SIDE, Model, Outputs


class Batched(ls.LitAPI):
    """What both endpoints share: a batch is one array, its outputs are taken apart again."""

    def setup(self, device: str) -> None:
        """Loads and compiles the model, in a worker process."""
        self.model = Model()

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Stacks what requests were decoded to."""
        return np.stack(inputs)

    def unbatch(self, output: Outputs) -> list[Outputs]:
        """Takes outputs apart, a row each."""
        rows = len(next(iter(output.values())))
        return [{name: array[i] for name, array in output.items()} for i in range(rows)]

    def encode_response(self, output: Outputs) -> dict[str, list[float]]:
        """A row's outputs as flat lists."""
        return {name: row.ravel().tolist() for name, row in output.items()}


class Encode(Batched):
    """{"x": 784 pixels} to {"mean", "log_var"}."""

    def decode_request(self, request: dict) -> np.ndarray:
        """The picture."""
        return np.asarray(request["x"], np.float32).reshape(SIDE, SIDE, 1)

    def predict(self, x: np.ndarray) -> Outputs:
        """Runs a batch."""
        return self.model.encode(x)


class Generate(Batched):
    """{"temperature"} to {"x": 784 pixels}."""

    def decode_request(self, request: dict) -> np.float32:
        """The temperature."""
        return np.float32(request["temperature"])

    def predict(self, x: np.ndarray) -> Outputs:
        """Runs a batch."""
        return self.model.generate(x)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch-timeout", type=float, default=0.005, help="seconds a batch waits to fill")
    parser.add_argument("--workers", type=int, default=1, help="processes with a model, per endpoint")
    parser.add_argument("--api-servers", type=int, default=2, help="processes that speak HTTP")
    parser.add_argument("--fast-queue", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    batching = {"max_batch_size": MAX_BATCH_SIZE, "batch_timeout": arguments.batch_timeout}
    server = ls.LitServer(
        [Encode(api_path="/encode", **batching), Generate(api_path="/generate", **batching)],
        accelerator="cpu",
        workers_per_device=arguments.workers,
        fast_queue=arguments.fast_queue,
        timeout=False,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it cleans up after Ctrl-C alone
    server.run(
        host="127.0.0.1",
        port=arguments.port,
        num_api_servers=arguments.api_servers,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
