"""Precisions that a device has in hardware; others are emulated, which takes many times as long as float32."""

from __future__ import annotations

import torch

# names of processor features with which oneDNN multiplies matrices of bf16: of x86, and of Arm
_PROCESSOR_FEATURES = ("avx512_bf16", "amx_bf16", "bf16")


def has_bf16(device: torch.device) -> bool | None:
    """Return whether a device has bf16 in hardware, or `None` for devices of which torch does not know it."""
    if device.type == "cpu":
        return _processor_has_bf16()
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "xpu":
        return torch.xpu.is_bf16_supported(including_emulation=False)
    return None


def _processor_has_bf16() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False  # whatever the processor has, only oneDNN would use it
    if not hasattr(torch.cpu, "get_capabilities"):  # older versions of torch
        return torch.cpu._is_avx512_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _PROCESSOR_FEATURES)
