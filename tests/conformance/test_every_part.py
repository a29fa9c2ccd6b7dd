"""Every part of every slot: it is described, listed and built; networks, schedules, optimisers and
proposals do their work.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_vae import fit, log_marginal
from pyro_vae.choices import lookup, registry
from pyro_vae.choices.lookup import NAMESPACES
from pyro_vae.cli.entry import main
from pyro_vae.data.datasets import Source
from pyro_vae.errors import UserError
from pyro_vae.evaluation.unconstrained import Unconstrained
from pyro_vae.pair.runtime import Pair
from pyro_vae.runs import parts
from tests.support.conforming import (
    DEFAULTS,
    SWAPPED,
    build,
    every,
    goal,
    images,
    mean_loss,
    names,
    one_line,
    rows,
    swaps,
)
from tests.support.laws import grid


@pytest.mark.parametrize("part", swaps(*NAMESPACES))
def test_a_part_says_what_it_is(part: str) -> None:
    """The first line of its own docstring, which `pyro-vae list` shows: a sentence, not a
    signature.
    """
    slot, name = part.split("=", 1)
    (found,) = [line for line in parts.describe(slot) if line.name == name]
    assert len(found.summary) > 20 and not found.summary.startswith(f"{name}("), found.summary


@pytest.mark.parametrize("columns", [80, 200, None])
def test_list_shows_each_part_whole(
    columns: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """First line, arguments and defaults, wrapped to the terminal's width; to 120 columns where
    there is no terminal.
    """
    monkeypatch.setattr(sys, "__stdout__", io.StringIO())  # what shutil asks for its terminal
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= (columns or 120)
    flat = " ".join(out.split())
    for part in (part for slot in NAMESPACES for part in parts.describe(slot)):
        assert " ".join(f"{part.name} {part.summary} {part.arguments}".split()) in flat


@pytest.mark.parametrize("part", swaps("prior", "likelihood", "guide", "objective"))
def test_a_misspelt_argument_is_a_sentence(part: str) -> None:
    slot, name = part.split("=", 1)
    with pytest.raises(UserError) as refusal:
        registry.build(
            slot, f"{name}(no_such_argument=1)", latent_dim=2, event_shape=(1, 4, 4), num_data=8
        )
    assert "no_such_argument" in one_line(refusal.value)


# ---- networks


@every("net")
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_a_network_keeps_the_batch_dimensions(net: str, batch: tuple[int, ...]) -> None:
    """From ``(*batch, *in_shape)`` to ``(*batch, *out_shape)`` in both directions, each row a
    function of its own input.
    """
    part: Any = lookup.resolve("net", net)
    torch.manual_seed(0)
    for module, in_shape, out_shape in (
        (part.encoder((1, 4, 4), 3), (1, 4, 4), (3,)),
        (part.decoder(2, (2, 4, 4)), (2,), (2, 4, 4)),
    ):
        x = torch.rand(*batch, *in_shape)
        found = module.eval()(x)
        assert found.shape == (*batch, *out_shape)
        flat = module(x.reshape(-1, *in_shape))
        torch.testing.assert_close(found.reshape(flat.shape), flat)
        assert sum(p.numel() for p in module.parameters()) > 0


# ---- schedules and optimisers


@every("schedule")
def test_a_schedule_is_a_share_of_the_learning_rate(schedule: str) -> None:
    """A factor in [0, 1] over the whole training, that leaves something to learn with."""
    factors = [registry.build("schedule", schedule)(step / 100) for step in range(101)]
    assert all(0.0 <= factor <= 1.0 for factor in factors) and max(factors) == 1.0


@every("optimizer")
def test_an_optimizer_lowers_the_loss(optimizer: str) -> None:
    """20 steps, on a few images again and again."""
    model, guide = build()
    x = images(build(seed=5)[0])
    loss = goal(DEFAULTS.objective)(model, guide)
    before = mean_loss(loss, x)
    quiet: dict[str, Any] = {"batch_size": 12, "progress": False, "compile": "off"}
    fit(model, guide, x, optimizer=optimizer, learning_rate=0.01, num_steps=20, **quiet)
    assert mean_loss(loss, x) < before


# ---- proposals


@every("proposal")
def test_a_proposals_weights_average_to_px(proposal: str) -> None:
    """log p(x) of a grid over z, within the estimate's own errors."""
    model, guide = build(dtype=torch.float64)
    pair, x = Pair.of(model, guide), images(model)
    with pair.active(training=False), torch.no_grad():
        zeros = torch.zeros(len(x), 2, dtype=torch.float64)
        nodes, log_volume = grid(zeros, zeros + 1.0, 81)
        exact = torch.logsumexp(
            Unconstrained(pair, x, rows(x), len(nodes)).terms(nodes, x, rows(x))[1] + log_volume, 0
        )
    found = log_marginal(model, guide, x, 4000, proposal=proposal, device="cpu", compile="off")
    assert ((found.log_px - exact).abs() < 5 * found.se + 1e-6).all()


# ---- data


@every("data")
def test_a_named_set_loads_or_says_what_is_missing(data: str, tmp_path: Path) -> None:
    """Without its files and without a network: the images, or one sentence."""
    try:
        found = lookup.members("data")[data](Source(tmp_path, download=False))
    except UserError as error:
        one_line(error)
    else:
        assert len(found.train) and found.train.shape[1:] == found.test.shape[1:]


# ---- the suite itself


@pytest.mark.parametrize("slot", SWAPPED)
def test_the_suite_names_no_part(slot: str) -> None:
    """What is listed is what is tested: no table of names here, so none to be forgotten in."""
    words: set[str] = set()
    here = Path(__file__).parent
    for path in (here.parent / "support" / "conforming.py", *(here / name for name in TESTS)):
        words |= set(
            "".join(c if c.isalnum() or c == "_" else " " for c in path.read_text()).split()
        )
    assert not words & set(names(slot))


TESTS = sorted(path.name for path in Path(__file__).parent.glob("test_every_*.py"))
