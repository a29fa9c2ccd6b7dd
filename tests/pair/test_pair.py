"""Any pair is understood, in whatever form it is written; a bad one is explained before anything is
trained.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae import fit, guides, log_densities, log_marginal, log_weights, models
from pyro_vae.errors import UserError
from pyro_vae.pair.layouts import LAYOUTS
from pyro_vae.pair.runtime import Pair
from tests.support.grids import thinned
from tests.support.pairs import (
    FORMS,
    LATENT,
    PIXELS,
    Decoder,
    Encoder,
    Guide,
    Model,
    TutorialVAE,
    binary_images,
    fresh,
    pyro_modules,
)

X = binary_images()
EAGER: dict[str, Any] = {"device": "cpu", "compile": "off"}
QUICK: dict[str, Any] = {
    "progress": False,
    "device": "cpu",
    "compile": "off",
    "batch_size": 16,
    "learning_rate": 0.01,
}


def tensors_of(model: Any, guide: Any) -> list[Tensor]:
    """Copies of all that training may change."""
    return [t.detach().clone() for t in Pair.of(model, guide).tensors()]


# ---- every form


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_understood(form: str) -> None:
    model, guide = fresh(form)
    structure = Pair.of(model, guide).structure(X, {})
    assert len(structure.latents) == len(structure.observed) == 1
    assert structure.analytic == structure.latents and not structure.sampled
    assert (
        not structure.subsampling
        and not structure.point_masses
        and not structure.not_reparameterized
    )
    assert Pair.of(model, guide).layout(X, {}) == "plate"


@pytest.mark.parametrize(("tier", "form"), thinned(["off", "graph"], FORMS))
def test_every_form_trains_and_twice(form: str, tier: str) -> None:
    """The loss falls, every parameter moves, and a second pair in the same process ends where the
    first did.
    """
    ends = []
    for seed in (0, 1):
        model, guide = fresh(form, seed)
        Pair.of(model, guide).structure(X, {})
        before = tensors_of(model, guide)
        history = fit(
            model, guide, X, num_epochs=30, schedule="constant", **{**QUICK, "compile": tier}
        )
        after = tensors_of(model, guide)
        assert len(after) > 4 and all(
            not torch.equal(a, b) for a, b in zip(before, after, strict=True)
        )
        assert history.train[-1].loss < history.train[0].loss - 1
        ends.append(log_marginal(model, guide, X, num_samples=100, compile="off", device="cpu"))
    assert abs(ends[0].elbo - ends[1].elbo) < 0.5
    assert abs(ends[0].mean - ends[1].mean) < 0.5
    assert ends[0].mean > -PIXELS * 0.6931 + 1.5  # better than a coin for each pixel


def test_a_method_is_found_again_at_each_access() -> None:
    vae = TutorialVAE()
    assert Pair.of(vae.model, vae.guide) is Pair.of(vae.model, vae.guide)
    assert Pair.of(vae.model, vae.guide) is not Pair.of(TutorialVAE().model, vae.guide)


def test_what_was_trained_is_what_is_evaluated() -> None:
    model, guide = fresh("functions")
    with pytest.raises(UserError, match=r"pyro\.param\('\w+'\) does not exist yet"):
        log_weights(model, guide, X)
    fit(model, guide, X, num_epochs=2, **QUICK)
    store = Pair.of(model, guide).store
    assert set(store.parameters) == {"shift", "widen"}
    assert not torch.equal(store.parameters["shift"], torch.zeros(PIXELS))
    with torch.no_grad():
        store.parameters["shift"].fill_(50.0)
    assert log_weights(model, guide, X).mean() < -50


@pytest.mark.parametrize("form", FORMS)
def test_the_global_store_stays_as_it_was(form: str) -> None:
    store = pyro.get_param_store()
    store.clear()
    try:
        dirty = {
            name: torch.full((3,), 7.0)
            for name in ("net", "shift", "widen", "decoder$$$layers.0.weight", "scale")
        }
        for name, value in dirty.items():
            pyro.param(name, value.clone())
        model, guide = fresh(form)
        history = fit(model, guide, X, num_epochs=2, schedule="constant", **QUICK)
        log_marginal(model, guide, X, num_samples=5, compile="off", device="cpu")
        assert history.train[-1].loss < history.train[0].loss
        assert set(store.keys()) == set(dirty)
        assert all(torch.equal(pyro.param(name), value) for name, value in dirty.items())
    finally:
        store.clear()


def test_equal_names_never_meet() -> None:
    """A second model whose networks have the first one's names is trained by itself (Pyro's SVI
    leaves it untrained).
    """
    (first, first_guide), (second, second_guide) = pyro_modules(), pyro_modules()
    kept = [p.detach().clone() for p in first.parameters()]
    fit(second, second_guide, X, num_epochs=1, **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(kept, first.parameters(), strict=True))
    assert not Pair.of(first, first_guide).store.parameters
    names = {
        Pair.of(second, second_guide).name_of(p)[0]
        for p in (*second.parameters(), *second_guide.parameters())
    }
    assert names == {"model", "guide"}


def test_what_was_trained_outlives_the_cache() -> None:
    """The parameters belong to the programs, though other pairs have come and gone."""
    model, guide = fresh("functions")
    fit(model, guide, X, num_epochs=1, **QUICK)
    store = Pair.of(model, guide).store
    others = [fresh("closures") for _ in range(30)]
    for other in others:
        Pair.of(*other)
    assert Pair.of(model, guide).store is store
    assert log_weights(model, guide, X).shape == (1, len(X))


class Slotted:
    """A callable that can't be referred to weakly."""

    __slots__ = ("program",)

    def __init__(self, program: Any) -> None:
        self.program = program

    def __call__(self, x: Tensor) -> Any:
        """As the program."""
        return self.program(x)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "partial": partial,
    "handler": lambda program: poutine.mask(program, mask=True),
    "both": lambda program: poutine.mask(partial(program), mask=True),
    "callable": Slotted,
    "lambda": lambda program: lambda x: program(x),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_programs_are_programs(wrapper: str) -> None:
    model, guide = pyro_modules()
    wrapped = WRAPPERS[wrapper](model), WRAPPERS[wrapper](guide)
    before = tensors_of(model, guide)
    fit(*wrapped, X, num_epochs=1, **QUICK)
    assert all(not torch.equal(a, b) for a, b in zip(before, tensors_of(model, guide), strict=True))
    log_weights(*wrapped, X)


