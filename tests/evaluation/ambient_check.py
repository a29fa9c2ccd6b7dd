"""Run by `test_ambient.py` in a process of its own: evaluations and trainings, each in a fork that
has set something.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable
from importlib import import_module
from itertools import product
from multiprocessing.connection import Connection
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, backends, nn

import pyro_vae as pv
from pyro_vae.ambient import SETTINGS, exact

NEW: dict[str, Callable[[], object]] = {
    "all tf32": lambda: setattr(backends, "fp32_precision", "tf32"),
    "all bf16": lambda: setattr(backends, "fp32_precision", "bf16"),
    "all ieee": lambda: setattr(backends, "fp32_precision", "ieee"),
    "cuda tf32": lambda: setattr(backends.cudnn, "fp32_precision", "tf32"),
    "cuda ieee": lambda: setattr(backends.cudnn, "fp32_precision", "ieee"),
    "cuda.matmul tf32": lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"),
    "cudnn.conv tf32": lambda: setattr(backends.cudnn.conv, "fp32_precision", "tf32"),
    "cudnn.conv none": lambda: setattr(backends.cudnn.conv, "fp32_precision", "none"),
    "mkldnn.matmul bf16": lambda: setattr(backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "mkldnn.conv tf32": lambda: setattr(backends.mkldnn.conv, "fp32_precision", "tf32"),
}
OLD: dict[str, Callable[[], object]] = {
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "highest": lambda: torch.set_float32_matmul_precision("highest"),
    "allow_tf32": lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
    "cudnn without tf32": lambda: setattr(backends.cudnn, "allow_tf32", False),
}
OTHER: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16).__enter__(),
    "float64": lambda: torch.set_default_dtype(torch.float64),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "warn only": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "two threads": lambda: torch.set_num_threads(2),
}


def state() -> dict[str, Any]:
    """All that may be set, as torch's new names and its old ones have it; an old one may not be
    readable.
    """
    found: dict[str, Any] = {str(i): each.fp32_precision for i, each in enumerate(SETTINGS)}
    old = (
        torch.get_float32_matmul_precision,
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
    )
    for number, read in enumerate(old):
        try:
            found[f"old {number}"] = read()
        except RuntimeError:
            found[f"old {number}"] = "unreadable"
    found["autocast"] = torch.is_autocast_enabled("cpu"), str(torch.get_autocast_dtype("cpu"))
    found["casts kept"] = torch.is_autocast_cache_enabled()
    found["dtype"], found["threads"] = str(torch.get_default_dtype()), torch.get_num_threads()
    return found


class Model(nn.Module):
    """A decoder that writes down what is set while it runs in eval mode, and fails where it is told
    to.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.decoder = nn.Linear(3, 40, dtype=torch.float32)
        self.seen: set[tuple[bool, frozenset[str]]] = set()
        self.fails = False

    def forward(self, x: Tensor) -> None:
        """log p(x, z)."""
        pyro.module("decoder", self.decoder)
        if not self.training:
            set_to = frozenset(each.fp32_precision for each in SETTINGS)
            self.seen.add((torch.is_autocast_enabled("cpu"), set_to))
        if self.fails:
            raise ValueError("told to fail")
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), x.new_ones(())).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z).float()).to_event(1), obs=x)


class Guide(nn.Module):
    """A linear encoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Linear(40, 3, dtype=torch.float32)

    def forward(self, x: Tensor) -> None:
        """q(z | x)."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x).float(), x.new_tensor(0.8)).to_event(1))


X = (torch.rand(30, 40, generator=torch.Generator().manual_seed(2)) < 0.3).float()


