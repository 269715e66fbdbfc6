"""Teachers that others trained: the paper's five, from pytorchcv, and torchvision's nearest to them; each pinned.

    P = load_teacher("pytorchcv:resnet20_cifar10")     # downloaded once, into ~/.cache/adadfq_lab

A model zoo changes under its names: pytorchcv's `resnet18` was 71.47 % up to release 0.0.58 and is another network's 73.06 %
today. So a name here means one file: its URL, and a checksum that is compared before anything is made of the file. Only tensors
are read from it (`weights_only=True`), and they go into networks of this package or of torchvision, under these names:

    resnet20            CIFAR; pytorchcv's has the same layers
    resnet18            ImageNet; pytorchcv's has the same layers
    resnet50            ImageNet; the blocks that halve the map do so in their 3x3 convolution (ResNet v1.5)
    resnet50_v1         the same weights' shapes, but halved in the first 1x1 convolution, as He et al. had it; pytorchcv's
    mobilenet_v2        ImageNet; 3,504,872 parameters
    mobilenet_v2_full   with a 1x1 convolution also before the first depthwise one and no bias at the end, 3,504,960
                        parameters; pytorchcv's

A teacher's `top1` is what its source states, and `evaluated_on` says so; `adadfq evaluate` measures.
"""

import dataclasses
import hashlib
import http.client
import io
import json
import os
import sys
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from adadfq_lab.data.image_sets import CLASSES, imagenet_classes
from adadfq_lab.data.locations import cache_folder
from adadfq_lab.errors import UserError
from adadfq_lab.machine.files import digest, write_atomically
from adadfq_lab.machine.reading import check_regular
from adadfq_lab.teacher.networks import build_network
from adadfq_lab.teacher.teacher import Teacher, TeacherInfo

# Mean and standard deviation the sources trained with. pytorchcv uses CIFAR-10's mean for CIFAR-100 too, and deviations that
# are averages of each image's own.
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SHAPES = {"imagenet": (3, 224, 224), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}


@dataclass(frozen=True)
class Entry:
    """One file of a model zoo and what must be known to use it.

    network:  name of the network the weights go into, see `build_network`
    data:     imagenet, cifar10 or cifar100: what it was trained on
    url:      of the weights; a .zip holds them under the same name without .zip
    checksum: of the weights, unpacked: algorithm and the first hexadecimal digits, as many as the source publishes
    top1:     percent, as the source states it
    layers:   layer of `network`: its name in the file; empty where the names are the same
    """

    name: str
    network: str
    data: str
    url: str
    checksum: str
    top1: float
    layers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def file(self) -> str:
        """Name of the unpacked weights."""
        return self.url.rsplit("/", 1)[-1].removesuffix(".zip")

    def matches(self, content: bytes) -> bool:
        """Whether `content` has the pinned checksum."""
        algorithm, digits = self.checksum.split(":")
        return hashlib.new(algorithm, content, usedforsecurity=False).hexdigest().startswith(digits)


def _resnet(stages: tuple[int, ...], convolutions: int, stem: str, stage: str, shortcut: str, head: str) -> dict[str, str]:
    """Names of a ResNet's layers here: in pytorchcv, for `stages` of so many blocks of so many convolutions."""
    layers = {"conv1": f"{stem}.conv", "bn1": f"{stem}.bn", head: "output"}
    blocks = [(s, block) for s, count in enumerate(stages, 1) for block in range(count)]
    for s, block in blocks:
        ours, theirs = f"{stage}{s}.{block}", f"features.stage{s}.unit{block + 1}"
        for i in range(1, convolutions + 1):
            layers |= {f"{ours}.conv{i}": f"{theirs}.body.conv{i}.conv", f"{ours}.bn{i}": f"{theirs}.body.conv{i}.bn"}
        layers |= {f"{ours}.{shortcut}.0": f"{theirs}.identity_conv.conv", f"{ours}.{shortcut}.1": f"{theirs}.identity_conv.bn"}
    return layers