# ---- several sites, several plates


def two_and_two() -> tuple[Any, Any]:
    """Two latents, two observed sites."""
    decoder, encoder = Decoder(4), Encoder(4)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(torch.zeros(()), 1.0))
            logits = decoder(torch.cat((a, b.unsqueeze(-1)), -1))
            pyro.sample("left", dist.Bernoulli(logits=logits[..., :6]).to_event(1), obs=x[:, :6])
            pyro.sample("right", dist.Bernoulli(logits=logits[..., 6:]).to_event(1), obs=x[:, 6:])

    def guide(x: Tensor) -> None:
        loc, scale = encoder(x)
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(loc[..., :3], scale[..., :3]).to_event(1))
            pyro.sample("b", dist.Normal(loc[..., 3], scale[..., 3]))

    return model, guide


def pixel_plate() -> tuple[Any, Any]:
    """The data plate at dimension −2, a pixel plate at −1, a latent beside it."""
    decoder, encoder = Decoder(), Encoder()

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-2):
            z = pyro.sample(
                "z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1)
            )  # (B, 1, latent)
            with pyro.plate("pixels", x.shape[1], dim=-1):
                pyro.sample("x", dist.Bernoulli(logits=decoder(z.squeeze(-2))), obs=x)

    def guide(x: Tensor) -> None:
        loc, scale = encoder(x)
        with pyro.plate("images", len(x), dim=-2):
            pyro.sample("z", dist.Normal(loc.unsqueeze(-2), scale.unsqueeze(-2)).to_event(1))

    return model, guide


