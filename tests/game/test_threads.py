"""A game that several threads use at once: each of its methods, and each of its student's, waits for a round or is refused."""

import copy
import random
import threading
import time
from functools import partial

import pytest
import torch
from helpers.live_games import tiny_game as live_game
from helpers.live_games import tiny_images
from helpers.tiny_games import CLASSES, SHAPE, changed, play, state, tiny_game, tiny_teacher

from adadfq_lab.equations import Bounds
from adadfq_lab.errors import UserError
from adadfq_lab.game.dials import PAPER
from adadfq_lab.game.game import Game
from adadfq_lab.game.probing import probe
from adadfq_lab.integers.export import export_onnx
from adadfq_lab.machine.files import load_tensors
from adadfq_lab.methods.registry import METHODS, make_method
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.student_files import load_student, save_student
from adadfq_lab.teacher.networks import build_network
from adadfq_lab.teacher.teacher_files import load_teacher
from adadfq_lab.views.live import LiveRun


def at_once(*actions) -> None:
    """Runs each action in a thread of its own; raises what any of them raised."""
    errors: list[BaseException] = []

    def guarded(action):
        try:
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def in_a_round(game: Game, look) -> dict[str, torch.Tensor]:
    """Has another thread `look` at `game` while this one is in the middle of a round; the state after it."""
    began, done = threading.Event(), threading.Event()
    forward = type(game.observed_teacher).look

    def slow(x):
        began.set()
        assert not done.wait(0.1), "looked in the middle of a round"
        return forward(game.observed_teacher, x)

    game.observed_teacher.look = slow

    def other():
        assert began.wait(30)
        look(game)
        done.set()

    at_once(lambda: play(game, 1), other)
    del game.observed_teacher.look
    return state(game)


NOISE = 5 * torch.ones(2, *SHAPE)


@pytest.mark.parametrize(
    "look",
    [
        lambda game: game.generate(torch.arange(CLASSES)),
        lambda game: game.student(NOISE),
        lambda game: game.student.eval(),
        lambda game: game.student.train(game.student.training),
        lambda game: setattr(game.student, "observing", False),
        lambda game: copy.deepcopy(game),
        lambda game: copy.deepcopy(game.student),
        lambda game: game.check(),
    ],
    ids=["generate", "call", "eval", "train", "observing", "copy", "copy student", "check"],
)
@pytest.mark.parametrize("method", ["adadfq", "zaq"])
def test_a_look_waits_for_the_end_of_the_round(look, method):
    """It sees, and leaves, the game after that round; the game is that of the seed."""
    game = play(tiny_game(make_method(method), warmup=1), 1)
    assert changed(in_a_round(game, look), state(play(tiny_game(make_method(method), warmup=1), 2))) == set()


def test_files_written_during_a_live_run_are_right(tmp_path):
    """Checkpoints, students and exports written while a run plays can be read, and are those of the round they name."""
    teacher = tiny_teacher()
    game = tiny_game(teacher=teacher, student_lr=1e-3)
    run = LiveRun(game, 100_000, backend="none", blocking=False).start()
    for number in range(5):
        game.save(tmp_path / f"{number}.ckpt")
        save_student(game.student, teacher, tmp_path / f"{number}.safetensors")
        copy.deepcopy(game)
        probe(live_game(), tiny_images())
    export_onnx(game.student, tmp_path / "q.onnx", teacher)  # compares the file with the student on a few images
    run.stop()
    run.wait(60)
    for number in range(5):
        load_student(tmp_path / f"{number}.safetensors", teacher)
    resumed = Game.resume(tmp_path / "2.ckpt", teacher=teacher)
    again = tiny_game(teacher=teacher, student_lr=1e-3)
    assert changed(state(resumed), state(play(again, load_tensors(tmp_path / "2.ckpt")[1]["index"]))) == set()


def test_a_live_run_keeps_its_game_to_itself_between_rounds_too():
    """A second loop would take rounds that the run's history then lacks; a paused run is not over either."""
    game = tiny_game()
    run = LiveRun(game, 100_000, backend="none", blocking=False).start()
    while len(run.history) < 2:
        time.sleep(0.01)
    run.pause()
    while run.state != "paused":
        time.sleep(0.01)
    for _ in range(3):
        with pytest.raises(UserError, match=r"run\.stop\(\)"):
            next(game.play(1))
    with pytest.raises(UserError, match=r"run\.stop\(\)"):
        game.round()
    run.stop()
    history = run.wait(30)
    assert history["round"].tolist() == list(range(game.index))
    assert next(game.play(1)).index == len(history)


