"""Programs as Pyro's users write them: scales that are tensors, decorators, ``**kwargs``, a batch
that is written into.
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
from pyro.contrib.easyguide import EasyGuide
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pyro_vae as pv
from pyro_vae.objectives import Trace_ELBO, TraceMeanField_ELBO
from pyro_vae.pair.runtime import Pair
from tests.support.grids import thinned

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(2))
WEIGHT = torch.rand(12, generator=torch.Generator().manual_seed(3)) + 0.5
QUICK: dict[str, Any] = {
    "num_steps": 3,
    "batch_size": 12,
    "progress": False,
    "device": "cpu",
    "compile": "off",
}


class Vae(nn.Module):
    """A linear VAE under one scale."""

    def __init__(self, scale: Any = 1.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.decoder, self.encoder = nn.Linear(2, 3), nn.Linear(3, 2)
        self.scale = scale

    def model(self, x: Tensor, w: Tensor | None = None) -> None:
        """p(x, z)."""
        with pyro.plate("data", len(x)), poutine.scale(scale=self.scale if w is None else w):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, w: Tensor | None = None) -> None:
        """q(z | x)."""
        with pyro.plate("data", len(x)), poutine.scale(scale=self.scale if w is None else w):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


CALLS: dict[str, Callable[..., Any]] = {
    "check_pair": pv.check_pair,
    "fit": partial(pv.fit, **QUICK),
    "log_marginal": partial(pv.log_marginal, num_samples=20, device="cpu", compile="off"),
    "log_weights": pv.log_weights,
    "encode": pv.encode,
    "reconstruct": pv.reconstruct,
    "ais": partial(pv.ais, num_steps=2, num_chains=2, num_leapfrog=1, compile="off"),
    "mutual information": partial(pv.diagnose, num_draws=20, device="cpu"),
}


# ---- scales


@pytest.mark.parametrize(
    ("tier", "objective"),
    [("graph", "Trace_ELBO(num_particles=3)"), ("off", "TraceMeanField_ELBO")],
)
def test_a_scale_of_no_dimensions_is_a_number(objective: str, tier: str) -> None:
    found = []
    for scale in (0.5, torch.tensor(0.5), torch.tensor([0.5])):
        v = Vae(scale)
        history = pv.fit(v.model, v.guide, X, objective=objective, **{**QUICK, "compile": tier})
        found.append([each.loss for each in history.train])
        with pytest.raises(pv.UserError, match=r"is scaled by 0\.5"):
            pv.log_marginal(v.model, v.guide, X, num_samples=5, device="cpu")
    assert found[1] == pytest.approx(found[0]) and found[2] == pytest.approx(found[0])


def test_a_scale_of_one_is_none_in_a_tensor_too() -> None:
    found = [
        pv.log_marginal(v.model, v.guide, X, num_samples=20, compile="off").log_px
        for v in (Vae(), Vae(torch.tensor(1.0)))
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
def test_one_weight_an_image_is_pyros(objective: Any, particles: int) -> None:
    """The weighted loss and its gradient; the particles agree in their mean."""
    v = Vae()
    theirs = getattr(infer, objective.__name__)(
        num_particles=particles, vectorize_particles=True, max_plate_nesting=1
    )
    found = []
    for loss in (
        lambda: objective(num_particles=particles)(v.model, v.guide)(X, w=WEIGHT),
        lambda: theirs.differentiable_loss(v.model, v.guide, X, WEIGHT),
    ):
        torch.manual_seed(0)
        value = loss()
        found.append((value.detach(), *torch.autograd.grad(value, [*v.parameters()])))
    torch.testing.assert_close(found[0], found[1])


def test_one_weight_an_image_trains_and_has_no_px() -> None:
    history = [pv.fit(v.model, v.guide, X, w=WEIGHT, objective="Trace_ELBO", **{**QUICK, "compile": tier}).train
               for v, tier in ((Vae(), "off"), (Vae(), "graph"))]  # fmt: skip
    assert [e.loss for e in history[0]] == pytest.approx([e.loss for e in history[1]])
    with pytest.raises(
        pv.UserError, match=r"is scaled by one weight an image .*without a scale, or score"
    ):
        pv.log_marginal(Vae().model, Vae().guide, X, w=WEIGHT, num_samples=9, device="cpu")


@pytest.mark.parametrize("objective", ["FreeBits", "IWAE(3)"])
def test_a_bound_that_has_no_weights_of_images_says_so(objective: str) -> None:
    with pytest.raises(pv.UserError, match="scaled by one weight an image"):
        pv.fit(Vae().model, Vae().guide, X, w=WEIGHT, objective=objective, **QUICK)


def test_weights_of_pixels_are_refused() -> None:
    v = Vae()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            with (
                pyro.plate("pixels", 3, dim=-1),
                poutine.scale(scale=torch.tensor([1.0, 2.0, 3.0])),
            ):
                pyro.sample("x", dist.Normal(v.decoder(z.squeeze(-2)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(v.encoder(x).unsqueeze(-2), 0.5).to_event(1))

    with pytest.raises(
        pv.UserError,
        match=r"'x' is scaled by a tensor of shape .*expected one scale for each image",
    ):
        pv.fit(model, guide, X, **QUICK)


# ---- masks, and supports that follow the batch


MASKS: dict[str, Callable[[Tensor], Any]] = {
    "all seen": lambda x: True,
    "none seen": lambda x: False,
    "some": lambda x: x[:, 0] > 0,
}


@pytest.mark.parametrize(
    ("where", "name", "particles"), thinned(["model", "guide", "both"], MASKS, [1, 3])
)
def test_masks_are_pyros(particles: int, name: str, where: str) -> None:
    """Python's bools and tensors, in one program or in both: the loss and its gradient."""
    v = Vae()

    def masked(program: Any) -> Any:
        return lambda x: poutine.mask(program, mask=MASKS[name](x))(x)

    model = v.model if where == "guide" else masked(v.model)
    guide = v.guide if where == "model" else masked(v.guide)
    theirs = infer.Trace_ELBO(
        num_particles=particles, vectorize_particles=True, max_plate_nesting=1
    )
    found = []
    for loss in (
        lambda: Trace_ELBO(num_particles=particles)(model, guide)(X),
        lambda: theirs.differentiable_loss(model, guide, X),
    ):
        torch.manual_seed(1)
        value = loss() + 0 * sum(
            parameter.sum() for parameter in v.parameters()
        )  # a gradient where all is masked
        found.append((value.detach(), *torch.autograd.grad(value, [*v.parameters()])))
    torch.testing.assert_close(found[0], found[1])