def transposed_pixels() -> tuple[Any, Any]:
    """The data plate at dimension −1, a pixel plate at −2: the model observes x transposed."""
    decoder, encoder = Decoder(), Encoder()

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            with pyro.plate("pixels", x.shape[1], dim=-2):
                logits = (
                    decoder(z).transpose(-1, -2)
                    if z.dim() == 2
                    else decoder(z.squeeze(-3)).transpose(-1, -2)
                )
                pyro.sample("x", dist.Bernoulli(logits=logits), obs=x.T)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-1):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return model, guide


def pixel_latents() -> tuple[Any, Any]:
    """A latent for each pixel, in the pixel plate."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-2), pyro.plate("pixels", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=2 * z), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("images", len(x), dim=-2), pyro.plate("pixels", x.shape[1], dim=-1):
            pyro.sample("z", dist.Normal(slope * (2 * x - 1), 0.9))

    return model, guide


PLATES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "two and two": two_and_two,
    "pixel plate": pixel_plate,
    "transposed pixels": transposed_pixels,
    "pixel latents": pixel_latents,
}


def joint_by_hand(model: Any, guide: Any, x: Tensor) -> Tensor:
    """Each image's log weight, from a pair of Pyro traces with this image alone."""
    weights = []
    for row in x.split(1):
        drawn = poutine.trace(guide).get_trace(row)
        full = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(row)
        weights.append(full.log_prob_sum() - drawn.log_prob_sum())
    return torch.stack(weights).detach()


@pytest.mark.parametrize("name", PLATES)
def test_sites_and_plates_of_any_kind(name: str) -> None:
    model, guide = PLATES[name]()
    history = fit(model, guide, X, num_epochs=4, schedule="constant", **QUICK)
    assert history.train[-1].loss < history.train[0].loss
    pair = Pair.of(model, guide)
    terms = log_densities(model, guide, X, num_particles=3)
    sites = {**terms.observed, **terms.prior, **terms.guide}
    assert all(site.log_prob.shape == (3, len(X)) for site in sites.values())
    assert log_marginal(model, guide, X, num_samples=20, **EAGER).log_px.shape == (len(X),)
    # the mean log weight is the ELBO of Pyro's own traces, image by image
    torch.manual_seed(0)
    ours = log_weights(model, guide, X[:6], num_particles=400)
    with pair.store.scope():
        theirs = torch.stack([joint_by_hand(model, guide, X[:6]) for _ in range(30)])
    error = (ours.var(0) / 400 + theirs.var(0) / 30).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error).all()


@pytest.mark.parametrize("plate", ["data", "z", "x", "images of the set", "_pyro_vae"])
def test_plates_may_have_any_name(plate: str) -> None:
    model, guide = Model(plate=f"{plate} plate"), Guide(plate=f"{plate} rows")
    assert Pair.of(model, guide).structure(X, {}).plates == (f"{plate} plate", f"{plate} rows")


# ---- layouts


