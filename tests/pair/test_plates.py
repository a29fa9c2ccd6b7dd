"""Where the images are among a site's dimensions: two data plates, one without a size, and what no
plate can mean.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import infer, poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.objectives import IWAE, Trace_ELBO, TraceMeanField_ELBO
from pyro_vae.pair.runtime import Pair

D = torch.float64
RANDOM = torch.Generator().manual_seed(11)
W = torch.randn(2, 6, generator=RANDOM, dtype=D)
NOISE = 0.6
X = torch.randn(9, 2, generator=RANDOM, dtype=D) @ W + NOISE * torch.randn(
    9, 6, generator=RANDOM, dtype=D
)
POSTERIOR = (torch.eye(2, dtype=D) + W @ W.T / NOISE**2).inverse()
LOG_PX = dist.MultivariateNormal(
    torch.zeros(6, dtype=D), W.T @ W + NOISE**2 * torch.eye(6, dtype=D)
).log_prob(X)
QUICK: dict[str, Any] = {"progress": False, "device": "cpu", "compile": "off"}


def shifted(z: Tensor, dim: int) -> Tensor:
    """z of a code's plate at ``dim`` with its rows at −1, and nothing to their right."""
    return z if dim == -1 else z.squeeze(-2)


def model_of(
    codes: int, images: int, pixels: Callable[[Tensor], tuple[Any, Tensor, int]]
) -> Callable[[Tensor], None]:
    """Probabilistic PCA: the codes in a plate at one dimension, the images in one at another."""

    def model(x: Tensor) -> None:
        with pyro.plate("codes", len(x), dim=codes):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
        plates, value, event = pixels(x)
        loc = shifted(z, codes) @ W
        loc = loc.reshape(*loc.shape[:-1], *value.shape[1:])
        with pyro.plate("images", len(x), dim=images), plates:
            pyro.sample("x", dist.Normal(loc, NOISE).to_event(event), obs=value)

    return model


def guide_of(codes: int, widen: float = 1.0, shift: Any = 0.0) -> Callable[[Tensor], None]:
    """The exact posterior, or a wider one beside it."""

    def guide(x: Tensor) -> None:
        loc = x @ (POSTERIOR @ W / NOISE**2).T + shift
        loc = loc if codes == -1 else loc.unsqueeze(-2)
        with pyro.plate("codes", len(x), dim=codes):
            pyro.sample("z", dist.MultivariateNormal(loc, widen * POSTERIOR))

    return guide


def as_event(x: Tensor) -> tuple[Any, Tensor, int]:
    """The pixels are the event."""
    return poutine.scale(scale=1.0), x, 1


def in_a_plate(x: Tensor) -> tuple[Any, Tensor, int]:
    """The pixels are in a plate at −1."""
    return pyro.plate("pixels", 6, dim=-1), x, 0


def in_rows(x: Tensor) -> tuple[Any, Tensor, int]:
    """Rows of pixels in a plate at −1, each of three."""
    return pyro.plate("rows", 2, dim=-1), x.unflatten(-1, (2, 3)), 1


PLATES: dict[
    str, tuple[int, int, Any, str]
] = {  # the two dimensions, the pixels, the cheapest layout that is right
    "codes −1, images −2 with pixels": (-1, -2, in_a_plate, "rows"),
    "codes −1, images −2 with rows": (-1, -2, in_rows, "rows"),
    "codes −2, images −1": (-2, -1, as_event, "rows"),
    "codes −2, images −2 with pixels": (-2, -2, in_a_plate, "plate"),
    "codes −1, images −1": (-1, -1, as_event, "plate"),
}


@pytest.mark.parametrize("name", PLATES)
def test_weights_at_the_exact_posterior_are_log_px(name: str) -> None:
    """For each image, whatever the layout of many draws: log p(x, z) − log p(z | x) is log p(x)."""
    codes, images, pixels, layout = PLATES[name]
    model, guide = model_of(codes, images, pixels), guide_of(codes)
    pair = Pair.of(model, guide)
    for num_particles in (1, 7, 9):
        weights = pv.log_weights(model, guide, X, num_particles)
        torch.testing.assert_close(
            weights, LOG_PX.expand(num_particles, -1), rtol=1e-11, atol=1e-11
        )
    assert pair.layout(X, {}) == layout
    for other in {layout, "rows", "repeat"}:
        with torch.no_grad(), pair.active(training=False):
            weights = pair.run(X, {}, 5, other).log_weights()
        torch.testing.assert_close(weights, LOG_PX.expand(5, -1), rtol=1e-11, atol=1e-11)
    found = pv.log_marginal(
        model, guide_of(codes, 1.3), X, num_samples=400, device="cpu", compile="off"
    )
    assert abs(found.mean - float(LOG_PX.mean())) < 5 * found.se_mc + 0.01


