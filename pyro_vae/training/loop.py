"""The training loop: batches, steps and records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import Any, NoReturn

import torch
from torch import Tensor

from pyro_vae import distributed
from pyro_vae.data.batches import Batch, Source
from pyro_vae.objectives import Loss
from pyro_vae.progress import progress_bar
from pyro_vae.rng import mix, own_randomness
from pyro_vae.training.callbacks import EpochEnd, Occasional
from pyro_vae.training.divergence import Diverged, find_step, largest
from pyro_vae.training.history import History, Record
from pyro_vae.training.kl_warmup import Warmup
from pyro_vae.training.schedules import Schedule
from pyro_vae.training.snapshot import Position
from pyro_vae.training.state import TrainingState
from pyro_vae.training.stepper import Stepper

SHARE_OF_MEMORY, SHARE_OF_CHECK = 300, 100
"""At an epoch's end the state is copied, and a staged step checked, where it costs at most such a
part of the time since.
"""


@dataclass
class Loop:
    """Everything is decided; what is left is to run."""

    stepper: Stepper
    decay: Schedule
    warmup: Warmup
    valid: Source | None
    callbacks: Sequence[Any]
    history: History
    at: Position
    settings: Mapping[str, Any]
    place: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.loss, self.options, self.group = (
            self.stepper.loss,
            self.stepper.options,
            self.stepper.group,
        )
        self.total_steps = self.stepper.total_steps

    def run(self) -> History:
        """Epochs until the steps are done, or a callback ends them."""
        history, at = self.history, self.at
        self.started = time.perf_counter() - history.seconds
        self.boundaries = [
            each.at_boundary for each in self.callbacks if hasattr(each, "at_boundary")
        ]
        self.memory, self.checks = Occasional(SHARE_OF_MEMORY), Occasional(SHARE_OF_CHECK)
        self.remember()
        shown = self.options.progress and self.group.first
        with progress_bar(self.total_steps, "step", shown, at.step) as bar:
            while not history.stopped and (at.step < self.total_steps or at.step > at.first_step):
                record = self.epoch(bar)
                history.train.append(record)
                checked = self.validate(record)
                figure = f", valid {checked.elbo:.2f}" if checked else ""
                bar.set_postfix_str(
                    f"epoch {record.epoch}, ELBO {record.elbo:.2f}{figure}", refresh=False
                )
                self.note_progress()
                at.begin_epoch(record.epoch + 1)
                last = at.step >= self.total_steps
                self.call_back(EpochEnd(self.loss.pair, record, checked, history, last, self.state))
                for boundary in self.boundaries:
                    boundary(self.state, "end" if last or history.stopped else "epoch")
        self.note_progress()
        return history

    def epoch(self, bar: Any) -> Record:
        """One pass, with what is left of the steps where that is no whole pass; the device is read
        once, at its end.
        """
        with self.loss.pair.active(training=True):
            step, skip = self.stepper.step, self.stepper.health.skip
            for batches in self.steps(
                *((self.step_or_skip, 1) if skip else (step.run, step.together))
            ):
                bar.update(len(batches))
                for boundary in self.boundaries:
                    boundary(self.state, "step")
        self.group.broadcast(self.loss.pair.buffers())
        if not self.at.seen:
            raise self.give_up(
                f"every step of epoch {self.at.epoch} was skipped, because none was finite"
            )
        *means, _ = self.read()
        return as_record(means, self.at.epoch, self.at.step)

    def steps(self, take: Callable[..., Tensor | None], together: int = 1) -> Iterator[list[Batch]]:
        """The steps of this epoch that are left, at most so many at a time, after they were taken;
        nothing is read.
        """
        at, total, batches = self.at, self.total_steps, self.batches()
        weight, per_pass = float(self.options.kl_weight), self.stepper.source.num_batches
        while several := list(islice(batches, together)):
            numbers = range(at.step, at.step + len(several))
            schedules = [
                (self.decay(n / total), weight * self.warmup(n, total, per_pass)) for n in numbers
            ]
            if self.group.size > 1:  # the noise of each process is its own
                self.group.begin_step(self.options.seed, at.step, at.sums.device)
            sums = take(several, schedules)
            at.step += len(several)
            if sums is None:
                at.skipped += 1
            else:
                at.sums += sums
                at.seen += sum(len(x) for x, _ in several) * self.group.size
            yield several

    def batches(self) -> Iterator[Batch]:
        """What is left of this pass; a last one that is cut short belongs to it, as its few batches
        would make a noisy record.
        """
        source, at = self.stepper.source, self.at
        left, done = self.total_steps - at.first_step, at.step - at.first_step
        passes = 2 if source.num_batches < left < 2 * source.num_batches else 1
        for number in range(passes):
            skip = min(done, source.num_batches)
            wanted = min(left - done, source.num_batches - skip)
            if wanted > 0:
                yield from islice(
                    source.shuffled(self.options.seed, at.epoch + number, skip), wanted
                )
            left, done = left - skip - max(wanted, 0), done - skip

    def validate(self, record: Record) -> Record | None:
        """The record of the validation set, where there is one."""
        if self.valid is None:
            return None
        checked = evaluate_elbo(self.loss, self.valid, self.options.seed, record.epoch, record.step)
        self.history.valid.append(checked)
        return checked

    def call_back(self, end: EpochEnd) -> None:
        """The callbacks; then what they may have changed, and what is done now and then."""
        # a truth value alone ends it: `requires_grad_` returns its module
        stops = [
            n
            for n, each in enumerate(self.callbacks, 1)
            if str(each(end)).startswith(("True", "tensor(True"))
        ]
        wanted = stops[0] if stops else 0, int(self.memory.due), int(self.checks.due)
        stop, remember, check = self.group.largest(*wanted)
        if stop:
            callback = self.callbacks[stop - 1]
            name = getattr(callback, "__name__", type(callback).__name__)
            self.history.stopped = f"{name} after epoch {end.train.epoch}"
        found_anew = self.stepper.follow()
        if found_anew or remember:
            self.remember()
        if check and self.callbacks and not found_anew:
            begun = time.perf_counter()
            self.stepper.recheck(mix(self.options.seed, end.train.epoch))
            self.checks.done(begun)

    # ---- what a checkpoint has

    def state(self) -> TrainingState:
        """All that the rest depends on, its tensors the living ones. Reads the device; what is not
        finite is never saved.
        """
        self.read()
        self.note_progress()
        return self.taken(self.callbacks)

    def taken(self, callbacks: Sequence[Any] = ()) -> TrainingState:
        """The state as it is, with that of these callbacks."""
        pair, optim, about = self.loss.pair, self.stepper.update.optim, (self.settings, self.place)
        return TrainingState.take(pair, optim, self.at, self.history, callbacks, *about)

    def note_progress(self) -> None:
        """Steps and seconds so far, into the history."""
        self.history.num_steps, self.history.skipped = self.at.step, self.at.skipped
        self.history.seconds = time.perf_counter() - self.started

    def remember(self) -> None:
        """Keep a copy of the present state, which is finite."""
        begun = time.perf_counter()
        self.safe = self.taken().copy()
        self.memory.done(begun)

    def restore(self, state: TrainingState) -> None:
        """Be at this state again."""
        at = state.restore(self.loss.pair, self.stepper.update.optim, self.at.sums.device)
        vars(self.at).update(vars(at))
        self.stepper.health.begin(at.step, at.skipped)

    # ---- steps that are not finite

    def read(self) -> list[float]:
        """The one host read: this epoch's means and the largest parameter, all of them finite; else
        the training ends here.
        """
        means, first_bad = self.at.sums / max(self.at.seen, 1), self.stepper.health.first_bad
        size = largest(self.stepper.parameters)
        *figures, bad = torch.cat((means, torch.stack((size, first_bad.double())))).tolist()
        if not (isfinite(figures[0]) and isfinite(figures[-1])) or (
            bad >= 0 and not self.stepper.health.skip
        ):
            self.end_diverged()
        return figures

    def step_or_skip(self, batch: Sequence[Batch], schedules: Any) -> Tensor | None:
        """A step, or None where it was left out because something was not finite; reads the
        device.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.loss.pair.buffers()]
        sums = self.stepper.step.run(batch, schedules)
        if self.stepper.health.read()[1] == self.at.skipped:
            return sums
        for buffer, before in buffers:  # BatchNorm's statistics have seen the batch
            buffer.copy_(before)
        return None

    def end_diverged(self) -> NoReturn:
        """Find the step that was not finite, from the last state that was, and end there."""
        reached, first = self.at.step, self.safe.step + 1
        self.restore(self.safe)
        own_order = self.stepper.source.own_order
        found = None if own_order else find_step(self, reached)
        if found is not None:
            raise self.give_up(*found)
        self.restore(self.safe)
        why = (
            "a DataLoader can't repeat its order"
            if own_order
            else "repeated, these steps were finite"
        )
        raise self.give_up(
            f"a loss or parameter is not finite in steps {first} to {reached} ({why})"
        )

    def give_up(self, what: str, step: int | None = None, site: str = "") -> Diverged:
        """The error, with the present state, which is finite, to be kept."""
        rate, at = self.stepper.update.optim.param_groups[0]["lr"], self.at
        self.history.train = [record for record in self.history.train if record.epoch < at.epoch]
        self.history.valid = [record for record in self.history.valid if record.epoch < at.epoch]
        self.note_progress()
        place = f"step {step}" if step is not None else f"after step {at.step}"
        begins = f"; it starts at {site}" if site else ""
        message = (
            f"{what} ({place}, learning rate {rate:.2g}){begins}: lower the learning rate, set "
            "grad_clip, or look for infinities in the data"
        )
        return Diverged(message, step, rate, site, self.taken(self.callbacks).copy())


