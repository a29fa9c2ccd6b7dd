"""Rescoring: log q again at the same draws, with constant parameters, for path-derivative
gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from pyro_vae.errors import first_line
from pyro_vae.pair.module_state import attributes_kept, statistics_kept
from pyro_vae.pair.nodes import Call, Fields, latent_nodes, log_prob_of, plain_draw
from pyro_vae.pair.program import Program

if TYPE_CHECKING:
    from pyro_vae.pair.runtime import Pair


class Held(TorchFunctionMode):
    """Inside, these tensors are constants: every operation receives their detached selves.

    They are constant wherever they are used, in a module, a ``pyro.param`` or a closure. It leaves
    tensors that the program makes for itself alone (the inner gradient steps of a
    semi-amortized guide).
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self._constants = {id(tensor): tensor.detach() for tensor in tensors}
        self._kept = tensors  # an id is a tensor's for as long as it lives

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(
            lambda value: self._constants.get(id(value), value), (args, kwargs or {})
        )
        return func(*args, **kwargs)


def held_draw(guide: Call, x: Tensor, fields: Fields) -> poutine.Trace:
    """The guide's draws z = z_φ(ε, x), as copies, with log q_φ̄(z | x): φ̄ is φ without its
    gradient, z keeps its own.

    The guide runs a second time, replayed at the copies, so that q(z₂ | z₁, x) is conditioned on
    the copy of z₁ and each copy's gradient is the partial derivative that one hook may weigh. A
    copy is another tensor than the draw: a flow that remembers its last draw would score it by what
    it remembers, with φ in it.
    """
    drawn = plain_draw(guide, x, fields)
    if not torch.is_grad_enabled():
        return drawn
    return rescored(guide, x, fields, *_at_copies(drawn, lambda value: value.view_as(value)))


def _at_copies(
    drawn: poutine.Trace, copy: Callable[[Tensor], Tensor]
) -> tuple[poutine.Trace, list[nn.Parameter]]:
    """The draws as copies, and the parameters that log q of the draws depends on."""
    copies, latents = drawn.copy(), latent_nodes(drawn)
    parameters = leaves(*(log_prob_of(node) for node in latents.values()))
    copies.nodes.update(
        {name: {**node, "value": copy(node["value"])} for name, node in latents.items()}
    )
    return copies, parameters


def rescored(
    guide: Call, x: Tensor, fields: Fields, at: poutine.Trace, parameters: Sequence[Tensor]
) -> poutine.Trace:
    """The guide run at the values of ``at`` and scored with ``parameters`` as constants."""
    with Held(parameters), statistics_kept(), warnings.catch_warnings():
        # pyro.module warns of parameters that require no gradient, which is what constant
        # parameters are
        warnings.filterwarnings("ignore", message=".*was not registered in the param store")
        again = plain_draw(poutine.replay(guide, trace=at), x, fields)
        for node in latent_nodes(again).values():
            node["unscaled_log_prob"] = log_prob_of(node)
    return again


def leaves(*values: Tensor) -> list[nn.Parameter]:
    """The tensors that the values' gradient would flow into."""
    found: dict[int, Any] = {}
    waiting, met = [value.grad_fn for value in values], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in met:
            continue
        met.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        waiting += [following for following, _ in node.next_functions]
    return list(found.values())


def probe(pair: Pair, x: Tensor, fields: Fields) -> dict[str, Any]:
    """What `Structure` says of scoring a given z: ``own_draws_only`` and ``not_held``; inside
    ``pair.probing``.
    """
    latents = latent_nodes(plain_draw(pair.guide, x, fields))
    own = tuple(name for name, node in latents.items() if not scores_foreign(node))
    if own or not latents:
        return {"own_draws_only": own}
    with (
        torch.enable_grad(),
        pair.active(training=True),
        statistics_kept(),
        attributes_kept(pair.modules),
    ):
        return {"not_held": _why_not_held(pair.guide, x, fields)}


def _why_not_held(guide: Program, x: Tensor, fields: Fields) -> str:
    """Why a training run of the guide can't be scored again at its draws; nothing where it can."""
    try:
        fixed = _at_copies(plain_draw(guide, x, fields), lambda value: value.detach().clone())
        first, second = (latent_nodes(rescored(guide, x, fields, *fixed)) for _ in range(2))
    except Exception as error:
        return f"it fails when it is run again at its own draws ({first_line(error)})"
    for name, node in first.items():
        log_q, again = node["unscaled_log_prob"], second[name]["unscaled_log_prob"]
        if log_q.requires_grad:
            return (
                f"log q of its site {name!r} depends on a tensor that requires gradients and "
                "that can't be kept constant"
            )
        if not torch.allclose(log_q, again, rtol=1e-4, atol=1e-4):
            return (
                f"log q of its site {name!r} changes from run to run at the same z, such as "
                "with dropout in training mode"
            )
    return ""


def scores_foreign(node: Any) -> bool:
    """Whether a site's ``log_prob``, with what its statement passes on, takes a copy of a draw, as
    if it were any z, and gives the draw's own density.
    """
    try:
        own, foreign = log_prob_of(node), log_prob_of({**node, "value": node["value"].clone()})
    except (
        Exception
    ):  # each flow has its own way to say no: KeyError, NotImplementedError, RuntimeError
        return False
    return torch.allclose(own, foreign, rtol=1e-3, atol=1e-2)
