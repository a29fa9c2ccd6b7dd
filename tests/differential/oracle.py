"""What stock Pyro and torch make of a program: its training, its figures, log p(x) of one image.
Nothing here is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.poutine.messenger import Messenger
from torch import Tensor

Epochs = Sequence[Sequence[Tensor]]  # the rows of each step of each epoch
MAX_NODES = 170_000
UNSURE = (
    0.1  # a standard error from which a few of the draws are all of it, and the figure says nothing
)
LEAST_ROWS = 16  # a program may have a branch on the batch's size
NODES = {1: 401, 2: 121}  # of a quadrature, by the number of dimensions


class Untrainable(Exception):
    """Stock Pyro itself can't train the program; its own words."""


class Diverges(Untrainable):
    """Something is not finite: what a sampler does next (VonMises rejects for ever) is no one's
    business.
    """


@contextmanager
def pyros_own(validate: bool = True) -> Iterator[None]:
    """An empty parameter store, float64 by default, Pyro's checks as asked; all restored after."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    checks = pyro.settings.context(
        validate_poutine=validate,
        validate_infer=validate,
        validate_distributions_pyro=validate,
        validate_distributions_torch=validate,
    )
    try:
        with pyro.get_param_store().scope(), torch.random.fork_rng(), checks:
            yield
    finally:
        torch.set_default_dtype(before)


def build(text: str) -> SimpleNamespace:
    """The program, afresh."""
    names: dict[str, Any] = {"__name__": "program"}
    with torch.random.fork_rng(), float64():
        exec(compile(text, "<program>", "exec"), names)
    return SimpleNamespace(**names)


@contextmanager
def float64() -> Iterator[None]:
    """Tensors are float64 unless said otherwise."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_optimizer(
    spec: str, parameters: Sequence[Tensor], lr: float, **more: Any
) -> torch.optim.Optimizer:
    """``"SGD(momentum=0.9)"`` of torch's, unfused unless said otherwise."""
    name, _, rest = spec.partition("(")
    options = eval(f"dict({rest}", {"dict": dict}) if rest else {}
    kind: Any = getattr(torch.optim, name)
    plain = {"foreach": False} if name == "RMSprop" else {"fused": False, "foreach": False}
    return kind(parameters, lr=lr, **{**plain, **options, **more})


class Weighted(Messenger):
    """Latents' densities times the KL's weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.weight


def objective(program: SimpleNamespace) -> tuple[Any, Callable[..., Any]]:
    """Pyro's estimator, which notes down its traces, and the model as it wants it."""
    summed = 'sample("c"' in program.text
    kind: Any = {"Trace_ELBO": Trace_ELBO, "TraceMeanField_ELBO": TraceMeanField_ELBO}[
        program.settings["objective"]
    ]
    if summed:
        kind = TraceEnum_ELBO

    class Noted(kind):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.traces: list[Any] = []

        def _get_trace(self, *arguments: Any) -> Any:
            self.traces.append(super()._get_trace(*arguments))
            return self.traces[-1]

    draws = {"num_particles": program.settings["num_particles"]} if draws_in_turn(program) else {}
    elbo = Noted(max_plate_nesting=2, **draws) if summed else Noted(**draws)
    return elbo, config_enumerate(program.model, default="parallel") if summed else program.model


def draws_in_turn(program: SimpleNamespace) -> bool:
    """Whether Pyro's own objective trains it, which draws its particles one after the other: a
    latent of the whole set, or a density against a mass. Else all are drawn at once, as rows.
    """
    return 'sample("g"' in program.text or "StraightThrough" in program.text


