"""M2: the parts SemiSupervised, their loss by hand, and labels that are few or missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyro_vae as pv
from pyro_vae import guides, models
from pyro_vae.cli.entry import main
from pyro_vae.data.labels import few_labels
from pyro_vae.objectives import TraceMeanField_ELBO
from pyro_vae.runs.experiment import prepare
from pyro_vae.runs.options import Train

CLASSES, LATENT, SHAPE, ALPHA = 3, 2, (6,), 0.75
X = (torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) < 0.4).double()
Y = torch.tensor([0, -1, 2, -1, -1, 1, -1, -1])


def pair(alpha: float | None = ALPHA, family: str = "MeanField") -> tuple[Any, Any]:
    """Both parts, tiny, in float64."""
    torch.manual_seed(1)
    net = {"hidden": (4,)}
    guide = guides.SemiSupervised(family, CLASSES, event_shape=SHAPE, latent_dim=LATENT, **net)
    likelihood = models.Bernoulli(SHAPE, LATENT + CLASSES, **net)
    prior = models.StandardNormal(LATENT)
    model = models.SemiSupervised(prior, likelihood, guide, CLASSES, alpha)
    return model.double(), guide.double()


def by_hand(model: Any, guide: Any, y: Tensor) -> Tensor:
    """Kingma et al. 2014, equations 6 to 9, summed over the images, in the noise of one run."""
    code = torch.eye(CLASSES, dtype=X.dtype).unsqueeze(1)
    inputs = torch.cat((X.expand(CLASSES, -1, -1), guide.embedding(code).expand(-1, 8, -1)), -1)
    loc, log_scale = guide.guide.net(inputs).chunk(2, -1)
    z = loc + log_scale.exp() * torch.randn_like(loc)
    logits = model.likelihood.net(torch.cat((z, code.expand(-1, 8, -1)), -1))
    seen = -F.binary_cross_entropy_with_logits(logits, X.expand_as(logits), reduction="none").sum(
        -1
    )
    kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(-1)
    bound = seen - kl - torch.tensor(CLASSES, dtype=X.dtype).log()  # of each class, (C, B)
    log_q = torch.log_softmax(guide.classifier(X), -1).T
    total = torch.zeros((), dtype=X.dtype)
    for image, label in enumerate(y.tolist()):
        if label < 0:
            total = total + (log_q[:, image].exp() * (bound - log_q)[:, image]).sum()
        else:
            total = total + bound[label, image] + ALPHA * log_q[label, image]
    return -total


@pytest.mark.parametrize("y", [Y, torch.full_like(Y, -1), Y.clamp(min=0)], ids=["few", "no", "all"])
def test_the_loss_and_its_gradient_are_those_by_hand(y: Tensor) -> None:
    model, guide = pair()
    loss = TraceMeanField_ELBO()(model, guide)
    found = []
    for value in (lambda: loss(X, y=y), lambda: by_hand(model, guide, y)):
        torch.manual_seed(2)
        total = value()
        parameters = [*model.parameters(), *guide.parameters()]
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        found.append([total.detach(), *(torch.zeros(()) if g is None else g for g in gradients)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-10, atol=1e-10)


def test_labels_that_are_missing_are_unknown() -> None:
    model, guide = pair()
    loss = TraceMeanField_ELBO()(model, guide)
    values = []
    for fields in ({}, {"y": torch.full_like(Y, -1)}):
        torch.manual_seed(3)
        values.append(float(loss(X, **fields).detach()))
    assert values[0] == values[1]


def test_log_p_of_x_is_of_x_alone_and_sums_over_the_classes() -> None:
    """Labels don't move it; the sum has all classes, whatever q(y | x) is: the prior's draws say
    the same.
    """
    model, guide = pair()
    with torch.no_grad():
        guide.guide.net.layers[-1].weight.mul_(0.2)  # a wide guide, so that errors are Gaussian
        guide.guide.net.layers[-1].bias.zero_()
    found = pv.log_marginal(model, guide, X, num_samples=2000, compile="off")
    with_labels = pv.log_marginal(model, guide, X, y=Y, num_samples=2000, compile="off")
    assert torch.equal(found.log_px, with_labels.log_px)
    assert found.protocol["quantity"] == with_labels.protocol["quantity"] == "log p(x)"
    prior = pv.log_marginal(model, guide, X, num_samples=20000, proposal="prior", compile="off")
    error = (found.se**2 + prior.se**2).sqrt()
    assert bool(((found.log_px - prior.log_px).abs() < 5 * error).all())


def test_alpha_is_kingmas_by_default() -> None:
    """0.1 · N / N_labelled, found once; what is given is kept."""
    quick: dict[str, Any] = {
        "num_steps": 1,
        "batch_size": 4,
        "progress": False,
        "compile": "off",
    }
    model, guide = pair(alpha=None)
    pv.fit(model, guide, X, y=Y, **quick)
    assert float(model.weight) == pytest.approx(0.1 * 8 / 3)
    pv.fit(model, guide, X, y=Y.clamp(min=0), **quick)
    assert float(model.weight) == pytest.approx(0.1 * 8 / 3)
    model, guide = pair()
    pv.fit(model, guide, X, y=Y, **quick)
    assert float(model.weight) == pytest.approx(ALPHA)


def test_images_of_chosen_classes() -> None:
    model, _ = pair()
    images = model.eval()(None, size=5, y=torch.tensor([0, 1, 2, 0, 1]))
    assert images.shape == (5, *SHAPE)
    assert model(None, size=4).shape == (4, *SHAPE)


def test_what_can_not_be_is_refused() -> None:
    model, guide = pair()
    for y, words in (
        (Y + 1 + CLASSES, "the classes are 0 to 2 .*and -1 where"),
        (Y - 1, "class -2"),
    ):
        with pytest.raises(pv.UserError, match=words):
            pv.fit(model, guide, X, y=y, num_steps=1, progress=False)
    plain = guides.MeanField(SHAPE, LATENT).double()
    lone = models.SemiSupervised(model.prior, model.likelihood, plain, CLASSES)
    with pytest.raises(pv.UserError, match=r"encoder=MeanField\) has no q\(y"):
        pv.fit(lone, plain, X, y=Y, num_steps=1, progress=False)
    with pytest.raises(pv.UserError, match="latent_dim=5"):
        models.SemiSupervised(
            model.prior, models.Bernoulli(SHAPE, LATENT, hidden=()), guide, CLASSES
        )
    with pytest.raises(pv.UserError, match=r"alpha=-1\.0"):
        models.SemiSupervised(model.prior, model.likelihood, guide, CLASSES, -1.0)
    with pytest.raises(pv.UserError, match=r"'y' .*IWAE"):
        pv.fit(model, guide, X, "IWAE", y=Y, num_steps=1, progress=False)


@pytest.mark.parametrize("family", ["FullRank", "IAF"])
def test_every_family_of_z_serves(family: str) -> None:
    model, guide = pair(family=family)
    assert isinstance(guide, nn.Module) and guide.classifier.layers[0].out_features == 4
    assert guide.guide.net.layers[0].out_features == 4
    assert pv.fit(model, guide, X, y=Y, num_steps=2, progress=False, compile="off").train


# ---- --labels


def test_labels_are_chosen_by_seed_and_evenly() -> None:
    y = torch.arange(1000) % 7
    for number in (7, 100, 350):
        kept = few_labels(y, number, seed=0)
        counts = y[kept].bincount(minlength=7)
        assert int(kept.sum()) == number and int(counts.max() - counts.min()) <= 1
        assert torch.equal(kept, few_labels(y, number, seed=0))
        assert number == 350 or not torch.equal(kept, few_labels(y, number, seed=1))
    with pytest.raises(pv.UserError, match="the training set has 142"):
        few_labels(y, 1000, seed=0)


SEMI = ["--model", "SemiSupervised", "--guide", "SemiSupervised"]


def test_labels_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The result carries the accuracy beside log p(x), and an evaluation of the run too."""
    run = str(tmp_path / "run")
    tiny = ["--steps", "3", "--net", "MLP(hidden=(8,))", "--num-samples", "5", "--no-pictures"]
    code = main(["train", *SEMI, *tiny, "--labels", "30", "--out", run, "--json", "--quiet"])
    printed = capsys.readouterr().out
    assert code == 0, printed
    result = json.loads(printed)
    assert 0 <= result["accuracy"] <= 1 and result["mean"] < 0
    assert main(["evaluate", run, "--num-samples", "5", "--quiet", "--no-pictures"]) == 0
    assert "accuracy of q(y | x): " in capsys.readouterr().out


def test_labels_are_for_programs_that_take_them() -> None:
    with pytest.raises(pv.UserError, match="--labels 30: neither the model GenerativeModel"):
        prepare(Train(labels=30))
    options = Train(model="SemiSupervised", guide="SemiSupervised", labels=30)
    y = prepare(options).fields_train["y"]
    assert int((y >= 0).sum()) == 30 and int((y == -1).sum()) == len(y) - 30