class ConvModel(PyroModule):
    """A decoder that takes rows of images and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(LATENT, 3 * 4)
        self.layers = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 3, padding=1))

    def forward(self, x: Tensor) -> None:
        """p(x, z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            logits = self.layers(self.start(z).unflatten(-1, (1, 3, 4))).flatten(-3)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


class RowsGuide(PyroModule):
    """A guide whose sample statement can't stand in an outer plate: the second latent's network
    takes rows alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net, self.second = Encoder(), nn.Sequential(nn.Linear(LATENT, 1), nn.BatchNorm1d(1))

    def forward(self, x: Tensor) -> None:
        """q(a | x) q(z | a, x)."""
        loc, scale = self.net(x)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(loc, scale).to_event(1))
            if a.dim() != 2:
                raise ValueError("rows alone, please")
            pyro.sample("z", dist.Normal(self.second(a), 1.0).to_event(1))


class RowsModel(PyroModule):
    """Its model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Decoder(LATENT + 1)

    def forward(self, x: Tensor) -> None:
        """p(x, a, z)."""
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample(
                "x", dist.Bernoulli(logits=self.net(torch.cat((a, z), -1))).to_event(1), obs=x
            )


CHOICES: dict[str, tuple[Callable[[], tuple[Any, Any]], str]] = {
    "MLP": (pyro_modules, "plate"),
    "convolution": (lambda: (ConvModel(), Guide()), "rows"),
    "guide of rows": (lambda: (RowsModel(), RowsGuide()), "repeat"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_layout_is_the_cheapest_right_one(name: str) -> None:
    make, layout = CHOICES[name]
    model, guide = make()
    pair = Pair.of(model, guide)
    assert pair.layout(X, {}) == layout
    values = {}
    for other in list(LAYOUTS)[list(LAYOUTS).index(layout) :]:
        torch.manual_seed(0)
        with torch.no_grad(), pair.active(training=False):
            values[other] = pair.run(X, {}, 7, other).log_weights()
    for value in values.values():
        torch.testing.assert_close(value, values["repeat"], rtol=1e-5, atol=1e-4)
    assert log_marginal(model, guide, X, num_samples=20, **EAGER).log_px.isfinite().all()


@pytest.mark.parametrize("latent_dim", [5, 7])
@pytest.mark.parametrize("pixels", [5, 7])
def test_a_dimension_of_5_or_7_is_no_plate(latent_dim: int, pixels: int) -> None:
    """The dry run has 5 images and 7 draws: dimensions that happen to be equal must not be taken
    for them.
    """
    model, guide = Model(latent_dim, pixels), Guide(latent_dim, pixels)
    x = binary_images(7, pixels)
    pair = Pair.of(model, guide)
    assert pair.structure(x, {}).latents == ("z",) and pair.layout(x, {}) == "plate"
    assert log_weights(model, guide, x, num_particles=7).shape == (7, 7)
    assert log_weights(model, guide, x[:5], num_particles=5).shape == (5, 5)


def test_batchnorm_over_draws_is_not_mistaken_for_rows() -> None:
    """BatchNorm1d takes (K, B, F) for (N, C, L): it runs there, and its values are wrong."""

    class Normed(Model):
        def __init__(self) -> None:
            super().__init__(5)
            norm = nn.BatchNorm1d(5)
            norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
            self.net: Any = nn.Sequential(norm, Decoder(5))

    model, guide = Normed(), Guide(5)
    assert Pair.of(model, guide).layout(X, {}) == "rows"


@pytest.mark.parametrize("where", ["prior", "guide"])
def test_batchnorm_of_draws_in_one_density_alone_is_not_mistaken_for_rows(where: str) -> None:
    """Of one latent given another, which the pixels don't depend on: their density is right in
    every layout.
    """
    norm = nn.BatchNorm1d(5).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(5.0))
        norm.bias.copy_(torch.arange(5.0).flip(0))
    decoder, encoder = Decoder(5), Encoder(5)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            first = pyro.sample("first", dist.Normal(torch.zeros(5), 1.0).to_event(1))
            loc = norm(first) if where == "prior" else torch.zeros(5)
            pyro.sample("second", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(first)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            first = pyro.sample("first", dist.Normal(*encoder(x)).to_event(1))
            loc = norm(first) if where == "guide" else encoder(x)[0]
            pyro.sample("second", dist.Normal(loc, 1.0).to_event(1))

    pair = Pair.of(model, guide)
    values = []
    with torch.no_grad(), pair.active(training=False):
        for layout in (pair.layout(X[:5], {}), "repeat"):
            torch.manual_seed(0)
            values.append(pair.run(X[:5], {}, 7, layout).log_weights())
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-4)


def test_hidden_modules_are_found() -> None:
    model, guide = fresh("closures")
    pair = Pair.of(model, guide)
    pair.structure(X, {})
    assert sum(isinstance(module, nn.Linear) for module in pair.modules) == 5


# ---- bad pairs, each in a line


def good_model(x: Tensor) -> None:
    """A standard normal and a unit Gaussian."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample(
            "x",
            dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 12), 1.0).to_event(1),
            obs=x,
        )


def good_guide(x: Tensor) -> None:
    """Its guide."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :3], 1.0).to_event(1))


def no_event_in_guide(x: Tensor) -> None:
    """The latent's dimension is not its event."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :3], 1.0))


def no_event_in_model(x: Tensor) -> None:
    """The pixels are not the event."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(len(x), 12), 1.0), obs=x)


def no_event_in_prior(x: Tensor) -> None:
    """The latent is no event in the model."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0))
        pyro.sample(
            "x", dist.Normal(z.sum(-1, keepdim=True).expand(len(x), 12), 1.0).to_event(1), obs=x
        )


def no_plate_in_guide(x: Tensor) -> None:
    """No plate."""
    pyro.sample("z", dist.Normal(x[:, :3], 1.0).to_event(1))


def no_plate_in_model(x: Tensor) -> None:
    """No plate."""
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))
    pyro.sample(
        "x", dist.Normal(z.sum(-1, keepdim=True).expand(len(x), 12), 1.0).to_event(1), obs=x
    )


def joint_event(x: Tensor) -> None:
    """The whole batch as one event, in no plate."""
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(2))
    pyro.sample(
        "x", dist.Normal(z.sum(-1, keepdim=True).expand(len(x), 12), 1.0).to_event(2), obs=x
    )


def joint_guide(x: Tensor) -> None:
    """Its guide."""
    pyro.sample("z", dist.Normal(x[:, :3], 1.0).to_event(2))


def misnamed(x: Tensor) -> None:
    """The latent is called otherwise."""
    with pyro.plate("data", len(x)):
        pyro.sample("zz", dist.Normal(x[:, :3], 1.0).to_event(1))


def empty(x: Tensor) -> None:
    """No site at all."""


def other_dimension(x: Tensor) -> None:
    """Four latent dimensions."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :4], 1.0).to_event(1))


def sequential(x: Tensor) -> None:
    """A Python loop over the plate."""
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z_{i}", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample(f"x_{i}", dist.Normal(z.sum().expand(12), 1.0).to_event(1), obs=x[i])


def sequential_guide(x: Tensor) -> None:
    """Its guide."""
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z_{i}", dist.Normal(x[i, :3], 1.0).to_event(1))


def observes_nothing(x: Tensor) -> None:
    """The obs is forgotten."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(len(x), 12), 1.0).to_event(1))


def guide_of_x(x: Tensor) -> None:
    """Samples what the model observes."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :3], 1.0).to_event(1))
        pyro.sample("x", dist.Normal(x, 1.0).to_event(1))


def wrong_image(x: Tensor) -> None:
    """The decoder gives 11 pixels."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample(
            "x", dist.Normal(z.sum(-1, keepdim=True).expand(len(x), 11), 1.0).to_event(1), obs=x
        )


def extra_dimension(x: Tensor) -> None:
    """Pyro would pair every image with every other: (5, 1) against a plate of 5."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample(
            "x",
            dist.Normal(z.sum(-1, keepdim=True).expand(len(x), 12), 1.0).to_event(1),
            obs=x.unsqueeze(1),
        )


def broken(x: Tensor) -> None:
    """Raises by itself."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ torch.ones(5, 3), 1.0).to_event(1))


def nan_scale(x: Tensor) -> None:
    """An invalid argument."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :3] * torch.nan, 1.0).to_event(1))


def nan_scale_unchecked(x: Tensor) -> None:
    """An invalid argument, not validated."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :3] * torch.nan, 1.0, validate_args=False).to_event(1))


def bernoulli(x: Tensor) -> None:
    """Pyro's own example: unchecked pixels under a Bernoulli."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        logits = z.sum(-1, keepdim=True).expand(*z.shape[:-1], 12)
        pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=x)