def _mobilenet() -> dict[str, str]:
    """Names of MobileNetV2's layers here: in pytorchcv, which counts its 17 blocks by stage."""
    layers = {"features.0.0": "features.init_block.conv", "features.0.1": "features.init_block.bn"}
    blocks = [(s, unit) for s, count in enumerate((1, 2, 3, 7, 4), 1) for unit in range(1, count + 1)]
    for i, (s, unit) in enumerate(blocks, 1):
        for ours, theirs in {"0.0": "conv1.conv", "0.1": "conv1.bn", "1.0": "conv2.conv", "1.1": "conv2.bn"}.items():
            layers[f"features.{i}.conv.{ours}"] = f"features.stage{s}.unit{unit}.{theirs}"
        layers[f"features.{i}.conv.2"] = f"features.stage{s}.unit{unit}.conv3.conv"
        layers[f"features.{i}.conv.3"] = f"features.stage{s}.unit{unit}.conv3.bn"
    last = len(blocks) + 1
    layers |= {f"features.{last}.0": "features.final_block.conv", f"features.{last}.1": "features.final_block.bn"}
    return layers | {"classifier": "output"}


_LAYERS = {
    "resnet20": _resnet((3, 3, 3), 2, "features.init_block", "stage", "shortcut", "linear"),
    "resnet18": _resnet((2, 2, 2, 2), 2, "features.init_block.conv", "layer", "downsample", "fc"),
    "resnet50_v1": _resnet((3, 4, 6, 3), 3, "features.init_block.conv", "layer", "downsample", "fc"),
    "mobilenet_v2_full": _mobilenet(),
}


def _torchvision(network: str, digits: str, top1: float) -> Entry:
    url = f"https://download.pytorch.org/models/{network}-{digits}.pth"
    return Entry(f"torchvision:{network}", network, "imagenet", url, f"sha256:{digits}", top1)


def _pytorchcv(network: str, data: str, stem: str, sha1: str, top1: float) -> Entry:
    url = f"https://github.com/osmr/imgclsmob/releases/download/{stem}-{sha1[:8]}.pth.zip"
    name = stem.split("/")[1].split("-")[0]
    return Entry(f"pytorchcv:{name}", network, data, url, f"sha1:{sha1}", top1, _LAYERS[network])


_ENTRIES = (
    _pytorchcv("resnet20", "cifar10", "v0.0.163/resnet20_cifar10-0597", "9b0024ac4c2f374cde2c5052e0d0344a75871cdb", 94.03),
    _pytorchcv("resnet20", "cifar100", "v0.0.180/resnet20_cifar100-2964", "a5322afed92fa96cb7b3453106f73cf38e316151", 70.36),
    _pytorchcv("resnet18", "imagenet", "v0.0.153/resnet18-0982", "0126861b4cd7f7b14196b1e01827da688f8bab6d", 71.47),
    _pytorchcv("resnet50_v1", "imagenet", "v0.0.329/resnet50-0633", "b00d1c8e52aa7a2badc705b1545aaf6ccece6ce9", 77.72),
    _pytorchcv(
        "mobilenet_v2_full", "imagenet", "v0.0.213/mobilenetv2_w1-0887", "13a021bca5b679b76156829743f7182da42e8bb6", 73.03
    ),
    _torchvision("resnet18", "f37072fd", 69.758),
    _torchvision("resnet50", "0676ba61", 76.13),
    _torchvision("mobilenet_v2", "b0353104", 71.878),
)
ZOO: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
"""The teachers by name; the first five are the paper's rows."""


