"""`AsyncInferenceServer`: a model for the coroutines of one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from artifex.generative_models.core.endpoint import Model
from artifex.generative_models.core.keys import sample_key
from artifex.generative_models.inference.batching.batcher import Batcher
from artifex.generative_models.inference.batching.previews import Preview
from artifex.generative_models.inference.executor.executor import Executor
from artifex.generative_models.inference.images import pictures_in
from artifex.generative_models.inference.offline.calling import with_said
from artifex.generative_models.inference.offline.latents import decoded_name, encoded_name
from artifex.generative_models.inference.offline.sampling import sampling

if TYPE_CHECKING:
    from typing import Self

    from flax import nnx
    from jax.typing import ArrayLike
    from jaxtyping import Float


class AsyncInferenceServer:
    """A model for the coroutines of one process: concurrent requests are batched.

    Results are NumPy arrays: to make a JAX array of one costs more than to compute it. Cancelling a task that
    awaits a result drops its request. Shut it down when done, or use it in an `async with` block.

    Args:
        model: A model with endpoints, or an executor of one.
        max_workers: Batches under way at once.

    Raises:
        InputError: `max_workers` below 1. All methods raise what `Batcher.submit` does, when awaited.
    """

    def __init__(self, model: Model | Executor, max_workers: int = 4):
        self.batcher = Batcher(model, max_in_flight=max_workers)

    async def encode_async(self, images: ArrayLike, **given: Any) -> Float[np.ndarray, "rows latent"]:
        """Encodes pictures [rows, H, W, C] to the means of their posteriors, to latents or to codes.

        Args:
            images: The pictures.
            **given: What else the endpoint takes, such as a label, for all rows or one a row.
        """
        name = encoded_name(self.batcher.executor)
        return (await self._call("encode", {"x": images}, given, (name,)))[name]

    async def decode_async(self, latents: ArrayLike, **given: Any) -> Float[np.ndarray, "rows h w c"]:
        """Decodes latents [rows, latent]; what is given is as for `encode_async`."""
        name = decoded_name(self.batcher.executor)
        return (await self._call("decode", {name: latents}, given))["x"]

    async def reconstruct_async(self, images: ArrayLike, **given: Any) -> Float[np.ndarray, "rows h w c"]:
        """Encodes and decodes pictures [rows, H, W, C]; what is given is as for `encode_async`."""
        return (await self._call("reconstruct", {"x": images}, given))["x"]

    async def generate_async(
        self,
        num_samples: int,
        rngs: nnx.Rngs | int | None = None,
        *,
        temperature: float = 1.0,
        on_preview: Callable[[Preview], object] | None = None,
        every: int = 1,
        **given: Any,
    ) -> Float[np.ndarray, "rows h w c"]:
        """Draws samples: those of `batch_generate_samples` with the same generators.

        Args:
            num_samples: How many, from 1.
            rngs: Random number generators, of which one `sample` key is drawn, or a seed; None is any.
            temperature: Standard deviation of the prior's noise, from 0; 1 is the model's own.
            on_preview: Called, in the event loop, with what samples of a model that takes steps look like by
                now.
            every: Steps of a sample between two previews of it.
            **given: More inputs of the endpoint, such as a label, for all samples or one a sample; and
                options.
        """
        how = sampling(self.batcher.executor, num_samples, temperature, given)
        call = {"key": sample_key(rngs), "num_rows": num_samples, **how.options}
        rows = how.rows(0, num_samples)
        outputs = self.batcher.submit_async("generate", rows, on_preview=on_preview, every=every, **call)
        return pictures_in(await outputs)

    async def _call(
        self,
        endpoint: str,
        inputs: dict[str, Any],
        given: dict[str, Any],
        outputs: tuple[str, ...] | None = None,
    ) -> dict[str, Any]:
        rows, options = with_said(self.batcher.executor, endpoint, inputs, given)
        return await self.batcher.submit_async(endpoint, rows, outputs=outputs, **options)

    def shutdown(self) -> None:
        """Finishes what was asked for and refuses what is new."""
        self.batcher.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        await asyncio.to_thread(self.batcher.close, drain=error is None)