@pytest.mark.parametrize("name", PLATES)
def test_losses_and_gradients_are_pyros(name: str) -> None:
    codes, images, pixels, _ = PLATES[name]
    shift = torch.zeros(2, dtype=D, requires_grad=True)
    model, guide = model_of(codes, images, pixels), guide_of(codes, 1.2, shift)
    for ours, theirs in (
        (Trace_ELBO, infer.Trace_ELBO),
        (TraceMeanField_ELBO, infer.TraceMeanField_ELBO),
    ):
        found = []
        for loss in (
            lambda o=ours: o()(model, guide)(X),
            lambda t=theirs: t().differentiable_loss(model, guide, X),
        ):
            torch.manual_seed(3)
            value = loss()
            found.append((value.detach(), *torch.autograd.grad(value, shift)))
        torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    bound = IWAE(50)(model, guide)(X).detach() / len(X)
    assert float(-LOG_PX.mean()) - 0.01 < float(bound) < float(-LOG_PX.mean()) + 0.3


def test_what_is_made_of_codes_and_images_in_two_plates() -> None:
    """Means and reconstructions have a row for each image."""
    model, guide = model_of(-1, -2, in_a_plate), guide_of(-1)
    encoded, decoded = (
        pv.encode(model, guide, X, batch_size=4)["z"],
        pv.reconstruct(model, guide, X, batch_size=4)["x"],
    )
    torch.testing.assert_close(encoded, X @ (POSTERIOR @ W / NOISE**2).T)
    torch.testing.assert_close(decoded, encoded @ W)
    assert "'codes and images' in the model, 'codes' in the guide" in str(
        pv.check_pair(model, guide, X)
    )


# ---- a plate without a size


