"""The compiled evaluator's tanh is tanh, to float32's rounding."""

import pytest
import torch
from torch import Tensor

from pyro_vae import guides, log_marginal, models
from pyro_vae.compile.graph_passes import quicken
from pyro_vae.compile.trace import missing_compiler, trace

NAMES = ("tanh", "sigmoid")


def calls(graph: torch.fx.Graph) -> list[str]:
    """What the graph calls, of the functions above."""
    found = [str(node.target).split(".")[-2] for node in graph.nodes if "." in str(node.target)]
    return [name for name in found if name in NAMES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_by_one_exponential_is_tanh(dtype: torch.dtype) -> None:
    x = torch.cat(
        (
            torch.linspace(-20, 20, 4001),
            torch.tensor([-1e30, 1e30, torch.inf, -torch.inf, torch.nan]),
        )
    )
    x = x.to(dtype)
    program = trace(lambda x: [x.tanh()], [x])
    quicken(program.graph)
    (found,) = program(x)
    exact = x.double().tanh()
    assert calls(program.graph.graph) == (["sigmoid"] if dtype == torch.float32 else ["tanh"])
    assert torch.equal(found.isnan(), exact.isnan())
    error = (found - exact)[~exact.isnan()].abs().max()
    assert float(error) <= (2 * torch.finfo(torch.float32).eps if dtype == torch.float32 else 0.0)


@pytest.mark.skipif(
    bool(missing_compiler(torch.device("cpu"))), reason=missing_compiler(torch.device("cpu"))
)
@pytest.mark.slow
def test_log_px_by_compiled_tanh_layers_is_that_of_the_programs_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    likelihood = models.Bernoulli(4, (1, 8, 8), hidden=(32, 32), activation="tanh")
    model = models.GenerativeModel(models.StandardNormal(4), likelihood)
    guide = guides.MeanField((1, 8, 8), 4, hidden=(32,), activation="tanh")
    x = (torch.rand(6, 1, 8, 8) < 0.3).float()
    seen: list[list[str]] = []

    def watched(module: torch.fx.GraphModule) -> None:
        quicken(module)
        seen.append(calls(module.graph))

    monkeypatch.setattr("pyro_vae.compile.partition.quicken", watched)

    def log_px(tier: str) -> Tensor:
        return log_marginal(model, guide, x, num_samples=200, compile=tier).log_px

    expected, found = log_px("off"), log_px("inductor")
    assert float((found - expected).abs().max()) < 1e-4  # float32, sums of 64 pixels
    assert seen and "tanh" not in seen[0] and seen[0].count("sigmoid") >= 2
