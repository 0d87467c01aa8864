"""Random weights in the format of the public Inception file, to show parity without the real ones."""

import math

import torch

from genlab.metrics.inception import Convolution, InceptionV3


def random_inception_weights(seed=0):
    """Returns a state dict whose activations keep their scale through the depth, with unequal batch norms."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    weights = {}
    with torch.device("meta"):
        network = InceptionV3()
    for name, module in network.named_modules():
        if not isinstance(module, Convolution):
            continue
        channels, fan_in = len(module.weight), math.prod(module.weight.shape[1:])
        weights[f"{name}.conv.weight"] = normal(*module.weight.shape) * math.sqrt(2 / fan_in)
        weights[f"{name}.bn.weight"] = 1.0 + 0.2 * normal(channels)
        weights[f"{name}.bn.bias"] = 0.2 * normal(channels)
        weights[f"{name}.bn.running_mean"] = 0.2 * normal(channels)
        weights[f"{name}.bn.running_var"] = torch.rand(channels, generator=generator) + 0.5
        weights[f"{name}.bn.num_batches_tracked"] = torch.tensor(1)
    weights["fc.weight"] = normal(1008, 2048) / 10
    weights["fc.bias"] = normal(1008)
    return weights
