"""Gaussian mixture model, with EM: an exact baseline for real pixels."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import torch
from pyro import distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions.transforms import ReshapeTransform

from pyro_vae.errors import UserError
from pyro_vae.nn.conditional import StartsFromData, number_of_images
from pyro_vae.nn.missing import check_missing, of_seen
from pyro_vae.validation import check_choice, check_number, check_whole

if TYPE_CHECKING:
    from pyro_vae.training.init import TrainingImages

COVARIANCES = ("diagonal", "full")
INSIDE = 1.001
"""EM keeps standard deviations this factor above ``min_scale``, so that their parameters stay
finite.
"""
NUMBERS = 4_000_000
"""Of one block of EM: images × components × pixels."""


class GaussianMixture(StartsFromData, PyroModule):
    """c ~ Categorical(π), x | c ~ N(μ_c, Σ_c): a mixture of Gaussians, its log p(x) exact.

    It is the baseline that a VAE on real pixels has to beat. The guide is ``Empty``: the site
    ``component`` is summed out. Every standard deviation (with full covariance: of a pixel given
    those before it) is at least ``min_scale``, as a component on one image would have an unbounded
    density. Training starts at k-means of the training images.

    Args:
        event_shape: the shape of one image, such as ``(1, 28, 28)``.
        components: the number of Gaussians.
        covariance: ``diagonal`` or ``full``.
        min_scale: the smallest standard deviation, a positive number, in units of a pixel.
        missing: ``"nan"`` if a NaN marks a missing pixel; for diagonal covariances.

    Raises:
        UserError: a number out of its range, an unknown ``covariance``.

    Reference:
        Bishop 2006, "Pattern Recognition and Machine Learning", section 9.2.
    """

    slot: ClassVar[str] = "model"
    kind: ClassVar[str] = "density"
    observes: ClassVar[str] = "real"
    fitting_guides: ClassVar[tuple[str, ...]] = ("Empty",)

    def __init__(
        self,
        event_shape: tuple[int, ...],
        components: int = 10,
        covariance: str = "diagonal",
        min_scale: float = 1e-3,
        missing: str | None = None,
    ) -> None:
        super().__init__()
        self.missing = check_missing(missing)
        check_whole("GaussianMixture(components={!r})", components, "components")
        check_choice("covariance of GaussianMixture", covariance, COVARIANCES)
        if missing and covariance == "full":
            raise UserError(
                "GaussianMixture(missing='nan'): with covariance='full' the pixels depend on each "
                "other, so none can be left out: use covariance='diagonal'"
            )
        check_number("GaussianMixture(min_scale={})", min_scale, "a positive number", ends="()")
        self.event_shape, self.covariance, self.min_scale = (
            torch.Size(event_shape),
            covariance,
            float(min_scale),
        )
        pixels = self.event_shape.numel()
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, pixels))
        self.log_scale = nn.Parameter(
            torch.zeros(components, pixels)
        )  # of the scale, or of the Cholesky root's diagonal
        if covariance == "full":
            self.lower = nn.Parameter(
                torch.zeros(components, pixels, pixels)
            )  # the rest of the root
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor | None = None, size: int | None = None, **_: Any) -> Tensor:
        """Observe ``x`` ``(B, *event_shape)``, or generate ``size`` images: ``model(None,
        size=n)``.
        """
        with pyro.plate("data", number_of_images(x, size)):
            component = pyro.sample("component", dist.Categorical(logits=self.logits))
            image: Tensor = pyro.sample("x", self.law(component), obs=x)
        return image

    def law(self, component: Tensor) -> dist.TorchDistribution:
        """p(x | c) for component numbers ``(*batch,)``: batch shape ``batch``, event shape that of
        an image.
        """
        scale = self.log_scale.exp() + self.min_scale
        if self.covariance == "diagonal":
            shape = component.shape + self.event_shape
            normal = dist.Normal(
                self.loc[component].reshape(shape), scale[component].reshape(shape)
            )
            law = normal.to_event(len(self.event_shape))
            return of_seen(law) if self.missing else law
        root = self.lower.tril(-1) + torch.diag_embed(scale)
        return _Image(
            dist.MultivariateNormal(self.loc[component], scale_tril=root[component]),
            self.event_shape,
        )

    # ---- exact, without the engine

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, c) of the images ``x``, ``(B, *event_shape)``, at every component: ``(B,
        components)``, nats.
        """
        number = len(self.logits)
        block = max(1, NUMBERS // (number * self.event_shape.numel()))
        every = torch.arange(number, device=x.device)
        parts = [self.law(every).log_prob(rows.unsqueeze(1)) for rows in x.split(block)]
        return torch.cat(parts) + self.logits.log_softmax(-1)

    def log_px(self, x: Tensor) -> Tensor:
        """log p(x) = log Σ_c p(x, c): ``(B,)``, nats, exact."""
        return self.log_joint(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(c | x), ``(B, components)``."""
        return self.log_joint(x).softmax(-1)

    # ---- starting, and EM

    def start_from_data(self, data: TrainingImages) -> None:
        """`start_from` the images that are trained on."""
        self.start_from(data.sample)

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Start at the k-means clusters of the images, all with the covariance within clusters, in
        place.

        A full covariance is shrunk towards a sphere.

        Args:
            x: images ``(N, *event_shape)``.

        Raises:
            UserError: fewer images than components.

        Reference:
            Ledoit and Wolf 2004, "A Well-Conditioned Estimator for Large-Dimensional Covariance
            Matrices".
        """
        from sklearn.cluster import KMeans
        from sklearn.covariance import ledoit_wolf

        number = len(self.logits)
        if len(x) < number:
            raise UserError(
                f"GaussianMixture(components={number}) has more components than the {len(x)} "
                "images that it starts from: give more images or fewer components"
            )
        rows = x.flatten(1).double()
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Number of distinct clusters"
            )  # the others then are on top of these
            found = KMeans(number, n_init=1, random_state=int(torch.randint(2**31, ()))).fit(
                rows.cpu().numpy()
            )
        centres, labels = (
            torch.from_numpy(found.cluster_centers_),
            torch.from_numpy(found.labels_).long(),
        )
        self.loc.copy_(centres)
        self.logits.copy_(
            (torch.bincount(labels, minlength=number) + 1.0).log().log_softmax(-1)
        )  # none is empty
        within = rows - centres[labels].to(rows)
        if (
            self.covariance == "full"
        ):  # shrunk, as fewer images than pixels, or hardly more, have a singular one
            covariance = torch.from_numpy(
                ledoit_wolf(within.cpu().numpy(), assume_centered=True)[0]
            ).to(x.device)
        else:
            covariance = within.square().mean(0)
        self._set_covariance(slice(None), covariance)
        self.started.fill_(True)

    @torch.no_grad()
    def fit_em(self, x: Tensor, num_iters: int = 100) -> list[float]:
        """Fit by expectation maximisation (EM) on all images, in place, in float64.

        Each iteration sets q(c) = p(c | x), at which the ELBO is log p(x), and maximises that ELBO
        in closed form. So the mean log p(x) never falls. EM starts at k-means, unless the model has
        been started or trained.

        Args:
            x: images ``(N, *event_shape)``.
            num_iters: iterations.

        Returns:
            The mean log p(x) in nats before each iteration and after the last.

        Raises:
            UserError: fewer images than components; missing entries.

        Reference:
            Bishop 2006, section 9.2.2.
        """
        if bool(x.isnan().any()):
            raise UserError("fit_em takes whole images: train one with missing entries by fit")
        if self.waits_for_data:
            self.start_from(x.to(self.loc.device))
        model, x = deepcopy(self).double(), x.to(self.loc.device).double()
        history = []
        for _ in range(num_iters):
            joint = model.log_joint(x)
            history.append(float(joint.logsumexp(-1).mean()))
            model._maximise(x.flatten(1), joint.softmax(-1))
        history.append(float(model.log_px(x).mean()))
        self.load_state_dict(model.state_dict())
        return history

    def _maximise(self, rows: Tensor, weights: Tensor) -> None:
        """The M-step: π, μ and Σ of the images ``(N, D)`` with responsibilities ``(N,
        components)``.
        """
        counts = (
            weights.sum(0) + 10 * torch.finfo(weights.dtype).eps
        )  # as scikit-learn's, for a component that has none
        loc = weights.T @ rows / counts.unsqueeze(-1)
        self.logits.copy_((counts / counts.sum()).log())
        self.loc.copy_(loc)
        for k in range(len(loc)):
            centred, share = rows - loc[k], weights[:, k] / counts[k]
            full = self.covariance == "full"
            self._set_covariance(
                k, (share * centred.T) @ centred if full else share @ centred.square()
            )

    def _set_covariance(self, k: int | slice, covariance: Tensor) -> None:
        """Σ_k, ``(D, D)`` or its diagonal, with no eigenvalue below the floor: the most likely of
        those, given the data's own.
        """
        floor = (INSIDE * self.min_scale) ** 2
        if self.covariance == "diagonal":
            scale = covariance.clamp(min=floor).sqrt()
        else:
            values, vectors = torch.linalg.eigh(covariance)
            root = torch.linalg.cholesky((vectors * values.clamp(min=floor)) @ vectors.T)
            scale = root.diagonal()
            self.lower[k] = root.tril(-1).to(self.lower.dtype)
        self.log_scale[k] = (
            (scale - self.min_scale).clamp(min=1e-6 * self.min_scale).log().to(self.log_scale.dtype)
        )


class _Image(dist.TransformedDistribution):
    """A distribution of vectors as one of images; its mean is the vectors' mean."""

    def __init__(self, base: dist.TorchDistribution, event_shape: torch.Size) -> None:
        super().__init__(base, [ReshapeTransform(base.event_shape, event_shape)])
        self._image_shape = event_shape

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> dist.TorchDistribution:
        """Of another batch shape."""
        return _Image(self.base_dist.expand(batch_shape), self._image_shape)

    @property
    def mean(self) -> Tensor:
        """The base's mean, as an image."""
        mean: Tensor = self.base_dist.mean
        return mean.reshape(self.batch_shape + self._image_shape)
