"""What cannot work together says so before anything runs: the rows of docs/combinations.md, each
with its sentence.

``python tests/test_combinations.py`` prints the tables for that document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer.autoguide import AutoNormal
from pyro_vae.guides import AmortizedGuide
from torch import Tensor

from pyro_vae import ais, check_pair, compare, fit, log_marginal
from pyro_vae.data.image_data import ImageData, random_split
from pyro_vae.data.transforms import observe
from pyro_vae.errors import UserError
from pyro_vae.runs.build_pair import build_pair
from pyro_vae.runs.experiment import prepare
from pyro_vae.runs.options import Train

DOCUMENT = Path(__file__).parents[1] / "docs" / "combinations.md"
SHAPE, NUM_IMAGES = (1, 2, 2), 12
OPTIONS = Train(latent_dim=2, net="MLP(hidden=(4,))", steps=1)


def pair(**choices: Any) -> tuple[Any, Any]:
    """A small pair as ``pyro-vae train`` builds it."""
    return build_pair(replace(OPTIONS, **choices), SHAPE, NUM_IMAGES, 17, 10)


def binary() -> Tensor:
    """Twelve images of zeros and ones."""
    return (torch.arange(NUM_IMAGES * 4) ** 2 % 7 % 2).float().reshape(NUM_IMAGES, *SHAPE)


def trained(objective: str, **choices: str) -> None:
    """One training step."""
    fit(*pair(**choices), binary(), objective, **QUIET)


QUIET: dict[str, Any] = {"num_steps": 1, "progress": False, "compile": "off", "device": "cpu"}
SHORT: dict[str, Any] = {"num_samples": 2, "device": "cpu", "compile": "off"}


class NoPath(AmortizedGuide):
    """A mixture of normals, of which PyTorch has no rsample."""

    def __init__(self) -> None:
        super().__init__(SHAPE, 2, 8, hidden=(4,))

    def build(self, eta: Tensor) -> dist.TorchDistribution:
        """Two components a latent."""
        loc, log_scale = eta.unflatten(-1, (2, 4)).chunk(2, -1)
        parts = dist.Normal(loc.transpose(-1, -2), log_scale.transpose(-1, -2).exp())
        return dist.MixtureSameFamily(
            dist.Categorical(logits=torch.zeros(*parts.batch_shape)), parts
        ).to_event(1)


def stored(images: Any) -> ImageData:
    """A set of these images."""
    return random_split("grey", images, None, seed=0, test_fraction=0.5)


def grey_levels() -> ImageData:
    """Eight images of 8 bits."""
    return stored(np.arange(8 * 4, dtype=np.uint8).reshape(8, 1, 2, 2))


def subsampled(x: Tensor) -> None:
    """A model whose plate is a part of a larger set."""
    with pyro.plate("data", 100, subsample_size=x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample(
            "x",
            dist.Bernoulli(logits=z.sum(-1)[:, None, None, None].expand(x.shape)).to_event(3),
            obs=x,
        )


def subsampled_guide(x: Tensor) -> None:
    """Its guide."""
    with pyro.plate("data", 100, subsample_size=x.shape[0]):
        pyro.sample("z", dist.Normal(x.flatten(1)[:, :2], 1.0).to_event(1))


def autoguide() -> None:
    """Pyro's automatic guide of a model with a data plate."""
    model, _ = pair()
    guide = AutoNormal(model)
    guide(binary())
    check_pair(model, guide, binary())


def mass_against_density() -> None:
    """Two results of one set, one a mass and one a density."""
    images = binary()
    results = {}
    for likelihood in ("Bernoulli", "Gaussian"):
        results[likelihood] = log_marginal(*pair(likelihood=likelihood), images, **SHORT)
    compare(results)


def other_images() -> None:
    """Two results of two sets."""
    model, guide = pair()
    compare(
        {
            "a": log_marginal(model, guide, binary(), **SHORT),
            "b": log_marginal(model, guide, 1 - binary(), **SHORT),
        }
    )


def unseen() -> None:
    """The table of a training set, asked for the test set."""
    model, guide = pair(guide="PerDatum")
    fit(model, guide, binary(), **QUIET)
    log_marginal(model, guide, 1 - binary(), **SHORT)


Rows = dict[str, Callable[[], Any]]