def wants_label(x: Tensor, y: Tensor) -> None:
    """A model of images given labels."""
    good_model(x + 0 * y.unsqueeze(-1))


BAD: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "no to_event in the guide": (
        good_model,
        no_event_in_guide,
        ("'z'", "guide", "'data'", "(5, 3)", "to_event(1)"),
    ),
    "no to_event in the model": (
        no_event_in_model,
        good_guide,
        ("'x'", "model", "'data'", "(5, 12)", "to_event(1)"),
    ),
    "no to_event in the prior": (
        no_event_in_prior,
        good_guide,
        ("'z'", "model", "'data'", "(5, 3)", "to_event(1)"),
    ),
    "no plate in the guide": (
        good_model,
        no_plate_in_guide,
        ("'z'", "guide", "no plate", "(5,)", "pyro.plate"),
    ),
    "no plate in the model": (
        no_plate_in_model,
        good_guide,
        ("'z'", "model", "no plate", "(5,)", "pyro.plate"),
    ),
    "one event for the batch": (
        joint_event,
        joint_guide,
        ("'z'", "model", "no plate", "()", "pyro.plate"),
    ),
    "a misnamed site": (good_model, misnamed, ("'zz'", "guide", "did you mean 'z'")),
    "a site that the guide lacks": (good_model, empty, ("'z'", "missing in the guide")),
    "another latent dimension": (
        good_model,
        other_dimension,
        ("'z'", "(3,)", "(4,)", "same latent dimension"),
    ),
    "no observation": (observes_nothing, guide_of_x, ("observes nothing", "obs=x")),
    "a guide of the image": (good_model, guide_of_x, ("'x'", "sampled by the guide and observed")),
    "another image": (wrong_image, good_guide, ("'x'", "model", "(11,)", "(12,)")),
    "an image too many dimensions": (
        extra_dimension,
        good_guide,
        ("'x'", "model", "(5,)", "(5, 1, 12)"),
    ),
    "an error of its own": (
        good_model,
        broken,
        ("guide failed", "5 rows of shape (12,)", "RuntimeError"),
    ),
    "NaN, checked": (good_model, nan_scale, ("guide", "NaN")),
    "NaN, unchecked": (good_model, nan_scale_unchecked, ("'z'", "NaN")),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_pair_is_explained(name: str) -> None:
    """By a line that names the site, the plate and both shapes, in training and evaluation alike."""
    model, guide, words = BAD[name]
    lines = []
    for call in (
        lambda: fit(model, guide, X, **QUICK),
        lambda: log_weights(model, guide, X),
        lambda: log_marginal(model, guide, X, num_samples=5, device="cpu"),
    ):
        with pytest.raises(UserError) as error:
            call()
        lines.append(str(error.value))
    assert len(set(lines)) == 1 and "\n" not in lines[0]
    missing = [word for word in words if word not in lines[0]]
    assert not missing, f"{missing} not in: {lines[0]}"


