"""The game: a stream of rounds in which G makes images, and P and Q look at them.

One round, one batch:  z, y -> G -> x -> P -> z_p, statistics
                                     x -> Q -> z_q
                       generator's loss -> gradient to x -> gradient to G -> Adam
                       student's loss   -> gradient to Q's weights        -> SGD (after the warm-up)

Q is run once and serves both players, since its weights do not change in between. The generator's loss is differentiated with
respect to the images only, the student's with respect to Q's weights only, and P's weights never: nothing is computed that no
step uses. Q learns from the images as they were before G's step, as the released code of this line of work has it.

`play` never makes the host wait for an accelerator: records hold tensors, and losses are looked at for NaN every
`check_every` rounds, which still names the round it happened in.
"""

import dataclasses
import math
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
from adadfq_lab.game.checkpoints import resume_game, save_game
from adadfq_lab.game.compiling import Compile, Forwards
from adadfq_lab.game.history import Record
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine import distributed
from adadfq_lab.machine.devices import Precision, to_device
from adadfq_lab.machine.memory import keep_freed_memory
from adadfq_lab.machine.optimizers import Adam, backward
from adadfq_lab.methods.generators import Generator
from adadfq_lab.methods.method import Method, Rates, Round
from adadfq_lab.student.range_fitting import fit_ranges
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.features import stages, with_features
from adadfq_lab.teacher.statistics import WithStatistics
from adadfq_lab.teacher.teacher import Teacher


class NonFiniteError(UserError):
    """A loss term became infinite or NaN; the message names the round, the term and the last checkpoint."""


