"""Tensors, arrays, Datasets and DataLoaders as people have them: served as the tensor is, or
refused in a line.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import pyro_vae as pv
from pyro_vae import guides, models

N = 23
X = (torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.3).float()


class Of(Dataset[Any]):
    """Items by a function of the row."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> Any:
        return self.item(row)


class Stream(IterableDataset[Tensor]):
    """The rows in order, under a length that may be a lie."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    likelihood = models.Bernoulli(2, (1, 4, 4), hidden=(3,))
    model = models.GenerativeModel(prior=models.StandardNormal(2), likelihood=likelihood)
    return model, guides.MeanField((1, 4, 4), 2, hidden=(3,))


def scored(pair: tuple[Any, Any], data: Any) -> pv.LogMarginal:
    return pv.log_marginal(*pair, data, num_samples=5, compile="off")


def trained(pair: tuple[Any, Any], data: Any, **options: Any) -> None:
    pv.fit(*pair, data, num_steps=1, batch_size=8, progress=False, compile="off", **options)


READ_ONLY = X.numpy().copy()
READ_ONLY.setflags(write=False)


@pytest.mark.parametrize(
    "data",
    [
        X.numpy().astype(">f4"),
        X.numpy().astype(">i2"),
        X.numpy().astype("uint16"),
        READ_ONLY,
        X.numpy()[:, :, ::-1, ::-1][:, :, ::-1, ::-1],
        X.to(torch.float16),
        X.to(torch.bfloat16),
        X.to(torch.uint16),
        DataLoader(TensorDataset(X), 7),
        DataLoader(Of(lambda row: {"x": X[row], "name": f"{row}.png"}), 30),
        Of(lambda row: (X[row], "a.png")),
        Of(lambda row: (X[row], {"age": 1.0})),
        DataLoader(TensorDataset(X), sampler=BatchSampler(SequentialSampler(X), 7, False),
                   batch_size=None),
        Stream(N),
    ],
    ids=["big-endian", "big-endian integers", "uint16", "read-only", "reversed", "float16",
         "bfloat16", "torch.uint16", "loader", "dict with text", "text", "dict in tuple",
         "loader of batches", "iterable with a length"],
)  # fmt: skip
def test_it_is_scored_as_the_tensor_is(pair: tuple[Any, Any], data: Any) -> None:
    """The same noise image by image, however the rows come; float16 models aside, the same bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scored(pair, data)
    expected = scored(pair, X)
    assert torch.equal(found.log_px, expected.log_px)
    assert found.protocol["num_images"] == N and not found.notes


def test_what_a_loader_gave_is_counted(pair: tuple[Any, Any]) -> None:
    """A sampler of 10 rows, a length that lies: the protocol has the number scored, with a note."""
    data = TensorDataset(X)
    some = scored(pair, DataLoader(data, 4, sampler=SubsetRandomSampler(range(10))))
    assert some.num_images == some.protocol["num_images"] == 10
    assert some.notes == ("10 images came from the loader, but TensorDataset has 23",)
    dropped = scored(pair, DataLoader(data, 4, drop_last=True))
    assert dropped.num_images == dropped.protocol["num_images"] == 20 and dropped.notes
    lying = scored(pair, DataLoader(Stream(11), 4))
    assert lying.num_images == lying.protocol["num_images"] == N
    assert lying.notes == ("23 images came from the loader, but Stream has 11",)


@pytest.mark.parametrize(
    "sampler",
    [WeightedRandomSampler([1.0] * N, 40), [*range(N), 0], torch.utils.data.RandomSampler(X, True)],
    ids=["weighted", "a list", "random"],
)
def test_images_that_come_twice_are_not_scored(pair: tuple[Any, Any], sampler: Any) -> None:
    """The error bar would take them for independent; a training may weight its images so."""
    loader = DataLoader(TensorDataset(X), 8, sampler=sampler)
    for estimate in (scored, lambda pair, data: pv.ais(*pair, data, num_steps=2, num_chains=2)):
        with pytest.raises(pv.UserError, match=r"replacement|Some images came twice"):
            estimate(pair, loader)
    trained(pair, loader)


REFUSED: list[tuple[Any, str]] = [
    (X.numpy().astype("longdouble"), "astype\\('float64'\\)"),
    (X.to_sparse(), "to_dense"),
    (X.to("meta"), "meta device"),
    (X.to(torch.float8_e4m3fn), "to\\(torch.float32\\)"),
    (np.ma.masked_equal(X.numpy(), 0), "masked entries"),
    (X.numpy().astype(str), "dtype <U32"),
    (X.tolist(), "is a list"),
    (DataLoader(TensorDataset(X), 4, sampler=[]), "gave no batch"),
    (DataLoader(TensorDataset(X), 50, drop_last=True), "gave no batch"),
    (DataLoader(TensorDataset(X), batch_size=None), "give it a batch_size"),
    (Of(lambda row: (X[row], None)), "items of Of can't be put into one batch"),
    (Of(lambda row: X[row, :, : 2 + row % 2]), "all images of one shape"),
    (Of(lambda row: "a.png"), "has a list as x"),
    (Of(lambda row: {"image": X[row]}), "has a NoneType as x"),
]


@pytest.mark.parametrize(("data", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_is_no_set_of_images_is_refused_in_a_line(
    pair: tuple[Any, Any], data: Any, words: str
) -> None:
    """By `fit` and by `log_marginal` alike."""
    for use in (scored, trained):
        with pytest.raises(pv.UserError, match=words) as refused:
            use(pair, data)
        assert "\n" not in str(refused.value)


def test_tables_of_other_packages_are_told_how_to_become_arrays(pair: tuple[Any, Any]) -> None:
    """pandas and scipy.sparse have a method each."""
    pandas = pytest.importorskip("pandas")
    sparse = pytest.importorskip("scipy.sparse")
    for data, words in (
        (pandas.DataFrame(X.flatten(1).numpy()), 'give its .to_numpy\\(dtype="float32"\\)'),
        (sparse.csr_array(X.flatten(1).numpy()), "give its .toarray"),
    ):
        with pytest.raises(pv.UserError, match=words):
            scored(pair, data)


def test_a_device_that_is_not_there_is_one_line(pair: tuple[Any, Any]) -> None:
    """Whichever kind it is."""
    for device in ("mps", "meta", "xpu", torch.device("meta")):
        if device == "mps" and torch.backends.mps.is_available():
            continue
        with pytest.raises(pv.UserError, match="torch can't use it here"):
            pv.log_marginal(*pair, X, num_samples=2, device=device)
