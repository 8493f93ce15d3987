"""FastAPI by hand: one jitted call a request on FastAPI's thread pool, JSON in and out.

A process a core, as uvicorn advises; without batching, which people do not write by hand.
"""

from __future__ import annotations

import argparse

import numpy as np
import uvicorn
from fastapi import FastAPI
from model import SIDE, Model
from pydantic import BaseModel

app = FastAPI()
model = Model(max_batch_size=1)


class Picture(BaseModel):
    """Pixels in [0, 1], row by row."""

    x: list[float]


class Posterior(BaseModel):
    """Of one picture."""

    mean: list[float]
    log_var: list[float]


class Wish(BaseModel):
    """What to generate."""

    temperature: float = 1.0


# With a return type FastAPI writes the answer in compiled code, which its documentation advises for speed.


@app.get("/ready")
def ready() -> str:
    return "yes"


@app.post("/encode")
def encode(picture: Picture) -> Posterior:
    outputs = model.encode(np.asarray(picture.x, np.float32).reshape(1, SIDE, SIDE, 1))
    return Posterior.model_construct(mean=outputs["mean"][0].tolist(), log_var=outputs["log_var"][0].tolist())


@app.post("/generate")
def generate(wish: Wish) -> Picture:
    outputs = model.generate(np.full(1, wish.temperature, np.float32))
    return Picture.model_construct(x=outputs["x"].ravel().tolist())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2, help="processes with a model")
    arguments = parser.parse_args()
    uvicorn.run(
        "contender_fastapi:app" if arguments.workers > 1 else app,
        port=arguments.port,
        workers=arguments.workers,
        log_level="warning",
        access_log=False,
    )
