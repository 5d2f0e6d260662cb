"""Peak matrix throughput of known devices, dense, from the vendor's data sheets."""

import re

import torch

# Dense bf16/fp16 FLOP/s without sparsity. Matched in order, so the more special names come first.
_DENSE_HALF_PRECISION: list[tuple[str, float]] = [
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10", 125e12),
]


def peak_flops_per_second(device: torch.device, precision: str) -> float | None:
    """The figure that model-FLOPs utilisation divides by.

    Args:
        device: where the model is trained.
        precision: Lightning's precision name, such as ``bf16-mixed``.

    Returns:
        FLOP/s of one device, or None where it isn't known: an unknown device gets no MFU rather than a wrong one.
    """
    if device.type != "cuda" or not precision.startswith(("bf16", "16", "transformer-engine-float16")):
        return None
    return named_peak(torch.cuda.get_device_name(device))


def named_peak(name: str) -> float | None:
    """Dense FLOP/s in bfloat16 of a device by its name, or a word of it such as "H100"; None where it isn't known."""
    words = [(rf"(?<![A-Za-z0-9]){known}(?![A-Za-z0-9])", peak) for known, peak in _DENSE_HALF_PRECISION]
    return next((peak for word, peak in words if re.search(word, name, re.IGNORECASE)), None)
