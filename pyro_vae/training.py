"""The training loop: stochastic variational inference on any pair, readable in one pass from top to bottom."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_vae import explain, registry
from pyro_vae.batches import Batch, Resident, Source, check_seed, make_source, mix
from pyro_vae.callbacks import EpochEnd
from pyro_vae.devices import find_device
from pyro_vae.errors import UserError
from pyro_vae.fit_inputs import check_callbacks, check_options, draw_once, observations, validation_source
from pyro_vae.history import History, Record
from pyro_vae.objectives import Loss, Objective
from pyro_vae.observation import Observation
from pyro_vae.optimizers import OptimizerSpec, make_optimizer
from pyro_vae.pair import Pair
from pyro_vae.schedules import Schedule
from pyro_vae.steps import EagerStep, Step, figures, make_step


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
    check_options(num_epochs, num_steps, batch_size, learning_rate, kl_weight, kl_warmup, grad_clip, freeze)
    check_seed(seed)
    after_epoch = check_callbacks(callbacks)
    goal: Objective = registry.build("objective", objective)
    decay: Schedule = registry.build("schedule", schedule)
    place = find_device(device)
    pair = Pair.of(model, guide).to(place)
    observe, once = observations(binarize, x_train)
    source = make_source(draw_once(x_train, once, seed, "train"), fields, batch_size, place, "x_train")
    valid = validation_source(x_valid, observe or once, seed, fields, source, place)
    loss = Loss(goal, pair).to(place)
    total_steps = num_steps if num_steps is not None else num_epochs * source.num_batches
    with _own_randomness(seed, place), pair.active():
        images, rows = _first_batch(source, observe, pair)
        _check_data(pair, source, observe, images, rows)
        if valid is not None:
            _check_data(pair, valid, None, *_first_batch(valid, None, pair))
        parameters = trainable(loss, images, rows, freeze)
        optim = make_optimizer(optimizer, parameters, learning_rate)
        with pair.active(training=True):
            eager = EagerStep(loss, parameters, observe)
            gradients, note = make_step(eager, compile, total_steps, *next(source.shuffled(seed, 1)))
        if progress:
            tqdm.write(f"training step: {note}", file=sys.stderr)
        torch.manual_seed(seed)
        warmup = kl_warmup * source.num_batches
        loop = _Loop(loss, gradients, optim, decay, total_steps, kl_weight, warmup, grad_clip, source, valid, seed)
        return loop.run(History(compile=gradients.tier, note=note), after_epoch, progress)


@dataclass
class _Loop:
    """The training itself: everything is decided, and what is left is batches, steps and records."""

    loss: Loss
    gradients: Step
    optim: torch.optim.Optimizer
    decay: Schedule
    total_steps: int
    kl_weight: float
    warmup_steps: float
    grad_clip: float | None
    source: Source
    valid: Source | None
    seed: int
    step: int = 0

    def run(
        self, history: History, after_epoch: Sequence[Callable[[EpochEnd], bool | None]], progress: bool
    ) -> History:
        """Epochs until the steps are done, or a callback ends them."""
        started = time.perf_counter()
        base_rates = [group["lr"] for group in self.optim.param_groups]
        with tqdm(total=self.total_steps, unit="step", disable=not progress, dynamic_ncols=True) as bar:
            while self.step < self.total_steps and not history.stopped:
                epoch = len(history.train) + 1
                record = self.epoch(epoch, base_rates, bar)
                _check_finite(record, self.optim)
                history.train.append(record)
                history.num_steps, history.seconds = self.step, time.perf_counter() - started
                checked = None
                if self.valid is not None:
                    checked = evaluate_elbo(self.loss, self.valid, self.seed, epoch, self.step)
                    history.valid.append(checked)
                figure = f", valid {checked.elbo:.2f}" if checked else ""
                bar.set_postfix_str(f"epoch {epoch}, ELBO {record.elbo:.2f}{figure}")
                state = EpochEnd(self.loss.pair, record, checked, history, last=self.step >= self.total_steps)
                stops = [callback for callback in after_epoch if callback(state)]
                if stops:
                    history.stopped = f"{getattr(stops[0], '__name__', type(stops[0]).__name__)} after epoch {epoch}"
        return history

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """This pass; a last one that is cut short belongs to it, as its few batches would make a noisy record."""
        left = self.total_steps - self.step
        passes = [self.source.shuffled(self.seed, epoch)]
        if self.source.num_batches < left < 2 * self.source.num_batches:
            passes.append(self.source.shuffled(self.seed, epoch + 1))
        return islice(chain.from_iterable(passes), left)

    def epoch(self, epoch: int, base_rates: Sequence[float], bar: Any) -> Record:
        """One pass, with what is left of the steps where that is no whole pass; the device is read once, at its end."""
        sums, seen = torch.zeros(3, dtype=torch.float64, device=self.loss.kl_weight.device), 0
        with self.loss.pair.active(training=True):
            for x, named in self._batches(epoch):
                for group, rate in zip(self.optim.param_groups, base_rates, strict=True):
                    group["lr"] = rate * self.decay(self.step / self.total_steps)
                risen = min(1.0, self.step / self.warmup_steps) if self.warmup_steps else 1.0
                self.loss.kl_weight.fill_(self.kl_weight * risen)
                sums += self.gradients(x, named)
                if self.grad_clip is not None:
                    nn.utils.clip_grad_norm_(self.gradients.parameters, self.grad_clip)
                self.optim.step()
                seen, self.step = seen + len(x), self.step + 1
                bar.update()
        return _record(sums, seen, epoch, self.step)  # the epoch's one host read


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


__all__: Sequence[str] = ["Diverged", "evaluate_elbo", "fit", "leaves", "trainable"]