def train(
    program: SimpleNamespace, epochs: Epochs, state: dict[str, Any]
) -> list[tuple[float, float | None]]:
    """Train as ``svi_torch`` does, in place; (loss, ELBO without scales), an image's mean of each
    epoch.

    ``state`` keeps Pyro's parameters between two trainings.
    """
    how, figures = program.settings, []
    elbo, model = objective(program)
    with pyros_own():
        store = pyro.get_param_store()
        store.set_state(state) if state else None
        optimizer = make_optimizer(
            how["optimizer"], list(program.v.parameters()), how["learning_rate"]
        )
        program.v.train()
        torch.manual_seed(how["seed"])
        for number, steps in enumerate(epochs, 1):
            sums, seen = torch.zeros(2, dtype=torch.float64), 0
            for rows in steps:
                rows = rows.repeat(1 if draws_in_turn(program) else how["num_particles"])
                elbo.traces.clear()
                fields = {name: value[rows] for name, value in program.fields.items()}
                try:
                    with Weighted(how["kl_weight"]):
                        loss = elbo.differentiable_loss(
                            model, program.guide, program.x[rows], **fields
                        ) / len(rows)
                    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
                    if new := [p for _, p in store.named_parameters() if id(p) not in trained]:
                        optimizer.add_param_group({"params": new})
                    optimizer.zero_grad(set_to_none=True)
                    if not loss.requires_grad:
                        raise Untrainable("the loss depends on no parameter")
                    loss.backward()
                except (
                    RuntimeError,
                    ValueError,
                    NotImplementedError,
                    AssertionError,
                    KeyError,
                    TypeError,
                ) as error:
                    raise Untrainable(
                        f"{type(error).__name__}: {str(error).splitlines()[0]}"
                    ) from error
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                if how["grad_clip"] is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, how["grad_clip"])
                value = sum(map(unscaled, elbo.traces)) / len(elbo.traces)
                sums += torch.stack((loss.detach() * len(rows), value))
                seen += len(rows)
                optimizer.step()
                if not all(bool(torch.isfinite(p).all()) for p in [loss, *parameters]):
                    raise Diverges(f"in epoch {number}")
                pyro.enable_validation(False)
            figures.append((sums / seen).tolist())
            program.on_epoch_end(number)
        state.update(store.get_state())
    drawn = how["objective"] == "Trace_ELBO" and 'sample("c"' not in program.text
    return [(loss, value if drawn else None) for loss, value in figures]


def unscaled(traces: tuple[Any, Any]) -> Tensor:
    """log p(x, z) − log q(z | x) of these draws, without scales, summed over the batch."""
    total = torch.zeros((), dtype=torch.float64)
    for sign, trace in zip((1, -1), traces, strict=True):
        for node in trace.nodes.values():
            if (
                node["type"] == "sample"
                and type(node["fn"]).__name__ != "_Subsample"
                and not node["infer"].get("_deterministic")
            ):
                log_prob = node["fn"].log_prob(node["value"]).detach()
                mask = node["mask"]
                total += (
                    sign * (log_prob if mask is None or mask is True else log_prob * mask).sum()
                )
    return total


def run_once(program: SimpleNamespace, state: dict[str, Any]) -> None:
    """Both programs in eval mode, so that ``seen`` has the values of Pyro's own parameters."""
    program.seen.clear()
    with pyros_own(False), torch.no_grad():
        if state:
            pyro.get_param_store().set_state(state)
        program.v.eval()
        drawn = poutine.trace(program.guide).get_trace(program.x, **program.fields)
        poutine.replay(program.model, trace=drawn)(program.x, **program.fields)


# ---- log p(x) of one image


