"""A small pair of our parts on binary images, and how it is trained quickly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pyro_vae import guides, models
from tests.support.pairs import PIXELS, binary_images

X = binary_images(48)


CPU = torch.device("cpu")


QUICK: dict[str, Any] = {"progress": False, "device": "cpu", "compile": "off", "batch_size": 16}


def our_pair(seed: int = 0, **net: Any) -> tuple[Any, Any]:
    """Our model and guide on 12 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = net or {"hidden": (8,)}
        model = models.GenerativeModel(
            models.StandardNormal(2), models.Bernoulli(2, (PIXELS,), **net)
        )
        return model, guides.MeanField((PIXELS,), 2, **net)


def state_of(*programs: nn.Module) -> list[Tensor]:
    """Copies of all parameters and buffers."""
    return [t.detach().clone() for program in programs for t in program.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Equal to the last bit."""
    return len(a) == len(b) and all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


class Images(Dataset[Any]):
    """Items as dicts, as tensors, or as pairs."""

    def __init__(self, form: str) -> None:
        self.form = form

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, row: int) -> Any:
        return {"dict": {"x": X[row], "y": row * 3}, "pair": (X[row], row * 3), "tensor": X[row]}[
            self.form
        ]
