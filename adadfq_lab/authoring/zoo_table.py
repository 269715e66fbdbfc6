"""Which networks work: torchvision's classification networks and thirty of timm's, each taken the whole way.

    python -m adadfq_lab.authoring.zoo_table            fills data_stubs/networks.json, a process a network, smallest first
    python -m adadfq_lab.authoring.zoo_table --docs     writes docs/supported_networks.md from it

Each network has random weights and batch norms settled on noise. The numbers are against the untouched network in torch: which
of its layers are quantised, whether the teacher in the game gives its logits, whether two rounds are played, and whether the
exported file runs without float convolutions and predicts what the student predicts. Needs the extras `zoo` and `export`.
"""

import argparse
import copy
import importlib
import json
import multiprocessing
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from adadfq_lab.data.locations import stub_path
from adadfq_lab.errors import UserError, first_line
from adadfq_lab.game.game import Game
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.integers.aten import FORMS, PARTS, decompositions
from adadfq_lab.integers.export import export_onnx
from adadfq_lab.integers.runtimes import load
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.student.layers import QuantConv2d
from adadfq_lab.student.quantize import quantize
from adadfq_lab.teacher.teacher import wrap_teacher

TIMM = (
    *("resnet50", "resnet26d", "resnext50_32x4d", "seresnet50", "ecaresnet26t", "res2net50_26w_4s", "skresnet18", "resnest14d"),
    *(
        "efficientnet_b0",
        "efficientnet_lite0",
        "tf_efficientnetv2_b0",
        "mobilenetv2_100",
        "mobilenetv3_large_100",
        "mnasnet_100",
    ),
    *("lcnet_050", "semnasnet_100", "fbnetc_100", "ghostnet_100", "regnetx_002", "regnety_002", "densenet121", "dla34"),
    *("hrnet_w18_small", "vovnet39a", "cspresnet50", "cspdarknet53", "repvgg_a0", "xception41", "selecsls42b", "hardcorenas_a"),
)
SIDES = (64, 96, 128, 224)
LARGEST = 150_000_000
"""Networks with more parameters are listed, and not run."""

Row = dict[str, Any]


def names() -> list[str]:
    """The networks, as `source:name`."""
    return [f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)] + [
        f"timm:{name}" for name in TIMM
    ]


def build(name: str) -> nn.Module:
    """The network with random weights of seed 0 and ten classes."""
    torch.manual_seed(0)
    source, _, kind = name.partition(":")
    if source == "timm":
        import timm  # of the extra `zoo`

        network: nn.Module = timm.create_model(kind, num_classes=10)
        return network
    auxiliary = {"aux_logits": False, "init_weights": False} if kind in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(kind, weights=None, num_classes=10, **auxiliary)
    return network


@torch.no_grad()
def settle(network: nn.Module, side: int, generator: torch.Generator) -> None:
    """Batch norms that know noise, and a last layer that prefers no class, as after a training."""
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None
    for _ in range(2):
        network(_images(8, side, generator))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
    logits = network(_images(16, side, generator))
    last = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if last.bias is not None and len(last.bias) == logits.shape[1]:
        last.bias -= logits.mean(0)


def _images(n: int, side: int, generator: torch.Generator) -> Tensor:
    return (torch.rand(n, 3, side, side, generator=generator) - 0.5) / 0.25


