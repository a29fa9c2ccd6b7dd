"""Named fields: one that no program takes is refused, in every function that takes fields."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.utils.data import Dataset

import pyro_vae as pv
from pyro_vae import UserError, guides, models
from pyro_vae.errors import nearest
from pyro_vae.pair.program import Program
from pyro_vae.pair.runtime import Pair

SHAPE = (1, 2, 2)
X = (torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0)) < 0.4).float()
Y = torch.arange(8) % 3
QUICK: dict[str, Any] = {"num_epochs": 1, "batch_size": 4, "progress": False, "compile": "off"}


def vae() -> tuple[Any, Any]:
    """A pair that takes no field."""
    likelihood = models.Bernoulli(2, SHAPE, hidden=(3,))
    return models.GenerativeModel(models.StandardNormal(2), likelihood), guides.MeanField(
        SHAPE, 2, hidden=(3,)
    )


def conditional(guide: Any = "MeanField") -> tuple[Any, Any]:
    """A pair of images whose classes are given."""
    likelihood = models.Bernoulli(5, SHAPE, hidden=(3,))
    model = models.ClassConditional(models.StandardNormal(2), likelihood, num_classes=3)
    shapes: dict[str, Any] = {"event_shape": SHAPE, "latent_dim": 2}
    return model, guides.ClassConditional(guide, num_classes=3, **shapes)


def functions_of_fields() -> dict[str, Callable[..., Any]]:
    """Every function of a model that takes ``**fields``, wherever it is."""
    found = {}
    for module in pkgutil.walk_packages(pv.__path__, "pyro_vae."):
        if module.name.startswith(("pyro_vae.models", "pyro_vae.guides", "pyro_vae.__main__")):
            continue
        for name, each in vars(importlib.import_module(module.name)).items():
            if inspect.isfunction(each) and each.__module__ == module.name:
                last = [*inspect.signature(each).parameters.values(), None][-2:][0]
                if last and last.kind is last.VAR_KEYWORD and last.name == "fields":
                    found[name] = each
    return found


ARGUMENTS: dict[str, dict[str, Any]] = {
    "fit": {"x_train": X},
    "sample": {"size": 8},
    "decode": {"values": {"z": torch.zeros(8, 2)}},
    "bdmc": {"size": 8},
    "sbc_ranks": {"size": 8},
    "impute": {"x": X, "missing": X > 0},
    "denoise": {"noisy": X, "noise": lambda x: dist.Normal(x, 0.3)},
    "to_inference_data": {"ll": None, "x": X},
}
"""What each function needs beside the pair, and is not reached; the others take x."""


def test_every_function_of_fields_is_known() -> None:
    """Those that the issue names are among them."""
    named = "fit log_marginal check_pair encode reconstruct sample ais bdmc refine impute denoise"
    assert {*named.split(), "diagnose", "log_weights", "to_inference_data"} <= {
        *functions_of_fields()
    }


@pytest.mark.parametrize("name", functions_of_fields())
@pytest.mark.parametrize("field", ["missing_rows", "labels", "sample_weight"])
def test_a_field_that_no_program_takes_is_refused(name: str, field: str) -> None:
    model, guide = vae()
    value = torch.ones(8)
    with pytest.raises(UserError, match=f"{name} has no argument '{field}', and neither program"):
        functions_of_fields()[name](
            model=model, guide=guide, **ARGUMENTS.get(name, {"x": X}), **{field: value}
        )


@pytest.mark.parametrize("name", functions_of_fields())
def test_a_mask_marks_x_or_is_refused(name: str) -> None:
    """A field of that name which no program takes is of x's entries, where there is an x."""
    function, given = functions_of_fields()[name], ARGUMENTS.get(name, {"x": X})
    (model, guide), of_x = vae(), {"x", "x_train"} & given.keys()
    expected = "mask has torch.float32: expected bool" if of_x else "has no argument 'mask'"
    with pytest.raises(UserError, match=expected):
        function(model=model, guide=guide, **given, mask=torch.ones(8))


