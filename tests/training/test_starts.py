"""Parts that start from the training data: when, from which images, and once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import UserError, fit, guides, models
from pyro_vae.data.loaders import make_source
from pyro_vae.data.observations import Dequantize, Dynamic
from pyro_vae.pair.runtime import Pair
from pyro_vae.runs.experiment import prepare
from pyro_vae.runs.options import Train
from pyro_vae.training import init
from pyro_vae.training.callbacks import EpochEnd
from pyro_vae.training.state import TrainingState

SHAPE = (1, 2, 3)
STILL: dict[str, Any] = {  # a step that moves nothing
    "num_steps": 1, "learning_rate": 1e-12, "progress": False, "device": "cpu", "compile": "off", "objective": "Trace_ELBO"
}  # fmt: skip


def grey(size: int = 90, seed: int = 0) -> Tensor:
    """Probabilities of pixels, each pixel with a mean of its own."""
    random = torch.Generator().manual_seed(seed)
    return torch.linspace(0.1, 0.9, 6).reshape(SHAPE) * torch.rand(size, *SHAPE, generator=random)


def pair(likelihood: str = "Bernoulli", prior: Any = None, **net: Any) -> tuple[Any, Any]:
    """A model whose decoder starts at the mean, and a guide."""
    torch.manual_seed(0)
    guide = guides.MeanField(SHAPE, 2, hidden=(4,))
    of_net = {} if "net" in net else {"hidden": (4,)}
    decoder = getattr(models, likelihood)(2, SHAPE, **{"output_bias": "mean", **of_net, **net})
    return models.GenerativeModel(
        models.StandardNormal(2) if prior is None else prior(guide), decoder
    ), guide


def bias(model: Any) -> Tensor:
    """The decoder's last bias, of a shape with an image's."""
    found: Tensor = model.likelihood.net.last_bias().detach().double()
    return found


def assert_at(model: Any, mean: Tensor, number: int = 1) -> None:
    """The first outputs are those of this mean."""
    expected = model.likelihood.outputs_at_mean(mean.double())[0]
    torch.testing.assert_close(bias(model)[:number], expected, rtol=1e-5, atol=1e-5)
    assert not model.likelihood.waits_for_data


# ---- the mean


@pytest.mark.parametrize("net", [{}, {"net": "Conv", "channels": (3,)}])
def test_the_bias_is_the_logit_of_the_mean(net: dict[str, Any]) -> None:
    """`output_bias="mean"` by `fit` itself, of binary images."""
    x = (grey() > 0.3).float()
    model, guide = pair(**net)
    assert model.likelihood.waits_for_data
    fit(model, guide, x, **STILL)
    assert_at(model, x.mean(0))
    torch.testing.assert_close(
        bias(model), x.double().mean(0).clamp(1e-3, 1 - 1e-3).logit(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("likelihood", "binarize", "expected"),
    [
        ("Bernoulli", "dynamic", lambda x: x),
        ("Bernoulli", Dynamic(None), lambda x: x),
        ("Bernoulli", "threshold", lambda x: (x > 0.5).float()),
        ("Gaussian", None, lambda x: x),
        ("Gaussian", Dequantize(17), lambda x: (x + 0.5) / 17),
        ("Binomial", None, lambda x: x),
    ],
)
@pytest.mark.parametrize("source", ["tensor", "Dataset", "DataLoader"])
def test_the_mean_is_of_what_is_observed(
    likelihood: str, binarize: Any, expected: Any, source: str
) -> None:
    """In expectation: nothing is drawn, so a dynamic binarization starts at the grey levels' own
    mean.
    """
    levels = likelihood == "Binomial" or isinstance(binarize, Dequantize)
    x = (16 * grey()).round() if levels else grey()
    if binarize == "threshold":  # once, which a Dataset can't be
        source = "tensor"
    data: Any = {
        "tensor": x,
        "Dataset": TensorDataset(x),
        "DataLoader": DataLoader(TensorDataset(x), 20),
    }[source]
    model, guide = pair(likelihood, **({"levels": 17} if likelihood == "Binomial" else {}))
    fit(model, guide, data, binarize=binarize, **STILL)
    assert_at(model, expected(x).mean(0))


def test_the_images_held_out_are_not_looked_at() -> None:
    x, held_out = (grey() > 0.3).float(), torch.ones(40, *SHAPE)
    model, guide = pair()
    fit(model, guide, x, x_valid=held_out, **STILL)
    assert_at(model, x.mean(0))


@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_the_command_lines_rows_are_those_it_trains_on(fraction: float) -> None:
    experiment = prepare(Train(net="MLP(hidden=(4,), output_bias=mean)", valid_fraction=fraction))
    observed = experiment.observed
    fit(
        experiment.model,
        experiment.guide,
        experiment.x_train,
        binarize=observed.observe,
        x_valid=experiment.x_valid,
        **STILL,
    )
    kept = experiment.data.train[experiment.train_rows].double() / 16
    assert len(kept) < len(experiment.data.train)
    assert_at(experiment.model, kept.mean(0))


def test_one_start() -> None:
    """Not at a second training, not where one goes on, not in a copy or a stored pair; and a start
    by hand is one.
    """
    x, other = (grey() > 0.3).float(), (grey(seed=1) > 0.6).float()
    states: list[TrainingState] = []

    def keep(end: EpochEnd) -> None:
        states.append(end.training_state())

    model, guide = pair()
    fit(model, guide, x, callbacks=[keep], **STILL | {"num_steps": 2, "batch_size": 90})
    trained = copy.deepcopy(model)
    fit(trained, guide, other, **STILL)
    assert_at(trained, x.mean(0))

    stored, _ = pair()
    stored.load_state_dict(model.state_dict())
    fit(stored, guide, other, **STILL)
    assert_at(stored, x.mean(0))

    resumed, resumed_guide = pair()
    fit(
        resumed,
        resumed_guide,
        x,
        callbacks=[keep],
        resume=states[0],
        **STILL | {"num_steps": 2, "batch_size": 90},
    )
    assert_at(resumed, x.mean(0))
    fit(resumed, resumed_guide, other, **STILL)
    assert_at(resumed, x.mean(0))

    by_hand, guide = pair()
    by_hand.likelihood.start_at_mean(other.mean(0))
    fit(by_hand, guide, x, **STILL)
    assert_at(by_hand, other.mean(0))


def test_untrained_parameters_of_another_pair_still_wait() -> None:
    x = (grey() > 0.3).float()
    model, _ = pair()
    twin, guide = pair()
    twin.load_state_dict(model.state_dict())
    fit(twin, guide, x, **STILL)
    assert_at(twin, x.mean(0))


def test_a_checkpoint_without_the_mark_is_one_of_a_training() -> None:
    """As they were written before `started` was there: they load, and are not started again."""
    x = (grey() > 0.3).float()
    model, guide = pair()
    model.likelihood.start_at_mean(x.mean(0))
    held = {
        name: value for name, value in model.state_dict().items() if not name.endswith("started")
    }
    again, _ = pair()
    again.load_state_dict(held)
    fit(again, guide, 1 - x, **STILL)
    assert_at(again, x.mean(0))


def test_without_output_bias_nothing_starts_and_nothing_is_added() -> None:
    model, guide = pair(output_bias=None)
    before = bias(model).clone()
    assert not model.likelihood.waits_for_data and not any(
        "started" in name for name in model.state_dict()
    )
    fit(model, guide, grey(), binarize="dynamic", **STILL)
    torch.testing.assert_close(bias(model), before, rtol=0, atol=1e-6)


def test_a_likelihood_that_knows_no_mean_says_so() -> None:
    class Mine(models.Bernoulli):
        def outputs_at_mean(self, mean: Tensor) -> tuple[Tensor | None, ...]:
            raise UserError("Mine does not know which decoder outputs have a given mean")

    model, guide = pair()
    model.likelihood = Mine(2, SHAPE, hidden=(4,), output_bias="mean")
    with pytest.raises(UserError, match="Mine does not know"):
        fit(model, guide, grey(), binarize="dynamic", **STILL)


# ---- all that wait


def test_every_part_that_waits_is_called_once() -> None:
    """Pseudo-inputs at images, the bias at the mean; the model's own parts by the same protocol, a
    user's too.
    """

    class Scale(nn.Module):
        waits_for_data = True

        def start_from_data(self, data: Any) -> None:
            calls.append((len(data.sample), data.mean))
            self.waits_for_data = False

    calls: list[Any] = []
    x = (grey() > 0.3).float()
    model, guide = pair(prior=lambda guide: models.VampPrior(2, SHAPE, guide, components=5))
    model.extra = Scale()
    for _ in range(2):
        fit(model, guide, x, **STILL)
    assert_at(model, x.mean(0))
    images = x.double().flatten(1).clamp(0.01, 0.99)
    distances = torch.cdist(model.prior.pseudo_inputs.detach().double().flatten(1), images)
    assert float(distances.min(1).values.max()) < 1e-5
    ((number, mean),) = calls
    assert number == len(x)
    torch.testing.assert_close(mean, x.double().mean(0))


@pytest.mark.parametrize("kind", ["tensor", "Dataset"])
def test_the_sample_of_a_large_set_is_a_random_part_of_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a set in the order of its classes some of each class, all of them images of the set, none
    of them twice.
    """
    monkeypatch.setattr(init, "MOST_IMAGES", 200)
    x = torch.arange(1000.0).reshape(-1, 1)
    source = make_source(x if kind == "tensor" else TensorDataset(x), {}, 30, torch.device("cpu"))
    first, again, other = (
        init.TrainingImages(Pair.of(*pair()), source, None, seed).sample for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert 200 <= len(first) < 230 and len(first.unique()) == len(first)
    assert abs(float(first.mean()) - 500) < 4 * 289 / 200**0.5


def test_a_mixture_starts_at_clusters_of_the_images_that_are_trained_on() -> None:
    random = torch.Generator().manual_seed(0)
    centres = torch.tensor([-4.0, 0.0, 4.0])
    x = centres[torch.arange(60) % 3].reshape(-1, 1, 1, 1) + 0.1 * torch.randn(
        60, *SHAPE, generator=random
    )
    model = models.GaussianMixture(SHAPE, components=3)
    fit(model, guides.Empty(), x, x_valid=x + 100.0, **STILL)
    found = model.loc.detach().mean(1).sort().values
    torch.testing.assert_close(found, centres, rtol=0, atol=0.1)
    assert not model.waits_for_data
