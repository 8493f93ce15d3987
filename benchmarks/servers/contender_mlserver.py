"""MLServer: a custom runtime per endpoint with adaptive batching, V2 JSON in and out."""

from __future__ import annotations

import argparse
import asyncio

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from model import MAX_BATCH_SIZE, Model


class Runtime(MLModel):
    """Decodes a merged request's tensor, runs the endpoint that its settings name, encodes the outputs."""

    async def load(self) -> bool:
        """Loads and compiles the model."""
        endpoint = self.settings.parameters.extra["endpoint"]
        self.input_name, self.function = Model().endpoints()[endpoint]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Runs a batch."""
        (tensor,) = payload.inputs
        array = NumpyCodec.decode_input(tensor)
        outputs = self.function(array)
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(name, output) for name, output in outputs.items()],
        )


async def serve(arguments: argparse.Namespace) -> None:
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=arguments.port,
        grpc_port=arguments.grpc_port,
        metrics_endpoint=None,
        parallel_workers=arguments.workers,
        load_models_at_startup=False,
        gzip_enabled=False,
        logging_settings={"version": 1, "root": {"level": "WARNING"}},
    )
    models = [
        ModelSettings(
            name=f"mnist-vae.{endpoint}",
            implementation=Runtime,
            max_batch_size=MAX_BATCH_SIZE,
            max_batch_time=arguments.batch_time,
            parameters={"extra": {"endpoint": endpoint}},
        )
        for endpoint in ("encode", "generate")
    ]
    await MLServer(settings).start(models)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True, help="nobody asks there")
    parser.add_argument("--batch-time", type=float, default=0.005, help="seconds a batch waits to fill")
    parser.add_argument("--workers", type=int, default=2, help="processes besides the one that speaks HTTP")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
