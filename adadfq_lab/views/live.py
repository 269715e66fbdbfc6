"""A game played in the background, with buttons: start, pause, resume, stop.

    run = lab.LiveRun(game, rounds=200, data=test_images).start()      # the cell returns at once; the buttons work
    run.pause(); run.resume(); run.stop()                              # what the buttons do
    run.history                                                        # what happened so far, see `History`
    run.then(lambda history: f"{len(history)} rounds")                 # filled in when the run is over

One thread plays and, at most five times a second, draws. A button only sets a flag that the thread looks at between two rounds,
so it never matters on which thread a front end delivers the click. An error in the thread stands in the status line and is
raised again by `wait()` and `then()`. One run plays at a time: starting a second one, or the same cell again, stops the first.

While the run plays, the page shows widgets. When it is over, the status and the last picture become ordinary output, which
stays in the saved notebook and in every conversion of it.

`start` plays to the end before it returns if nobody can click: without a kernel, in fast mode, with the backend "none", and
with ADADFQ_LAB_WAIT=1, which is for notebooks that are executed without a front end (`nbconvert --execute`).
"""

import atexit
import threading
import time
import traceback
from collections.abc import Callable
from html import escape
from importlib import import_module
from typing import Any, Literal

from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.equations import Bounds
from adadfq_lab.errors import UserError
from adadfq_lab.game.game import Game
from adadfq_lab.game.history import History, Recorder
from adadfq_lab.game.probing import probe
from adadfq_lab.machine.environment import Backend, fast, in_kernel, live_backend, waits
from adadfq_lab.machine.memory import keep_freed_memory, release_freed_memory
from adadfq_lab.views.axes import typeset
from adadfq_lab.views.renderers import Bundle, Shown, View, html_widget, make_view

State = Literal["new", "running", "paused", "stopped", "finished", "failed"]
INTERVAL = 0.2
"""Seconds between two updates of what is drawn: five a second."""
FAST_ROUNDS = 6
GONE = (
    "<style>.adadfq-gone,.jupyter-widgets-disconnected .adadfq-alive,.jupyter-widgets-disconnected.adadfq-alive{display:none}"
    ".jupyter-widgets-disconnected .adadfq-gone{display:inline}</style>"
    '<span class="adadfq-gone">The kernel of this run is gone; run the cell again.</span>'
)
"""Shown in place of "running" by a page that has lost the kernel: a restarted kernel cannot say so itself."""
BUTTONS = (("start", "play"), ("pause", "pause"), ("resume", "forward"), ("stop", "stop"))

_current: "LiveRun | None" = None
_registry = threading.Lock()


@atexit.register
def _end_with_the_interpreter() -> None:
    """A thread that is inside torch while the interpreter ends would abort the process."""
    if _current is not None:
        _current.stop("stopped: the interpreter has ended")
        _current._join()


