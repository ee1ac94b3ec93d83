"""Choosing the device, and saying which one it is."""

import platform

import torch


def pick(device: str | torch.device = "auto") -> torch.device:
    """mps, then cuda, then cpu for "auto"; otherwise the device named.

    Raises: ValueError when the name is unknown or this machine lacks the device.
    """
    if str(device) == "auto":
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}; known: auto, mps, cuda, cpu") from None
    if chosen.type not in ("mps", "cuda", "cpu"):
        raise ValueError(f"unknown device {device!r}; known: auto, mps, cuda, cpu")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not available here; use --device cpu")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' is not available here; use --device cpu")
    return chosen


def describe(device: torch.device) -> str:
    """A short human name: the GPU's, or the processor's with its thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU ({platform.processor() or platform.machine()})"
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
