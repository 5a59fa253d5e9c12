"""Batch norms as after training."""

from __future__ import annotations

from torch import nn


def randomise_batch_norms(net: nn.Module) -> None:
    """Random weights, biases and statistics: code that forgets any of them then computes something else."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