class LiveRun:
    """`rounds` rounds of `game` in a background thread, drawn while they are played.

    data:           real images to measure Q on, if any; before round 1, every `evaluate_every` rounds, and at the end
    backend:        "svg", "widget" (plotly) or "none"; None for `environment.live_backend()`
    blocking:       whether `start` waits for the end; None: if nobody can click
    on_publish:     functions of the History, called whenever the figure is redrawn, on the run's thread

    In fast mode at most six rounds are played. Shown by a notebook as figure, buttons and status line.
    """

    def __init__(
        self,
        game: Game,
        rounds: int,
        *,
        data: ImageSet | None = None,
        evaluate_every: int = 50,
        backend: Backend | None = None,
        blocking: bool | None = None,
    ) -> None:
        if rounds < 1:
            raise UserError(f"a run has at least 1 round, not {rounds}")
        self.game, self.data, self.evaluate_every = game, data, max(1, evaluate_every)
        self.rounds = min(rounds, FAST_ROUNDS) if fast() else rounds
        self.backend: Backend = backend or live_backend()
        alone = fast() or waits() or self.backend == "none" or not in_kernel()
        self.blocking = alone if blocking is None else blocking
        self.on_publish: list[Callable[[History], None]] = []
        self.error: BaseException | None = None
        self.state: State = "new"
        self.message = ""
        self._recorder = Recorder(game.classes)
        self._go, self._stop, self._over = threading.Event(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._after: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._published = -1.0
        self._view: View = make_view(self.backend)
        self._controls: Shown | None = None
        self._buttons: dict[str, Any] = {}
        self._status: Any = None

    # What the buttons do

    def start(self) -> "LiveRun":
        """Begins to play and returns this run; stops the run that plays now, if any. Starting twice changes nothing."""
        global _current
        with _registry:
            if self.state != "new":
                return self
            before, _current = _current, self
            self.state = "running"
        if before is not None:  # outside the lock: its thread may be starting a run itself
            before.stop("stopped: another run was started")
            before._join()
        self._go.set()
        _ = self.figure  # made here, on the cell's thread, and in the cell that displays it
        keep_freed_memory()
        release_freed_memory()
        self._thread = threading.Thread(target=self._play, name="adadfq live run", daemon=True)
        self._thread.start()
        if self.blocking:
            self.wait()
        return self

    def pause(self) -> None:
        """Holds the game after the current round."""
        if self.state == "running":
            self._go.clear()

    def resume(self) -> None:
        """Goes on after a pause."""
        if self.running:
            self._go.set()

    def stop(self, message: str = "stopped") -> None:
        """Ends the run after the current round; what was played stays."""
        if self.running:
            self.message = message
            self._stop.set()
            self._go.set()

    @property
    def running(self) -> bool:
        """Whether the run has begun and is not over; a paused one is running."""
        return self.state in ("running", "paused")

    def set_bounds(self, bounds: Bounds) -> None:
        """Puts `bounds` in force from the next round on; every plot marks the moment."""
        self.game.bounds = bounds

    # What came of it

    @property
    def history(self) -> History:
        """What happened so far; does not change any more."""
        return self._recorder.history()

    def wait(self, timeout: float | None = None) -> History:
        """Waits for the end of the run and returns its history; raises what went wrong in its thread.

        While a cell waits, a front end's buttons wait too: in a notebook `then` is better. Interrupting the wait stops the run.
        Raises UserError for a run that was not started or is paused, and TimeoutError after `timeout` seconds.
        """
        if self._thread is None:
            raise UserError("this run was not started; call start()")
        if self._thread is threading.current_thread():
            raise UserError("this run cannot wait for itself; call wait() in a cell, not in what the run calls")
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not self._over.wait(0.05):
                if self.state == "paused" and not self._go.is_set():
                    raise UserError("this run is paused; press Resume or call resume()")
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"the run is not over after {timeout:g} s")
        except KeyboardInterrupt:
            self.stop("stopped: interrupted")
            self._join()
            raise
        self._join()
        if self.error is not None:
            raise self.error
        return self.history

    def then(self, report: Callable[[History], str]) -> Any:
        """Something to display: what `report` makes of the history, as HTML, once the run is over; a placeholder until then.

        The text is made on the run's thread if the run is still playing, so `report` must only compute, not display.
        """
        if self._thread is None:
            raise UserError("this run was not started; call start()")
        shown = Late()
        with self._lock:
            if not self._over.is_set():
                self._after.append(lambda: shown.fill(self._report(report)))
                return shown
        if self.error is not None:
            raise self.error
        shown.fill(report(self.history))
        return shown

    def _report(self, report: Callable[[History], str]) -> str:
        if self.error is not None:
            return f"<p>The run failed: {escape(str(self.error))}</p>"
        try:
            return report(self.history)
        except Exception:  # made for a reader in a notebook cell that has long returned: show it there
            return f"<pre>{escape(traceback.format_exc())}</pre>"

    def _join(self) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # The thread

    def _play(self) -> None:
        outcome: State
        try:
            with self.game.reserved():
                outcome = self._rounds()
        except BaseException as error:  # raised again by wait(); a thread has nobody to raise it to
            self.error, outcome = error, "failed"
        self.state = outcome
        release_freed_memory()
        try:
            self._publish(force=True)
            self._view.finish(self._recorder.drawn())
            if self._controls is not None:
                self._controls.replace(self._status_bundle())
        except Exception as error:  # a figure that cannot be drawn must not block a thread that waits for the run
            self.error, self.state = self.error or error, "failed"
        with self._lock:
            self._over.set()
            after, self._after = self._after, []
        for action in after:
            action()

    def _rounds(self) -> State:
        """Plays until all rounds are played or the run is stopped."""
        stream = self.game.play(self.rounds)
        for number in range(1, self.rounds + 1):
            if not self._go.is_set():
                self.state = "paused"
                self._publish(force=True)
                self._go.wait()
                self.state = "running"
                self._publish(force=True)
            if self._stop.is_set():
                return "stopped"
            record = next(stream)
            due = number % self.evaluate_every == 0 or number in (1, self.rounds)
            self._recorder.add(record, probe(self.game, self.data) if self.data is not None and due else None)
            self._publish()
        return "finished"

    def _publish(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._published < INTERVAL:
            return
        if force and self._published > 0:
            time.sleep(max(0.0, self._published + INTERVAL - now))
        self._published = time.monotonic()
        self._view.publish(self._recorder.drawn())
        history = self.history
        for function in self.on_publish:
            function(history)
        self._show_state(history)

    # The controls

    def status(self) -> str:
        """State, rounds and what is wrong, in a line."""
        words = f"{self.message or self.state}: round {self.game.index}, {len(self.history)} of {self.rounds} played"
        if self.error is not None:
            words += f"; {type(self.error).__name__}: {self.error}"
        return words

    def _show_state(self, history: History) -> None:
        if self._status is None:
            return
        self._status.value = (
            GONE + f'<span role="status" aria-live="polite" class="adadfq-alive">{typeset(self.status())}</span>'
        )
        usable = {"start": self.state == "new", "pause": self.state == "running"}
        usable |= {"resume": self.state == "paused", "stop": self.running}
        for name, button in self._buttons.items():
            if button.disabled == usable[name]:
                button.disabled = not usable[name]

    def _status_bundle(self) -> Bundle:
        return {"text/html": f'<span role="status">{typeset(self.status())}</span>', "text/plain": self.status()}

    @property
    def controls(self) -> Any:
        """The buttons and the status line, an ipywidgets box; None if ipywidgets is not installed."""
        return self._made_controls().widget

    def _made_controls(self) -> Shown:
        if self._controls is None:
            self._status = html_widget()
            if self._status is None:
                self._controls = Shown(None, self._status_bundle())
                return self._controls
            widgets: Any = import_module("ipywidgets")
            actions = {"start": self.start, "pause": self.pause, "resume": self.resume, "stop": self.stop}
            for name, icon in BUTTONS:
                button = widgets.Button(description=name.capitalize(), icon=icon, layout={"width": "100px"})
                button.on_click(lambda _, name=name: actions[name]())
                self._buttons[name] = button
            row = widgets.HBox(list(self._buttons.values()), layout={"flex_flow": "row wrap"})
            row.add_class("adadfq-alive")
            self._controls = Shown(widgets.VBox([row, self._status]))
            self._show_state(self.history)
            if self._over.is_set():
                self._controls.plain = self._status_bundle()
        return self._controls

    @property
    def figure(self) -> Any:
        """The FigureWidget of backend "widget"; None for the others."""
        return getattr(self._view, "figure", None)

    def _ipython_display_(self) -> None:
        if self.backend == "none" or not in_kernel():
            print(self.status())
            return
        self._made_controls().display()
        self._view.display()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Bundle:
        """Status and picture as they are now, for front ends that show an object without calling its display."""
        now, drawn = self._status_bundle(), self._view.bundle()
        return {kind: "\n".join(part[kind] for part in (now, drawn) if kind in part) for kind in now}

    def close(self) -> None:
        """Stops the run and takes its widgets off the page."""
        self.stop()
        self._join()
        self._view.close()
        if self._controls is not None and self._controls.widget is not None:
            self._controls.widget.close()


class Late:
    """A place on the page that is filled in later, from any thread."""

    def __init__(self) -> None:
        self.text = "<p><em>… this is filled in when the run is over</em></p>"
        self._shown: Shown | None = None
        self._lock = threading.Lock()
        self._filled = False

    def fill(self, text: str) -> None:
        with self._lock:
            self.text, self._filled = text, True
            if self._shown is not None:
                if self._shown.widget is not None:
                    self._shown.widget.value = text
                self._shown.replace(self._bundle())

    def _bundle(self) -> Bundle:
        return {"text/html": self.text, "text/plain": self.text}

    def _ipython_display_(self) -> None:
        if not in_kernel():
            print(self.text)
            return
        with self._lock:
            if self._shown is None:
                widget = None if self._filled else html_widget()
                self._shown = Shown(widget, self._bundle() if widget is None else None)
                if widget is not None:
                    widget.value = self.text
            self._shown.display()
