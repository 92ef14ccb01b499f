"""A recorder for training loops of one's own: what happened along the way, without disturbing it."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from thalweg.problem.intact import random_state_kept
from thalweg.problem.parameters import ParameterSpace
from thalweg.training.agenda import Agenda
from thalweg.training.budget import Budget, require_budget
from thalweg.training.captures import Captures
from thalweg.training.path_sketch import PathSketch
from thalweg.training.quantities import Moment, Quantity
from thalweg.training.recording import opened
from thalweg.training.selection import Chosen, chosen, probe_over
from thalweg.training.unkept import Unkept

__all__ = ["Recorder"]

WRITE_EVERY = 1.0  # seconds
SAMPLED = 16  # steps between two readings of the clock where only steady quantities are measured
PLANNED = {5, 20, 60}  # steps after which costs are looked at first; later at every writing


class Recorder:
    """Records a training as it goes, into a folder.

    The recorder hooks itself into the optimiser; the loop only hands it the loss::

        with thalweg.Recorder("runs/a", model, optimizer, loss=criterion, probe=(inputs, targets)) as
        recorder: for x, y in loader: optimizer.zero_grad() recorder.loss(criterion(model(x), y)).backward()
        optimizer.step()

    Training goes as it would without, bit for bit: nothing is written to weights, buffers, gradients, modes
    or random states. A quantity that fails is reported once, as a warning and in the run, and switched off; a
    disk that is full stops the writing and not the training. What a kill loses is at most the last second.

    Quantities: "loss", "lr", "gradient" (its norm), "noise" (its noise and what is left without it),
        "update", "path"
    (distance from the start, angles of steps, sketches for a picture), "critical_sharpness", "curvature"
    (λmax), "signal" (layer by layer), "rank". The numbers of a step t are those of the step from θ_{t−1} to
    θ_t: loss and gradient before it, the others after it.

    Args:
        path: the folder, which must not hold a run yet.
        model: what is trained; a compiled one is measured as it is written.
        optimizer: that trains it.
        loss: for the quantities on a probe: a criterion on (outputs, targets) or ``loss(model, batch)``.
        probe: a batch to measure on in evaluation mode, always the same: 64 to 256 examples.
        quantities: names, or names with when to measure each: an interval in steps, a list of steps, `Every`,
            `LogSpaced` or `AtSteps`. A function of a `Moment` that returns a number is a name too. By default
            all.
        budget: what recording may take, relative to the time of training (on the CPU that of the processor);
            intervals grow to keep to it. Infinity for no limit.
        resume_from: go on with the run in the folder after so many steps; what it says about later ones is
            superseded. None for a new run.
        seed: of the sketch and of the probe's directions.

    Attributes:
        step: steps taken so far.

    Raises:
        InputError: for unknown names, a folder that holds a run or cannot be written to, a probe that the
            model cannot take.

    Cost: by default at most 5 % of the training time, as measured along the run.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        loss: Any = None,
        probe: Any = None,
        quantities: Mapping[Any, Any] | Iterable[Any] | None = None,
        budget: float = 0.05,
        resume_from: int | None = None,
        seed: int = 0,
    ) -> None:
        require_budget(budget)
        model = getattr(model, "_orig_mod", model)
        # On the CPU the processor's time: other processes, whose turn it is meanwhile, are nobody's cost.
        on_cpu = all(p.device.type == "cpu" for p in model.parameters())
        self._clock = time.process_time if on_cpu else time.perf_counter
        begun = self._clock()
        with random_state_kept():
            named = dict(model.named_parameters())
            parameters = [named[name] for name in ParameterSpace.of(model).names]
            self._probe = probe_over(model, loss, probe)
            wanted = chosen(quantities, probed=self._probe is not None)
            self._opened = opened(Path(path), model, optimizer, wanted, budget, resume_from, seed)
            quantities = self._made(wanted, parameters, seed)
        self._model, self._optimizer, self._parameters = model, optimizer, parameters
        self.step = resume_from or 0
        self._budget = Budget(budget, {q.name: q.guess for q in quantities})
        self._agenda = Agenda(quantities, self._budget, self.step)
        self._noted: set[str] = set()
        self._captures: Captures | None = None  # while they watch
        self._watching: Captures | None = None
        self._counting: Any = None  # the hook that counts examples
        self._row: dict[str, float | Tensor] = {}
        self._rows: list[dict[str, float | Tensor]] = []
        self._own = 0.0  # seconds, since the last step
        self._entered = 0.0  # those of them that have been entered by quantity
        self._moment = Moment(self.step + 1, model, optimizer, parameters, self._note)
        self._due: list[Quantity] = []
        self._wants_before = self._squares_wanted = False
        self._steady, self._clocked, self._unclocked = False, True, 0
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        self._written = time.perf_counter()
        self._begun = self._written - self._opened.seconds
        self._mark = self._clock()
        self._budget.setup = self._mark - begun
        self._prepare()

    def loss(self, loss: Tensor) -> Tensor:
        """Note the loss that ``backward()`` is called on, and return it as it is.

        Where gradients are accumulated, hand over each of them: their sum is recorded.
        """
        moment = self._moment
        moment.passes += 1
        if moment.passes == 1:
            moment.loss = loss
        elif not moment.closure and moment.loss is not None:
            moment.loss = moment.loss.detach() + loss.detach()
        if self._squares_wanted and loss.requires_grad:
            loss.register_hook(self._after_backward)
        return loss

    def close(self) -> None:
        """Write what is left and take the hooks off; the second time it does nothing."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._stop_watching()
        self._write()
        spent = {name: [times, round(total, 4)] for name, (times, total) in self._budget.by_quantity.items()}
        folder = self._opened.folder
        folder.event(
            self.step,
            "cost",
            f"recording took {100 * self._budget.overhead:.2g} % of the time of training by its own clock",
            setup=round(self._budget.setup, 4),
            spent=round(self._budget.spent, 4),
            trained=round(self._budget.trained, 4),
            by_quantity=spent,
        )
        lost = folder.close()
        if lost:
            _warn(f"the end of the run in {str(folder.path)!r} could not be written: {folder.failure}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _made(self, wanted: list[Chosen], parameters: list[nn.Parameter], seed: int) -> list[Quantity]:
        """Make the quantities; the sketch of the weights needs the run's start."""
        sketch, start = self._opened.sketch, self._opened.start
        if start is None:
            start = sketch.of(parameters)
            if self._opened.folder.session == 1:
                self._opened.folder.sketch(0, start.numpy())
        made: list[Quantity] = []
        for one in wanted:
            if one.make is None:
                made.append(PathSketch(sketch, start, self._opened.folder.sketch, one.schedule))
            else:
                made.append(one.make(one.schedule, self._probe, seed))
        return made

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Note how many examples a training pass of the model has."""
        if torch.is_grad_enabled():
            first = next(
                (v for v in (*inputs, *keywords.values()) if isinstance(v, Tensor) and v.dim()), None
            )
            self._moment.rows += len(first) if first is not None else 0

    def _after_backward(self, gradient: Tensor) -> None:
        """Have ‖g‖² noted as soon as the backward pass that has just begun is over."""
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(self._note_square)

    def _note_square(self) -> None:
        begun = self._clock()
        with contextlib.suppress(Exception), torch.no_grad():
            squares = [g.detach().float().square().sum() for g in self._moment.gradients]
            self._moment.squares.append(torch.stack(squares).sum())
        self._own += self._clock() - begun

    def _before(self, optimizer: torch.optim.Optimizer, inputs: Any, keywords: dict[str, Any]) -> None:
        moment = self._moment
        moment.closure = callable(inputs[1] if len(inputs) > 1 else keywords.get("closure"))
        if moment.closure:  # the passes of this step are those inside it
            moment.passes, moment.rows = 0, 0
        if not self._due:
            return
        begun = self._clock() if self._clocked else 0.0
        if self._wants_before:
            moment.before = [p.detach().clone() for p in self._parameters]
        if not moment.closure:
            self._measure(at_gradient=True)
        if self._clocked:
            self._own += self._clock() - begun

    def _after(self, optimizer: torch.optim.Optimizer, inputs: Any, keywords: dict[str, Any]) -> None:
        """Measure, and look ahead.

        The clock is read where more than the steady quantities is due, and now and then; what they take is
        taken to be the same in between.
        """
        begun = self._clock() if self._clocked else 0.0
        moment, steady, clocked = self._moment, self._steady, self._clocked
        if self._due:
            if moment.closure:
                self._measure(at_gradient=True)
            if self._captures is not None:  # what is measured now goes through the same layers
                self._captures.take_off()
            self._measure(at_gradient=False)
        self.step = moment.step
        if self._row:
            passed = round(time.perf_counter() - self._begun, 5)
            self._rows.append({"step": self.step, "time": passed, **self._row})
            self._row = {}
        self._prepare()
        self._unclocked += 1
        if clocked:
            now = self._clock()
            own = (self._own + now - begun) * (self._unclocked if steady else 1)
            self._budget.train(max(now - self._mark - own, 0.0), self._unclocked)
            self._budget.spend(own - self._entered)
            self._own, self._mark, self._entered, self._unclocked = 0.0, now, 0.0, 0
        if time.perf_counter() - self._written > WRITE_EVERY:
            self._write()
        elif self.step in PLANNED:
            self._agenda.plan(self.step)

    def _measure(self, *, at_gradient: bool) -> None:
        """Measure what is due; what fails is switched off."""
        for quantity in self._due:
            if quantity.at_gradient is not at_gradient:
                continue
            begun = self._clock() if self._clocked else 0.0
            try:
                self._row.update(quantity.measure(self._moment))
            except Exception as error:
                self._switch_off(quantity, error)
                continue
            if self._steady or self._agenda.is_steady(quantity):
                continue
            spent = self._clock() - begun
            if quantity.needs_captures and self._captures is not None:
                spent += self._captures.seconds
                self._own += self._captures.seconds
            self._budget.spend(spent, quantity.name)
            self._entered += spent
            self._agenda.measured(quantity, self._moment.step)

    def _prepare(self) -> None:
        """Choose what is measured at the coming step, and put the hooks on that it needs."""
        moment = self._moment
        before = moment.passes
        moment.step, moment.loss, moment.before = self.step + 1, None, None
        moment.passes = moment.rows = 0
        self._due = self._agenda.due(self.step + 1)
        self._steady = self._due is self._agenda.steady or not self._due
        self._clocked = not self._steady or self.step % SAMPLED == 0
        if self._captures is not None or self._counting is not None:
            self._stop_watching()
        self._wants_before = self._squares_wanted = False
        if self._steady:
            return
        moment.squares = []
        for quantity in self._due:
            self._wants_before |= quantity.needs_before
            if quantity.needs_captures:
                self._watch(accumulated=before > 1)

    def _stop_watching(self) -> None:
        if self._counting is not None:
            self._counting.remove()
            self._counting = None
        if self._captures is not None:
            self._captures.take_off()
            self._captures = self._moment.captures = None

    def _watch(self, *, accumulated: bool) -> None:
        """Have the noise of the coming step shown: by its batches where it has several, or by the layers."""
        if accumulated:
            self._squares_wanted = True
            self._counting = self._model.register_forward_pre_hook(Unkept(self._count), with_kwargs=True)
            return
        if self._watching is None:
            self._watching = Captures(self._model, self._clock)
        self._captures = self._moment.captures = self._watching
        self._captures.put_on(lambda: self._moment.passes)

    def _switch_off(self, quantity: Quantity, error: Exception) -> None:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        text = f"{quantity.name!r} failed and is switched off: {type(error).__name__}: {first}"
        self._agenda.drop(quantity)
        self._opened.folder.event(self._moment.step, "off", text)
        _warn(f"{text}; training goes on, and so does the rest of the recording")

    def _note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._opened.folder.event(self._moment.step, "note", text)

    def _write(self) -> None:
        """Read the numbers from the device, and write what there is."""
        folder, begun = self._opened.folder, self._clock()
        for row in self._rows:
            folder.scalars(
                {name: value.item() if isinstance(value, Tensor) else value for name, value in row.items()}
            )
        if self._rows:
            folder.scalars({"step": self.step, "overhead/fraction": self._budget.overhead})
        self._rows = []
        if (failure := folder.flush()) is not None:
            folder.event(self.step, "storage", f"could not be written to: {failure}")
            _warn(
                f"the run in {str(folder.path)!r} cannot be written at step {self.step} ({failure}); "
                "training goes on, and what waits is written as soon as that is possible"
            )
        self._written = time.perf_counter()
        self._agenda.plan(self.step)
        spent = self._clock() - begun
        self._budget.spend(spent)
        self._mark += spent


def _warn(text: str) -> None:
    with contextlib.suppress(Warning):  # where warnings are errors, they still must not stop a training
        warnings.warn(text, stacklevel=2)