def test_a_support_of_the_batch_is_held_to_the_batch() -> None:
    """Documents, each of as many words as it has: in any order, in training and evaluation; and a
    value that is outside.
    """
    lengths = torch.tensor([2] * 6 + [9] * 6)
    random = torch.Generator().manual_seed(5)
    docs = torch.zeros(12, 3).scatter_add_(1, torch.randint(0, 3, (12, 9), generator=random),
        (torch.arange(9) < lengths.unsqueeze(-1)).float())  # fmt: skip
    v = Vae()

    def model(x: Tensor) -> None:
        with pyro.plate("documents", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("words", dist.Multinomial(int(x.sum(-1).max()), logits=v.decoder(z)), obs=x)

    order = torch.arange(12).flip(0)
    found = [
        pv.log_marginal(model, v.guide, docs[rows], num_samples=3000, device="cpu", compile="off")
        for rows in (order, order.flip(0))
    ]
    assert abs(found[0].mean - found[1].mean) < 5 * (found[0].se_mc + found[1].se_mc)
    pv.fit(model, v.guide, docs, **QUICK)
    with pytest.raises(
        pv.UserError, match=r"'words': the value -1 is outside the support of Multinomial"
    ):
        pv.log_marginal(
            model, v.guide, torch.cat((docs, docs.new_tensor([[-1.0, 2.0, 1.0]]))), num_samples=5
        )


@pytest.mark.parametrize("image", [3, 499, 500, 611])
def test_a_support_that_an_image_has_of_its_own_is_held_to_every_image(image: int) -> None:
    """Counts of at most as many trials as each image has, of 612 images."""
    trials = torch.arange(612) % 7 + 1.0
    v = Vae()

    def model(x: Tensor, trials: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            law = dist.Binomial(trials.unsqueeze(-1), logits=v.decoder(z), validate_args=False)
            pyro.sample("x", law.to_event(1), obs=x)

    x = (trials.unsqueeze(-1) * torch.tensor([0.0, 0.5, 1.0])).floor()
    pv.log_marginal(model, v.guide, x, num_samples=2, compile="off", trials=trials)
    x[image, 1] = trials[image] + 1
    words = rf"'x': the value {int(trials[image]) + 1} is outside the support of Binomial"
    with pytest.raises(pv.UserError, match=words):
        pv.log_marginal(model, v.guide, x, num_samples=2, device="cpu", trials=trials)
    with pytest.raises(pv.UserError, match=words):
        pv.fit(model, v.guide, x, trials=trials, **QUICK)


class Shifted(dist.Normal):
    """A law with an argument of its own, which a sample statement may pass on."""

    def __call__(self, shift: Tensor) -> Tensor:
        return self.rsample() + shift

    def shape(self, shift: Any = None) -> torch.Size:
        """As Pyro's check of a pair asks for it."""
        return self.batch_shape

    def log_prob(self, value: Tensor, shift: Tensor) -> Tensor:
        """At the value less the shift."""
        result: Tensor = super().log_prob(value - shift)
        return result


@pytest.mark.parametrize("where", ["model", "guide"])
def test_a_sample_statements_own_arguments_are_pyros(where: str) -> None:
    """``pyro.sample("z", fn, shift)``: drawn and scored with them."""
    v, shift = Vae(), torch.tensor(0.7)

    def latent(role: str, loc: Any, scale: float) -> Tensor:
        if role == where:
            return pyro.sample("z", Shifted(loc - shift, scale), shift)
        return pyro.sample("z", dist.Normal(loc, scale))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = latent("model", x.new_zeros(()), 1.0)
            pyro.sample(
                "x", dist.Normal(v.decoder(torch.stack((z, z.exp()), -1)), 1.0).to_event(1), obs=x
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            latent("guide", v.encoder(x).sum(-1), 0.5)

    found = []
    for loss in (
        lambda: Trace_ELBO()(model, guide)(X),
        lambda: infer.Trace_ELBO().differentiable_loss(model, guide, X),
    ):
        torch.manual_seed(0)
        value = loss()
        found.append((value.detach(), *torch.autograd.grad(value, [*v.parameters()])))
    torch.testing.assert_close(found[0], found[1])


# ---- who is given what


class Easy(EasyGuide):
    """Pyro's own guide class, whose ``forward`` takes anything."""

    def __init__(self, v: Vae) -> None:
        super().__init__(v.model)
        self.encoder = v.encoder

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        with self.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


class Decorated(Vae):
    """Methods under Pyro's decorators, one of them twice."""

    @infer.config_enumerate
    def guide(self, x: Tensor, w: Tensor | None = None) -> None:
        """q(z | x)."""
        super().guide(x, w)

    @poutine.mask(mask=True)
    @poutine.scale(scale=1.0)
    def model(self, x: Tensor, w: Tensor | None = None) -> None:
        """p(x, z)."""
        super().model(x, w)


def spellings() -> dict[str, tuple[Any, Any]]:
    """Programs that are the plain one."""
    v, d = Vae(), Decorated()
    return {
        "EasyGuide": (v.model, Easy(v)),
        "decorated methods": (d.model, d.guide),
        "anything": (lambda *a, **k: v.model(*a, **k), lambda *a, **k: v.guide(*a, **k)),
        "a handler around a method": (
            poutine.scale(d.model, scale=1.0),
            infer.config_enumerate(d.guide),
        ),
    }


@pytest.mark.parametrize("name", spellings())
def test_index_goes_to_those_that_name_it(name: str) -> None:
    model, guide = spellings()[name]
    torch.manual_seed(0)
    weights = pv.log_weights(model, guide, X)
    torch.manual_seed(0)
    assert torch.equal(weights, pv.log_weights(Vae().model, Vae().guide, X))
    pv.fit(model, guide, X, **QUICK)
    assert pv.check_pair(model, guide, X).layout == "plate"


def test_fields_reach_a_program_that_takes_all() -> None:
    """And one under a decorator, whose signature names them."""
    v, d, received = Vae(), Decorated(), []

    def model(x: Tensor, **fields: Tensor) -> None:
        received.append(sorted(fields))
        v.model(x, **fields)

    assert Pair.of(d.model, d.guide).guide.wants("w") and Pair.of(d.model, d.guide).guide.owner is d
    pv.fit(model, d.guide, X, w=WEIGHT, objective="Trace_ELBO", **QUICK)
    assert set(map(tuple, received)) == {("w",)}


# ---- a batch that is written into


class Writes(Vae):
    """A program, or both, that change what they were given."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which

    def model(self, x: Tensor, y: Tensor) -> None:
        """p(x, z)."""
        if self.which == "model":
            x.mul_(0.5)
        super().model(x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """q(z | x)."""
        if self.which == "guide":
            x.mul_(0.5)
        if self.which == "field":
            y.add_(1.0)
            x = x + y.unsqueeze(-1) - 2.0
        super().guide(x)


class Clean(Writes):
    """The same, out of place: what the model sees is what the guide made of x."""

    def model(self, x: Tensor, y: Tensor) -> None:
        """p(x, z)."""
        Vae.model(self, x if self.which == "field" else 0.5 * x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """q(z | x)."""
        Vae.guide(
            self, {"guide": 0.5 * x, "field": x + y.unsqueeze(-1) - 1.0, "model": x}[self.which]
        )


@pytest.mark.parametrize(("call", "which"), thinned(CALLS, ["guide", "model", "field"]))
def test_the_callers_data_stay_as_they_are(which: str, call: str) -> None:
    """In every use, for the rows that are probed and for the others."""
    x, y, v = X.clone(), torch.ones(12), Writes(which)
    CALLS[call](v.model, v.guide, x, y=y)
    assert torch.equal(x, X) and torch.equal(y, torch.ones(12))


@pytest.mark.parametrize(("which", "tier"), thinned(["guide", "model", "field"], ["off", "graph"]))
def test_each_run_has_a_batch_of_its_own(which: str, tier: str) -> None:
    """What is trained and scored is the program that writes out of place."""
    found, objective = [], {"off": "IWAE(3)", "graph": "Trace_ELBO"}[tier]
    for make in (Writes, Clean):
        v, y = make(which), torch.ones(12)
        history = pv.fit(
            v.model, v.guide, X, y=y, objective=objective, **{**QUICK, "compile": tier}
        )
        score = pv.log_marginal(
            v.model, v.guide, X, y=y, num_samples=40, device="cpu", compile=tier
        )
        found.append(([each.loss for each in history.train], score.mean))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


# ---- a mass against a density


LOGITS = torch.tensor([0.3, -0.2, 0.9, 0.0])
PLACES = torch.randn(4, 3, generator=torch.Generator().manual_seed(4))


def of_class(law: Any) -> tuple[Any, Any]:
    """A model whose class has this law."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", law())
            pyro.sample("x", dist.Normal(c @ PLACES, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", law())

    return model, guide


def mass() -> Any:
    """One-hot."""
    return dist.OneHotCategorical(logits=LOGITS)


def density() -> Any:
    """On the simplex."""
    return dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=LOGITS)


def test_values_of_a_mass_with_a_density_train_and_have_no_px() -> None:
    """The straight-through relaxation: Pyro's loss and gradient, and no weights."""
    logits = torch.nn.Parameter(LOGITS.clone())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            temperature = torch.tensor(0.5)
            law = dist.RelaxedOneHotCategoricalStraightThrough(
                temperature, logits=pyro.param("logits", logits)
            )
            pyro.sample("c", law)

    model = of_class(mass)[0]
    words = (
        "'c' is OneHotCategorical, a mass, in the model and RelaxedOneHotCategoricalStraightThrough"
    )
    assert words in str(pv.check_pair(model, guide, X))
    history = pv.fit(model, guide, X, objective="Trace_ELBO", num_steps=1, progress=False)
    assert words in history.note and logits.grad is not None
    with pytest.raises(pv.UserError, match=words):
        pv.log_marginal(model, guide, X, num_samples=5, device="cpu")


@pytest.mark.parametrize("call", ["check_pair", "fit", "log_marginal"])
@pytest.mark.parametrize(
    ("in_model", "in_guide", "words"),
    [
        (mass, density, "and RelaxedOneHotCategorical, a density, in the guide"),
        (
            density,
            mass,
            "'c' is RelaxedOneHotCategorical, a density, in the model and OneHotCategorical, a "
            "mass",
        ),
    ],
)
def test_a_mass_against_a_density_is_refused(
    in_model: Any, in_guide: Any, words: str, call: str
) -> None:
    with pytest.raises(pv.UserError, match=words):
        CALLS[call](of_class(in_model)[0], of_class(in_guide)[1], X)


@pytest.mark.parametrize("law", [mass, density])
def test_laws_of_one_kind_are_served(law: Any) -> None:
    assert pv.log_marginal(*of_class(law), X, num_samples=5, compile="off").log_px.isfinite().all()


def test_a_point_mass_is_a_mass_too() -> None:
    """A guide that names each image's class outright."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Delta(torch.eye(4)[(x @ PLACES.T).argmax(-1)]).to_event(1))

    assert pv.check_pair(of_class(mass)[0], guide, X).structure.point_masses == ("c",)


# ---- the reason, not its first sign


def test_the_plate_that_is_told_is_that_of_x_and_z() -> None:
    v = Vae()

    def model(x: Tensor) -> None:
        v.model(x)
        with pyro.plate("penalties", len(x)):
            pyro.factor("penalty", torch.zeros(len(x)))

    assert "data plate: 'data' in the model, 'data' in the guide" in str(
        pv.check_pair(model, v.guide, X)
    )


def test_an_argument_may_have_another_name_at_its_place() -> None:
    """Pyro gives both programs the same positional arguments."""
    v = Vae()

    def model(x: Tensor, dose: Tensor, twice: bool = True) -> None:
        v.model(x - dose)

    def guide(x: Tensor, _dose: Tensor) -> None:
        v.guide(x - _dose)

    pyro.set_rng_seed(0)
    theirs = infer.Trace_ELBO().differentiable_loss(model, guide, X, WEIGHT[:, None])
    for given in ({"dose": WEIGHT[:, None]}, {"dose": WEIGHT[:, None], "_dose": WEIGHT[:, None]}):
        pyro.set_rng_seed(0)
        torch.testing.assert_close(Trace_ELBO()(model, guide)(X, **given), theirs)
    with pytest.raises(pv.UserError, match="the guide requires the field '_dose'"):
        pv.check_pair(partial(model, dose=WEIGHT[:1]), guide, X)


# ---- whom a sentence is for


def columns_are_images(x: Tensor) -> None:
    """A model and guide in one, of a batch that lies on its side."""
    with pyro.plate("data", x.shape[1]):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, True).expand(-1, 3), 1.0).to_event(1), obs=x.t())


def columns_are_read(x: Tensor) -> None:
    """Its guide."""
    with pyro.plate("data", x.shape[1]):
        pyro.sample("z", dist.Normal(x.t() @ torch.ones(3, 2), 1.0).to_event(1))


VAE = Vae()
NO_PAIR: dict[str, tuple[Any, Any, Tensor, str]] = {
    "swapped": (VAE.guide, VAE.model, X, "were the two swapped"),
    "a network as guide": (VAE.model, nn.Linear(3, 2), X, "network alone is no Pyro program"),
    "a network as model": (nn.Linear(3, 2), VAE.guide, X, "network alone is no Pyro program"),
    "the object of both": (VAE, VAE, X, r"Vae, a module without a forward: .*vae\.model"),
    "a distribution": (VAE.model, dist.Normal(0.0, 1.0), X, "guide must be callable .*Normal"),
    "images in columns": (
        columns_are_images,
        columns_are_read,
        torch.cat([X] * 2).t(),
        "plate 'data' has 24 images, as many as x has columns, and images are rows",
    ),
}


@pytest.mark.parametrize("name", NO_PAIR)
def test_what_is_no_pair_is_told_why(name: str) -> None:
    model, guide, x, why = NO_PAIR[name]
    for call in ("check_pair", "fit", "log_marginal"):
        with pytest.raises(pv.UserError, match=why):
            CALLS[call](model, guide, x)


def test_whole_numbers_that_fail_as_such_are_told_so_and_may_be_whole_after_a_fit() -> None:
    words = torch.randint(0, 5, (12, 3), generator=torch.Generator().manual_seed(0))
    embedding = nn.Embedding(5, 2)

    def model(x: Tensor, width: int = 3) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = z.sum(-1)[..., None, None].expand(*z.shape[:-1], width, 5)
            pyro.sample("x", dist.Categorical(logits=logits).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(embedding(x).mean(-2), scale.exp()).to_event(1))

    with pytest.raises(pv.UserError, match=r"whole numbers, as given: .*site 'x'.*\[5, 2\]"):
        pv.check_pair(partial(model, width=2), guide, words)
    with pytest.raises(pv.UserError, match=r"param\('scale'\) does not exist yet"):
        CALLS["log_marginal"](model, guide, words)
    CALLS["fit"](model, guide, words)
    assert CALLS["log_marginal"](model, guide, words).log_px.shape == (12,)


def test_the_shortest_rows_are_looked_at_beside_others() -> None:
    """A batch of short sequences alone is shorter than x, as in no batch of a training."""
    lengths = torch.tensor([4] * 7 + [2] * 5)
    packed = pack_padded_sequence(X[:, :1].repeat(1, 4), lengths, batch_first=True)
    v = Vae()

    def of(program: Any) -> Any:
        def with_lengths(x: Tensor, seqs: Any) -> None:
            padded, number = pad_packed_sequence(seqs, batch_first=True)
            padded[:, 3]
            one_hot(number, 5)
            program(x)

        return with_lengths

    for call in ("check_pair", "fit"):
        CALLS[call](of(v.model), of(v.guide), X, seqs=packed)


@pytest.mark.parametrize("row", [0, 11])
def test_a_class_that_is_none_is_named_wherever_it_is(row: int) -> None:
    """In the first dry run, or far behind it."""
    labels = torch.arange(12) % 3
    labels[row] = -1

    def program(call: Any) -> Any:
        def labelled(x: Tensor, y: Tensor) -> None:
            one_hot(y, 3)
            call(x)

        return labelled

    v, x = Vae(), torch.cat([X] * 3)[:12]
    for call in ("check_pair", "fit", "log_marginal"):
        with pytest.raises(pv.UserError, match="field 'y' has the value -1"):
            CALLS[call](program(v.model), program(v.guide), x, y=labels)


def test_a_parameter_with_a_row_for_each_image_is_named_and_not_kept() -> None:
    v = Vae()

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.zeros(len(x), 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    for _ in range(2):  # the first try leaves nothing that the second would find
        with pytest.raises(pv.UserError, match=r"pyro.param\('loc'\) .* a row for each image"):
            pv.fit(v.model, guide, X, num_steps=1, progress=False)