def load_zoo_teacher(name: str) -> Teacher:
    """The teacher `name` of ZOO, downloaded if it is not in the cache yet.

    Its sha256 is the one `save_teacher` would give it. Raises UserError where there is no such name, the file cannot be had,
    or it is not the pinned one.
    """
    if name not in ZOO:
        raise UserError(f"no teacher is called {name!r}; those to download are {', '.join(ZOO)}")
    entry = ZOO[name]
    state = torch.load(io.BytesIO(checkpoint(entry)), map_location="cpu", weights_only=True)
    classes = imagenet_classes() if entry.data == "imagenet" else CLASSES[entry.data]
    network = build_network(entry.network, len(classes))
    network.load_state_dict(_renamed(state, network, entry.layers) if entry.layers else state)
    mean, std = _IMAGENET if entry.data == "imagenet" else _CIFAR
    source = name.split(":")[0]
    images = "ImageNet's validation images" if entry.data == "imagenet" else f"the {entry.data} test images"
    info = TeacherInfo(
        name=name,
        network=entry.network,
        data=entry.data,
        classes=classes,
        input_shape=SHAPES[entry.data],
        mean=mean,
        std=std,
        top1=entry.top1,
        evaluated_on=f"{images}, as {source} states it",
        recipe=f"pre-trained, {entry.url}",
    )
    facts = info.as_json()
    facts.pop("sha256")
    sha256 = digest(network.state_dict(), json.dumps({"kind": "teacher", **facts}, sort_keys=True))
    return Teacher(network, dataclasses.replace(info, sha256=sha256))


def _renamed(state: Mapping[str, Tensor], network: nn.Module, layers: Mapping[str, str]) -> dict[str, Tensor]:
    """`state` under the names of `network`; what the network has no place for is left out, as pytorchcv's own loader does."""
    renamed = {}
    for key, wanted in network.state_dict().items():
        layer, _, kind = key.rpartition(".")
        if (value := state.get(f"{layers[layer]}.{kind}")) is not None:
            renamed[key] = value.flatten(1) if value.dim() == 4 and wanted.dim() == 2 else value
    return renamed


def checkpoint(entry: Entry) -> bytes:
    """The weights of `entry`, byte for byte: from the cache, or downloaded, checked and kept there.

    Raises UserError where they cannot be had or have another checksum; nothing unchecked is kept.
    """
    folder = cache_folder()
    path = folder / entry.file
    if path.exists():
        check_regular(path)
        content = path.read_bytes()
        if not entry.matches(content):
            raise UserError(f"{path} is damaged or another file (its checksum differs); remove it, to have it downloaded again")
        return content
    archive = folder / entry.url.rsplit("/", 1)[-1]
    by_hand = archive.exists()
    _make_writable(folder)
    if by_hand:
        check_regular(archive)
    packed = archive.read_bytes() if by_hand else _download(entry, folder)
    content = _unpacked(packed, entry.file) if archive != path else packed
    if not entry.matches(content):
        where = str(archive) if by_hand else f"what {entry.url} sent"
        raise UserError(f"{where} is damaged or not the file that is pinned (its checksum differs); nothing of it was kept")
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); set XDG_CACHE_HOME to a folder with room for it") from None
    return content


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder} ({error.strerror}); set XDG_CACHE_HOME to another place") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to {folder}; set XDG_CACHE_HOME to a folder that can be written to")


def _download(entry: Entry, folder: Path) -> bytes:
    try:
        return fetch(entry.url)
    except (OSError, http.client.HTTPException) as error:
        status = isinstance(error, urllib.error.HTTPError)  # its text is more than its reason's
        text = str(error if status else getattr(error, "reason", error)) or type(error).__name__
        raise UserError(
            f"cannot download {entry.name} ({text.splitlines()[0]}); fetch {entry.url} where there is a network and put it, "
            f"as it is, into {folder}"
        ) from None


def fetch(url: str) -> bytes:
    """What `url` sends, with a progress bar on standard error. Raises OSError or HTTPException where it cannot be had."""
    parts = []
    with urllib.request.urlopen(url, timeout=30) as response:
        total = int(response.headers.get("Content-Length") or 0) or None
        label = url.rsplit("/", 1)[-1]
        with tqdm(total=total, desc=label, unit="B", unit_scale=True, file=sys.stderr) as progress:
            while part := response.read(1 << 20):
                parts.append(part)
                progress.update(len(part))
    return b"".join(parts)


def _unpacked(packed: bytes, file: str) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            return archive.read(file)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError):
        return b""  # no zip, or none with this file in it: the checksum will differ, and the caller says so