BEFORE_TRAINING: Rows = {
    "grey pixels under `Bernoulli`": lambda: fit(*pair(), 0.5 * binary(), **QUIET),
    "grey levels under `Bernoulli` with `--binarize none`": lambda: observe(
        grey_levels(), "none", "binary"
    ),
    "floats under a mass over levels, `Categorical`": lambda: observe(
        stored(np.linspace(0, 1, 32).reshape(8, 1, 2, 2)), "auto", "levels"
    ),
    "counts under `ContinuousBernoulli`": lambda: fit(
        *pair(likelihood="ContinuousBernoulli"), 3 * binary(), **QUIET
    ),
    "`TraceMeanField_ELBO`, a guide without rsample": lambda: fit(
        pair()[0], NoPath(), binary(), **QUIET
    ),
    "`FreeBits`, a guide without rsample": lambda: fit(
        pair()[0], NoPath(), binary(), "FreeBits", **QUIET
    ),
    "`STL`, a guide without rsample": lambda: fit(pair()[0], NoPath(), binary(), "STL", **QUIET),
    "`STL`, `Planar`": lambda: trained("STL", guide="Planar"),
    "`DReG`, `Planar`": lambda: trained("DReG", guide="Planar"),
    "`IWAE`, `PointEstimate`": lambda: trained("IWAE", guide="PointEstimate"),
    "`MeanField`, a hierarchical model": lambda: check_pair(*pair(model="Hierarchical"), binary()),
    "`TopDown`, a model of one latent": lambda: pair(guide="TopDown"),
    "`ExactPosterior`, a model that has none": lambda: pair(guide="ExactPosterior"),
    "`Empty`, a model with a latent that can't be summed out": lambda: check_pair(
        *pair(guide="Empty"), binary()
    ),
    "a guide with a latent, `GaussianMixture`": lambda: check_pair(
        *pair(model="GaussianMixture", guide="MeanField"), binary()
    ),
    "`VampPrior`, a point mass, a table or a planar flow as its encoder": lambda: pair(
        prior="VampPrior", guide="Planar"
    ),
    "`VampPrior`, a guide that is built from the model": lambda: pair(
        model="Hierarchical", prior="VampPrior", guide="TopDown"
    ),
    "`--prior`, a model without one": lambda: prepare(
        replace(OPTIONS, model="LinearGaussian", prior="FlowPrior")
    ),
    "`--likelihood`, a model without one": lambda: prepare(
        replace(OPTIONS, model="GaussianMixture", likelihood="Gaussian")
    ),
    "`ClassConditional` without labels": lambda: fit(
        *pair(model="ClassConditional", guide="ClassConditional"), binary(), **QUIET
    ),
    "an AutoGuide over the data plate": autoguide,
}
BEFORE_EVALUATION: Rows = {
    "`log_marginal`, `PointEstimate`": lambda: log_marginal(
        *pair(guide="PointEstimate"), binary(), **SHORT
    ),
    "`log_marginal` of unseen images, `PerDatum`": unseen,
    "`log_marginal`, a plate that subsamples": lambda: log_marginal(
        subsampled, subsampled_guide, binary(), **SHORT
    ),
    "`proposal=Defensive`, `Planar`": lambda: log_marginal(
        *pair(guide="Planar"), binary(), proposal="Defensive", **SHORT
    ),
    "`ais`, `Planar`": lambda: ais(*pair(guide="Planar"), binary(), device="cpu"),
    "`ais`, a model whose latents are summed out": lambda: ais(
        *pair(model="GaussianMixture", guide="Empty"), binary(), device="cpu"
    ),
    "`compare`, a mass and a density": mass_against_density,
    "`compare`, two sets of images": other_images,
}


WORKS_AND_IS_SAID: Rows = {
    "`TraceMeanField_ELBO`, a flow as guide (`IAF`, `NSF`, `Planar`)": lambda: understood(
        guide="IAF"
    ),
    "`TraceMeanField_ELBO`, a prior without a closed form (`FlowPrior`, `VampPrior`)": lambda: (
        understood(prior="FlowPrior")
    ),
    "`TraceMeanField_ELBO`, a bottom-up guide of a hierarchy": lambda: understood(
        model="Hierarchical", guide="BottomUp"
    ),
    "`TraceMeanField_ELBO`, a top-down guide of a hierarchy": lambda: understood(
        model="Hierarchical", guide="TopDown"
    ),
    "`VampPrior`, a flow that inverts each z (`IAF`, `NSF`)": lambda: warned(
        prior="VampPrior", guide="IAF", latent_dim=20
    ),
    "a discrete latent that is not in the guide": lambda: understood(
        model="GaussianMixture", guide="Empty"
    ),
}


def understood(**choices: str) -> str:
    """What `check_pair` prints of the pair's latents, and `fit` before its first step."""
    return "; ".join(check_pair(*pair(**choices), binary()).structure.words())


def warned(**choices: Any) -> str:
    """The warning as a pair is built."""
    with pytest.warns(UserWarning) as caught:
        pair(**choices)
    (warning,) = caught
    return str(warning.message)


def sentence(combine: Callable[[], Any]) -> str:
    """The one line by which a combination is refused; or what is said of one that works."""
    try:
        said = combine()
        assert isinstance(said, str), "it was not refused"
    except UserError as refusal:
        said = str(refusal)
    assert len(said.splitlines()) == 1, said
    return said


def row(title: str, combine: Callable[[], Any]) -> str:
    """A line of the table; a bar inside a cell is escaped."""
    said = sentence(combine).replace(" | ", r" \| ")
    return f"| {title} | {said} |"


TABLES = {**BEFORE_TRAINING, **BEFORE_EVALUATION, **WORKS_AND_IS_SAID}


@pytest.mark.parametrize("title", TABLES)
def test_what_is_said_is_the_documents_row(title: str) -> None:
    """To the letter."""
    assert row(title, TABLES[title]) in DOCUMENT.read_text().splitlines()


def test_fit_says_how_each_kl_is_had(capsys: pytest.CaptureFixture[str]) -> None:
    """Before its first step, where it reports progress."""
    fit(*pair(guide="IAF"), binary(), **{**QUIET, "progress": True})
    assert understood(guide="IAF") in capsys.readouterr().err


def test_the_document_has_no_other_row() -> None:
    """A row that no test holds would be a promise that nobody keeps."""
    rows = [
        line
        for line in DOCUMENT.read_text().splitlines()
        if line.startswith("| ") and "|---" not in line
    ]
    titles = [line.split(" | ")[0].removeprefix("| ") for line in rows]
    assert titles == [
        "together",
        *BEFORE_TRAINING,
        "together",
        *BEFORE_EVALUATION,
        "together",
        *WORKS_AND_IS_SAID,
    ]


if __name__ == "__main__":
    for rows in (BEFORE_TRAINING, BEFORE_EVALUATION, WORKS_AND_IS_SAID):
        print(
            "\n".join(["| together | said |", "|---|---|", *(row(*item) for item in rows.items())]),
            end="\n\n",
        )
