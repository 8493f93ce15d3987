"""What the logits processors of transformers make of random scores, for `choosing.npz`.

Run in an environment of its own, with torch and transformers 5.24: `python tests/golden/make_choosing.py`.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCAB, SEEN = 37, 6
MAKERS = {  # in the order of `generate`
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}
CASES = [
    {},
    {"temperature": 0.7},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "temperature": 1.7},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 100},
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"top_p": 0.001},
    {"min_p": 0.1},
    {"min_p": 0.9},
    {"temperature": 2.5, "top_p": 0.8},
    {"temperature": 0.4, "top_k": 12, "top_p": 0.95},
    {"top_k": 9, "min_p": 0.2},
    {"repetition_penalty": 1.5, "temperature": 1.2, "top_k": 20, "top_p": 0.85, "min_p": 0.05},
]


def main() -> None:
    random = np.random.default_rng(0)
    logits = (3 * random.standard_normal((len(CASES), VOCAB))).astype(np.float32)
    seen = random.integers(0, VOCAB, (len(CASES), SEEN))
    wanted = []
    for case, scores, ids in zip(CASES, torch.from_numpy(logits), torch.from_numpy(seen), strict=True):
        chain = LogitsProcessorList([make(case[name]) for name, make in MAKERS.items() if name in case])
        wanted.append(chain(ids[None], scores[None].clone())[0].numpy())
    cases = np.frombuffer(json.dumps(CASES).encode(), np.uint8)
    path = Path(__file__).parent / "choosing.npz"
    np.savez_compressed(path, cases=cases, logits=logits, seen=seen, wanted=np.stack(wanted))


if __name__ == "__main__":
    main()
