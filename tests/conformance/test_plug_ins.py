"""Parts of another package: an installed entry point, ``module:Name`` and ``file.py:Name`` do what
a listed part does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pyro import distributions as dist

from pyro_vae import fit, log_marginal, models
from pyro_vae.choices import lookup, registry
from pyro_vae.choices.lookup import NAMESPACES
from pyro_vae.cli.entry import main
from pyro_vae.data import datasets
from tests.support import conforming
from tests.support.conforming import build, images, swaps
from tests.support.part_laws import (
    assert_draws_are_the_densitys,
    assert_log_prob_is_scipys,
    assert_mass_is_one,
    assert_training_lowers_the_loss,
)

LAB = '''
"""What a laboratory might write."""

from dataclasses import dataclass

import torch
from pyro import distributions as dist
from torch import nn
from pyro_vae.nn.conditional import Prior, Likelihood
from pyro_vae.data.datasets import random_split
from pyro_vae.guides import AmortizedGuide
from pyro_vae.models import GenerativeModel
from pyro_vae.nn import MLP
from pyro_vae.objectives import Trace_ELBO
from pyro_vae.evaluation.proposals import Guide
from pyro_vae.training.schedules import Schedule


class LabModel(GenerativeModel):
    """The laboratory's model."""


class LabPrior(Prior):
    """p(z) = Laplace(0, scale)."""

    def __init__(self, latent_dim, scale=1.0):
        super().__init__(latent_dim)
        self.register_buffer("scale", torch.full((latent_dim,), float(scale)))

    def forward(self, context=None):
        return dist.Laplace(torch.zeros_like(self.scale), self.scale).to_event(1)


class LabLikelihood(Likelihood):
    """x | z ~ Laplace(m(z), 1)."""

    kind = "density"
    observes = "real"

    def __init__(self, latent_dim, event_shape, net="MLP", **net_args):
        super().__init__(latent_dim, event_shape, 1, net, **net_args)

    def forward(self, context=None):
        (location,) = self.outputs(context)
        return dist.Laplace(location, torch.ones_like(location)).to_event(len(self.event_shape))


class LabGuide(AmortizedGuide):
    """q(z | x) = Laplace(m(x), s(x))."""

    def __init__(self, event_shape, latent_dim, net="MLP", **net_args):
        super().__init__(event_shape, latent_dim, 2 * latent_dim, net, **net_args)

    def build(self, eta):
        location, log_scale = eta.chunk(2, -1)
        return dist.Laplace(location, log_scale.exp()).to_event(1)


class LabObjective(Trace_ELBO):
    """The laboratory's bound."""


class LabNet(MLP):
    """The laboratory's layers."""


class LabOptimizer(torch.optim.SGD):
    """The laboratory's descent."""


@dataclass(frozen=True)
class LabSchedule(Schedule):
    """Half of the learning rate, always."""

    def __call__(self, done):
        return 0.5


@dataclass(frozen=True)
class LabProposal(Guide):
    """The laboratory's draws."""


def LabData(source):
    """Thirty images of noise, 4x4, 2 levels."""
    random = torch.Generator().manual_seed(source.seed)
    images = torch.randint(0, 2, (30, 1, 4, 4), generator=random).to(torch.uint8).numpy()
    return random_split("lab", images, None, seed=source.seed, test_fraction=0.2)
