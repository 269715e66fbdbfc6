"""`adadfq quantize`: a network of one's own, without data, to an integer file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from adadfq_lab.cli.output import Json, say
from adadfq_lab.errors import UserError

if TYPE_CHECKING:
    from adadfq_lab.runs.config import RunConfig
    from adadfq_lab.teacher.teacher import Teacher


def quantize(
    network: tyro.conf.Positional[str] = "",
    output: Path = Path("quantized.onnx"),
    weights: Path | None = None,
    input: str = "",
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    classes: tuple[str, ...] = (),
    bits: str = "4w4a",
    data: str = "",
    method: str = "adadfq+",
    rounds: int = 0,
    seed: int = 0,
    every_input: bool = False,
    bns_reduction: Literal["", "sum", "mean", "normalized"] = "",
    device: str = "auto",
    folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None,
    resume: bool = False,
    estimate: bool = True,
    json: Json = False,
) -> None:
    """Quantise a network of your own without data, and write a verified integer ONNX file.

    For example: adadfq quantize model.py:build --weights w.pt --input 3x32x32 --mean 0.49 0.48 0.45 --std 0.25 0.24 0.26

    The network is what your code builds; the code is executed, the weights are read as tensors only. No image is needed: a
    generator makes them. With images (--data) accuracy is measured; without, agreement with your network on generated ones.

    Args:
        network: FILE.py:NAME or PACKAGE.MODULE:NAME of a class or function that takes no argument; or a teacher: a file, a
            shipped name, torchvision:resnet18 and its like, which need no further options.
        output: The file to write, ending in .onnx.
        weights: A state dict (.pt, .pth) or .safetensors. If not given, the network as the code builds it.
        input: Shape of an image, channels x height x width, as in 3x32x32.
        mean: Per channel, of pixel values in [0, 1], as in training. 0 if not given.
        std: Per channel. 1 if not given.
        classes: Names of the classes, or a text file with a name a line. Numbers if not given.
        bits: Of weights and activations, 2 to 8 each.
        data: Images to measure on: a folder with a folder of images a class, a folder of unlabelled images, a file .npz with
            x uint8 (N, C, H, W) and y, or a data set's name. None if not given.
        method: How to play; `adadfq methods` lists all.
        rounds: Rounds in all; the method's usual number if 0.
        seed: Of the generator's first weights and of every draw.
        every_input: Also quantise layer inputs that no ReLU precedes.
        bns_reduction: How L_BNS adds up; normalized if a warning says that it drowns the other terms.
        device: auto takes a GPU if there is one.
        folder: Folder of the run; the output's name without .onnx if not given.
        resume: Continue an interrupted run; the same command with --resume, or with --run alone.
        estimate: Time a few rounds first and say how long the run will take.
    """
    from adadfq_lab.runs.quantizing import finish, own_config, quantize_and_export

    folder = folder or output.with_suffix("")
    if resume and not network:
        from adadfq_lab.runs.config import read_config
        from adadfq_lab.runs.run import run

        if not (folder / "config.json").exists():
            raise UserError(f"{folder} holds no run to resume; give its folder with --run")
        done = finish(folder, output, run(read_config(folder / "config.json"), folder, resume=True))
        say(done.as_json(), done.table(), json)
        return
    if not network:
        raise UserError("which network? as in: adadfq quantize model.py:build --weights w.pt --input 3x32x32")
    teacher = _teacher(network, weights, input, mean, std, classes)
    options: dict[str, Any] = {"seed": seed, "every_input": every_input, "bns_reduction": bns_reduction, "device": device}
    config = own_config(bits, method=method, rounds=rounds, data=data, **options)
    if not resume:
        _announce(teacher, config, folder, output, estimated=estimate)
    try:
        done = quantize_and_export(
            teacher, output, bits=bits, data=data, method=method, rounds=rounds, folder=folder, resume=resume, **options
        )
    except KeyboardInterrupt:
        from adadfq_lab.runs.folder import checkpoints

        if not checkpoints(folder):
            raise
        again = f"adadfq quantize --resume --run {folder} --output {output}"
        raise KeyboardInterrupt(f"the run is saved; continue it with: {again}") from None
    say(done.as_json(), done.table(), json)
    if done.verification and not done.verification.ok:
        sys.exit(1)


def _teacher(
    network: str,
    weights: Path | None,
    shape: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    classes: tuple[str, ...],
) -> "Teacher":
    """The teacher that the options describe; says on standard error what is executed and what is assumed."""
    from adadfq_lab.teacher.own_network import build_own, count_classes, load_weights
    from adadfq_lab.teacher.teacher import wrap_teacher
    from adadfq_lab.teacher.teacher_files import SHIPPED, load_teacher
    from adadfq_lab.teacher.zoo import ZOO

    if network in SHIPPED or network in ZOO or (":" not in network and Path(network).exists() and not network.endswith(".py")):
        if weights or shape or mean or std or classes:
            raise UserError(f"{network} is a teacher, which knows its weights, input, mean, std and classes; leave these out")
        return load_teacher(network)
    match shape.replace(",", "x").split("x"):
        case [a, b, c] if a.isdecimal() and b.isdecimal() and c.isdecimal():
            sides = int(a), int(b), int(c)
        case _:
            raise UserError(f"--input takes channels x height x width, as in 3x32x32, not {shape!r}")
    _note(f"executing {network}")
    built = build_own(network)
    if weights is not None:
        _note(f"loaded {load_weights(built, weights)}")
    count = count_classes(built, sides)
    names = _class_names(classes, count)
    channels = sides[0]
    mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    if max((*mean, *std), default=0) > 3:
        mean, std = tuple(m / 255 for m in mean), tuple(s / 255 for s in std)
        _note("--mean and --std are of pixels from 0 to 255; divided by 255")
    if not mean or not std:
        _note("without --mean and --std the network takes pixel values in [0, 1] as they are")
    name = network.replace(".py:", ".").replace(":", ".").rpartition("/")[2]
    return wrap_teacher(built, input_shape=sides, classes=names, mean=mean or None, std=std or None, name=name)


def _class_names(classes: tuple[str, ...], count: int) -> int | tuple[str, ...]:
    if len(classes) == 1 and Path(classes[0]).is_file():
        from adadfq_lab.machine.reading import read_bytes

        classes = tuple(read_bytes(Path(classes[0])).decode(errors="replace").split("\n"))
        classes = tuple(name.strip() for name in classes if name.strip())
    if classes == (str(count),):
        return count
    if classes and len(classes) != count:
        raise UserError(f"the network gives {count} logits, --classes names {len(classes)}")
    return classes or count


def _announce(teacher: "Teacher", config: "RunConfig", folder: Path, output: Path, *, estimated: bool) -> None:
    """Says what is quantised and, if `estimated`, what will happen and how long it takes, from a few seconds of rounds."""
    import tempfile
    from dataclasses import replace

    from adadfq_lab.machine.timing import duration
    from adadfq_lab.runs.estimates import estimate
    from adadfq_lab.runs.players import build_student
    from adadfq_lab.teacher.teacher_files import save_teacher

    for line in build_student(teacher, config).report().splitlines():
        _note(line)
    if not estimated:
        return
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "teacher.safetensors"
        save_teacher(teacher, path)
        found = estimate(replace(config, teacher=str(path)), seconds=4)
    _note(
        f"{config.method}, {config.rounds:,} rounds of {config.schedule.batch} generated images on {found.device}: "
        f"about {duration(found.seconds)}, {found.peak_mb:,.0f} MB of memory; the run is kept in {folder}, the file is {output}"
    )


def _note(text: str) -> None:
    print(f"adadfq: {text}", file=sys.stderr)