def called(network: nn.Module, x: Tensor) -> dict[str, str]:
    """The convolutions and linear layers that a forward of `x` calls, by name: "conv" or "linear"."""
    found: dict[str, str] = {}
    handles = [
        module.register_forward_hook(lambda *_, name=name, module=module: found.update({name: _kind(module)}))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return found


def _kind(module: nn.Module) -> str:
    return "conv" if isinstance(module, nn.Conv2d) else "linear"


def examine(name: str) -> Row:
    """The row of one network: what holds, and the message of the first step that refused it."""
    start = time.process_time()
    network = build(name)
    row: Row = {"parameters": sum(p.numel() for p in network.parameters())}
    row["batch_norms"] = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
    if row["parameters"] > LARGEST:
        return row | {"refused": f"not run: more than {LARGEST:,} parameters"}
    generator = torch.Generator().manual_seed(0)
    row["side"] = _smallest_side(network)
    try:
        settle(network, row["side"], generator)
        row |= _whole_way(network, row["side"], generator)
    except UserError as error:
        row["refused"] = str(error)
    return row | {"seconds": round(time.process_time() - start)}


def _smallest_side(network: nn.Module) -> int:
    network.eval()
    for side in SIDES:
        try:
            with torch.no_grad():
                network(torch.zeros(2, 3, side, side))
            return side
        except (RuntimeError, ValueError, AssertionError, IndexError):
            continue
    return SIDES[-1]


def _whole_way(network: nn.Module, side: int, generator: torch.Generator) -> Row:
    row: Row = {}
    x = _images(8, side, generator)
    layers = called(network, x)
    with torch.no_grad():
        own = network(x)
    untouched = copy.deepcopy(network)
    P = wrap_teacher(network, input_shape=(3, side, side), classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)
    Q = quantize(P, "4w4a")
    quantised = Q.layers()
    left = [text for text in Q.left_float() if not text.startswith("input of")]
    row |= {kind: sum(value == kind for value in layers.values()) for kind in ("conv", "linear")}
    row["quantised_conv"] = sum(isinstance(layer, QuantConv2d) for layer in quantised.values())
    row["quantised_linear"] = len(quantised) - row["quantised_conv"]
    row["left_float"] = left[:3] + ([f"and {len(left) - 3} more"] if len(left) > 3 else [])
    row["unaccounted"] = sorted(n for n in layers if n not in quantised and not any(text.startswith(n) for text in left))[:3]
    try:
        game = Game(P, Q, adadfq(), schedule=Schedule(batch=4, warmup=1))
        with torch.no_grad():
            row["teacher_differs"] = _gap(game.observed_teacher(x)[0], untouched(x))
        for _ in game.play(2):
            pass
        row["plays"] = True
    except UserError as error:
        row["plays"] = str(error)
    row["untouched_differs"] = _gap(untouched(x).detach(), own)
    Q.observing = True
    with torch.no_grad():
        Q(x)
    Q.observing = False
    return row | _export(Q, P, x)


def _export(Q: Any, P: Any, x: Tensor) -> Row:
    with TemporaryDirectory() as folder:
        try:
            file = load(export_onnx(Q, Path(folder) / "q.onnx", P).file)
        except UserError as error:
            return {"exports": str(error)}
        with torch.no_grad():
            same = (file(x).argmax(1) == Q(x).argmax(1)).double().mean()
        return {"exports": True, "float_convs": file.float_convs, "agreement": 100 * float(same)}


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def passes(row: Row) -> bool:
    """Whether a network passes whole: every layer accounted for, P in the game equal to P, played, exported on integers."""
    return bool(
        row.get("plays") is True
        and row.get("exports") is True
        and row["teacher_differs"] < 1e-4
        and not row["unaccounted"]
        and not row["left_float"]
        and row["float_convs"] == 0
    )


# The table


def fill(path: Path, wanted: list[str], seconds: int) -> None:
    """Examines the networks that `path` has no row of, each in a process of its own; writes after each."""
    rows: dict[str, Row] = json.loads(path.read_bytes()) if path.exists() else {}
    for package in ("timm", "torchvision", "onnx", "onnxruntime", "torch._dynamo"):  # slow to import; the processes have them
        importlib.import_module(package)
    decompositions()
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    fork = multiprocessing.get_context("fork")
    for name in _by_size([name for name in wanted if name not in rows]):
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=_send, args=(name, sender))
        process.start()
        sender.close()
        try:
            rows[name] = receiver.recv() if receiver.poll(seconds) else {"failed": f"not done after {seconds} s"}
        except EOFError:
            rows[name] = {"failed": "its process was killed"}
        process.kill()
        process.join()
        write_atomically(path, (json.dumps(rows, indent=1, sort_keys=True) + "\n").encode())
        print(name, "passes" if passes(rows[name]) else rows[name], flush=True)


def _send(name: str, sender: Any) -> None:
    try:
        row = examine(name)
    except Exception as error:  # a row says so, and nothing else can be wrong with it
        row = {"failed": f"{type(error).__name__}: {first_line(error)}"}
    sender.send(row)


