"""The game: a stream of rounds in which G makes images, and P and Q look at them.

One round, one batch:  z, y -> G -> x -> P -> z_p, statistics
                                     x -> Q -> z_q
                       generator's loss -> gradient to x -> gradient to G -> Adam
                       student's loss   -> gradient to Q's weights        -> SGD (after the warm-up)

Q is run once and serves both players, since its weights do not change in between. The generator's loss is differentiated with
respect to the images only, the student's with respect to Q's weights only: no gradient is computed that is not used. Q learns
from the images as they were before G's step, as in the released code. `play` does not make the host wait for an accelerator:
records hold tensors, and losses are checked for NaN every `check_every` rounds, which still names the round of the first.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from adadfq_lab.equations import NonFiniteLogitsError, disagreement_entropy, total
from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.fidelity import fidelity as preset
from adadfq_lab.game.checkpoints import resume_game, snapshot_of
from adadfq_lab.game.compiling import Compile, Forwards
from adadfq_lab.game.history import Record
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.game.undo import Interruptible, Undo, steps_at_once
from adadfq_lab.machine import distributed
from adadfq_lab.machine.devices import Precision, to_device
from adadfq_lab.machine.files import save_tensors
from adadfq_lab.machine.optimizers import Adam, backward
from adadfq_lab.machine.torch_state import drawing_from, usual_torch
from adadfq_lab.methods.generators import Generator
from adadfq_lab.methods.method import DrownedWarning, Method, Rates, Round, drowned
from adadfq_lab.student.range_fitting import fit_ranges
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.features import stages, with_features
from adadfq_lab.teacher.statistics import WithStatistics
from adadfq_lab.teacher.teacher import Teacher


class NonFiniteError(UserError):
    """A loss term became infinite or NaN; the message names the round, the term and the last checkpoint."""


class Game(Interruptible):
    """A game of P, Q and G.

        game = Game(P, quantize(P, "3w3a"), adadfq())
        for record in game.play(1000): ...

    seed:        of G's first weights, of z and of y; every draw is made on the CPU, so it is the same on every device
    fidelity:    a preset's name or a Fidelity
    gains_every: measure gain_g and gain_q every so many rounds (0: never); each time costs about half a round's forwards
    check_every: look for non-finite losses every so many rounds; 0 lets the device decide: 1 on a CPU, 25 elsewhere
    precision:   "float32", "tf32" (CUDA's fast float32) or "bf16" (autocast)
    compile:     "off", "default" (torch.compile) or "graphs" (and CUDA graphs): see `compiling`; not part of what is saved

    `bounds` may be set at any time and counts from the next round on. Raises UserError if P and Q disagree on classes. Warns
    if L_BNS is so large that G cannot follow the other terms: see `drowned`.
    """

    @usual_torch()
    def __init__(
        self,
        teacher: Teacher,
        student: Student,
        method: Method,
        *,
        seed: int = 0,
        schedule: Schedule | None = None,
        fidelity: str | Fidelity = "corrected",
        gains_every: int = 0,
        check_every: int = 0,
        precision: Precision = "float32",
        compile: Compile = "off",
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.forwards = Forwards(compile, self.device)
        self.teacher, self.student, self.method = teacher.to(self.device), student.to(self.device), method
        super().__init__(self.student)
        self.schedule, self.seed, self.gains_every = schedule or Schedule(), seed, gains_every
        self.fidelity = preset(fidelity) if isinstance(fidelity, str) else fidelity
        self.check_every = check_every or (1 if self.device.type == "cpu" else 25)
        self.precision: Precision = precision
        self.bounds = method.bounds
        self.last_checkpoint: Path | None = None
        self.classes = len(teacher.info.classes)
        self.observed_teacher = WithStatistics(teacher, stages(teacher) if method.features else ()).to(self.device)
        self._observed_student = with_features(student.graph, self.observed_teacher.stages) if method.features else None
        self.random = torch.Generator().manual_seed(seed)
        self.generator = self._build_generator().to(self.device)
        self._check_classes()
        distributed.check_batch(self.schedule.batch)
        fused = {"fused": True} if self.device.type in ("cpu", "cuda") else {}
        beta1 = self.fidelity.adam_beta1 if self.rates.adam_beta1 is None else self.rates.adam_beta1
        betas = (beta1, 0.999)
        if method.ranges == "learned":
            self.student.learn_ranges()
        self.generator_optimizer = Adam(self.generator.parameters(), 1.0, betas=betas, **fused)
        self.student_parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.student_optimizer = method.student_optimizer(self.student, self.rates.weight_decay, self.fidelity)
        self.student.observing = False  # except within a round: looking at images must not calibrate

    @property
    def rates(self) -> Rates:
        """Learning rates before any decay, and the weight decay."""
        return self.schedule.rates(self.method)

    def _build_generator(self) -> Generator:
        """G with first weights from `seed`."""
        with drawing_from(torch.Generator().manual_seed(self.seed)):
            generator = self.method.build_generator(self.teacher, self.fidelity).train()
            generator.plan(self.schedule.batch, self.schedule.warmup)
            return generator

    def _check_classes(self) -> None:
        with torch.no_grad(), self.student.frozen():
            x = torch.zeros(1, *self.teacher.info.input_shape, device=self.device)
            z = {"P": self.teacher(x), "Q": self.student(x)}
        if odd := [type(logits).__name__ for logits in z.values() if not isinstance(logits, Tensor)]:
            raise UserError(f"P gives a {odd[0]}, not one tensor of logits (N, C); wrap it in a module that returns these")
        counts = {name: logits.shape[-1] for name, logits in z.items()} | {"the teacher's class list": self.classes}
        if len(set(counts.values())) != 1:
            raise UserError("the numbers of classes disagree: " + ", ".join(f"{k} has {v}" for k, v in counts.items()))
        self.observed_teacher.compare(self.teacher)

    # One round

    def play(self, rounds: int) -> Iterator[Record]:
        """Plays `rounds` more rounds and yields the record of each.

        Raises NonFiniteError if a loss is not finite, and UserError while another thread plays this game.
        """
        for _ in range(rounds):
            with distributed.spread():
                record = self.round()
            yield record
        self.check()

    def round(self) -> Record:
        """Plays one round, the generator's step, then the student's; raises what `play` raises.

        A round that an error or an interrupt ends leaves the game as it was before it, or as it is after it.
        """
        return self._guarded(self._play)

    def _play(self, undo: Undo) -> Record:
        """One round: computes first and changes the game last; see `undo`."""
        undo.plays = True
        index, warm = self.index, self.index < self.schedule.warmup
        learns = self.method.steps_generator(index, self.schedule.warmup)  # G in this round; Q learns after the warm-up
        probed = bool(self.gains_every) and index % self.gains_every == 0
        fits = self.method.ranges != "observed" and index + 1 == self.schedule.warmup
        observes = index in self.schedule.observed(self.method)
        one_call = learns and not (probed or fits) and steps_at_once(self.generator_optimizer)
        undo.keep(self.generator.buffers())
        undo.keep_optimizer(self.generator_optimizer, whole=learns and not one_call)
        if observes or fits or self.method.student_batch_norm == "train":
            undo.keep(self.student.buffers())
            undo.keep(self.student.learned_scales())
            undo.keep_modes(self.student)
        if self.method.ranges == "fitted" and not warm:
            self.student.stop_clipped_gradients()
        self.forwards.begin()
        noise, labels = self._draw(index)
        z, y = distributed.shard(noise), distributed.shard(labels)
        with self._logits_finite():
            with self._autocast(), torch.set_grad_enabled(learns):
                made = self.forwards(self.generator, z, y)
            x = made.detach().contiguous(memory_format=torch.channels_last).requires_grad_(learns)
            r = self._look(x, noise, labels, warm=warm, learns=learns, observes=observes)
            terms_g = self.method.generator_loss(r) if learns else {}
            terms_q = {} if warm else self.method.student_loss(r)
            entropy, h_prime = r.entropy.detach(), r.h_prime.detach()
        terms = {f"generator.{k}": v.detach() for k, v in terms_g.items()}
        terms |= {f"student.{k}": v.detach() for k, v in terms_q.items()}
        agreement = (r.teacher_logits.detach().argmax(1) == r.student_logits.detach().argmax(1)).float().mean()
        self._note(index, terms)
        if said := drowned(index, terms, self.fidelity):
            warnings.warn(said, DrownedWarning, stacklevel=2)
        if learns:
            (gradient,) = torch.autograd.grad(total(terms_g), x, retain_graph=not warm)
            self._clear(self.generator_optimizer)
            backward(made, gradient)
            self._ready(self.generator_optimizer, self.rates.generator_lr * self.generator.rate(index), index)
        gradients = () if warm else torch.autograd.grad(total(terms_q), self.student_parameters, allow_unused=True)
        phase: Literal["warm-up", "play"] = "warm-up" if warm else "play"
        record = Record(index, phase, terms, entropy, h_prime, agreement, r.bounds, observes)
        del r, made, x, terms_g, terms_q

        def step_generator() -> None:
            if learns:
                if one_call:
                    undo.last_step(self.generator_optimizer)
                self.generator_optimizer.step()

        def step_student() -> None:
            if not warm:
                self._clear(self.student_optimizer)
                for parameter, gradient in zip(self.student_parameters, gradients, strict=True):
                    parameter.grad = gradient
                self._ready(self.student_optimizer, self.rates.student_lr, index)
                undo.keep_optimizer(self.student_optimizer, whole=True)
                self.student_optimizer.step()

        if probed:
            step_generator()
            again = self._remake(z, y)
            after_g = self._disagreement(*again)
            gain_g, gain_q = after_g - (math.log(self.classes) - entropy.mean()), torch.zeros_like(after_g)
            step_student()
            if not warm:
                gain_q = self._disagreement(*again) - after_g
            record = dataclasses.replace(record, gain_g=gain_g, gain_q=gain_q)
        else:
            step_student()
            step_generator()
        self._clear(self.generator_optimizer)
        self._clear(self.student_optimizer)
        if fits:
            self._fit_ranges()
        return record

    def draw(self) -> tuple[Tensor, Tensor]:
        """z and y of the next batch, on G's device: `(N, latent)` and `(N,)`, or as the method draws them."""
        with self._looking():
            return self._draw(self.index)

    def _draw(self, index: int) -> tuple[Tensor, Tensor]:
        z, y = self.method.sample(self.random, self.schedule.batch, self.generator.latent, self.classes)
        return self._placed(*self.generator.turn(index, z, y))

    def _placed(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What was drawn on the host, moved to G's device and precision; soft labels too."""
        z = z.to(next(self.generator.parameters()).dtype)
        y = y.to(z.dtype) if y.is_floating_point() else y
        return to_device(z, self.device), to_device(y, self.device)

    def _look(self, x: Tensor, noise: Tensor, labels: Tensor, *, warm: bool, learns: bool, observes: bool) -> Round:
        """The outputs of P and Q for the images `x`; gradients reach x through Q only if G's loss depends on Q."""
        to_images = learns and self.method.uses_student
        with self._autocast():
            z_p, statistics, f_p = self.forwards(self.observed_teacher.look, x)
            observing = self.student.observed() if observes else nullcontext()
            with torch.set_grad_enabled(to_images or not warm), self._batch_norm(follow=True), observing:
                z_q, f_q = self._student_logits(x if to_images else x.detach())
        notes = self.generator.notes(noise, labels)
        z_p, z_q = _wide(z_p), _wide(z_q)
        return Round(self.index, x, labels, z_p, z_q, statistics, self.bounds, self.fidelity, f_p, f_q, notes).whole()

    def _fit_ranges(self, batches: int = 8) -> None:
        """Fits Q's ranges to images of G as it is now; it has draws of its own, so the game's draws stay the same."""
        random = torch.Generator().manual_seed(self.seed)

        def images() -> Iterator[Tensor]:
            for _ in range(batches):
                drawn = self.method.sample(random, self.schedule.batch, self.generator.latent, self.classes)
                yield self._without_trace(*self._placed(*drawn))

        fit_ranges(self.student, images())

    def _student_logits(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Q's logits and, if the method uses them, its features."""
        if self._observed_student is None:
            return self.forwards(self.student.graph, x), ()
        z_q, features = self.forwards(self._observed_student, x)
        return z_q, features

    def _batch_norm(self, *, follow: bool) -> AbstractContextManager[Any]:
        """Q's batch norms in the mode that the method asks for; `follow`: whether running statistics may move."""
        return self.student.batch_statistics(follow=follow) if self.method.student_batch_norm == "train" else nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        # Not cached: within the user's own autocast, the cache would outlive the step that changes the weights.
        return (
            torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False) if self.precision == "bf16" else nullcontext()
        )

    def _ready(self, optimizer: torch.optim.Optimizer, lr: float, index: int) -> None:
        """Adds up the gradients over processes, and sets the learning rates of round `index`."""
        distributed.sum_gradients(p for group in optimizer.param_groups for p in group["params"])
        for group in optimizer.param_groups:
            group["lr"] = (self.rates.scale_lr if group.get("scales") else lr) * self.schedule.factor(index)

    @staticmethod
    def _clear(optimizer: torch.optim.Optimizer) -> None:
        """Frees the gradients; called before a backward pass too, since other code may have left some."""
        optimizer.zero_grad(set_to_none=True)

    # Looking without touching

    @torch.no_grad()
    def _remake(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(x, z_p) of the generator as it is now, for the same z and y; its running statistics are left as they were."""
        with self._autocast():
            x = self._without_trace(z, y)
            return x, distributed.gather(_wide(self.observed_teacher(x)[0]))

    @torch.no_grad()
    def _disagreement(self, x: Tensor, z_p: Tensor) -> Tensor:
        """Mean of log C - H_info over the batch, 0-dim, nats: 0 where P and Q agree."""
        with self._logits_finite(), self.student.frozen(), self._batch_norm(follow=False), self._autocast():
            return math.log(self.classes) - disagreement_entropy(z_p, distributed.gather(_wide(self.student(x)))).mean()

    def _without_trace(self, z: Tensor, y: Tensor) -> Tensor:
        buffers = [(buffer, buffer.clone()) for buffer in self.generator.buffers()]
        x: Tensor = self.generator(z, y)
        for buffer, before in buffers:
            buffer.copy_(before)
        return x

    def generate(self, labels: Tensor, *, seed: int = 0) -> Tensor:
        """Normalised images `(N, C, H, W)` of the given classes, from the generator as it is now; changes nothing.

        The generator normalises over its batch, so an image depends on the others: ask for a mixed batch. Waits for the end of
        a round that another thread plays.
        """
        with self._looking(), torch.no_grad():
            z = torch.randn(len(labels), self.generator.latent, generator=torch.Generator().manual_seed(seed))
            undo = self._undo = Undo(self.index, self.random, self._unchecked)
            undo.keep(self.generator.buffers())
            try:
                x: Tensor = self.generator(z.to(self.device), labels.to(self.device))
            finally:
                self._settle()
            return x

    # On disk

    def save(self, path: Path) -> None:
        """Writes everything the next round depends on to `path`, atomically; raises NonFiniteError if a weight is NaN.

        Waits for the end of a round that another thread plays.
        """
        with self._looking():
            self._check()
            if not all(bool(p.isfinite().all()) for p in (*self.generator.parameters(), *self.student_parameters)):
                raise self._non_finite(self.index - 1, "its step left a weight that is not finite")
            tensors, meta = snapshot_of(self)
        save_tensors(path, tensors, meta)
        self.last_checkpoint = path

    @staticmethod
    def resume(
        path: Path,
        *,
        teacher: Teacher | None = None,
        method: Method | None = None,
        device: str = "cpu",
        compile: Compile = "off",
    ) -> "Game":
        """The game saved at `path`, as it was: see `checkpoints.resume_game`."""
        return resume_game(Game, path, teacher=teacher, method=method, device=device, compile=compile)

    # When it goes wrong

    def check(self) -> None:
        """Checks the losses of the rounds since the last check; raises NonFiniteError for the first that is not finite."""
        with self._looking():
            self._check()

    def _check(self) -> None:
        pending, self._unchecked = self._unchecked, ()
        for index, names, finite in pending:
            if not bool(finite.all()):
                bad = ", ".join(name for name, ok in zip(names, finite.tolist(), strict=True) if not ok)
                raise self._non_finite(index, f"{bad} is not finite")

    def _note(self, index: int, terms: dict[str, Tensor]) -> None:
        """Notes whether the losses of round `index` are finite; checks the notes every `check_every` rounds."""
        if self.device.type == "meta":
            return
        self._unchecked = (*self._unchecked, (index, tuple(terms), torch.stack(list(terms.values())).isfinite()))
        if len(self._unchecked) >= self.check_every:
            self._check()

    @contextmanager
    def _logits_finite(self) -> Iterator[None]:
        """Turns an error about non-finite logits into the error of the round whose loss or step they come from."""
        try:
            yield
        except NonFiniteLogitsError as error:
            self._check()  # what made these logits NaN may be a loss of an earlier round
            raise self._non_finite(self.index, str(error)) from error

    def _non_finite(self, index: int, what: str) -> NonFiniteError:
        last = f"the last good checkpoint is {self.last_checkpoint}" if self.last_checkpoint else "there is no checkpoint yet"
        return NonFiniteError(f"round {index}: {what}; {last}; try a lower learning rate")


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype == torch.bfloat16 else logits