def test_every_method_of_a_live_run_may_be_called_from_other_threads():
    """Buttons, bounds, history and what is displayed, from three threads at once: no error, and the game of its seed."""
    run = LiveRun(tiny_game(student_lr=1e-3), 20, backend="svg", blocking=False)
    looks = [run.pause, run.resume, run.start, run.status, lambda: run.history, lambda: run.set_bounds(run.game.bounds)]
    looks += [
        lambda: run.controls,
        lambda: run.figure,
        lambda: run.running,
        run._repr_mimebundle_,
        lambda: run.then(lambda history: ""),
    ]

    def hammer(chooser):
        while not run._over.is_set():
            chooser.choice(looks)()
            run.resume()
            time.sleep(0.01)

    run.start()
    at_once(*(partial(hammer, random.Random(seed)) for seed in range(3)))
    assert run.wait(60)["round"].tolist() == list(range(20))
    run.close()
    assert changed(state(run.game), state(play(tiny_game(student_lr=1e-3), 20))) == set()


def test_dials_and_bounds_count_from_the_next_round():
    """Turned in the middle of a round, they leave that round alone."""
    game = play(tiny_game(), 2)
    after = in_a_round(game, PAPER.turn)
    assert changed(after, state(play(tiny_game(), 3))) == set()


# A seed alone decides


def built_among(noise, make):
    """What `make` returns while another thread keeps drawing from torch's global generator and reseeding it."""
    stop, found = threading.Event(), []

    def disturb():
        while not stop.is_set():
            noise()

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        found = make()
    finally:
        stop.set()
        thread.join()
    return found


@pytest.mark.parametrize("name", [*METHODS, "adadfq+"])
def test_first_weights_are_those_of_the_global_generator_and_need_it_not(name):
    """G is what torch.manual_seed(seed) and the default initialisation give, whatever another thread draws."""
    teacher = tiny_teacher()
    for seed in (0, 3):
        with torch.random.fork_rng(devices=[]):
            game = tiny_game(make_method(name), teacher=teacher)
            torch.manual_seed(seed)
            wanted = game.method.build_generator(teacher, game.fidelity)
            wanted.plan(game.schedule.batch, game.schedule.warmup)
        before = torch.get_rng_state()
        quiet = tiny_game(make_method(name), teacher=teacher, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        assert changed(wanted.state_dict(), quiet.generator.state_dict()) == set()
        make = partial(tiny_game, make_method(name), teacher=teacher, seed=seed)
        loud = built_among(lambda: torch.manual_seed(7), make)
        assert changed(wanted.state_dict(), loud.generator.state_dict()) == set()


def test_games_in_several_threads_are_the_games_of_their_seeds():
    """Built and played at once, with the same teacher."""
    teacher = tiny_teacher()
    found: dict[int, dict[str, torch.Tensor]] = {}

    def one(seed):
        found[seed] = state(play(tiny_game(teacher=teacher, seed=seed), 4))

    at_once(*(lambda seed=seed: one(seed) for seed in range(3)))
    for seed in range(3):
        assert changed(found[seed], state(play(tiny_game(teacher=teacher, seed=seed), 4))) == set()


def test_loading_and_building_leave_the_global_random_state_alone():
    """A shipped teacher, a network by name, a student."""
    before = torch.get_rng_state()
    quantize(load_teacher("fashion_mnist_resnet20"), "3w3a")
    build_network("resnet8", 10)
    assert torch.equal(before, torch.get_rng_state())


def test_bounds_set_from_another_thread_count_once():
    """set_bounds during a run changes a later round, and only that one's record."""
    run = LiveRun(tiny_game(), 30, backend="none", blocking=False).start()
    at_once(lambda: run.set_bounds(Bounds(0.2, 0.6)), lambda: run.history, run.status, lambda: run.wait(60))
    assert len(run.history) == 30


def test_a_run_cannot_wait_for_itself():
    """A function that is called on the run's thread and waits for the run would wait for ever."""
    run = LiveRun(tiny_game(), 3, backend="none", blocking=False)
    run.on_publish.append(lambda history: run.wait())
    run.start()
    with pytest.raises(UserError, match="cannot wait for itself"):
        run.wait(60)
