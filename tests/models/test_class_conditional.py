"""Models and guides that are given the class y: exact on a linear case, one word on the command
line, refusals in a line.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import guides, models
from pyro_vae.errors import UserError
from pyro_vae.evaluation.compare import compare
from pyro_vae.runs.build_pair import build_pair
from pyro_vae.runs.experiment import prepare
from pyro_vae.runs.options import Train

CLASSES, PIXELS, LATENT = 3, 4, 1
FAST: dict[str, Any] = {"device": "cpu", "compile": "off"}


def linear() -> tuple[Any, Any, Tensor, Tensor]:
    """x = W z + U_y + b + σ ε with one latent, its exact posterior as the guide, and images with
    classes; float64.
    """
    torch.manual_seed(0)
    likelihood = models.Gaussian(LATENT + CLASSES, (PIXELS,), scale=0.7, hidden=())
    model = models.ClassConditional(models.StandardNormal(LATENT), likelihood, CLASSES).double()
    scale = float(likelihood.log_scale.exp())
    guide = guides.ClassConditional(
        "MeanField", CLASSES, event_shape=(PIXELS,), latent_dim=LATENT, hidden=()
    ).double()
    decoder: Any = likelihood.net.layers[0]
    encoder: Any = guide.guide.net.layers[0]
    w, u = decoder.weight[:, :LATENT].detach(), decoder.weight[:, LATENT:].detach()
    precision = 1 + float(w.square().sum()) / scale**2
    with torch.no_grad():
        # mean = Wᵀ(x − U_y − b) / (σ² P), sd = P^−½; the guide sees x and the class's one-hot code
        # behind it
        guide.embedding.weight.copy_(torch.eye(CLASSES))
        encoder.weight.zero_()
        encoder.weight[0, :PIXELS] = w[:, 0] / scale**2 / precision
        encoder.weight[0, PIXELS:] = -(w[:, 0] @ u) / scale**2 / precision
        encoder.bias[0] = -(w[:, 0] @ decoder.bias) / scale**2 / precision
        encoder.bias[1] = -0.5 * math.log(precision)
    y = torch.arange(30) % CLASSES
    return model, guide, torch.randn(30, PIXELS, dtype=torch.float64), y


def exact(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """log N(x; U_y + b, W Wᵀ + σ² I)."""
    decoder = model.likelihood.net.layers[0]
    w, u = decoder.weight[:, :LATENT].detach(), decoder.weight[:, LATENT:].detach()
    covariance = w @ w.T + (2 * model.likelihood.log_scale).exp() * torch.eye(
        PIXELS, dtype=torch.float64
    )
    mean = u.T[y] + decoder.bias.detach()
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_the_exact_posterior_given_the_class_has_weights_without_variance(compile: str) -> None:
    model, guide, x, y = linear()
    ll = pv.log_marginal(model, guide, x, num_samples=20, y=y, device="cpu", compile=compile)
    torch.testing.assert_close(ll.log_px, exact(model, x, y), rtol=0, atol=1e-9)
    assert ll.se_mc < 1e-9
    other = pv.log_marginal(model, guide, x, num_samples=20, y=(y + 1) % CLASSES, **FAST)
    assert float((other.log_px - ll.log_px).abs().min()) > 1e-3  # the class matters
    assert str(ll).startswith("log p(x | y) = " if ll.exact else "log p(x | y) ≥ ")
    assert list(ll.protocol["conditions"]) == ["y"]


def test_a_guide_that_is_too_wide_is_corrected_by_its_weights() -> None:
    """Within 5 standard errors of the exact log p(x | y), for each of 30 images; the weights are
    bounded.
    """
    model, guide, x, y = linear()
    with torch.no_grad():
        guide.guide.net.layers[0].bias += torch.tensor([0.1, 0.3])
    ll = pv.log_marginal(model, guide, x, num_samples=5000, y=y, seed=1, **FAST)
    assert float(((ll.log_px - exact(model, x, y)).abs() / (ll.se + 1e-6)).max()) < 5
    assert ll.protocol["quantity"] == "log p(x | y)"


def test_only_what_the_model_is_given_is_in_the_condition() -> None:
    """A guide that sees y is still a proposal for log p(x)."""
    torch.manual_seed(0)
    model = models.GenerativeModel(models.StandardNormal(2), models.Bernoulli(2, (4,), hidden=(3,)))
    guide = guides.ClassConditional(num_classes=3, event_shape=(4,), latent_dim=2, hidden=(3,))
    x, y = (torch.rand(6, 4) > 0.5).float(), torch.arange(6) % 3
    ll = pv.log_marginal(model, guide, x, num_samples=3, y=y, **FAST)
    assert not ll.protocol["conditions"] and str(ll).startswith("log p(x) ≥")


def test_conditional_and_plain_log_marginals_are_not_compared() -> None:
    model, guide, x, y = linear()
    plain = models.GenerativeModel(
        models.StandardNormal(LATENT), models.Gaussian(LATENT, (PIXELS,), hidden=())
    ).double()
    inference = guides.MeanField((PIXELS,), LATENT, hidden=()).double()
    a = pv.log_marginal(model, guide, x, num_samples=3, y=y, **FAST)
    b = pv.log_marginal(plain, inference, x, num_samples=3, **FAST)
    with pytest.raises(
        UserError,
        match=r"'conditional' is log p\(x \| y\) and 'plain' log p\(x\): these are different",
    ):
        compare({"conditional": a, "plain": b})


@pytest.mark.parametrize("shape", [(4,), (2, 3, 5)])
def test_the_class_reaches_the_encoder_as_one_more_input(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = {"net": "Conv", "channels": (3,)} if len(shape) == 3 else {"hidden": (3,)}
    guide = guides.ClassConditional("MeanField", 3, event_shape=shape, latent_dim=2, **net).eval()
    x = torch.rand(6, *shape)
    joint = guide.joint(x, torch.zeros(6, dtype=torch.long))
    assert torch.equal(joint[:, : shape[0]], x) and joint.shape[2:] == x.shape[2:]
    assert not torch.equal(
        guide.local(x, torch.zeros(6, dtype=torch.long)),
        guide.local(x, torch.ones(6, dtype=torch.long)),
    )


@pytest.mark.parametrize("family", ["MeanField", "FullRank", "IAF(depth=1, hidden=(8,))"])
def test_any_family_is_conditional_by_its_name(family: str) -> None:
    """As the command line builds it: trained on labels, checked, and better where the images are
    their labels.
    """
    options = Train(
        model="ClassConditional", guide=f'ClassConditional("{family}")' if "(" not in family else f"ClassConditional({family})",
        latent_dim=2, net="MLP(hidden=(8,))",
    )  # fmt: skip
    model, guide = build_pair(options, (1, 2, 2), 90, num_classes=3)
    y = torch.arange(90) % 3
    x = nn.functional.one_hot(y, 4).float().reshape(90, 1, 2, 2)
    pv.check_pair(model, guide, x, y=y)
    history = pv.fit(
        model,
        guide,
        x,
        y=y,
        num_epochs=20,
        batch_size=30,
        learning_rate=0.04,
        objective="Trace_ELBO",
        progress=False,
        **FAST,
    )
    assert history.train[-1].elbo > history.train[0].elbo + 0.5
    right = pv.log_marginal(model, guide, x, num_samples=10, y=y, **FAST)
    wrong = pv.log_marginal(model, guide, x, num_samples=10, y=(y + 1) % 3, **FAST)
    assert right.mean > wrong.mean + 0.5
    means = pv.sample(model, 30, y=torch.full((30,), 2), guide=guide, device="cpu")["x"]
    assert means.mean(0).flatten().argmax() == 2
    assert model(None, size=5, y=torch.zeros(5, dtype=torch.long)).shape == (5, 1, 2, 2)


def test_the_likelihood_receives_the_classes() -> None:
    """Built by name, the likelihood has latent_dim + num_classes inputs; by hand, another number is
    refused.
    """
    options = Train(
        model="ClassConditional(num_classes=5)",
        guide="ClassConditional(num_classes=5)",
        latent_dim=2,
    )
    model, guide = build_pair(options, (1, 4, 4), 10, num_classes=3)
    assert model.likelihood.latent_dim == 7 and model.prior.event_shape == (2,)
    assert guide.guide.latent_dim == 2 and guide.guide.net.in_shape == (2, 4, 4)
    with pytest.raises(
        UserError,
        match="takes 2 inputs, but z has 2 dimensions and there are 3 classes: build it with latent_dim=5",
    ):
        models.ClassConditional(models.StandardNormal(2), models.Bernoulli(2, (4,), hidden=()), 3)


def test_labels_follow_their_images() -> None:
    """Train, validation and test, whole or chosen, have the rows that the images have."""
    experiment = prepare(
        Train(model="ClassConditional", guide="ClassConditional", net="MLP(hidden=(4,))")
    )
    data = experiment.data
    assert (
        data.train_labels is not None
        and data.test_labels is not None
        and experiment.valid_rows is not None
    )
    assert torch.equal(experiment.fields_train["y"], data.train_labels[experiment.train_rows])
    x_valid: Any = experiment.x_valid
    assert torch.equal(x_valid["y"], data.train_labels[experiment.valid_rows]) and len(
        x_valid["x"]
    ) == len(x_valid["y"])
    x, _ = experiment.images("test", 7)
    rows = [int((experiment.observed.x_test == each).flatten(1).all(1).nonzero()[0]) for each in x]
    assert torch.equal(experiment.fields("test", 7)["y"], data.test_labels[rows])
    assert len(experiment.fields("valid", None)["y"]) == len(experiment.valid_rows)
    plain = prepare(Train(net="MLP(hidden=(4,))"))
    assert plain.fields_train == {} == plain.fields("test", 5) and isinstance(plain.x_valid, Tensor)


def test_data_without_labels_are_refused_before_training(tmp_path: Any) -> None:
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros((20, 4, 4), np.uint8))
    with pytest.raises(
        UserError,
        match=r"--model ClassConditional needs the class y of each image, but x\.npy has no labels",
    ):
        prepare(Train(data=str(tmp_path / "x.npy"), model="ClassConditional", batch_size=4))


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (
            torch.tensor([0, 1, 2, 3, 0, 1, 2]),
            r"image 3 is of class 3, where the classes are 0 to 2 \(num_classes=3\)",
        ),
        (torch.tensor([0, 1, 2, 0, 0, 1, -1]), "image 6 is of class -1"),
        (torch.zeros(7), r"torch\.float32 of shape \(7,\): expected whole numbers"),
        (torch.zeros(7, 1, dtype=torch.long), r"of shape \(7, 1\)"),
        (None, "the class of each image, was not given: pass y="),
    ],
)
def test_labels_that_are_no_classes_are_one_line(y: Tensor | None, words: str) -> None:
    model, guide, x, _ = linear()
    given = {} if y is None else {"y": y}
    for call in (
        lambda: pv.log_marginal(model, guide, x[:7], num_samples=2, **given, **FAST),
        lambda: pv.fit(
            model, guide, x[:7], num_steps=1, batch_size=7, progress=False, **given, **FAST
        ),
    ):
        with pytest.raises(UserError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_every_estimator_says_that_it_is_conditional() -> None:
    """AIS, BDMC and refinement take the labels as importance sampling does, and agree with the
    exact log p(x | y).
    """
    model, guide, x, y = linear()
    few = {"seed": 0, "device": "cpu", "compile": "off"}
    annealed = pv.ais(
        model, guide, x[:6], num_steps=5, num_chains=2, num_leapfrog=1, y=y[:6], **few
    )
    torch.testing.assert_close(annealed.log_px, exact(model, x[:6], y[:6]), rtol=0, atol=1e-6)
    bounds = pv.bdmc(
        model, guide, size=6, num_steps=5, num_chains=2, num_leapfrog=1, y=y[:6], **few
    )
    torch.testing.assert_close(
        bounds.lower_px, exact(model, bounds.x.double(), y[:6]), rtol=0, atol=1e-6
    )
    refined = pv.refine(model, guide, x[:6], num_steps=2, num_samples=5, y=y[:6], **few)
    assert str(annealed).startswith("log p(x | y) ≥") and "≤ log p(x | y) ≤" in str(bounds)
    assert "→ log p(x | y) ≥" in str(refined)
