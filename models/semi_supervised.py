"""Semi-supervised generative model (M2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.nn.conditional import (
    ConditionalDistribution,
    StartsFromData,
    number_of_images,
)
from pyro_vae.nn.one_hot import NUM_CLASSES, DecodesClass, OneHot, is_known
from pyro_vae.protocols import hook

if TYPE_CHECKING:
    from pyro_vae.training.init import TrainingImages

SHARE = 0.1


class SemiSupervised(DecodesClass, StartsFromData, PyroModule):
    """M2: y ~ uniform, z ~ p(z), x ~ p(x | z, y), a class y that is known for some images.

    Labels are the named field ``y``: ``pv.fit(model, guide, x, y=labels)``, whole numbers, −1 for
    an unknown class. The guide ``SemiSupervised`` is its ``encoder``: it has q(y | x), sums y out
    where it is unknown, and sets it where it is known. In train mode q(y | x) also observes the
    known classes, at the site ``label``, α times each. That term is part of the training's
    ``reconstruction`` and of no log p(x). Images of chosen classes are ``model(None, size=n,
    y=labels)``.

    Args:
        prior: p(z).
        likelihood: p(x | z, y), of ``latent_dim + num_classes`` inputs (the command line builds it
            so).
        encoder: the guide, which has q(y | x).
        num_classes: the number of classes.
        alpha: α for one labelled image; by default 0.1 · N / N_labelled of the training set.

    Raises:
        UserError: a likelihood of another number of inputs; a negative ``alpha``; labels, and an
            encoder without q(y | x).

    Reference:
        Kingma et al. 2014, "Semi-supervised Learning with Deep Generative Models", equations 6 to
        9.
    """

    slot: ClassVar[str] = "model"
    unknown: ClassVar[bool] = True
    fitting_guides: ClassVar[tuple[str, ...]] = ("SemiSupervised",)

    weight: Tensor

    def __init__(
        self,
        prior: ConditionalDistribution,
        likelihood: ConditionalDistribution,
        encoder: Any,
        num_classes: int = NUM_CLASSES,
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        if alpha is not None and not 0 <= alpha < float("inf"):
            raise UserError(f"SemiSupervised(alpha={alpha!r}): expected a weight of 0 or more")
        self.classes = OneHot(num_classes)
        self.prior, self.likelihood = prior, likelihood
        self._encoder = (encoder,)  # in a tuple, so that its parameters are not the model's
        self.register_buffer("weight", torch.tensor(SHARE if alpha is None else float(alpha)))
        self.register_buffer("started", torch.tensor(alpha is not None))
        self.check_inputs(likelihood, prior.event_shape.numel(), num_classes)

    @torch.no_grad()
    def start_from_data(self, data: TrainingImages) -> None:
        """α = 0.1 · N / N_labelled."""
        labels = data.field("y")
        known = 0 if labels is None else int(is_known(labels).sum())
        if labels is not None and known:
            self.weight.fill_(SHARE * len(labels) / known)
        self.started.fill_(True)

    def forward(
        self, x: Tensor | None = None, size: int | None = None, y: Tensor | None = None
    ) -> Tensor:
        """Observe ``x`` ``(B, *event_shape)``, in training with the classes ``y`` ``(B,)`` that are
        known; or generate ``size`` images, of the classes ``y`` if they are given.
        """
        num_images = number_of_images(x, size)
        (encoder,) = self._encoder
        classify = hook(encoder, "classify")
        if classify is None and x is not None and y is not None:
            raise UserError(
                f"SemiSupervised(encoder={type(encoder).__name__}) has no q(y | x), classify(x), to "
                "learn from labels: use the guide SemiSupervised, or give no labels"
            )
        chosen = None if x is not None or y is None else self.classes(y)
        uniform = dist.OneHotCategorical(logits=torch.zeros_like(self.classes.codes[0]))
        with pyro.plate("data", num_images):
            code = pyro.sample("y", uniform, obs=chosen)
            z = pyro.sample("z", self.prior())
            batch = torch.broadcast_shapes(z.shape[:-1], code.shape[:-1])
            given = torch.cat((z.expand(*batch, -1), code.expand(*batch, -1)), dim=-1)
            image: Tensor = pyro.sample("x", self.likelihood(given), obs=x)
            if self.training and classify is not None and x is not None and y is not None:
                self._observe_labels(classify(x), y)
        return image

    def _observe_labels(self, logits: Tensor, y: Tensor) -> None:
        """α log q(y | x) of the known classes, ``logits`` being those of all."""
        law = dist.Categorical(logits=logits)
        with poutine.mask(mask=is_known(y)), poutine.scale(scale=self.weight):
            pyro.sample("label", law, obs=y.clamp(min=0))
