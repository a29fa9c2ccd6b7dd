"""A program's verdict: pyro_vae against the oracle, training and scores, and why where they differ."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import torch

import pyro_vae as pv
from tests.differential.grammar import DECODERS, FEATURES, generate
from tests.differential.oracle import (
    Diverges,
    Untrainable,
    build,
    float64,
    log_px,
    make_optimizer,
    run_once,
    train,
)

TOLERANCE = 1e-6  # of parameters, buffers and figures, relative, after the whole training
STANDARD_ERRORS = 5.0
FAILURES = ("different", "traceback")
LEAST_NATS = 2e-3  # of log p(x): what quadrature and the bias of few draws may differ by


@dataclass
class Verdict:
    """``equal``, ``refused``, ``different`` or ``traceback``; ``untrainable`` where stock Pyro
    can't train it.

    Or ``own word``: Python state moves, and the user has asked for a tier that traces once.
    """

    seed: int
    verdict: str = "equal"
    stage: str = ""  # fit, score or "score again"
    what: str = ""  # which figure differs, or the sentence
    mended_by: str = ""  # the change under which it is equal: another tier, an unfused optimiser
    least: tuple[str, ...] | None = (
        None  # the tags that are left where any other is dropped, and it still fails
    )
    kinds: dict[str, str] = field(
        default_factory=dict
    )  # what differs with this suspect alone, by tag
    tags: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    refused_scores: list[str] = field(default_factory=list)
    no_log_px: str = ""  # why a score has to be refused


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings are not what is judged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@lru_cache
def epochs_of(
    num_images: int, batch_size: int, num_epochs: int, seed: int
) -> list[list[torch.Tensor]]:
    """The rows of each step of each epoch of ``fit``, told by a pair that names ``index``."""
    epochs: list[list[torch.Tensor]] = [[]]
    last = [torch.empty(0)]

    def model(x: torch.Tensor, index: torch.Tensor) -> None:
        last[0] = index.clone()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: torch.Tensor, index: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, torch.ones(len(x))))

    class Noting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            epochs[-1].append(last[0])
            return super().step(closure)

    pv.fit(
        model, guide, torch.zeros(num_images, 1), num_epochs=num_epochs, batch_size=batch_size, seed=seed, compile="off",
        optimizer=lambda ps: Noting(ps, lr=1e-3), callbacks=[lambda end: epochs.append([])], progress=False,
    )  # fmt: skip
    return epochs[:-1]


SUSPECTS = (
    *(f"decoder: {name}" for name in DECODERS),
    *(
        tag
        for tag, (_, parts) in FEATURES.items()
        if not set(parts) <= {"init", "add"} or "hook" in tag
    ),
    *(
        "branch on the batch's size",
        "buffer",
        "plate: two",
        "plate: unsized",
        "latent: relaxed",
        "latent: vonmises",
    ),
    *(
        "scale: annealed",
        "scale: both, a tensor",
        "scale: both, an image's own",
        "latent: summed out",
    ),
    *("guide's order reversed", "observed: factor", "form: lambda", "latent that the guide lacks"),
    *(
        "between evaluations: replaced",
        "between evaluations: in place",
        "between evaluations: loaded",
    ),
    *(
        "encoder: spectral norm",
        "encoder: weight norm",
        "mask: rows",
        "mask: elements",
        "mask: True",
    ),
)
"""Features that may be a failure's reason by themselves."""


def judge(
    seed: int,
    why: bool = False,
    shrink: bool = False,
    isolate: bool = False,
    without: Collection[str] = (),
    **changed: Any,
) -> Verdict:
    """The verdict on program number ``seed``, with settings changed as told; where it fails, what
    it is due to.

    ``why`` tries changed settings, ``shrink`` drops what the failure does not need, ``isolate``
    leaves one suspect a time; ``without`` drops features from the start.
    """
    with quiet(), float64():
        found = _judge(seed, changed, without)
        if found.verdict in FAILURES:
            found.mended_by = _cause(seed, found) if why else ""
            found.least = _shrink(seed, found, changed) if shrink else None
        if isolate and found.verdict in (*FAILURES, "refused"):
            found.kinds = _isolate(seed, found, changed)
    return found


def _isolate(seed: int, found: Verdict, changed: dict[str, Any]) -> dict[str, str]:
    suspects = [tag for tag in SUSPECTS if tag in found.tags]
    kinds = {}
    for suspect in suspects or [""]:
        others = {tag for tag in suspects if tag != suspect}
        # what is dropped may let something else in
        while new := {tag for tag in build(generate(seed, others)).tags if tag in SUSPECTS} - {
            suspect
        }:
            others |= new
        other = _judge(seed, changed, others) if others else found
        if other.verdict in (*FAILURES, "refused"):
            kinds[suspect] = f"{other.verdict}, {other.stage}: {other.what}"
    return kinds