class Game:
    """P, Q and G at the table.

        game = Game(P, quantize(P, "3w3a"), adadfq())
        for record in game.play(1000): ...

    seed:        of G's first weights, of z and of y; every draw is made on the CPU, so it is the same on every device
    fidelity:    a preset's name or a Fidelity
    gains_every: measure gain_g and gain_q every so many rounds (0: never); each time costs about half a round's forwards
    check_every: look for non-finite losses every so many rounds; 0 lets the device decide: 1 on a CPU, 25 elsewhere
    precision:   "float32", "tf32" (CUDA's fast float32) or "bf16" (autocast)
    compile:     "off", "default" (torch.compile) or "graphs" (and CUDA graphs): see `compiling`; not part of what is saved

    `bounds` may be set at any time and counts from the next round on. Raises UserError where P and Q disagree on classes.
    """

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
        keep_freed_memory()
        self.teacher, self.student, self.method = teacher.to(self.device), student.to(self.device), method
        self.schedule, self.seed, self.gains_every = schedule or Schedule(), seed, gains_every
        self.fidelity = preset(fidelity) if isinstance(fidelity, str) else fidelity
        self.check_every = check_every or (1 if self.device.type == "cpu" else 25)
        self.precision: Precision = precision
        self.bounds = method.bounds
        self.index = 0
        self.last_checkpoint: Path | None = None
        self._playing = False
        self.classes = len(teacher.info.classes)
        self.observed_teacher = WithStatistics(teacher, stages(teacher) if method.features else ()).to(self.device)
        self._observed_student = with_features(student.graph, self.observed_teacher.stages) if method.features else None
        self.random = torch.Generator().manual_seed(seed)
        self.generator = self._build_generator().to(self.device)
        self._check_classes()
        distributed.prepare(self.schedule.batch, self.generator, self.student)
        fused = {"fused": True} if self.device.type in ("cpu", "cuda") else {}
        beta1 = self.fidelity.adam_beta1 if self.rates.adam_beta1 is None else self.rates.adam_beta1
        betas = (beta1, 0.999)
        if method.ranges == "learned":
            self.student.learn_ranges()
        self.generator_optimizer = Adam(self.generator.parameters(), 1.0, betas=betas, **fused)
        self.student_parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.student_optimizer = method.student_optimizer(self.student, self.rates.weight_decay, self.fidelity)
        self._unchecked: list[tuple[int, list[str], Tensor]] = []
        if self.device.type == "cuda":  # of the whole process; without this, convolutions are TF32 whatever was asked
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"

    @property
    def rates(self) -> Rates:
        """Learning rates before any decay, and the weight decay."""
        return self.schedule.rates(self.method)

    def _build_generator(self) -> Generator:
        """G with first weights from `seed`, leaving torch's global random state as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
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

    # One round

    def play(self, rounds: int) -> Iterator[Record]:
        """Plays `rounds` more rounds and yields the record of each.

        Raises NonFiniteError where a loss is no number, and UserError while another thread plays a round of this game.
        """
        for _ in range(rounds):
            if self._playing:
                raise UserError("this game is being played, perhaps by a live run; call run.wait(), or run.stop() first")
            self._playing = True
            try:
                with distributed.spread():
                    record = self.round()
            finally:
                self._playing = False
            if self.device.type != "meta":
                self._unchecked.append((record.index, list(record.terms), torch.stack(list(record.terms.values())).isfinite()))
                if len(self._unchecked) >= self.check_every:
                    self.check()
            yield record
        self.check()

    def round(self) -> Record:
        """Plays one round: the generator's step, then the student's."""
        index, warm = self.index, self.index < self.schedule.warmup
        learns = self.method.steps_generator(index, self.schedule.warmup)  # G in this round; Q learns after the warm-up
        probed = self.gains_every and index % self.gains_every == 0
        self._set_observers(index)
        self.forwards.begin()
        noise, labels = self.draw()
        z, y = distributed.shard(noise), distributed.shard(labels)
        with self._logits_finite():
            with self._autocast(), torch.set_grad_enabled(learns):
                made = self.forwards(self.generator, z, y)
            x = made.detach().contiguous(memory_format=torch.channels_last).requires_grad_(learns)
            r = self._look(x, noise, labels, warm=warm, learns=learns)
            terms_g = self.method.generator_loss(r) if learns else {}
            terms_q = {} if warm else self.method.student_loss(r)
            entropy, h_prime = r.entropy.detach(), r.h_prime.detach()
        gain_g: Tensor | None = None
        gain_q: Tensor | None = None
        if learns:
            (gradient,) = torch.autograd.grad(total(terms_g), x, retain_graph=not warm)
            lr = self.rates.generator_lr * self.generator.rate(index)
            self._step(self.generator_optimizer, lr, index, lambda: backward(made, gradient))
        if probed:
            again = self._remake(z, y)
            after_g = self._disagreement(*again)
            gain_g, gain_q = after_g - (math.log(self.classes) - entropy.mean()), torch.zeros_like(after_g)
        if not warm:
            gradients = torch.autograd.grad(total(terms_q), self.student_parameters, allow_unused=True)
            self._step(self.student_optimizer, self.rates.student_lr, index, lambda: self._assign(gradients))
            if probed:
                gain_q = self._disagreement(*again) - after_g
        self.index += 1
        if self.method.ranges != "observed" and self.index == self.schedule.warmup:
            self._fit_ranges()
        terms = {f"generator.{k}": v.detach() for k, v in terms_g.items()}
        terms |= {f"student.{k}": v.detach() for k, v in terms_q.items()}
        agreement = (r.teacher_logits.detach().argmax(1) == r.student_logits.detach().argmax(1)).float().mean()
        phase: Literal["warm-up", "play"] = "warm-up" if warm else "play"
        return Record(index, phase, terms, entropy, h_prime, agreement, r.bounds, self.student.observing, gain_g, gain_q)

    def _set_observers(self, index: int) -> None:
        """Whether Q's ranges follow the batch of round `index`, and what passes where they clip."""
        self.student.observing = index in self.schedule.observed(self.method)
        if self.method.ranges == "fitted" and index >= self.schedule.warmup:
            self.student.stop_clipped_gradients()

    def draw(self) -> tuple[Tensor, Tensor]:
        """z and y of the whole of the next batch, where G is: `(N, latent)` and `(N,)`, or as the method has them."""
        z, y = self.method.sample(self.random, self.schedule.batch, self.generator.latent, self.classes)
        return self._placed(*self.generator.turn(self.index, z, y))

    def _placed(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What was drawn on the host, where G is and in its precision; soft labels too."""
        z = z.to(next(self.generator.parameters()).dtype)
        y = y.to(z.dtype) if y.is_floating_point() else y
        return to_device(z, self.device), to_device(y, self.device)

    def _look(self, x: Tensor, noise: Tensor, labels: Tensor, *, warm: bool, learns: bool) -> Round:
        """What P and Q make of the images `x`; gradients reach x through Q only where G's loss looks at Q."""
        to_images = learns and self.method.uses_student
        with self._autocast():
            z_p, statistics, f_p = self.forwards(self.observed_teacher.look, x)
            with torch.set_grad_enabled(to_images or not warm), self._batch_norm(follow=True):
                z_q, f_q = self._student_logits(x if to_images else x.detach())
        notes = self.generator.notes(noise, labels)
        z_p, z_q = _wide(z_p), _wide(z_q)
        return _whole(Round(self.index, x, labels, z_p, z_q, statistics, self.bounds, self.fidelity, f_p, f_q, notes))

    def _fit_ranges(self, batches: int = 8) -> None:
        """Cuts Q's ranges to fit images of G as it is now; the draws are its own, so the game's go on as they would have."""
        random = torch.Generator().manual_seed(self.seed)

        def images() -> Iterator[Tensor]:
            for _ in range(batches):
                drawn = self.method.sample(random, self.schedule.batch, self.generator.latent, self.classes)
                yield self._without_trace(*self._placed(*drawn))

        fit_ranges(self.student, images())

    def _student_logits(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Q's logits and, where the method asks for them, its features."""
        if self._observed_student is None:
            return self.forwards(self.student, x), ()
        z_q, features = self.forwards(self._observed_student, x)
        return z_q, features

    def _batch_norm(self, *, follow: bool) -> AbstractContextManager[Any]:
        """Q's batch norms as the method has them; `follow`: whether running statistics may move."""
        return self.student.batch_statistics(follow=follow) if self.method.student_batch_norm == "train" else nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _step(self, optimizer: torch.optim.Optimizer, lr: float, index: int, assign: Any) -> None:
        optimizer.zero_grad(set_to_none=True)  # what somebody else's backward pass left on the way
        assign()
        distributed.sum_gradients(p for group in optimizer.param_groups for p in group["params"])
        for group in optimizer.param_groups:
            group["lr"] = (self.rates.scale_lr if group.get("scales") else lr) * self.schedule.factor(index)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # kept, they would lie about through the next round

    def _assign(self, gradients: tuple[Tensor | None, ...]) -> None:
        for parameter, gradient in zip(self.student_parameters, gradients, strict=True):
            parameter.grad = gradient

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

    @torch.no_grad()
    def generate(self, labels: Tensor, *, seed: int = 0) -> Tensor:
        """Normalised images `(N, C, H, W)` of the given classes, from the generator as it is now; changes nothing.

        The generator normalises over its batch, so images depend on their company: ask for a mixed batch.
        """
        z = torch.randn(len(labels), self.generator.latent, generator=torch.Generator().manual_seed(seed))
        return self._without_trace(z.to(self.device), labels.to(self.device))

    # On disk

    def save(self, path: Path) -> None:
        """Writes everything the next round depends on to `path`, atomically; raises NonFiniteError where a weight is NaN."""
        self.check()
        if not all(bool(p.isfinite().all()) for p in (*self.generator.parameters(), *self.student_parameters)):
            raise self._non_finite(self.index - 1, "its step left a weight that is not finite")
        save_game(self, path)
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
        """Looks at the losses of the rounds since the last look; raises NonFiniteError for the first that is no number."""
        pending, self._unchecked = self._unchecked, []
        for index, names, finite in pending:
            if not bool(finite.all()):
                bad = ", ".join(name for name, ok in zip(names, finite.tolist(), strict=True) if not ok)
                raise self._non_finite(index, f"{bad} is not finite")

    @contextmanager
    def _logits_finite(self) -> Iterator[None]:
        """Turns logits that are no numbers into the error of the round whose loss or step they come from."""
        try:
            yield
        except NonFiniteLogitsError as error:
            self.check()  # what made these logits NaN may be a loss of an earlier round
            raise self._non_finite(self.index, str(error)) from error

    def _non_finite(self, index: int, what: str) -> NonFiniteError:
        last = f"the last good checkpoint is {self.last_checkpoint}" if self.last_checkpoint else "there is no checkpoint yet"
        return NonFiniteError(f"round {index}: {what}; {last}; try a lower learning rate")


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype == torch.bfloat16 else logits


def _whole(r: Round) -> Round:
    """The round of the whole batch where it is spread over processes; statistics, labels and notes are of the whole already."""
    if distributed.parts() == 1:
        return r
    return dataclasses.replace(
        r,
        images=distributed.gather(r.images),
        teacher_logits=distributed.gather(r.teacher_logits),
        student_logits=distributed.gather(r.student_logits),
        teacher_features=tuple(map(distributed.gather, r.teacher_features)),
        student_features=tuple(map(distributed.gather, r.student_features)),
    )