@torch.no_grad()
def evaluate_elbo(loss: Loss, source: Source, seed: int, epoch: int = 0, step: int = 0) -> Record:
    """The objective and the ELBO on a whole set, in eval mode, with the same noise at each call."""
    device, group = loss.kl_weight.device, distributed.current()
    sums, seen = torch.zeros(3, dtype=torch.float64, device=device), 0
    weight, by_site, loss.site_weights = loss.kl_weight.clone(), loss.site_weights, {}
    with (
        loss.pair.active(training=False),
        own_randomness(group.seed_of(mix(seed, 1) % 2**32), device),
    ):
        loss.kl_weight.fill_(1.0)
        for x, named in group.share(source.in_order()):
            sums += loss.step(loss.pair.cast(x), named).figures()
            seen += len(x)
    loss.kl_weight.copy_(weight)
    loss.site_weights = by_site
    totals = torch.cat((sums, sums.new_tensor([seen])))
    group.add(totals)
    *sums_of_all, number = totals.tolist()
    return as_record([total / number for total in sums_of_all], epoch, step)


def as_record(means: Sequence[float], epoch: int, step: int) -> Record:
    """An epoch's means of (loss, reconstruction, KL) as its record."""
    loss, reconstruction, kl = means
    return Record(epoch, step, loss, reconstruction - kl, reconstruction, kl)