INTRODUCTION = """# Networks that work

Every network here was taken the whole way by `python -m adadfq_lab.authoring.zoo_table`: random weights with batch norms
settled on noise, images of the given side, quantised at 4w4a, two rounds of AdaDFQ at batch 4, exported, and run in ONNX
Runtime. The numbers are against the untouched network in PyTorch. They say nothing of accuracy.

**{whole} of {all} convolutional networks with batch norm pass whole**: every layer is quantised, the teacher in the game gives
the logits of the network, the game plays, and the file has no float convolution and computes, layer by layer, what the student
computes, rounding ties apart. `Agreement` is the share of eight images to which file and student give the same class; at four
bits, a tie can change the class of a network of random weights.

A network without batch norm (AlexNet, ConvNeXt, plain VGG, SqueezeNet) has nothing that remembers its training data, so no game
is played with it; it is quantised and exported all the same. {rows} networks have a row so far; the command adds the others.
"""

LAYERS = """## Layers and functions

`Conv2d` and `Linear` get n-bit weights, and the outputs of `ReLU` and `ReLU6` n bits, whether written as modules, functions
or methods; batch norms are folded into the convolutions before them. Between them a file computes the following ATen calls,
which is what PyTorch's functions, methods and modules consist of, and whatever PyTorch decomposes into these. `export_onnx`
refuses other calls by name:
"""


def document(rows: dict[str, Row]) -> str:
    """docs/supported_networks.md."""
    with_norms = convolutional(rows)
    whole = [n for n, r in with_norms.items() if passes(r)]
    lines = [
        INTRODUCTION.format(whole=len(whole), all=len(with_norms), rows=len(rows)),
        "| network | side | parameters | convolutions | linear | plays | exports | agreement |",
        "|---|---:|---:|---:|---:|---|---|---:|",
        *(_line(name, row) for name, row in sorted(rows.items())),
        "",
        LAYERS,
        ", ".join(f"`{name}`" for name in sorted({*FORMS, *PARTS}) if not name.startswith("_")) + ".",
        "",
    ]
    return "\n".join(lines)


def convolutional(rows: dict[str, Row]) -> dict[str, Row]:
    """The rows of the convolutional networks that were run and have batch norms."""
    return {
        n: r for n, r in rows.items() if r.get("batch_norms") and "not run" not in r.get("refused", "") and not _attention(n)
    }


def _attention(name: str) -> bool:
    return any(word in name for word in ("vit_", "swin", "maxvit"))


def _line(name: str, row: Row) -> str:
    if "side" not in row or "conv" not in row:
        return f"| {name} | | {row.get('parameters', 0) / 1e6:.1f} M | | | {row.get('refused') or row.get('failed')} | | |"
    counts = [f"{row[f'quantised_{kind}']} of {row[kind]}" for kind in ("conv", "linear")]
    plays, exports = ("yes" if row.get(key) is True else str(row.get(key, "")).split(";")[0] for key in ("plays", "exports"))
    agreement = f"{row['agreement']:.0f} %" if "agreement" in row else ""
    size = f"{row['parameters'] / 1e6:.1f} M"
    return f"| {name} | {row['side']} | {size} | {counts[0]} | {counts[1]} | {plays} | {exports} | {agreement} |"


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--again", action="store_true", help="those again that do not pass whole")
    parser.add_argument("--seconds", type=int, default=1800, help="for one network")
    parser.add_argument("--docs", action="store_true", help="write docs/supported_networks.md from the rows")
    return parser.parse_args(arguments)


def _by_size(wanted: list[str]) -> list[str]:
    """Smallest first."""
    sizes = {}
    with torch.device("meta"):
        for name in wanted:
            try:
                sizes[name] = sum(p.numel() for p in build(name).parameters())
            except Exception:  # some networks compute while they are built
                sizes[name] = LARGEST // 2
    return sorted(wanted, key=sizes.__getitem__)


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    path = stub_path("networks.json")
    if not options.docs:
        if options.again:
            rows = json.loads(path.read_bytes())
            kept = {name: row for name, row in rows.items() if passes(row)}
            write_atomically(path, (json.dumps(kept, indent=1, sort_keys=True) + "\n").encode())
        fill(path, [name for name in names() if options.only in name], options.seconds)
    rows = json.loads(path.read_bytes())
    Path("docs/supported_networks.md").write_text(document(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
