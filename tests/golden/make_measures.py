"""Writes `measures.npz`: what other libraries say of the same features and pictures.

Needs `pip install torch==2.13.0 torch-fidelity==0.4.0 prdc scikit-image==0.26.0`, in an environment apart.
"""

from pathlib import Path

import numpy as np
import torch
from prdc import compute_prdc
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_mmd

NEIGHBOURS = 4

random = np.random.default_rng(0)
real = random.normal(size=(90, 6)).astype(np.float32)
drawn = (0.8 * random.normal(size=(70, 6)) + 0.3).astype(np.float32)
statistics = [
    fid_features_to_statistics(torch.from_numpy(features.astype(np.float64))) for features in (real, drawn)
]
kid = {
    "kid_kernel": "poly",
    "kid_kernel_poly_degree": 3,
    "kid_kernel_poly_gamma": None,
    "kid_kernel_poly_coef0": 1,
}
kernel = kernel_mmd(real[:70].astype(np.float64), drawn.astype(np.float64), **kid)  # it takes as many of both
found = compute_prdc(real, drawn, NEIGHBOURS)
pictures = random.uniform(size=(3, 17, 14, 2)).astype(np.float32)
others = np.clip(pictures + 0.2 * random.normal(size=pictures.shape), 0, 1).astype(np.float32)
settings = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
np.savez(
    Path(__file__).with_name("measures.npz"),
    real=real,
    drawn=drawn,
    frechet=fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"],
    kernel=kernel,
    neighbours=NEIGHBOURS,
    precision=found["precision"],
    recall=found["recall"],
    pictures=pictures,
    others=others,
    ssim=[
        structural_similarity(a.astype(np.float64), b.astype(np.float64), channel_axis=-1, **settings)
        for a, b in zip(pictures, others, strict=True)
    ],
    psnr=[
        peak_signal_noise_ratio(a.astype(np.float64), b.astype(np.float64), data_range=1.0)
        for a, b in zip(pictures, others, strict=True)
    ],
)