def test_a_loop_over_the_plate_is_not_scored() -> None:
    """Pyro's own objective trains it; log p(x) of one image can't be told."""
    for call in (
        lambda: log_weights(sequential, sequential_guide, X),
        lambda: log_marginal(sequential, sequential_guide, X, num_samples=5, device="cpu"),
    ):
        with pytest.raises(UserError, match=r"pyro\.plate.*vectorised"):
            call()


@pytest.mark.parametrize("form", FORMS)
def test_an_image_of_another_shape_is_explained(form: str) -> None:
    model, guide = fresh(form)
    with pytest.raises(UserError, match=r"guide failed on 5 rows of shape \(13,\)") as error:
        fit(model, guide, torch.zeros(20, 13), **QUICK)
    assert "\n" not in str(error.value)


def test_our_own_networks_name_both_shapes() -> None:
    model = models.GenerativeModel(
        models.StandardNormal(2), models.Bernoulli(2, (12,), hidden=(4,))
    )
    with pytest.raises(
        UserError, match=r"guide: MLP was built for inputs of shape \(12,\) .*\(5, 13\)"
    ):
        fit(model, guides.MeanField((12,), 2, hidden=(4,)), torch.zeros(20, 13), **QUICK)
    with pytest.raises(
        UserError, match=r"site 'x' of the model .* event shape \(12,\), .*\(5, 13\)"
    ):
        fit(model, guides.MeanField((13,), 2, hidden=(4,)), torch.zeros(20, 13), **QUICK)


