"""A data set that the device has no room for stays on the host, and gives the same batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_vae.data import loaders
from pyro_vae.data.batches import Batch, Hosted, Resident
from pyro_vae.data.loaders import make_source
from pyro_vae.rng import permutation

CPU, META = torch.device("cpu"), torch.device("meta")
X = torch.rand(47, 3, generator=torch.Generator().manual_seed(0))
FIELDS = {"y": torch.arange(47)}


def same(a: Batch, b: Batch) -> bool:
    """Images and fields agree to the last bit."""
    return (
        torch.equal(a[0], b[0])
        and a[1].keys() == b[1].keys()
        and all(torch.equal(value, b[1][name]) for name, value in a[1].items())
    )


def test_its_batches_are_those_of_a_set_on_the_device() -> None:
    ours, theirs = Hosted(X, FIELDS, 10, CPU), Resident(X, FIELDS, 10, CPU)
    passes = [
        lambda source: source.shuffled(3, 1),
        lambda source: source.shuffled(3, 1, skip=2),
        lambda source: source.in_order(),
        lambda source: iter([source.drawn(5), source.part(slice(4, 9))]),
    ]
    for one_pass in passes:
        pairs = list(zip(one_pass(ours), one_pass(theirs), strict=True))
        assert pairs and all(same(a, b) for a, b in pairs)


def test_all_that_it_gives_is_on_the_device_and_what_it_keeps_is_not() -> None:
    source = Hosted(X, FIELDS, 10, META)
    batches = [next(source.shuffled(0, 0)), next(source.in_order()), source.drawn(0)]
    for x, fields in batches:
        assert all(tensor.is_meta for tensor in (x, *fields.values()))
    assert source.x.device == CPU and "host's memory" in source.note


def test_a_set_that_a_device_has_no_room_for_stays_on_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = {"bytes": X.nbytes * 2}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free["bytes"], 0))
    cuda = torch.device("cuda")
    assert loaders.has_room(X, cuda) and loaders.has_room(X, CPU)
    free["bytes"] = X.nbytes
    assert not loaders.has_room(X, cuda) and loaders.has_room(X, CPU)
    monkeypatch.setattr(loaders, "has_room", lambda x, device: False)
    assert type(make_source(X, FIELDS, 10, CPU)) is Hosted


def test_the_order_is_drawn_on_the_cpu_whatever_the_default_device_is() -> None:
    """`torch.set_default_device("cuda")` is common, and a CPU generator draws on the CPU alone."""

    def orders() -> list[Tensor]:
        source = Resident(X, FIELDS, 10, CPU)
        return [permutation(47, 3), *source.rows(1, 2), source.drawn(4)[1]["index"]]

    expected = orders()
    with torch.device("meta"):
        found = orders()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
