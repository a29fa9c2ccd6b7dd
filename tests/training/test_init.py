"""A training that begins with another pair's parameters: which are taken, which stay, and what is
said.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_vae as pv
from pyro_vae import Checkpoints, UserError, fit, guides, models
from tests.support.pairs import FORMS, PIXELS
from tests.support.training import QUICK, X, our_pair, same, state_of

SHORT = {**QUICK, "num_epochs": 2}


STILL = {**QUICK, "num_steps": 1, "optimizer": "SGD", "learning_rate": 1e-12}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_init_gives_the_same_parameters(form: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    source, inits = FORMS[form](), {}
    modules = form in ("PyroModules", "PyroParams")
    fit(*source, X, callbacks=[Checkpoints(tmp_path)] if modules else [], **SHORT)
    inits["pair"], inits["mapping"] = source, pv.parameters(*source)
    inits["file"] = pv.save_parameters(tmp_path / "p.safetensors", *source)
    if modules:
        inits["folder"] = str(tmp_path)
    for init in inits.values():
        pair = FORMS[form]()
        history = fit(*pair, X, init=init, **STILL)
        assert history.init.endswith("; fresh: nothing"), history.init
        for name, value in pv.parameters(*pair).items():
            torch.testing.assert_close(value, inits["mapping"][name])


def gaussian(scale: float) -> tuple[Any, Any]:
    """A density of a fixed scale."""
    likelihood = models.Gaussian(2, (PIXELS,), hidden=(8,), scale=scale)
    return models.GenerativeModel(models.StandardNormal(2), likelihood), our_pair()[1]


def test_a_fixed_number_is_no_parameter_and_stays_what_was_chosen() -> None:
    model, guide = gaussian(0.5)
    fit(model, guide, X, init=gaussian(2.0), **SHORT)
    torch.testing.assert_close(model.likelihood.log_scale.exp(), torch.tensor(0.5))


def test_parts_in_common_are_taken_and_the_others_are_fresh() -> None:
    source = our_pair(seed=1)
    model, guide = our_pair()[0], guides.IAF((PIXELS,), 2, depth=1, hidden=(8,))
    history = fit(model, guide, X, init=source, freeze="model", **SHORT)
    assert same(state_of(model), state_of(source[0]))
    taken, _, fresh = history.init.partition("; fresh: ")
    assert taken.startswith("from the pair: model.likelihood, ") and "guide.flow" in fresh
    with pytest.raises(UserError, match="has no parameter of the name and shape"):
        fit(*our_pair(), X, init={"other": torch.zeros(3)}, **SHORT)


def test_a_pattern_freezes_the_parameters_that_it_names() -> None:
    model, guide = our_pair()
    before = pv.parameters(model, guide)
    fit(model, guide, X, freeze="*.layers.0.*", **SHORT)
    for name, value in pv.parameters(model, guide).items():
        assert torch.equal(value, before[name]) == (".layers.0." in name), name
    with pytest.raises(UserError, match=r"did you mean 'guide.net.\*'"):
        fit(model, guide, X, freeze="guide.nett.*", **SHORT)


@pytest.mark.parametrize(
    ("init", "said"),
    [("nowhere", "can't be read"), (3, "expected a run's folder"), ((1, 2), "a model and its")],
)
def test_what_is_no_init_is_one_line(init: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        fit(*our_pair(), X, init=init, **SHORT)