def log_px(
    program: SimpleNamespace,
    image: int,
    state: dict[str, Any],
    draws: int = 20_000,
    seed: int | None = None,
) -> tuple[float, float]:
    """log p(x) of one image alone and its standard error: quadrature and sums over all values, or
    draws of the guide.

    Where a seed is given, by draws of the guide in any case.
    """
    with pyros_own(False), torch.no_grad():
        if state:
            pyro.get_param_store().set_state(state)
        program.v.eval()
        torch.manual_seed(image if seed is None else seed)

        def rows(number: int) -> tuple[Tensor, dict[str, Tensor]]:
            index = torch.full((number,), image)
            return program.x[index], {name: value[index] for name, value in program.fields.items()}

        model = poutine.trace(program.model)
        x, fields = rows(8)
        latents = {
            n: node for n, node in _sites(model.get_trace(x, **fields)) if not node["is_observed"]
        }
        if seed is None and (grid := _grid(latents)) is not None:
            values, log_measure = grid
            again = -(-LEAST_ROWS // len(log_measure))
            log_measure = log_measure.repeat(again) - math.log(again)
            values = {n: v.repeat(again, *[1] * (v.dim() - 1)) for n, v in values.items()}
            values = {
                n: v.unsqueeze(1) if program.dims[n] == -2 else v for n, v in values.items()
            }  # plate, event
            weights = log_measure + _joint(program, model, values, *rows(len(log_measure)))
            return float(weights.logsumexp(0)), 0.0
        x, fields = rows(draws)
        guide = poutine.trace(program.guide).get_trace(x, **fields)
        values = {name: node["value"] for name, node in _sites(guide)}
        summed, _ = _grid({n: node for n, node in latents.items() if n not in values}) or ({}, None)
        summed = {
            n: v.reshape(-1, 1, *[1] * (program.dims[n] == -2)) for n, v in summed.items()
        }  # value, row, plate
        places = [
            {n: v[i].expand(draws, *v.shape[2:]) for n, v in summed.items()}
            for i in range(_values(summed))
        ]
        joint = torch.stack([_joint(program, model, values | place, x, fields) for place in places])
        weights = joint.logsumexp(0) - _total(program, guide, len(x))
        w = (weights - weights.max()).exp()
        se = float(w.std() / w.mean() / math.sqrt(draws))
        return float(weights.logsumexp(0) - math.log(draws)), se if se < UNSURE else math.inf


def _values(summed: dict[str, Tensor]) -> int:
    """How many places a sum runs over; one where nothing is summed out."""
    return max(map(len, summed.values()), default=1)


def _sites(trace: Any) -> list[tuple[str, Any]]:
    return [
        (name, node)
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and type(node["fn"]).__name__ != "_Subsample"
        and not node["infer"].get("_deterministic")
    ]


def _joint(
    program: SimpleNamespace,
    model: Any,
    values: dict[str, Tensor],
    x: Tensor,
    fields: dict[str, Tensor],
) -> Tensor:
    """log p(x, z) of each row, at these latents."""
    drawn = poutine.Trace()
    for name, value in values.items():
        drawn.add_node(
            name, name=name, type="sample", value=value, is_observed=False, infer={}, fn=None
        )
    trace = poutine.trace(poutine.replay(model.fn, trace=drawn)).get_trace(x, **fields)
    return _total(program, trace, len(x))


def _total(program: SimpleNamespace, trace: Any, number: int) -> Tensor:
    """Each row's log density, without scales: over all of a site's dimensions but the images' own."""
    trace.compute_log_prob()
    total = torch.zeros(number)
    for name, node in _sites(trace):
        dim = program.dims.get(name, program.dims["x"])
        log_prob = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"])
        if log_prob.dim() < -dim or log_prob.shape[dim] not in (1, number):
            raise ValueError(f"site {name}: log_prob of shape {tuple(log_prob.shape)}")
        other = [d for d in range(-log_prob.dim(), 0) if d != dim]
        total = total + (log_prob.sum(other) if other else log_prob)
    return total


def _grid(latents: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor] | None:
    """Values of all latents, rows first, and the log of each row's measure; None where they are too
    many.
    """
    axes = []
    for name, node in latents.items():
        axis = _axis(node["fn"])
        if axis is None:
            return None
        axes.append((name, *axis))
    total = math.prod(len(weights) for _, _, weights in axes)
    if not axes or total > MAX_NODES:
        return None
    places = torch.cartesian_prod(*(torch.arange(len(w)) for _, _, w in axes)).reshape(total, -1)
    values = {name: nodes[places[:, i]] for i, (name, nodes, _) in enumerate(axes)}
    return values, sum(weights[places[:, i]] for i, (_, _, weights) in enumerate(axes))  # type: ignore[return-value]


def _axis(fn: Any) -> tuple[Tensor, Tensor] | None:
    """A site's values and their log measure: all values of a discrete one, a trapezoid rule for a
    continuous one.
    """
    if fn.has_enumerate_support:
        every = fn.enumerate_support(expand=False)
        every = every.reshape(len(every), *fn.event_shape)
        return every, torch.zeros(len(every))
    dims = fn.event_shape.numel() if fn.event_dim else 1
    support = (
        fn.support.base_constraint
        if isinstance(fn.support, constraints.independent)
        else fn.support
    )
    if type(fn).__name__ == "VonMises":
        nodes = 401
        points = -math.pi + 2 * math.pi * (torch.arange(nodes) + 0.5) / nodes
        return points, torch.full((nodes,), math.log(2 * math.pi / nodes))
    if dims not in NODES or support is constraints.simplex:
        return None
    wide = 8.0 if support in (constraints.real, constraints.real_vector) else 14.0
    line = torch.linspace(-wide, wide, NODES[dims])
    log_step = math.log(2 * wide / (NODES[dims] - 1))
    if support is constraints.unit_interval:
        points, jacobian = (
            line.sigmoid(),
            torch.nn.functional.logsigmoid(line) + torch.nn.functional.logsigmoid(-line),
        )
    elif support in (constraints.positive, constraints.nonnegative):
        points, jacobian = (line / 2).exp(), line / 2 - math.log(2)
    elif support in (constraints.real, constraints.real_vector):
        points, jacobian = line, torch.zeros_like(line)
    else:
        return None
    if fn.event_dim == 0:
        return points, jacobian + log_step
    places = torch.cartesian_prod(*[torch.arange(len(line))] * dims).reshape(-1, dims)
    return points[places], (jacobian + log_step)[places].sum(-1)
