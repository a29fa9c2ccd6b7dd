"""The training loop: stochastic variational inference on any pair, readable in one pass from top to bottom."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from tqdm import tqdm

from pyro_vae import distributed, explain, registry
from pyro_vae.batches import Batch, Resident, Source, make_source
from pyro_vae.callbacks import EpochEnd
from pyro_vae.devices import find_device
from pyro_vae.distributed import Alone
from pyro_vae.divergence import Diverged, all_finite, find_site, largest
from pyro_vae.errors import UserError
from pyro_vae.fit_inputs import (
    check_callbacks,
    check_options,
    draw_once,
    observations,
    refuse_unseen,
    validation_source,
)
from pyro_vae.health import Health
from pyro_vae.held import leaves
from pyro_vae.history import History, Record
from pyro_vae.objectives import Loss, Objective
from pyro_vae.observation import Observation
from pyro_vae.optimizers import OptimizerSpec, make_optimizer
from pyro_vae.pair import Pair
from pyro_vae.progress import progress_bar
from pyro_vae.schedules import Schedule
from pyro_vae.seeds import check_seed, mix, set_generators
from pyro_vae.starts import start_from_data
from pyro_vae.steps import EagerStep, figures
from pyro_vae.tiers import make_update
from pyro_vae.training_state import (
    Position,
    Snapshot,
    TrainingState,
    callback_states,
    differences,
    history_state,
    this_place,
)
from pyro_vae.updates import Update
from pyro_vae.warmups import Warmup, make_warmup

MEMORY_SHARE = 300
"""A copy of the state, from which a divergence is traced, is made at an epoch's end where it costs at most 1/300 of the time."""


