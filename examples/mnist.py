"""MNIST from its canonical IDX files."""

from __future__ import annotations

import gzip
import hashlib
import urllib.request
from pathlib import Path

import numpy as np

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
SHA256 = {  # of the files unpacked
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
PICTURES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_PICTURES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def facts(*names: str) -> dict[str, object]:
    """What a model's metadata say of the files that it was trained on."""
    return {
        "name": "MNIST",
        "authors": "Yann LeCun, Corinna Cortes and Christopher J. C. Burges",
        "licence": "CC BY-SA 3.0",
        "sha256": {name: SHA256[name] for name in names},
    }


def read_idx(data_dir: Path, name: str, *, download: bool = False) -> np.ndarray:
    """A uint8 array from `<name>.gz`, checked against its SHA-256."""
    path = data_dir / f"{name}.gz"
    if download and not path.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        urllib.request.urlretrieve(MIRROR + path.name, path)
    content = gzip.decompress(path.read_bytes())
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise SystemExit(f"{path} does not hold the canonical MNIST file: its SHA-256 differs")
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