class Autoencoder(nn.Module):
    """A VAE whose plate has a size, or none; every law has a row for each image."""

    def __init__(self, sized: bool, classes: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder, self.decoder = (
                nn.Linear(6, 4).to(D),
                nn.Linear(3 if classes else 2, 6).to(D),
            )
        self.sized, self.classes = sized, classes

    def plate(self, x: Tensor) -> Any:
        """Pyro takes the size from the sites where it has none."""
        return pyro.plate("data", len(x)) if self.sized else pyro.plate("data")

    def model(self, x: Tensor) -> None:
        """p(x, z), with a class that the guide lacks."""
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            if self.classes:
                c = pyro.sample("c", dist.Bernoulli(x.new_full((len(x),), 0.3)))
                shape = torch.broadcast_shapes(z.shape[:-1], c.shape)
                z = torch.cat((z.expand(*shape, 2), c.unsqueeze(-1).expand(*shape, 1)), -1)
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with self.plate(x):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


USES: dict[str, Callable[[Autoencoder], Any]] = {
    **{
        objective: partial(
            lambda objective, v: (
                pv.fit(
                    v.model, v.guide, X, objective=objective, num_steps=3, batch_size=4, **QUICK
                ).train
            ),
            objective,
        )
        for objective in (
            "Trace_ELBO(num_particles=3)",
            "TraceMeanField_ELBO",
            "IWAE(4)",
            "DReG(3)",
        )
    },
    "graph": lambda v: (
        pv.fit(
            v.model,
            v.guide,
            X,
            num_steps=3,
            batch_size=9,
            progress=False,
            device="cpu",
            compile="graph",
        ).train
    ),
    "log_marginal": lambda v: (
        pv.log_marginal(v.model, v.guide, X, num_samples=30, device="cpu").log_px
    ),
    "Defensive": lambda v: (
        pv.log_marginal(
            v.model, v.guide, X, num_samples=30, device="cpu", proposal="Defensive"
        ).log_px
    ),
    "Prior": lambda v: (
        pv.log_marginal(v.model, v.guide, X, num_samples=30, device="cpu", proposal="Prior").log_px
    ),
    "ais": lambda v: (
        pv.ais(v.model, v.guide, X, num_steps=2, num_chains=2, num_leapfrog=1, compile="off").log_px
    ),
    "encode": lambda v: pv.encode(v.model, v.guide, X)["z"],
    "reconstruct": lambda v: pv.reconstruct(v.model, v.guide, X)["x"],
    "sample": lambda v: pv.sample(v.model, 5, like=X, guide=v.guide)["x"],
    "layout": lambda v: Pair.of(v.model, v.guide).layout(X, {}),
}


@pytest.mark.parametrize("use", USES)
def test_a_plate_without_a_size_is_one_with(use: str) -> None:
    found = [USES[use](Autoencoder(sized)) for sized in (True, False)]
    same = torch.equal(*found) if isinstance(found[0], Tensor) else found[0] == found[1]
    if use in (
        "encode",
        "reconstruct",
        "log_marginal",
        "Defensive",
        "Prior",
        "ais",
        "sample",
        "layout",
    ):
        assert same
    else:
        assert [(e.loss, e.elbo) for e in found[0]] == [(e.loss, e.elbo) for e in found[1]]


@pytest.mark.parametrize("num_particles", [1, 6])
def test_a_class_is_summed_out_in_a_plate_without_a_size(num_particles: int) -> None:
    found = []
    for sized in (True, False):
        v = Autoencoder(sized, classes=True)
        torch.manual_seed(0)
        found.append(pv.log_weights(v.model, v.guide, X, num_particles))
    assert found[0].shape == (num_particles, len(X)) and torch.equal(*found)


# ---- what has no log p(x) of one image


def two_at_once(x: Tensor) -> None:
    """Every image with every other."""
    with pyro.plate("images", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
        with pyro.plate("others", len(x), dim=-2):
            pyro.sample("x", dist.Normal((z @ W).expand(len(x), len(x), 6), 1.0).to_event(1), obs=x)


def across(x: Tensor) -> None:
    """Codes at −1 meet images at −2, so that every image has every code."""
    with pyro.plate("codes", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
    with pyro.plate("images", len(x), dim=-2):
        pyro.sample("x", dist.Normal(z @ W, 1.0).to_event(1), obs=x.unsqueeze(1))


def plate_of_five(x: Tensor) -> None:
    """A plate that has as many as the dry run's images."""
    with pyro.plate("codes", len(x), dim=-1), pyro.plate("five", 5, dim=-2):
        pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
    with pyro.plate("images", len(x), dim=-1):
        pyro.sample("x", dist.Normal(torch.zeros(6, dtype=D), 1.0).to_event(1), obs=x)


def guide_of_five(x: Tensor) -> None:
    """As the model, with its two plates the other way round."""
    with pyro.plate("codes", len(x), dim=-2), pyro.plate("five", 5, dim=-1):
        pyro.sample("z", dist.Normal(x[:, None, :2], 1.0).to_event(1))


def shared(x: Tensor) -> None:
    """One code for all images, in a plate without a size."""
    with pyro.plate("data"):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
        pyro.sample("x", dist.Normal((z @ W).expand(len(x), 6), 1.0).to_event(1), obs=x)


def shared_guide(x: Tensor) -> None:
    """Its guide."""
    with pyro.plate("data"):
        pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))


BAD: dict[str, tuple[Any, Any, str]] = {
    "two at once": (
        two_at_once,
        guide_of(-1),
        "'x' of the model is in two data plates, .*'images' at dimension -1.*",
    ),
    "the other of the two": (
        two_at_once,
        guide_of(-1),
        "'others' at dimension -2.* one image is not defined",
    ),
    "across": (
        across,
        guide_of(-1),
        "'x' .* at dimension -1, of size 5, there is no plate .*'images' at dimension -2",
    ),
    "two dimensions": (
        plate_of_five,
        guide_of_five,
        "'z' is in data plate 'codes' at dimension -1 of the model and in 'codes' at dimension -2 "
        "of the guide",
    ),
    "shared": (
        shared,
        shared_guide,
        "'z' of the model .*all images share one value, because that plate has no size",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_plate_of_images_is_refused(name: str) -> None:
    """In one line, in training, evaluation and check alike."""
    model, guide, words = BAD[name]
    for call in (
        lambda: pv.fit(model, guide, X, num_steps=1, **QUICK),
        lambda: pv.log_marginal(model, guide, X, num_samples=5, device="cpu"),
        lambda: pv.check_pair(model, guide, X),
    ):
        with pytest.raises(pv.UserError, match=words) as refusal:
            call()
        assert "\n" not in str(refusal.value)


def test_a_plate_that_training_alone_enters_is_refused_there() -> None:
    """A site that the dry run did not see has a data plate, or a sentence."""

    class Model(PyroModule):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=D), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ W, 1.0).to_event(1), obs=x)
            if self.training:
                pyro.sample("late", dist.Normal(z.sum(), 1.0), obs=torch.zeros((), dtype=D))

    shift = nn.Linear(1, 2).to(D)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(shift(x[:, :1]), 1.0).to_event(1))

    with pytest.raises(pv.UserError, match="site 'late' is outside the data plate"):
        pv.fit(Model(), guide, X, num_steps=1, **QUICK)
