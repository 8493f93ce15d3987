"""GPT-2: what comes next in a sequence of symbols, such as the pieces of a text.

References:
    Radford et al., *Language Models are Unsupervised Multitask Learners*, 2019.
    https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from artifex.generative_models.core.endpoint import Endpoint
from artifex.generative_models.core.errors import ConfigError
from artifex.generative_models.core.nn.causal import CausalTransformer
from artifex.generative_models.core.published import PublishedWeight
from artifex.generative_models.core.sampling.prompts import Continuing
from artifex.generative_models.core.sampling.texts import ContinuingText
from artifex.generative_models.core.sampling.tokens import Prompt, TokenLoop
from artifex.generative_models.core.specs import Option, TensorSpec
from artifex.generative_models.models.arguments import check_integers, check_transformer

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Key

_MAX_SYMBOLS = 2**20
_NEW_TOKENS = 64  # where nobody says how many
_PUBLISHED_NAMES = {
    "symbols.embedding": "wte.weight",
    "positions.embedding": "wpe.weight",
    "blocks.": "h.",
    "norm_1.": "ln_1.",
    "norm_2.": "ln_2.",
    "attention.to_qkv": "attn.c_attn",
    "attention.to_out": "attn.c_proj",
    "feed_forward.proj_in": "mlp.c_fc",
    "feed_forward.proj_out": "mlp.c_proj",
    "head.": "lm_head.",
    "norm.": "ln_f.",
    "kernel": "weight",
    "scale": "weight",
}
_PROMPT = 32  # tokens of a prompt that servers are ready for


class GPT2(nnx.Module):
    r"""A transformer that gives each token a probability after those before it.

    $$p(t_2, \dots, t_n \mid t_1) = \prod_{i > 1} p(t_i \mid t_1, \dots, t_{i-1})$$

    Args:
        vocab_size: Symbols that there are.
        num_positions: The most tokens of a sequence.
        features: Of a token within the network.
        num_layers: How many blocks.
        num_heads: Of the attention; a divisor of the features.
        tied: Whether the vectors that stand for symbols also tell them.
        epsilon: Of the normalisations.
        end: The symbol that ends a sequence; None where none does.
        start: The symbol that a sequence begins with where its prompt is empty; None where none can be.
        tokenizer: The file of the tokenizer, with which callers say text; None where they give symbols.
        rngs: Random number generators for the weights.

    Raises:
        ConfigError: An argument is unusable.
    """

    def __init__(
        self,
        vocab_size: int,
        num_positions: int,
        features: int,
        num_layers: int,
        num_heads: int,
        tied: bool = True,
        epsilon: float = 1e-5,
        end: int | None = None,
        start: int | None = None,
        tokenizer: str | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "rngs")}
        check_transformer(arguments)
        check_integers(arguments, "vocab_size", maximum=_MAX_SYMBOLS)
        check_integers(arguments, "num_positions", minimum=2, maximum=_MAX_SYMBOLS)
        check_integers(arguments, "end", "start", minimum=0, maximum=vocab_size - 1, optional=True)
        if not isinstance(tokenizer, str | None):
            raise ConfigError(f"tokenizer: expected the name of a file or null, got {tokenizer!r:.100}")
        self._config = json.dumps(arguments)
        self.network = CausalTransformer(
            vocab_size, num_positions, features, num_layers, num_heads, tied=tied, epsilon=epsilon, rngs=rngs
        )

    @property
    def config(self) -> Mapping[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        return json.loads(self._config)

    def published_weights(self) -> dict[str, PublishedWeight]:
        """The weights by the names that transformers stores them under."""
        found = {}
        for path, _ in nnx.to_flat_state(nnx.state(self, nnx.Param)):
            name = ".".join(map(str, path[1:]))
            for ours, theirs in _PUBLISHED_NAMES.items():
                name = name.replace(ours, theirs)
            axes = (1, 0) if name == "lm_head.weight" else None  # of other layers outputs come last there too
            found[name if name == "lm_head.weight" else f"transformer.{name}"] = PublishedWeight(path, axes)
        return found

    def log_prob(
        self, tokens: Int[Array, "batch tokens"], length: Int[Array, " batch"]
    ) -> Float[Array, " batch"]:
        """Of the first tokens but one, given that one, in nats, float32.

        Args:
            tokens: Sequences, with any symbols after their ends.
            length: Of each.
        """
        following = jax.nn.log_softmax(self.network(tokens)[:, :-1])
        found = jnp.take_along_axis(following, tokens[:, 1:, None], axis=2)[..., 0]
        is_there = jnp.arange(1, tokens.shape[1])[None] < length[:, None]
        return jnp.where(is_there, found, jnp.float32(0)).sum(1)

    def endpoints(self) -> Mapping[str, Endpoint]:
        """`generate` and `log_prob`."""
        config = self.config
        most = config["num_positions"]
        usual = min(_NEW_TOKENS, most - 1)
        continuing = Continuing(most, usual)
        says: Continuing | ContinuingText = continuing
        if config["tokenizer"] is not None:
            says = ContinuingText(config["tokenizer"], most, usual, config["start"])
        loop = TokenLoop(_prompt, _prefill, _next, config["vocab_size"], end=config["end"])
        known = {"minimum": 0, "maximum": config["vocab_size"] - 1}
        tokens = TensorSpec(
            ("max_prompt",), np.int32, doc="symbols, with any of them after the prompt's end", **known
        )
        sizes = {"max_prompt": Option(min(_PROMPT, most), minimum=1, maximum=most, doc="Room for a prompt.")}
        sequence = {
            "tokens": TensorSpec(
                ("max_prompt",), np.int32, doc="symbols, with any of them after the end", **known
            ),
            "length": TensorSpec((), np.int32, doc="how many of them", minimum=1, maximum=most),
        }
        return {
            "generate": Endpoint(
                loop,
                {"tokens": tokens, **continuing.inputs},
                sizes | continuing.room_options,
                doc="go on with tokens" if says is continuing else "go on with text",
                says=says,
            ),
            "log_prob": Endpoint(
                _log_prob, sequence, sizes, doc="how likely tokens are after the first: nats", ahead=False
            ),
        }


def _prompt(model: GPT2, inputs: Mapping[str, Array]) -> Prompt:
    """The tokens, and as much room after them as is needed or seen."""
    tokens, length = inputs["tokens"], inputs["prompt_length"]
    length = jnp.clip(length, 1, tokens.shape[1])
    most = min(tokens.shape[1] + inputs["room"].shape[1], model.network.num_positions)
    stop = jnp.minimum(length + inputs["room"].sum(1, dtype=jnp.int32), most)
    return Prompt(jnp.pad(tokens, ((0, 0), (0, most - tokens.shape[1]))), length, stop)


def _prefill(model: GPT2, tokens: Array, length: Array, inputs: Mapping[str, Array]) -> Any:
    return model.network.prefill(tokens[:, : inputs["tokens"].shape[1]], tokens.shape[1])


def _next(model: GPT2, token: Array, index: Array, cache: Any, inputs: Mapping[str, Array]) -> Any:
    return model.network.step(token, index, cache)


def _log_prob(
    model: GPT2, keys: Key[Array, " batch"], inputs: dict[str, Array], *, max_prompt: int
) -> dict[str, Array]:
    return {"log_prob": model.log_prob(inputs["tokens"], inputs["length"])}
