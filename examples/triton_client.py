"""Asks a running server with NVIDIA's stock client, over HTTP and gRPC.

    artifex serve mnist-vae
    python examples/triton_client.py

It encodes real digits, draws samples, draws one of them again from the seed that came back, and streams.
"""

from __future__ import annotations

import argparse
import queue
import time
from importlib import resources

import numpy as np
import tritonclient.grpc
import tritonclient.http


def over_http(address: str, digits: np.ndarray) -> None:
    with tritonclient.http.InferenceServerClient(address) as client:
        x = tritonclient.http.InferInput("x", list(digits.shape), "FP32").set_data_from_numpy(digits)
        means = client.infer("mnist-vae.encode", [x]).as_numpy("mean")
        print(f"HTTP: {len(means)} digits became latents of {means.shape[1]} numbers")

        first = client.infer("mnist-vae", [], parameters={"num_samples": 4})
        seed = first.get_response()["parameters"]["seed"]
        again = client.infer("mnist-vae", [], parameters={"num_samples": 4, "seed": seed})
        same = np.array_equal(first.as_numpy("x"), again.as_numpy("x"))
        print(f"HTTP: 4 samples of seed {seed}; drawn again they are {'the same' if same else 'others'}")


def over_grpc(address: str, digits: np.ndarray) -> None:
    with tritonclient.grpc.InferenceServerClient(address) as client:
        x = tritonclient.grpc.InferInput("x", list(digits.shape), "FP32").set_data_from_numpy(digits)
        pictures = client.infer("mnist-vae.reconstruct", [x]).as_numpy("x")
        print(f"gRPC: reconstructed {len(pictures)}, off by {np.abs(pictures - digits).mean():.3f} a pixel")

        answers: queue.Queue = queue.Queue()
        client.start_stream(lambda result, error: answers.put((result, error)))
        for seed in range(3):
            client.async_stream_infer("mnist-vae", [], parameters={"seed": seed})
        for seed in range(3):
            result, error = answers.get(timeout=60)
            if error is not None:
                raise error
            print(f"gRPC: stream, sample of seed {seed}: mean {result.as_numpy('x').mean():.3f}")
        client.stop_stream()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--http", default="localhost:8000")
    parser.add_argument("--grpc", default="localhost:8001")
    arguments = parser.parse_args()
    with tritonclient.http.InferenceServerClient(arguments.http) as client:
        while not client.is_server_ready():
            time.sleep(0.1)
    with np.load(str(resources.files("artifex") / "zoo" / "mnist_digits.npz")) as archive:
        digits = archive["images"][:8].astype(np.float32) / 255
    over_http(arguments.http, digits)
    over_grpc(arguments.grpc, digits)


if __name__ == "__main__":
    main()