@pytest.mark.parametrize(
    "name", sorted(functions_of_fields().keys() - {"check_pair", "active_units"})
)
def test_a_misspelt_option_is_no_field(name: str) -> None:
    """The longest option of each function that has some, with a letter too many."""
    function, (model, guide) = functions_of_fields()[name], vae()
    options = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is not p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    option = max(options, key=len)  # of a name of one letter a misspelling is no near one
    with pytest.raises(UserError, match=f"did you mean {option}"):
        function(model=model, guide=guide, **ARGUMENTS.get(name, {"x": X}), **{f"{option}e": 1})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("epochs", "num_epochs"),
        ("lr", "learning_rate"),
        ("x_val", "x_valid"),
        ("steps", "num_steps"),
    ],
)
def test_the_commonest_first_mistakes(given: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {meant}"):
        pv.fit(*vae(), X, **{given: X}, **QUICK)


def test_a_program_with_kwargs_takes_all() -> None:
    """And one with ``**_`` takes none, for it is there for stock Pyro."""
    received = []
    model, guide = vae()

    def wide(x: Tensor, **fields: Tensor) -> None:
        received.append(sorted(fields))
        model(x)

    pv.fit(wide, guide, X, mask=X > 0, **QUICK)
    assert set(map(tuple, received)) == {("mask",)}
    assert not Program("model", model).takes("mask") and not Program("guide", guide).takes("mask")


@pytest.mark.parametrize("inner", ["MeanField", "PerDatum(num_data=8)"])
def test_a_guide_takes_what_it_passes_on(inner: str) -> None:
    from pyro_vae.choices import registry

    joint: dict[str, Any] = {"event_shape": (2, 2, 2), "latent_dim": 2}
    model, guide = conditional(registry.build("guide", inner, **joint))
    program = Program("guide", guide)
    assert program.takes("y") and not program.takes("mask")
    assert program.takes("index") == inner.startswith("PerDatum")
    pv.fit(model, guide, X, y=Y, **QUICK)
    with pytest.raises(
        UserError, match=r"neither program takes a field of this name \(they take y\)"
    ):
        pv.fit(model, guide, X, y=Y, weight=X, **QUICK)


def test_a_guide_takes_what_its_model_takes() -> None:
    """`SemiAmortized` climbs the model's ELBO, and passes it the fields."""
    model, _ = conditional()
    guide = guides.SemiAmortized(SHAPE, 2, model, steps=1, hidden=(3,))
    assert Program("guide", guide).takes("y") and not Program("guide", guide).takes("mask")
    assert not Program("guide", guides.SemiAmortized(SHAPE, 2, vae()[0])).takes("y")


def test_a_data_sets_items_may_have_more() -> None:
    class Items(Dataset[dict[str, Tensor]]):
        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, row: int) -> dict[str, Tensor]:
            return {"x": X[row], "name": torch.tensor(row)}

    assert len(pv.fit(*vae(), Items(), **QUICK).train) == 1


def test_stock_pyro_gives_both_programs_the_same_arguments() -> None:
    """A model of classes with a guide that reads none."""
    model, _ = conditional()
    _, guide = vae()
    assert SVI(model.eval(), guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(X, y=Y) > 0
    pyro.clear_param_store()


def test_what_a_name_may_stand_for() -> None:
    """Whole words, initials, spellings, in this order, and upper and lower case alike."""
    names = ["num_epochs", "learning-rate", "batch_size", "Trace_ELBO", "MeanField"]
    meant = ("epochs", "lr", "bs", "elbo", "meanfeild", "BatchSize", "zzz")
    assert [nearest(name, names) for name in meant] == [
        ["num_epochs"], ["learning-rate"], ["batch_size"], ["Trace_ELBO"], ["MeanField"],
        ["batch_size"], [],
    ]  # fmt: skip
    assert nearest("MNIST", ["static-mnist", "mnist"]) == ["mnist"]


def test_fields_given_in_a_mapping_are_looked_at_too() -> None:
    """``fields={…}`` holds those that an option has the name of."""
    with pytest.raises(UserError, match="no argument 'shade', and neither program takes"):
        pv.fit(*vae(), X, fields={"shade": X > 0}, **QUICK)
    with pytest.raises(UserError, match="False in the field mask"):  # which marks x
        pv.fit(*vae(), X, fields={"mask": X > 0}, **QUICK)
    with pytest.raises(UserError, match=r"fields=\{'seed': …\}") as told:
        pv.fit(*vae(), X, seed=torch.arange(300), **QUICK)
    assert len(str(told.value)) < 200 and "\n" not in str(told.value)


def test_a_constant_is_that_of_its_own_call() -> None:
    """One number for all images, another at each call, while the pair is kept: as if it were
    written into the program.
    """
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))

    def model(x: Tensor, shift: float) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + shift, 1.0).to_event(1), obs=x)

    def guide(x: Tensor, shift: float) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - shift) / 2, 0.5**0.5).to_event(1))

    kept = Pair.of(model, guide)
    for shift in (0.0, 3.0, 0.0):
        found = pv.log_marginal(model, guide, x, shift=shift, num_samples=2)
        exact = dist.Normal(shift, 2**0.5).log_prob(x).sum(-1)
        assert found.log_px == pytest.approx(exact.numpy(), abs=1e-4)
    assert Pair.of(model, guide) is kept
