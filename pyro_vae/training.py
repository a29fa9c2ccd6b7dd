"""The training loop: stochastic variational inference on any pair, readable in one pass from top to bottom."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pyro_vae import explain, registry
from pyro_vae.batches import Resident, Source, as_images, check_seed, make_source, mix
from pyro_vae.callbacks import EpochEnd
from pyro_vae.devices import find_device
from pyro_vae.errors import UserError, did_you_mean
from pyro_vae.history import History, Record
from pyro_vae.objectives import Loss, Objective
from pyro_vae.observation import Dynamic, Grey, Observation, Threshold
from pyro_vae.optimizers import OptimizerSpec, make_optimizer
from pyro_vae.pair import Pair
from pyro_vae.schedules import Schedule
from pyro_vae.steps import EagerStep, figures, make_step


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x_train: Any,
    objective: str | Objective = "TraceMeanField_ELBO",
    num_epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    optimizer: OptimizerSpec = "Adam",
    schedule: str | Schedule = "cosine",
    num_steps: int | None = None,
    kl_weight: float = 1.0,
    kl_warmup: float = 0,
    grad_clip: float | None = None,
    callbacks: Iterable[Callable[[EpochEnd], bool | None]] = (),
    freeze: str | None = None,
    binarize: str | Observation | None = None,
    x_valid: Any = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: str = "auto",
    progress: bool = True,
    **fields: Any,
) -> History:
    """Train a model and a guide by SVI; both are changed in place and left on ``device``.

    Args:
        x_train: images ``(N, *event_shape)``, a tensor or array; or a torch Dataset or DataLoader, which streams.
        objective: a name, a call such as ``"Trace_ELBO(num_particles=5)"``, or an objective.
        num_epochs, num_steps: the length; ``num_steps`` wins where it is given.
        schedule: how the learning rate falls: ``cosine`` to 0, ``constant``, ``linear``, ``geometric``, or a Schedule.
        kl_weight, kl_warmup: the weight of the KL (β), reached linearly from 0 over ``kl_warmup`` epochs.
        grad_clip: the largest norm of the gradient of the mean loss per image.
        callbacks: called with an ``EpochEnd`` after each epoch; True ends the training.
        freeze: ``"model"`` or ``"guide"``: leave its parameters as they are.
        binarize: ``dynamic`` (drawn afresh at each visit), ``static`` (once, from ``seed``), ``threshold``, ``none``; or an
            ``Observation``. A validation set is drawn once.
        x_valid: images, or a dict with ``x`` and the fields' names; its ELBO is measured after each epoch.
        seed: of the noise, the order and the binarization. The caller's random state is left as it was.
        compile: ``auto``, ``inductor``, ``graph`` or ``off``.
        **fields: tensors with one row an image, passed to the programs that name them.

    Returns:
        One record an epoch, nats per image: ``history.train`` and ``history.valid``.

    Raises:
        UserError: what can't be trained, in one sentence, before anything is.
        Diverged: the loss is not finite; the parameters are those of the last step.
    """
    _check_options(num_epochs, num_steps, batch_size, learning_rate, kl_weight, kl_warmup, grad_clip, freeze)
    check_seed(seed)
    after_epoch = _check_callbacks(callbacks)
    goal: Objective = registry.build("objective", objective)
    decay: Schedule = registry.build("schedule", schedule)
    place = find_device(device)
    pair = Pair.of(model, guide).to(place)
    observe, once = _observation(binarize, x_train)
    source = make_source(_draw_once(x_train, once, seed, "train"), fields, batch_size, place, "x_train")
    valid = _validation_source(x_valid, observe or once, seed, fields, source, place)
    loss = Loss(goal, pair).to(place)
    history = History()
    with _own_randomness(seed, place), pair.active():
        images, rows = _first_batch(source, observe, pair)
        _check_data(pair, source, observe, images, rows)
        if valid is not None:
            _check_data(pair, valid, None, *_first_batch(valid, None, pair))
        parameters = trainable(loss, images, rows, freeze)
        optim = make_optimizer(optimizer, parameters, learning_rate)
        base_rates = [group["lr"] for group in optim.param_groups]
        total_steps = num_steps if num_steps is not None else num_epochs * source.num_batches
        warmup_steps = kl_warmup * source.num_batches
        with pair.active(training=True):
            eager = EagerStep(loss, parameters, observe)
            gradients, history.note = make_step(eager, compile, total_steps, *next(source.shuffled(seed, 1)))
        history.compile = gradients.tier
        if progress:
            tqdm.write(f"training step: {history.note}", file=sys.stderr)
        torch.manual_seed(seed)
        started = time.perf_counter()
        bar = tqdm(total=total_steps, unit="step", disable=not progress, dynamic_ncols=True)
        step = epoch = 0
        while step < total_steps:
            epoch += 1
            sums, seen = torch.zeros(3, dtype=torch.float64, device=place), 0
            with pair.active(training=True):
                for x, named in source.shuffled(seed, epoch):
                    for group, rate in zip(optim.param_groups, base_rates, strict=True):
                        group["lr"] = rate * decay(step / total_steps)
                    loss.kl_weight.fill_(kl_weight * min(1.0, step / warmup_steps) if warmup_steps else kl_weight)
                    sums += gradients(x, named)
                    if grad_clip is not None:
                        nn.utils.clip_grad_norm_(parameters, grad_clip)
                    optim.step()
                    seen, step = seen + len(x), step + 1
                    bar.update()
                    if step == total_steps:
                        break
            record = _record(sums, seen, epoch, step)  # the epoch's one host read
            history.train.append(record)
            history.num_steps, history.seconds = step, time.perf_counter() - started
            checked = evaluate_elbo(loss, valid, seed, epoch, step) if valid is not None else None
            if checked is not None:
                history.valid.append(checked)
            bar.set_postfix_str(
                f"epoch {epoch}, ELBO {record.elbo:.2f}" + (f", valid {checked.elbo:.2f}" if checked else "")
            )
            _check_finite(record, optim)
            state = EpochEnd(pair, record, checked, history, last=step >= total_steps)
            stops = [callback for callback in after_epoch if callback(state)]
            if stops:
                history.stopped = f"{getattr(stops[0], '__name__', type(stops[0]).__name__)} after epoch {epoch}"
                break
        bar.close()
    return history


def trainable(loss: Loss, x: Tensor, fields: Mapping[str, Tensor], freeze: str | None = None) -> list[nn.Parameter]:
    """The parameters that the loss can reach (the leaves of its graph), less those of the frozen program."""
    with loss.pair.probing(), torch.enable_grad():
        value = loss.step(x, fields).loss
    kept = [leaf for leaf in leaves(value) if freeze is None or loss.pair.name_of(leaf)[0] != freeze]
    if not kept:
        why = f"freeze={freeze!r} leaves none" if freeze else "the loss depends on no tensor that requires a gradient"
        raise UserError(f"there is nothing to train: {why}; register networks with pyro.module, or use PyroModules")
    return sorted(kept, key=loss.pair.name_of)


def leaves(value: Tensor) -> list[nn.Parameter]:
    """The tensors that ``value``'s gradient would flow into."""
    found: dict[int, Any] = {}
    waiting, met = [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in met:
            continue
        met.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        waiting += [following for following, _ in node.next_functions]
    return list(found.values())


@torch.no_grad()
def evaluate_elbo(loss: Loss, source: Source, seed: int, epoch: int = 0, step: int = 0) -> Record:
    """The objective and the ELBO on a whole set, in eval mode, with the same noise at each call."""
    device = loss.kl_weight.device
    sums, seen = torch.zeros(3, dtype=torch.float64, device=device), 0
    weight = loss.kl_weight.clone()
    with _own_randomness(mix(seed, 1) % 2**32, device), loss.pair.active(training=False):
        loss.kl_weight.fill_(1.0)
        for x, named in source.in_order():
            sums += figures(loss.step(loss.pair.cast(x), named))
            seen += len(x)
    loss.kl_weight.copy_(weight)
    return _record(sums, seen, epoch, step)


def _record(sums: Tensor, seen: int, epoch: int, step: int) -> Record:
    loss, reconstruction, kl = (sums / seen).tolist()
    return Record(epoch, step, loss, reconstruction - kl, reconstruction, kl)


def _check_finite(record: Record, optim: torch.optim.Optimizer) -> None:
    if not isfinite(record.loss):
        rate = optim.param_groups[0]["lr"]
        raise Diverged(
            f"the loss is {record.loss} in epoch {record.epoch} (by step {record.step}, learning rate {rate:.2g}): lower "
            "the learning rate, set grad_clip, or look for infinities in the data"
        )


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Any:
    """Seed torch's generators, and give the caller's state back at the end."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _first_batch(source: Source, observe: Observation | None, pair: Pair) -> tuple[Tensor, dict[str, Tensor]]:
    x, named = next(source.in_order())
    x, named = x[:5], {name: value[:5] for name, value in named.items()}
    return pair.cast(observe(x) if observe is not None else x), named


def _check_data(
    pair: Pair, source: Source, observe: Observation | None, x: Tensor, fields: Mapping[str, Tensor]
) -> None:
    """What the dry run shows on five images, and the support of the observed site on all of them."""
    for program in (pair.model, pair.guide):
        if program.wants("index") and "index" not in fields:
            raise UserError(
                f"the {program.role} wants the field 'index', which a DataLoader does not tell: give its Dataset instead"
            )
    structure = pair.structure(x, fields)
    if structure.subsampling or observe is not None or not isinstance(source, Resident):
        return
    explain.check_all_support(pair, pair.cast(source.x), source.fields)


def _observation(binarize: str | Observation | None, x: Any) -> tuple[Observation | None, Observation | None]:
    """What is applied at each visit, and what once before the training."""
    if binarize is None or isinstance(binarize, Observation):
        return binarize, None
    levels = None
    if str(getattr(x, "dtype", "")).endswith("uint8"):
        levels = 2 if len(x) and int(x.max()) <= 1 else 256
    if binarize == "dynamic":
        return Dynamic(levels), None
    choices: dict[str, Observation] = {"static": Dynamic(levels), "threshold": Threshold(levels), "none": Grey(levels)}
    if binarize not in choices:
        raise UserError(did_you_mean("binarization", str(binarize), ["dynamic", *choices]))
    return None, choices[binarize]


def _draw_once(x: Any, observation: Observation | None, seed: int, part: str) -> Any:
    if observation is None:
        return x
    if isinstance(x, Dataset | DataLoader):
        raise UserError(f"the {part} set is to be binarized once, and a Dataset can't be: give a tensor, or binarized items")
    return observation.fixed(as_images(x, {"train": "x_train", "validation": "x_valid"}[part]), seed, part)


def _is_float(x: Any) -> bool:
    return torch.as_tensor(x).is_floating_point() if hasattr(x, "__array__") else False


def _validation_source(
    x_valid: Any,
    observation: Observation | None,
    seed: int,
    fields: Mapping[str, Any],
    train: Source,
    device: torch.device,
) -> Source | None:
    if x_valid is None:
        return None
    named = dict(x_valid) if isinstance(x_valid, Mapping) else {"x": x_valid}
    x = named.pop("x", None)
    resident = isinstance(train, Resident) and not isinstance(x, Dataset | DataLoader)
    if x is None or (resident and named.keys() != fields.keys()):
        raise UserError(
            f"x_valid has {', '.join(sorted(named)) or 'no fields'} beside x, the training set "
            f"has {', '.join(sorted(fields)) or 'none'}: give x_valid as a dict with 'x' and the same fields"
        )
    if observation is not None and isinstance(train, Resident) and not train.x.is_floating_point() and _is_float(x):
        raise UserError(
            "x_valid is floating point where x_train holds integer levels: give it as stored, for fit observes it itself, once"
        )
    return make_source(
        _draw_once(x, observation, seed, "validation"), named, max(train.batch_size, 500), device, "x_valid"
    )


def _check_options(
    num_epochs: int,
    num_steps: int | None,
    batch_size: int,
    learning_rate: float,
    kl_weight: float,
    kl_warmup: float,
    grad_clip: float | None,
    freeze: str | None,
) -> None:
    def positive(name: str, value: Any, kind: Any, what: str) -> None:
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < float("inf"):
            raise UserError(f"{name}={value!r}: expected {what}")

    positive("batch_size", batch_size, int, "a whole number of images, 1 or more")
    positive("learning_rate", learning_rate, (int, float), "a positive number, such as 1e-3")
    if num_steps is not None:
        positive("num_steps", num_steps, int, "a whole number of steps, 1 or more")
    else:
        positive("num_epochs", num_epochs, int, "a whole number of epochs, 1 or more")
    if grad_clip is not None:
        positive("grad_clip", grad_clip, (int, float), "a positive norm, or None")
    for name, value in (("kl_weight", float(kl_weight)), ("kl_warmup", float(kl_warmup))):
        if not 0 <= value < float("inf"):
            raise UserError(f"{name}={value!r}: expected a number, 0 or more")
    if freeze not in (None, "model", "guide"):
        raise UserError(did_you_mean("part to freeze", str(freeze), ["model", "guide"]))


def _check_callbacks(callbacks: Any) -> tuple[Callable[[EpochEnd], bool | None], ...]:
    """All of them, from any iterable; they are called again after each epoch."""
    listed = tuple(callbacks) if isinstance(callbacks, Iterable) else (callbacks,)
    for callback in listed:
        if not callable(callback):
            raise UserError(f"callbacks holds a {type(callback).__name__}: expected functions of an EpochEnd")
    return listed


__all__: Sequence[str] = ["Diverged", "evaluate_elbo", "fit", "leaves", "trainable"]