def _shrink(seed: int, found: Verdict, changed: dict[str, Any]) -> tuple[str, ...]:
    """Drop one feature after another, as long as the program's failure is of this kind."""
    without: list[str] = []
    left = found.tags
    for tag in dict.fromkeys(found.tags):
        try:
            other = _judge(seed, changed, [*without, tag])
        except Exception:  # without it the text is no program
            continue
        if (other.verdict, other.stage) == (found.verdict, found.stage):
            without.append(tag)
            left = other.tags
    return left


def _cause(seed: int, found: Verdict) -> str:
    changes: dict[str, dict[str, Any]] = {
        "an unfused optimiser": {"by": "factory"},
        "eager steps": {"compile": "off"},
        "eager scores": {"evaluate": "off"},
        "the guide as proposal": {"proposal": "guide"},
    }
    for name, change in changes.items():
        if all(found.settings[key] == value for key, value in change.items()):
            continue
        other = _judge(seed, change)
        if other.verdict == "equal" or other.stage not in ("", found.stage, "fit"):
            return name
    return ""


def _judge(seed: int, changed: dict[str, Any], without: Collection[str] = ()) -> Verdict:
    text = generate(seed, without)
    stock, own = build(text), build(text)
    for program in (stock, own):
        program.text = text
        program.settings.update(changed)
    verdict = Verdict(seed, tags=own.tags, settings=own.settings, no_log_px=own.no_log_px)
    how = own.settings
    state: dict[str, Any] = {}
    figures: Any = None
    try:
        epochs = epochs_of(len(own.x), how["batch_size"], how["num_epochs"], how["seed"])
        figures = train(stock, epochs, state)
        run_once(stock, state)
    except Diverges as error:
        verdict.verdict, verdict.what = "untrainable", f"diverges {error}"
        return verdict
    except Untrainable as error:
        verdict.verdict, verdict.what = "untrainable", str(error)

    def attempt(stage: str, action: Callable[[], str]) -> bool:
        """Whether to go on."""
        verdict.stage, before = stage, surroundings(own)
        try:
            verdict.what = (
                action() or surroundings_changed(before, surroundings(own)) or verdict.what
            )
        except pv.UserError as error:
            if "score" in stage:
                verdict.refused_scores.append(str(error).splitlines()[0])
                return False
            verdict.verdict, verdict.what = "refused", str(error).splitlines()[0]
            return False
        except pv.Diverged as error:
            verdict.verdict, verdict.what = "different", str(error).splitlines()[0]
            return False
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            words = (str(error).strip() or repr(error)).splitlines()[0]
            verdict.verdict = "traceback"
            verdict.what = f"{type(error).__name__}: {words} ({place.filename.rsplit('/', 1)[-1]}, {place.name})"
            return False
        if verdict.what and verdict.verdict == "equal":
            traced = how["compile"] in ("graph", "inductor") and own.moves
            verdict.verdict = "own word" if traced else "different"
        return verdict.verdict == "equal"

    if verdict.verdict == "untrainable":
        stock_says = verdict.what
        attempt("fit", lambda: _fit(own, None, None))
        verdict.what = f"{stock_says} | ours: {verdict.verdict}: {verdict.what}"
        verdict.verdict = "traceback" if verdict.verdict == "traceback" else "untrainable"
        return verdict
    if not attempt("fit", lambda: _fit(own, stock, figures)):
        return verdict
    if not attempt("score", lambda: _score(own, stock, state)) and verdict.verdict != "equal":
        return verdict
    own.alter()
    stock.alter()
    if not verdict.refused_scores and not attempt("score again", lambda: _score(own, stock, state)):
        return verdict
    if how["again"]:
        figures = train(stock, epochs, state)
        run_once(stock, state)
        attempt("fit again", lambda: _fit(own, stock, figures))
    if verdict.verdict == "equal":
        verdict.stage = ""
    return verdict


def surroundings(program: SimpleNamespace) -> dict[str, Any]:
    """What a call of ours must leave as it was."""
    return {
        "modes": [module.training for module in program.v.modules()],
        "random state": torch.get_rng_state().tolist(),
        "validation": (
            torch.distributions.Distribution._validate_args,
            pyro.poutine.util.is_validation_enabled(),
        ),
        "parameter store": sorted(pyro.get_param_store().keys()),
    }