'''
PARTS = {slot: f"Lab{slot.capitalize()}" for slot in NAMESPACES}


@pytest.fixture(params=["entry point", "module:Name", "file.py:Name"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], str]:
    """How the laboratory's part of a slot is named, where its package is installed, importable, or
    a file.
    """
    name = f"lab_{request.node.name.translate(str.maketrans('[]-:. ', '______'))}"[:60]
    (tmp_path / f"{name}.py").write_text(LAB)
    if request.param == "file.py:Name":
        return lambda slot: f"{tmp_path}/{name}.py:{PARTS[slot]}"
    monkeypatch.syspath_prepend(tmp_path)
    if request.param == "module:Name":
        return lambda slot: f"{name}:{PARTS[slot]}"
    installed = tmp_path / "lab-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
    lines = [f"[pyro_vae.{slot}]\n{part} = {name}:{part}\n" for slot, part in PARTS.items()]
    (installed / "entry_points.txt").write_text("\n".join(lines))
    return lambda slot: PARTS[slot]


@pytest.mark.parametrize("slot", NAMESPACES)
def test_a_part_of_another_package_trains(slot: str, place: Callable[[str], str]) -> None:
    """Alone among the defaults, as one word: built, trained for two steps, and log p(x) made of it."""
    part = place(slot)
    swapped = {slot: part} if slot in conforming.SWAPPED and slot != "objective" else {}
    model, guide = build(**swapped)
    x = datasets.load(part).train.float() if slot == "data" else images(model)
    options = {slot: part} if slot in ("objective", "optimizer", "schedule") else {}
    history = fit(
        model,
        guide,
        x,
        num_steps=2,
        batch_size=4,
        progress=False,
        device="cpu",
        compile="off",
        **options,
    )
    assert history.num_steps == 2
    proposal = part if slot == "proposal" else "guide"
    assert (
        log_marginal(model, guide, x, num_samples=5, proposal=proposal, device="cpu", compile="off")
        .log_px.isfinite()
        .all()
    )


@pytest.mark.slow
def test_a_whole_experiment_of_another_package(
    place: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every slot of `pyro-vae train` at once; the run is read back by `evaluate`."""
    slots = ("data", "model", "prior", "likelihood", "guide", "objective", "optimizer", "schedule")
    chosen = [word for slot in slots for word in (f"--{slot}", place(slot))]
    net = ["--net", f"{place('net')}(hidden=(4,))"]
    short = [
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--num-samples",
        "5",
        "--device",
        "cpu",
        "--quiet",
        "--no-pictures",
    ]
    run = str(tmp_path / "run")
    assert main(["train", *chosen, *net, *short, "--latent-dim", "2", "--json", "--out", run]) == 0
    trained = json.loads(capsys.readouterr().out)
    again = ["--num-samples", "5", "--device", "cpu", "--json", "--quiet"]
    assert main(["evaluate", run, "--proposal", place("proposal"), *again]) == 0
    assert json.loads(capsys.readouterr().out)["mean"] == pytest.approx(trained["mean"], abs=1e-6)
    assert np.isfinite(trained["mean"])


# ---- the guarantee: a part is one file and one line in a namespace, and no test is written for it


class Tilted(dist.Normal):  # type: ignore[misc]
    """A density that has lost a constant."""

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = super().log_prob(value) + 0.3
        return result


class Shrunk(dist.Normal):  # type: ignore[misc]
    """Draws that are not the density's."""

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        result: torch.Tensor = 0.9 * super().rsample(sample_shape)
        return result

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        return self.rsample(sample_shape).detach()


def listed(monkeypatch: pytest.MonkeyPatch, law: type) -> str:
    """A new prior in the namespace of models: its class, and its name in ``__all__``; as the suite
    calls it.
    """

    class Added(models.StandardNormal):
        """p(z) = N(0, I), once more."""

        def forward(self, context: Any = None) -> dist.TorchDistribution:
            return law(self.loc, self.scale).to_event(1)

    namespace = ModuleType("with_one_more")
    vars(namespace).update({name: getattr(models, name) for name in models.__all__}, Added=Added)
    namespace.__all__ = [*models.__all__, "Added"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "with_one_more", namespace)
    changed = {
        slot: "with_one_more" if place == "pyro_vae.models" else place
        for slot, place in NAMESPACES.items()
    }
    for module in (lookup, registry):
        monkeypatch.setattr(module, "NAMESPACES", changed)
    return "prior=Added"


def test_a_listed_part_is_in_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its line in the namespace alone, it is one of those that every test runs over; and it
    passes.
    """
    assert "prior=Added" not in swaps("prior")
    swap = listed(monkeypatch, dist.Normal)
    assert swap in swaps(*conforming.SWAPPED)
    assert_mass_is_one(swap, 0)
    assert_log_prob_is_scipys(swap)
    assert_training_lowers_the_loss(swap)


@pytest.mark.parametrize("mistake", [Tilted, Shrunk])
def test_a_listed_part_with_a_mistake_fails(mistake: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost constant is found by the mass, by SciPy and by the ratio of densities, false draws by
    the last of these.
    """
    swap = listed(monkeypatch, mistake)
    laws = [lambda: assert_draws_are_the_densitys("Added")]
    if mistake is Tilted:
        laws += [lambda: assert_mass_is_one(swap, 0)]
        laws += [lambda: assert_log_prob_is_scipys(swap)]
    for law in laws:
        with pytest.raises(AssertionError):
            law()