def test_an_autoguide_is_no_amortized_guide() -> None:
    model = Model()
    with pytest.raises(UserError, match="AutoNormal is not amortized"):
        fit(model, AutoNormal(model), X, **QUICK)


@pytest.mark.parametrize("call", [fit, log_weights, log_marginal])
def test_grey_pixels_under_a_bernoulli(call: Any) -> None:
    """The support is checked at every image, though the user's distribution asks for no checks."""
    x = X.clone()
    x[40, 3] = 0.25
    options = QUICK if call is fit else {"num_samples": 5} if call is log_marginal else {}
    with pytest.raises(
        UserError, match=r"site 'x': the value 0\.25 is outside the support of Bernoulli: binarize"
    ):
        call(bernoulli, good_guide, x, **options)


@pytest.mark.parametrize("name", ["pixel plate", "transposed pixels"])
def test_grey_pixels_in_a_pixel_plate(name: str) -> None:
    model, guide = PLATES[name]()
    x = X.clone()
    x[40, 3] = 0.25
    with pytest.raises(
        UserError, match=r"site 'x': the value 0\.25 is outside the support of Bernoulli"
    ):
        fit(model, guide, x, **QUICK)


def test_nan_parameters_are_no_data_error() -> None:
    model, guide = Model(), Guide()
    with torch.no_grad():
        guide.net.loc.weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"parameter 'net\.loc\.weight' of the guide has a NaN"):
        fit(model, guide, X, **QUICK)


def test_a_point_mass_trains_and_has_no_px() -> None:
    encoder = Encoder()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(encoder(x)[0]).to_event(1))

    model = Model()
    history = fit(
        model,
        guide,
        X,
        kl_weight=0.0,
        objective="Trace_ELBO",
        num_epochs=5,
        schedule="constant",
        **QUICK,
    )
    assert history.train[-1].reconstruction > history.train[0].reconstruction
    for call in (
        lambda: log_weights(model, guide, X),
        lambda: log_marginal(model, guide, X, num_samples=5),
    ):
        with pytest.raises(UserError, match=r"'z' is a point mass \(Delta\)"):
            call()


def test_a_subsampling_plate_trains_and_has_no_px() -> None:
    decoder, encoder = Decoder(), Encoder()

    def model(x: Tensor) -> None:
        with pyro.plate("data", 640, subsample=x):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 640, subsample=x):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    history = fit(model, guide, X, num_epochs=3, **QUICK)
    assert -PIXELS < history.train[-1].loss * -1 < 0  # per image: the scale is divided out
    for call in (
        lambda: log_weights(model, guide, X),
        lambda: log_marginal(model, guide, X, num_samples=5),
    ):
        with pytest.raises(UserError, match="'data' subsamples"):
            call()