def surroundings_changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    """In words; nothing where all is as it was."""
    return ", ".join(f"the {name} changed" for name in before if before[name] != after[name])


def _fit(own: SimpleNamespace, stock: SimpleNamespace | None, figures: Any) -> str:
    """Train by ours; what differs from the oracle's, in words."""
    how = own.settings
    spec, rate = how["optimizer"], how["learning_rate"]
    more = (
        {"fused": True} if how["by"] == "fused factory" and not spec.startswith("RMSprop") else {}
    )
    optimizer = (
        spec if how["by"] == "name" else lambda ps: make_optimizer(spec, ps, rate, **_fused(more))
    )
    history = pv.fit(
        own.model, own.guide, own.x, objective=f"{how['objective']}(num_particles={how['num_particles']})",
        optimizer=optimizer, learning_rate=rate, schedule="constant", num_epochs=how["num_epochs"],
        batch_size=how["batch_size"], kl_weight=how["kl_weight"], grad_clip=how["grad_clip"], compile=how["compile"],
        callbacks=[lambda end: own.on_epoch_end(end.train.epoch)], seed=how["seed"], progress=False, **own.fields,
    )  # fmt: skip
    if stock is None:
        return ""
    for number, (record, (loss, elbo)) in enumerate(zip(history.train, figures, strict=True), 1):
        if not close(record.loss, loss):
            return f"loss of epoch {number}: {record.loss:.8g}, Pyro {loss:.8g}"
        if elbo is not None and not close(record.elbo, elbo):
            return f"ELBO of epoch {number}: {record.elbo:.8g}, Pyro {elbo:.8g}"
    theirs = dict(stock.v.state_dict())
    for name, value in own.v.state_dict().items():
        if not close(value, theirs[name]):
            return f"{name}: off by {float((value - theirs[name]).abs().max()):.2g}"
    if stock.seen:
        own.seen.clear()
        pv.check_pair(own.model, own.guide, own.x, **own.fields)
        for name, value in stock.seen.items():
            if name not in own.seen or not close(own.seen[name].detach(), value.detach()):
                return f"pyro.param {name}"
    return ""


def _fused(more: dict[str, Any]) -> dict[str, Any]:
    return {"foreach": None, **more} if more else {}


def close(found: Any, right: Any) -> bool:
    """Equal to 1e-6 of the largest."""
    found, right = torch.as_tensor(found).double(), torch.as_tensor(right).double()
    return bool(((found - right).abs() <= TOLERANCE * (1 + right.abs().max())).all())


def _score(own: SimpleNamespace, stock: SimpleNamespace, state: dict[str, Any]) -> str:
    """log p(x) of the first, a middle and the last image, by ours and by the oracle."""
    how, images = own.settings, (0, len(own.x) // 2, len(own.x) - 1)

    def ours(number: int, seed: int) -> Any:
        return pv.log_marginal(
            own.model, own.guide, own.x, num_samples=number, proposal=how["proposal"], compile=how["evaluate"],
            seed=seed, **own.fields,
        )  # fmt: skip

    result = ours(how["num_samples"], 0)
    if own.no_log_px not in ("", "a scale"):  # a scale may cancel, as the prior's does
        return f"scored, but it has {own.no_log_px}"
    told = any("has no density at" in warning for warning in result.warnings)
    right = {image: log_px(stock, image, state) for image in images}

    def off(result: Any) -> str:
        for image, (value, se) in right.items():
            found, own_se, khat = (
                float(column[image]) for column in (result.log_px, result.se, result.khat)
            )
            allowed = STANDARD_ERRORS * (own_se + se) + own_se**2 + LEAST_NATS
            if told and found <= value + allowed:
                # the result says that it lacks what the guide never draws; it may not have too much
                continue
            if (
                khat > 0.7 or own_se == 0
            ) and found < value - allowed:  # so few draws are low in Pyro's hands as well
                few = [
                    log_px(stock, image, state, result.num_samples, seed)[0] for seed in range(8)
                ]
                value, allowed = min(few), max(few) - min(few) + allowed
            if not abs(found - value) <= allowed:
                return f"log p(x) of image {image}: {found:.5f} ± {own_se:.5f}, right {value:.5f} ± {se:.5f}"
        return ""

    if not (said := off(result)):
        return ""
    # heavy tails: as many draws afresh, by the very programs that are judged, against more draws of
    # the oracle
    right = {image: log_px(stock, image, state, 100_000) for image in images}
    return said if all(off(ours(how["num_samples"], seed)) for seed in (1, 2)) else ""
