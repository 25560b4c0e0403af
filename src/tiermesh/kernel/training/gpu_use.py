"""How busy the GPU was a moment ago, as its driver tells it."""

from __future__ import annotations

import pynvml
import torch


def gpu_use(device: torch.device) -> float | None:
    """Share of the driver's last sampling period (a sixth of a second to a second) in which the GPU computed; None:
    there is no CUDA device, or its driver does not say."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except (RuntimeError, ModuleNotFoundError, pynvml.NVMLError):
        return None