@pytest.mark.parametrize(
    ("tier", "objective"),
    thinned(["off", "graph"], ["Trace_ELBO", "TraceMeanField_ELBO", "IWAE(3)"]),
)
def test_a_subsampling_plate_trains_as_one_that_does_not(objective: str, tier: str) -> None:
    """Its factor is in the loss alone: the gradient is that of an image's mean, and the records are
    an image's.
    """
    found = []
    for size in (None, 640):
        vae = (Decoder(), Encoder())
        for seed, net in enumerate(vae):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                for parameter in net.parameters():
                    nn.init.normal_(parameter, std=0.3)
        model, guide = of_a_plate(*vae, size)
        options = {
            "optimizer": "SGD",
            "learning_rate": 0.1,
            "schedule": "constant",
            **QUICK,
            "compile": tier,
        }
        history = fit(model, guide, X, objective, num_epochs=2, **options)
        assert history.compile == tier
        found.append(
            [
                *vae[0].parameters(),
                *vae[1].parameters(),
                torch.tensor([e.loss for e in history.train]),
            ]
        )
    for alone, subsampled in zip(*found, strict=True):
        torch.testing.assert_close(alone, subsampled, rtol=1e-4, atol=1e-5)


def of_a_plate(decoder: Decoder, encoder: Encoder, size: int | None) -> tuple[Any, Any]:
    """A pair whose plate stands for so many images."""

    def plate(x: Tensor) -> Any:
        return pyro.plate("data", len(x)) if size is None else pyro.plate("data", size, subsample=x)

    def model(x: Tensor) -> None:
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with plate(x):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return model, guide


@pytest.mark.parametrize("part", ["model", "guide", "site"])
def test_a_scale_is_no_weight(part: str) -> None:
    scaled = {
        "model": (poutine.scale(good_model, scale=0.5), good_guide),
        "guide": (good_model, poutine.scale(good_guide, scale=0.5)),
        "site": (beta_inside, good_guide),
    }
    model, guide = scaled[part]
    for call in (
        lambda: log_weights(model, guide, X),
        lambda: log_marginal(model, guide, X, num_samples=5),
    ):
        with pytest.raises(UserError, match=r"is scaled by 0\.5"):
            call()


def beta_inside(x: Tensor) -> None:
    """A KL weight written into the model."""
    with pyro.plate("data", len(x)):
        with poutine.scale(scale=0.5):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample(
            "x",
            dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 12), 1.0).to_event(1),
            obs=x,
        )


def test_a_mask_is_part_of_the_weight() -> None:
    """Masked pixels' images: the site's density counts where the mask holds."""
    keep = torch.arange(len(X)) % 2 == 0

    def model(x: Tensor, index: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with poutine.mask(mask=keep[index]):
                pyro.sample(
                    "x",
                    dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 12), 1.0).to_event(1),
                    obs=x,
                )

    terms = log_densities(model, good_guide, X)
    assert torch.equal(terms.observed["x"].log_prob[0] == 0, ~keep)


def test_a_required_field() -> None:
    with pytest.raises(
        UserError, match=r"the model requires the field 'y', which was not given .*pass y="
    ):
        fit(wants_label, good_guide, X, **QUICK)
    assert log_weights(wants_label, good_guide, X, y=torch.zeros(len(X))).shape == (1, len(X))


def test_a_class_is_no_instance() -> None:
    with pytest.raises(UserError, match="the model is the class Model, not an instance"):
        fit(Model, Guide(), X, **QUICK)
    with pytest.raises(UserError, match="the guide must be callable"):
        fit(Model(), 3, X, **QUICK)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="takes no positional argument"):
        fit(lambda: None, Guide(), X, **QUICK)


def test_a_dry_run_leaves_no_trace() -> None:
    """Flags, buffers, random state and Pyro's settings are as they were."""
    model, guide = ConvModel(), Guide()
    guide.net.eval()
    modes = [module.training for module in (*model.modules(), *guide.modules())]
    buffers = [b.clone() for b in model.buffers()]
    state, settings = torch.get_rng_state(), pyro.settings.get()
    pair = Pair.of(model, guide)
    pair.layout(X, {})
    assert [module.training for module in (*model.modules(), *guide.modules())] == modes
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert torch.equal(state, torch.get_rng_state()) and pyro.settings.get() == settings
