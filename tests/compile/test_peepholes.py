"""What is left out of a traced graph changes no bit, and no tensor that somebody else may write to."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_vae.compile.trace import trace

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def size(function: Callable[[Tensor], list[Tensor]]) -> int:
    """Of the graph; its replay is the function, to the last bit."""
    program = trace(function, [X])
    for found, expected in zip(program(X), function(X), strict=True):
        assert torch.equal(found, expected)
    return sum(node.op == "call_function" for node in program.graph.graph.nodes)


@pytest.mark.parametrize(
    "identity",
    [
        lambda x: x.view(4, 6),
        lambda x: x.expand(4, 6),
        lambda x: x.t().t(),
        lambda x: x / 1,
        lambda x: x * 1.0,
        lambda x: x.pow(1),
        lambda x: torch.cat([x], 1),
        lambda x: (x / 1).t().t().expand(4, 6) * 1,
    ],
)
def test_what_changes_nothing_is_left_out(identity: Callable[[Tensor], Tensor]) -> None:
    assert size(lambda x: [identity(x.exp()).sum()]) == 2


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x / 2,
        lambda x: x + 0,  # −0 becomes 0
        lambda x: x.t(),
        lambda x: x.view(24),
        lambda x: torch.ones(4, 1).mul(1).expand(4, 6) * x,
        lambda x: x.expand(2, 4, 6),
        lambda x: x / torch.tensor(1.0),
        lambda x: x.int() / 1,
        lambda x: torch.cat([x, x]),
        lambda x: torch.rsub(x, 1),
    ],
)
def test_what_changes_something_stays(work: Callable[[Tensor], Tensor]) -> None:
    assert size(lambda x: [work(x.exp()).sum()]) > 2


def test_a_result_that_leaves_is_a_tensor_of_its_own() -> None:
    program = trace(lambda x: [x / 1, (x * 1).t()], [X])
    own, viewed = program(X)
    assert X.data_ptr() not in (own.data_ptr(), viewed.data_ptr())


def test_copies_stay_where_something_is_written_to() -> None:
    def work(x: Tensor) -> list[Tensor]:
        y = x.exp()
        copy = y / 1
        y.add_(1.0)
        return [(copy * 2).sum(), y.sum()]

    assert size(work) == 6


def test_copies_that_nothing_reads_after_the_first_writing_are_left_out() -> None:
    """A training step writes its parameters last."""

    def work(x: Tensor) -> list[Tensor]:
        early, late, written = x.exp() / 1, x.sin() / 1, x.cos()
        total = early.sum()
        written.add_(1.0)
        return [total, written, late.t() + written.t()]

    assert size(work) == 9  # all but one division


def test_noise_that_fills_an_empty_tensor_is_no_such_writing() -> None:
    program = trace(lambda x: [((x.exp() + torch.empty(4, 6).normal_()) / 1).sum()], [X])
    assert "div" not in program.graph.code
