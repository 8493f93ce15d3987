"""The examples that need no training, run as a reader would."""

from pathlib import Path

import forked
from served import START_SECONDS, Process

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_triton_client():
    with Process("mnist-vae", "--batch-size", "4") as server:
        server.ready("mnist-vae")
        addresses = ["--http", f"127.0.0.1:{server.port}", "--grpc", f"127.0.0.1:{server.grpc_port}"]
        client = [EXAMPLES / "triton_client.py", *addresses]
        said = forked.run(client, check=True, timeout=START_SECONDS).stdout
        assert "drawn again they are the same" in said
        assert said.count("gRPC: stream, sample of seed") == 3
        assert server.stop() == 0
