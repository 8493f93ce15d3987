"""Picks the real digits that ship with Artifex: the first 300 of MNIST's test set.

python examples/pick_mnist_digits.py --data DIR --output src/artifex/zoo/mnist_digits.npz
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mnist import TEST_LABELS, TEST_PICTURES, read_idx

COUNT = 300


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(arguments)
    images = read_idx(args.data, TEST_PICTURES)[:COUNT, :, :, None]
    labels = read_idx(args.data, TEST_LABELS)[:COUNT]
    np.savez_compressed(args.output, images=images, labels=labels)


if __name__ == "__main__":
    main()
