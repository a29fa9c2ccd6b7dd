"""Devices by name."""

from __future__ import annotations

import torch

from pyro_vae.errors import UserError


def find_device(name: str | torch.device) -> torch.device:
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``; a ``UserError`` where it
    isn't there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"unknown device {name!r}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {str(name)!r}: torch finds no CUDA device: use cpu or auto")
    if (
        device.type == "cuda"
        and device.index is not None
        and device.index >= torch.cuda.device_count()
    ):
        raise UserError(
            f"device {str(name)!r}: there are only {torch.cuda.device_count()} CUDA devices here"
        )
    if device.type not in ("cpu", "cuda"):
        try:
            torch.ones(1, device=device).tolist()
        except (RuntimeError, NotImplementedError, AssertionError):
            raise UserError(
                f"device {str(name)!r}: torch can't use it here: use cpu or auto"
            ) from None
    return device