def evaluated(everything: bool = True) -> dict[str, Any]:
    """The numbers of each evaluation, the settings before and after, and those that the programs
    ran under.
    """
    before, model, guide = state(), Model(), Guide()
    found: dict[str, Any] = {}
    for tier in ("off", "graph"):
        number = pv.log_marginal(model, guide, X, num_samples=40, compile=tier, device="cpu")
        found[f"log p(x), {tier}"] = number.log_px.tolist()
    found["protocol"] = number.protocol
    found["encode"] = pv.encode(model, guide, X, device="cpu")["z"].tolist()
    found["log_weights"] = pv.log_weights(model, guide, X).isfinite().all().item()
    if everything:
        found |= long_ones(model, guide)
    model.fails = True
    try:
        pv.log_marginal(model, guide, X, num_samples=40, compile="off", device="cpu")
    except pv.UserError as error:
        found["error"] = str(error)
    return {
        **found,
        "restored": state() == before,
        "seen": [[cast, sorted(at)] for cast, at in model.seen],
    }


def long_ones(model: Model, guide: Guide) -> dict[str, Any]:
    """The numbers of the evaluations that take seconds."""
    found = {"reconstruct": pv.reconstruct(model, guide, X, device="cpu")["x"].tolist()}
    found["ais"] = pv.ais(
        model, guide, X[:4], num_steps=5, num_chains=3, num_leapfrog=1, device="cpu"
    ).log_px.tolist()
    found["bdmc"] = pv.bdmc(
        model, guide, 3, num_steps=4, num_chains=2, num_leapfrog=1, like=X, device="cpu"
    ).lower_px.tolist()
    return found


def trained() -> dict[str, Any]:
    """What `fit` notes, and the settings before and after."""
    before, model = state(), Model()
    history = pv.fit(
        model, Guide(), X, num_steps=6, batch_size=10, compile="graph", device="cpu", progress=False
    )
    return {
        "note": history.note,
        "tier": history.compile,
        "restored": state() == before,
        "loss": history.train[-1].loss,
    }


def histories(length: int) -> dict[str, Any]:
    """Whether after `exact` all is as without it, whatever was set before and is set after, in
    words where it is not.
    """
    acts = NEW | OLD

    def after(names: tuple[str, ...], entered: bool) -> list[dict[str, Any]]:
        for name in names[:-1]:
            acts[name]()
        if entered:
            for products in ("ieee", "tf32"):
                with exact(products):
                    assert {each.fp32_precision for each in SETTINGS} == {products}
        found = [state()]
        acts[names[-1]]()  # what follows a general setting still does
        return [*found, state()]

    differing = []
    for names in product(acts, repeat=length):
        if forked(lambda names=names: after(names, True)) != forked(
            lambda names=names: after(names, False)
        ):
            differing.append(names)
    return {"histories": len(acts) ** length, "differing": differing}


def forked(work: Callable[[], Any]) -> Any:
    """What ``work`` returns, in a process of its own."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # torch's pool anew, before two threads of it ask at once
        try:
            result = work()
        except BaseException as error:
            result = {"failed": f"{type(error).__name__}: {error}"}
        os.write(send, json.dumps(result, default=str).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    return json.loads(content)


def under(settings: Iterable[str], work: Callable[[], Any]) -> Any:
    """The same, with these settings made."""

    def run() -> Any:
        for each in settings:
            (NEW | OLD | OTHER)[each]()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message=".*torch.jit.*")
            return work()

    return forked(run)


def main(send: Connection, word: str, *arguments: str) -> None:
    """Sends what is asked for: each argument's settings, or whether settings come back."""
    torch.set_num_threads(1)
    if word == "histories":
        send.send(histories(int(arguments[0])))
        return
    work = {
        "briefly": lambda: evaluated(everything=False),
        "evaluated": evaluated,
        "trained": trained,
    }[word]
    for module in (
        "torch._dynamo",
        "torch.fx.experimental.symbolic_shapes",
        "pyro_vae.evaluation.bdmc",
        "pyro_vae.training.fit",
    ):
        import_module(module)  # once, and not in each fork
    send.send({each: under(each.split("+"), work) for each in arguments})