def fit(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x_train: Any,
    objective: str | ELBO = "TraceMeanField_ELBO",
    num_epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    optimizer: OptimizerSpec = "Adam",
    schedule: str | Schedule = "cosine",
    num_steps: int | None = None,
    kl_weight: float = 1.0,
    kl_warmup: float | str | Warmup = 0,
    grad_clip: float | None = None,
    callbacks: Iterable[Callable[[EpochEnd], bool | None]] = (),
    freeze: str | None = None,
    binarize: str | Observation | None = None,
    x_valid: Any = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: str = "auto",
    progress: bool = True,
    on_divergence: str = "stop",
    resume: TrainingState | str | Path | None = None,
    **fields: Any,
) -> History:
    """Train a model and a guide by SVI; both are changed in place and left on ``device``.

    Where torch.distributed is initialised (under torchrun), every process calls this with the same arguments: R of them take
    ``batch_size`` images each, and the gradient is that of one process with R times as many.

    Args:
        x_train: images ``(N, *event_shape)``, a tensor or array; or a torch Dataset or DataLoader, which streams.
        objective: a name, a call such as ``"Trace_ELBO(num_particles=5)"``, an objective, or one of Pyro's own, such as
            ``pyro.infer.TraceGraph_ELBO()``, which Pyro's own code runs eagerly.
        num_epochs, num_steps: the length; ``num_steps`` wins where it is given.
        schedule: how the learning rate falls: ``cosine`` to 0, ``constant``, ``linear``, ``geometric``, or a Schedule.
        kl_weight, kl_warmup: the weight of the KL (β), reached linearly from 0 over ``kl_warmup`` epochs, or by a warm-up
            such as ``"Cyclical(cycles=4, ramp=0.5)"``.
        grad_clip: the largest norm of the gradient of the mean loss per image.
        callbacks: called with an ``EpochEnd`` after each epoch; True ends the training. ``Checkpoints`` is one.
        freeze: ``"model"`` or ``"guide"``: leave its parameters as they are.
        binarize: ``dynamic`` (drawn afresh at each visit), ``static`` (once, from ``seed``), ``threshold``, ``none``; or an
            ``Observation``. A validation set is drawn once.
        x_valid: images, or a dict with ``x`` and the fields' names; its ELBO is measured after each epoch.
        seed: of the noise, the order and the binarization. The caller's random state is left as it was.
        compile: ``auto``, ``inductor``, ``graph`` or ``off``.
        on_divergence: ``stop``, or ``skip``: a step that is not finite is taken back and counted (the device is then read at
            each step).
        resume: a ``TrainingState``, or the folder of ``Checkpoints``: go on from there, with all other arguments as they
            were; on the CPU, in the same tier and with as many threads, bit for bit as if it had never been stopped.
        **fields: tensors with one row an image, passed to the programs that name them.

    Returns:
        One record an epoch, nats per image: ``history.train`` and ``history.valid``.

    Raises:
        UserError: what can't be trained, in one sentence, before anything is.
        Diverged: something is not finite; it names the step and the site, and the parameters are those of the step before.
    """
    check_options(
        num_epochs, num_steps, batch_size, learning_rate, kl_weight, kl_warmup, grad_clip, freeze, on_divergence
    )
    check_seed(seed)
    after_epoch = check_callbacks(callbacks)
    goal: Objective = registry.build("objective", objective)
    decay: Schedule = registry.build("schedule", schedule)
    warmup = make_warmup(kl_warmup)
    place = find_device(device)
    pair, group = Pair.of(model, guide).to(place), distributed.current()
    progress = progress and group.first
    observe, once = observations(binarize, x_train)
    part = group.rank, group.size
    source = make_source(draw_once(x_train, once, seed, "train"), fields, batch_size, place, "x_train", part)
    if x_valid is not None:
        refuse_unseen(pair.guide.owner)
    valid = validation_source(x_valid, observe or once, seed, fields, source, place)
    loss = Loss(goal, pair).to(place)
    total_steps = num_steps if num_steps is not None else num_epochs * source.num_batches
    settings = {
        "num_steps": total_steps, "num_images": source.num_images, "batch_size": source.batch_size,
        "objective": _words(goal), "optimizer": _words(optimizer), "learning_rate": learning_rate, "schedule": _words(decay),
        "kl_weight": kl_weight, "kl_warmup": _words(warmup), "grad_clip": grad_clip, "freeze": freeze,
        "binarize": _words(observe or once), "x_valid": valid.num_images if valid is not None else 0, "seed": seed,
        "on_divergence": on_divergence, "processes": group.size,
    }  # fmt: skip
    begun = _begun(resume, settings)
    if begun is not None and compile == "auto":
        compile = begun.place.get("tier", compile)
    with _own_randomness(seed, place), pair.active():
        images, rows = _first_batch(source, observe, pair)
        _check_data(pair, source, observe, images, rows)
        if begun is None:
            start_from_data(pair, source, observe, seed)
        group.broadcast(pair.tensors())
        if valid is not None:
            _check_data(pair, valid, None, *_first_batch(valid, None, pair))
        parameters = trainable(loss, images, rows, freeze)
        optim = make_optimizer(optimizer, parameters, learning_rate)
        with pair.active(training=True):
            eager = EagerStep(loss, parameters, observe)
            batch = next(source.shuffled(seed, 1))
            health = Health.on(place, skip=on_divergence == "skip")
            work = total_steps, *batch
            update, tier, note = make_update(eager, optim, health, compile, *work, grad_clip, group.reduce, source)
        if progress:
            tqdm.write(f"training step: {note}", file=sys.stderr)
            tqdm.write("\n".join(pair.structure(images, rows).words()), file=sys.stderr)
        torch.manual_seed(seed)
        history, at = History(compile=tier, note=note), Position.start(place)
        here = this_place(place, tier)
        if begun is not None:
            history, at = _take_up(begun, history, at, here, source, pair, optim, after_epoch)
            health.begin(at.step, at.skipped)
            if progress:
                tqdm.write(f"resumed {history.resumed[-1]}", file=sys.stderr)
        loop = _Loop(
            loss, update, parameters, observe, decay, total_steps, kl_weight, warmup, source, valid, seed, after_epoch,
            history, at, settings, here, group,
        )  # fmt: skip
        return loop.run(progress)


def _begun(resume: Any, settings: Mapping[str, Any]) -> TrainingState | None:
    """The stopped training that is to go on, which had these settings."""
    begun = TrainingState.load(resume) if isinstance(resume, str | Path) else resume
    if begun is None:
        return None
    if not isinstance(begun, TrainingState):
        raise UserError(f"resume is a {type(begun).__name__}: expected a TrainingState, or the path of checkpoints")
    begun.check_settings(settings)
    return begun


