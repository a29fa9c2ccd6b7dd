"""Conditional distributions: context in, distribution out; the base classes of priors and
likelihoods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.nn.missing import check_missing, of_seen
from pyro_vae.nn.net import Net, NetSpec, make_decoder
from pyro_vae.validation import check_whole

if TYPE_CHECKING:
    from pyro_vae.training.init import TrainingImages

Observes = Literal["binary", "unit", "real", "levels", "counts"]


def check_latent_dim(latent_dim: int) -> None:
    """A whole number, 1 or more."""
    swapped = " (were the two swapped? the shape comes first)" * isinstance(latent_dim, Sequence)
    check_whole("latent_dim={!r}" + swapped, latent_dim, "latent dimensions")


def in_order(event_shape: Any, latent_dim: Any) -> tuple[tuple[int, ...], int]:
    """(event_shape, latent_dim) of a call with the two in either order, as a number is no shape."""
    if isinstance(event_shape, int) and isinstance(latent_dim, Sequence):
        event_shape, latent_dim = latent_dim, event_shape
    check_latent_dim(latent_dim)
    return event_shape, latent_dim


def number_of_images(x: Tensor | None, size: int | None) -> int:
    """Of the images ``x``, ``(B, *event_shape)``, or of those to generate."""
    if x is None and size is None:
        raise ValueError(
            "the model was given neither images nor a size: call model(x), or model(None, size=n), "
            "with the fields that it names"
        )
    return int(size) if x is None else x.shape[0]  # type: ignore[arg-type]


class StartsFromData:
    """A part that starts from the training data, once: what is loaded has had its start."""

    started: Tensor  # a buffer, where there is a start

    @property
    def waits_for_data(self) -> bool:
        """Whether a training is to call ``start_from_data`` first."""
        return not bool(getattr(self, "started", True))


class ConditionalDistribution(nn.Module, ABC):
    """A family of distributions indexed by a context (zuko's lazy distribution).

    ``forward(context)`` maps ``(*batch, *context_shape)`` to a distribution with ``batch_shape ==
    batch`` and the instance's ``event_shape``; without a context (a prior) the batch shape is
    ``()``.
    """

    event_shape: torch.Size

    @abstractmethod
    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        """The distribution at ``context``."""

    def __call__(self, context: Tensor | None = None, **given: Tensor) -> TorchDistribution:
        distribution: TorchDistribution = super().__call__(context, **given)
        return distribution


class Prior(ConditionalDistribution):
    """p(z): a density of the latent ``z`` with event shape ``(latent_dim,)``."""

    slot: ClassVar[str] = "prior"

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_latent_dim(latent_dim)
        self.event_shape = torch.Size([latent_dim])


class Likelihood(StartsFromData, ConditionalDistribution):
    """p(x | z): a decoder network and the law of an image given its output.

    ``kind`` says whether it is a mass function or a density: log p(x) is comparable within a kind
    only. ``observes`` says what values a pixel may take, from which ``--binarize auto`` chooses:
    ``binary`` {0, 1}, ``unit`` [0, 1], ``real``, ``levels`` (the integers 0 … levels − 1 that are
    stored in the file) or ``counts`` (whole numbers from 0, without a largest one).

    Args:
        event_shape: that of an image; ``latent_dim``: how many numbers z has. The other way round,
            as calls were written once, is understood too.
        per_pixel: how many numbers the decoder gives for each pixel.
        net: the decoder (`make_decoder`), and its arguments.
        missing: ``"nan"``, where a NaN marks what is missing: it is left out of the density. Every
            likelihood takes it.
    """

    slot: ClassVar[str] = "likelihood"
    kind: ClassVar[Literal["mass", "density"]]
    observes: ClassVar[Observes]

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        per_pixel: int = 1,
        net: NetSpec = "MLP",
        missing: str | None = None,
        **net_args: Any,
    ) -> None:
        super().__init__()
        self.missing = check_missing(missing)
        event_shape, latent_dim = in_order(event_shape, latent_dim)
        self.latent_dim = latent_dim
        self.event_shape = torch.Size(event_shape)
        self.per_pixel = per_pixel
        self.net = make_decoder(net, latent_dim, event_shape, per_pixel, **net_args)
        if isinstance(self.net, Net) and self.net.output_bias == "mean":
            self.register_buffer("started", torch.tensor(False))

    def __call__(self, context: Tensor | None = None, **given: Tensor) -> TorchDistribution:
        law = super().__call__(context, **given)
        return of_seen(law) if self.missing else law

    def log_of(self, name: str, number: float | None, start: float) -> None:
        """``log_<name>``: of a fixed number a buffer; else a parameter that begins at ``start``."""
        if number is not None:
            self.register_buffer(f"log_{name}", torch.tensor(number).log())
        else:
            self.register_parameter(f"log_{name}", nn.Parameter(torch.tensor(start).log()))

    def outputs(self, context: Tensor | None) -> tuple[Tensor, ...]:
        """The decoder's ``per_pixel`` outputs at ``z``, each ``(*batch, *event_shape)``."""
        return self._decoded(context).chunk(self.per_pixel, dim=-len(self.event_shape))

    def stacked(self, context: Tensor | None) -> Tensor:
        """The decoder's outputs at ``z`` with those of a pixel side by side: ``(*batch,
        *event_shape, per_pixel)``.
        """
        num_event = len(self.event_shape)
        by_output = self._decoded(context).unflatten(
            -num_event, (self.per_pixel, self.event_shape[0])
        )
        return by_output.movedim(-num_event - 1, -1)

    def _decoded(self, context: Tensor | None) -> Tensor:
        if context is None:
            raise ValueError(
                f"{type(self).__name__} is p(x | z): call it with z, (*batch, latent_dim)"
            )
        images: Tensor = self.net(context)
        return images

    # ---- starting at the training mean

    def start_from_data(self, data: TrainingImages) -> None:
        """`start_at_mean` of the images that are trained on."""
        self.start_at_mean(data.mean)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if hasattr(self, "started"):  # stored before there was such a buffer: by a training
            state_dict.setdefault(f"{prefix}started", torch.tensor(True))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def outputs_at_mean(self, mean: Tensor) -> tuple[Tensor | None, ...]:
        """The ``per_pixel`` decoder outputs at which p(x | z) has this mean, ``event_shape``; None
        for one left as it is.

        Raises:
            UserError: this likelihood does not know them.
        """
        raise UserError(
            f"{type(self).__name__} does not know which decoder outputs have a given mean: leave "
            "output_bias=mean out, or give the class a method outputs_at_mean(mean)"
        )

    @torch.no_grad()
    def start_at_mean(self, mean: Tensor) -> None:
        """Set the decoder's last bias to outputs of mean ``mean``, ``event_shape``:
        ``start_at_mean(x_train.mean(0))``.

        Burda et al.'s code starts its decoders so, at the logits of the training mean
        (get_train_bias_np).

        Raises:
            UserError: another shape; a likelihood or a network that can't start so.
        """
        if mean.shape != self.event_shape:
            raise UserError(
                f"a mean of shape {tuple(mean.shape)}: expected that of one image, "
                f"{tuple(self.event_shape)}, as of x_train.mean(0)"
            )
        found = self.outputs_at_mean(mean.double())
        for bias, output in zip(self.net.last_bias().chunk(self.per_pixel), found, strict=True):
            if output is not None:
                bias.copy_(output)
        if hasattr(self, "started"):
            self.started.fill_(True)


class DiagonalNormal(ConditionalDistribution):
    """p(z | c) = N(μ(c), diag σ²(c)), with (μ, log σ) = net(c): for the context c,
    ``net.in_shape``, z is a vector.

    It is used in a model, p(z1 | z2), and in a guide, q(z1 | x) and q(z2 | z1), alike.
    """

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.event_shape = torch.Size([net.out_shape.numel() // 2])

    def forward(self, context: Tensor | None = None) -> TorchDistribution:
        """N(μ, diag σ²) at ``context``, ``(*batch, *net.in_shape)``."""
        if context is None:
            raise ValueError("DiagonalNormal is p(z | c): call it with c")
        loc, log_scale = self.net(context).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


def number_or_word(setting: str, value: Any, words: Sequence[str], symbol: str) -> float | None:
    """A positive number, or None for one of the words; ``setting`` is such as ``"df of StudentT"``.

    Raises:
        UserError: something else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 < value < inf:
            name, _, part = setting.split()
            raise UserError(f"{part}({name}={value}): {symbol} must be positive and finite")
        return float(value)
    if value not in words:
        raise UserError(did_you_mean(setting, str(value), [*words, "a positive number"]))
    return None


INNER = 1e-3
"""A mean at the edge of the support has no finite outputs: it is kept this share of the range
inside (Burda et al.'s code).
"""


def inner_logit(share: Tensor) -> Tensor:
    """log(m / (1 − m)) of m in [0, 1], held `INNER` inside."""
    return share.clamp(INNER, 1 - INNER).logit()


SMALLEST_RATE = 1e-12
"""Added to a rate, so that one that has died away still has a finite logarithm and gradient."""


def rate_of(output: Tensor) -> Tensor:
    """A positive rate from a decoder's output: softplus, as exp would overflow at the wide z of an
    untrained guide.
    """
    return F.softplus(output) + SMALLEST_RATE


def output_of(rate: Tensor) -> Tensor:
    """The inverse of `rate_of`, for rates held `INNER` above 0."""
    rate = rate.clamp(min=INNER)
    return rate + (-torch.expm1(-rate)).log()


def check_levels(part: str, levels: int) -> int:
    """A whole number of levels, 2 or more."""
    return check_whole(part + "(levels={!r})", levels, "grey levels", least=2)
