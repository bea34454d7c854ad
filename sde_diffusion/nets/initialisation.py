"""The one initialisation of all networks."""

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def xavier(layer: Layer, gain: float = 1.0) -> Layer:
    """Initialise in place: weight variance gain^2 / fan_avg (uniform), zero bias; return the layer.

    A gain of 0 makes the layer's output exactly zero: the last layer of a residual branch starts so, and the
    branch as the identity. Source: Glorot & Bengio 2010, eq. 16; as used by Ho et al. 2020 (published code).
    """
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def uniform_fan_in(net: nn.Module) -> None:
    """Initialise anew, weights and biases uniform of variance 1 / (3 fan_in), except where weights are zero.

    PyTorch's own initialisation, with which improved- and guided-diffusion were trained.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.is_meta and bool(layer.weight.any()):
            layer.reset_parameters()