def _take_up(
    begun: TrainingState,
    new: History,
    start: Position,
    here: Mapping[str, Any],
    source: Source,
    pair: Pair,
    optim: torch.optim.Optimizer,
    callbacks: Sequence[Any],
) -> tuple[History, Position]:
    """Put a stopped training's state into what has been built afresh, and say in one line where it goes on."""
    begun.restore_callbacks(callbacks)
    at = begun.snapshot.restore(pair, optim, start.sums.device)
    history = begun.records()
    history.compile, history.note = new.compile, new.note
    line = f"at step {at.step}, epoch {at.epoch}"
    if source.own_order and at.step > at.first_step:
        at.begin_epoch(at.epoch)
        line += "; a DataLoader can't repeat its order, so this epoch's pass begins again"
    if changed := differences(begun.place, here):
        line += f"; {changed}"
    history.resumed = (*history.resumed, line)
    return history, at


@dataclass
class _Loop:
    """The training itself: everything is decided, and what is left is batches, steps and records."""

    loss: Loss
    update: Update
    parameters: Sequence[nn.Parameter]
    observe: Observation | None
    decay: Schedule
    total_steps: int
    kl_weight: float
    warmup: Warmup
    source: Source
    valid: Source | None
    seed: int
    callbacks: Sequence[Any]
    history: History
    at: Position
    settings: Mapping[str, Any]
    place: Mapping[str, Any]
    group: Alone

    def run(self, progress: bool) -> History:
        """Epochs until the steps are done, or a callback ends them."""
        history, self.started = self.history, time.perf_counter() - self.history.seconds
        self.boundaries = [each.at_boundary for each in self.callbacks if hasattr(each, "at_boundary")]
        self._remember()
        with progress_bar(self.total_steps, "step", progress, self.at.step) as bar:
            while not history.stopped and (self.at.step < self.total_steps or self.at.step > self.at.first_step):
                record = self.epoch(bar)
                self.group.broadcast(buffer for module in self.loss.pair.modules for buffer in module.buffers(False))
                history.train.append(record)
                self._note_progress()
                checked = None
                if self.valid is not None:
                    checked = evaluate_elbo(self.loss, self.valid, self.seed, record.epoch, self.at.step)
                    history.valid.append(checked)
                figure = f", valid {checked.elbo:.2f}" if checked else ""
                bar.set_postfix_str(f"epoch {record.epoch}, ELBO {record.elbo:.2f}{figure}", refresh=False)
                self.at.begin_epoch(record.epoch + 1)
                last = self.at.step >= self.total_steps
                end = EpochEnd(self.loss.pair, record, checked, history, last, self.state)
                stops = [number for number, callback in enumerate(self.callbacks, 1) if callback(end)]
                old = time.perf_counter() - self.safe_since > MEMORY_SHARE * self.safe_cost
                stop, remember = self.group.largest(stops[0] if stops else 0, int(old))
                if stop:
                    callback = self.callbacks[stop - 1]
                    name = getattr(callback, "__name__", type(callback).__name__)
                    history.stopped = f"{name} after epoch {record.epoch}"
                if remember:
                    self._remember()
                for boundary in self.boundaries:
                    boundary(self.state, "end" if last or history.stopped else "epoch")
        self._note_progress()
        return history

    def epoch(self, bar: Any) -> Record:
        """One pass, with what is left of the steps where that is no whole pass; the device is read once, at its end."""
        with self.loss.pair.active(training=True):
            for _ in self._steps(self._step_or_skip if self.update.health.skip else self.update):
                bar.update()
                for boundary in self.boundaries:
                    boundary(self.state, "step")
        if not self.at.seen:
            raise self._give_up(f"every step of epoch {self.at.epoch} was skipped, for it was not finite")
        *means, _ = self._read()
        return _as_record(means, self.at.epoch, self.at.step)

    def _read(self) -> list[float]:
        """The one host read: this epoch's means and the largest parameter, all of them finite; else the training ends here."""
        means, first_bad = self.at.sums / max(self.at.seen, 1), self.update.health.first_bad
        *figures, bad = torch.cat((means, torch.stack((largest(self.parameters), first_bad.double())))).tolist()
        if not (isfinite(figures[0]) and isfinite(figures[-1])) or (bad >= 0 and not self.update.health.skip):
            self._find_divergence()
        return figures

    def _steps(self, take: Callable[[Tensor, Mapping[str, Tensor]], Tensor | None]) -> Iterator[None]:
        """The steps of this epoch that are left, one at a time; nothing is read."""
        at = self.at
        rate = risen = None  # what has been told already is not told again
        for x, named in self._batches():
            if rate != (rate := self.decay(at.step / self.total_steps)):
                self.update.set_rate(rate)
            if risen != (risen := self.warmup(at.step, self.total_steps, self.source.num_batches)):
                self.loss.kl_weight.fill_(self.kl_weight * risen)
            self.group.begin_step(self.seed, at.step)
            sums = take(x, named)
            at.step += 1
            if sums is None:
                at.skipped += 1
            else:
                at.sums += sums
                at.seen += len(x) * self.group.size
            yield

    def _batches(self) -> Iterator[Batch]:
        """What is left of this pass; a last one that is cut short belongs to it, as its few batches would make a noisy record."""
        source, at = self.source, self.at
        left, done = self.total_steps - at.first_step, at.step - at.first_step
        passes = 2 if source.num_batches < left < 2 * source.num_batches else 1
        for number in range(passes):
            skip = min(done, source.num_batches)
            wanted = min(left - done, source.num_batches - skip)
            if wanted > 0:
                yield from islice(self.update.batches(source, self.seed, at.epoch + number, skip), wanted)
            left, done = left - skip - max(wanted, 0), done - skip

    # ---- what a checkpoint holds

    def state(self) -> TrainingState:
        """All that the rest depends on, its tensors the living ones. Reads the device; what is not finite is never saved."""
        self._read()
        self._note_progress()
        return self._state(Snapshot.take(self.loss.pair, self.update.optim, self.at, copy=False))

    def _state(self, snapshot: Snapshot) -> TrainingState:
        history, states = history_state(self.history), callback_states(self.callbacks)
        return TrainingState(snapshot, history, states, self.settings, self.place)

    def _note_progress(self) -> None:
        self.history.num_steps, self.history.skipped = self.at.step, self.at.skipped
        self.history.seconds = time.perf_counter() - self.started

    # ---- steps that are not finite

    def _remember(self) -> None:
        """Keep a copy of the present state, which is finite."""
        begun = time.perf_counter()
        self.safe = Snapshot.take(self.loss.pair, self.update.optim, self.at)
        self.safe_since = time.perf_counter()
        self.safe_cost = self.safe_since - begun

    def _restore(self, snapshot: Snapshot) -> Position:
        at = snapshot.restore(self.loss.pair, self.update.optim, self.at.sums.device)
        self.update.health.begin(at.step, at.skipped)
        return at

    def _step_or_skip(self, x: Tensor, named: Mapping[str, Tensor]) -> Tensor | None:
        """A step, or None where it was left out because something was not finite; reads the device."""
        buffers = [
            (buffer, buffer.clone()) for module in self.loss.pair.modules for buffer in module.buffers(recurse=False)
        ]
        sums = self.update(x, named)
        if self.update.health.read().num_bad == self.at.skipped:
            return sums
        for buffer, before in buffers:  # BatchNorm's statistics have seen the batch
            buffer.copy_(before)
        return None

    def _step_or_end(self, x: Tensor, named: Mapping[str, Tensor]) -> Tensor:
        """A step; where something is not finite, the state before it is restored, and the training ends."""
        before = Snapshot.take(self.loss.pair, self.update.optim, self.at)
        sums = self.update(x, named)
        if self.update.health.read().first_bad is None and all_finite(self.parameters):
            return sums
        loss = float(sums[0]) / (len(x) * self.group.size)
        what = "a gradient or parameter is not finite" if isfinite(loss) else f"the loss is {loss}"
        self._restore(before)
        site = next(filter(None, self.group.gather(self._site(x, named))), "")
        self._restore(before)
        raise self._give_up(f"{what} in epoch {self.at.epoch}", self.at.step + 1, site)

    def _site(self, x: Tensor, named: Mapping[str, Tensor]) -> str:
        try:
            x, named = self.update.images(x, named)
            seen = self.loss.pair.cast(x if self.observe is None else self.observe(x))
            return find_site(self.loss, self.parameters, seen, named)
        except Exception:  # the search is a service: a program that breaks on NaN must not hide the divergence
            return ""

    def _find_divergence(self) -> NoReturn:
        """From the last state known to be finite again, each step checked, to the one that is not."""
        reached, first = self.at.step, self.safe.position.step + 1
        self.at = self._restore(self.safe)
        if not self.source.own_order:
            with self.loss.pair.active(training=True):
                while self.at.step < reached:
                    for _ in self._steps(self._step_or_end):
                        if self.at.step >= reached:
                            break
                    self.at.begin_epoch(self.at.epoch + 1)
            self.at = self._restore(self.safe)
        why = "a DataLoader can't repeat its order" if self.source.own_order else "repeated, these steps were finite"
        raise self._give_up(f"a loss or parameter is not finite in steps {first} to {reached} ({why})")

    def _give_up(self, what: str, step: int | None = None, site: str = "") -> Diverged:
        """The error, with the present state, which is finite, to be kept."""
        rate = self.update.optim.param_groups[0]["lr"]
        self.history.train = [record for record in self.history.train if record.epoch < self.at.epoch]
        self.history.valid = [record for record in self.history.valid if record.epoch < self.at.epoch]
        self._note_progress()
        place = f"step {step}" if step is not None else f"after step {self.at.step}"
        begins = f"; it begins at {site}" if site else ""
        message = (
            f"{what} ({place}, learning rate {rate:.2g}){begins}: lower the learning rate, set grad_clip, or look for "
            "infinities in the data"
        )
        snapshot = Snapshot.take(self.loss.pair, self.update.optim, self.at)
        return Diverged(message, step, rate, site, self._state(snapshot))


def trainable(loss: Loss, x: Tensor, fields: Mapping[str, Tensor], freeze: str | None = None) -> list[nn.Parameter]:
    """The parameters that the loss can reach (the leaves of its graph), less those of the frozen program."""
    with loss.pair.probing(), torch.enable_grad():
        value = loss.step(x, fields).loss
    kept = [leaf for leaf in leaves(value) if freeze is None or loss.pair.name_of(leaf)[0] != freeze]
    if not kept:
        why = f"freeze={freeze!r} leaves none" if freeze else "the loss depends on no tensor that requires a gradient"
        raise UserError(f"there is nothing to train: {why}; register networks with pyro.module, or use PyroModules")
    return sorted(kept, key=loss.pair.name_of)


@torch.no_grad()
def evaluate_elbo(loss: Loss, source: Source, seed: int, epoch: int = 0, step: int = 0) -> Record:
    """The objective and the ELBO on a whole set, in eval mode, with the same noise at each call."""
    device, group = loss.kl_weight.device, distributed.current()
    sums, seen = torch.zeros(3, dtype=torch.float64, device=device), 0
    weight = loss.kl_weight.clone()
    with _own_randomness(group.seed_of(mix(seed, 1) % 2**32), device), loss.pair.active(training=False):
        loss.kl_weight.fill_(1.0)
        for x, named in group.share(source.in_order()):
            sums += figures(loss.step(loss.pair.cast(x), named))
            seen += len(x)
    loss.kl_weight.copy_(weight)
    totals = torch.cat((sums, sums.new_tensor([seen])))
    group.add(totals)
    *sums_of_all, number = totals.tolist()
    return _as_record([total / number for total in sums_of_all], epoch, step)


def _as_record(means: Sequence[float], epoch: int, step: int) -> Record:
    loss, reconstruction, kl = means
    return Record(epoch, step, loss, reconstruction - kl, reconstruction, kl)


def _words(value: Any) -> str:
    """A choice in words that are the same in another process."""
    words = value if isinstance(value, str) else repr(value)
    return words if " at 0x" not in words else getattr(value, "__qualname__", type(value).__qualname__)


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Any:
    """Seed torch's generators, and give the caller's state back at the end."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        set_generators(seed)
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
    if isinstance(source, Resident):
        explain.check_fields(pair, source.fields)
    structure = pair.structure(x, fields)
    if structure.subsampling or observe is not None or not isinstance(source, Resident):
        return
    explain.check_all_support(pair, pair.cast(source.x), source.fields)


__all__: Sequence[str] = ["Diverged", "evaluate_elbo", "fit", "leaves", "trainable"]
