"""Teachers of other zoos: pinned files only, their weights in the right places, and one line where they cannot be had."""

import dataclasses
import hashlib
import io
import pickle
import urllib.error
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.traps import Trap
from torch import Tensor, nn
from torchvision import models

from adadfq_lab.cli.main import main
from adadfq_lab.data.image_sets import CLASSES
from adadfq_lab.errors import UserError
from adadfq_lab.student.quantize import quantize
from adadfq_lab.teacher import zoo
from adadfq_lab.teacher.networks import build_network
from adadfq_lab.teacher.teacher_files import load_teacher, save_teacher
from adadfq_lab.teacher.zoo import ZOO, Entry

PYTORCHCV = [name for name in ZOO if name.startswith("pytorchcv:")]
TORCHVISION = [name for name in ZOO if name.startswith("torchvision:")]
RESNET20 = "pytorchcv:resnet20_cifar10"
CLASS_COUNTS = {"imagenet": 1000, "cifar10": 10, "cifar100": 100}


# pytorchcv's networks as its checkpoints name their parts, written from their description.


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs)))


class ResUnit(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.body = nn.Sequential()
        if bottleneck:  # halves the map in its first convolution
            self.body.conv1 = conv_bn(inputs, outputs // 4, 1, stride)
            self.body.conv2 = conv_bn(outputs // 4, outputs // 4, 3)
            self.body.conv3 = conv_bn(outputs // 4, outputs, 1)
        else:
            self.body.conv1 = conv_bn(inputs, outputs, 3, stride)
            self.body.conv2 = conv_bn(outputs, outputs, 3)
        if stride != 1 or inputs != outputs:
            self.identity_conv = conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i, convolution in enumerate(self.body):
            out = convolution(F.relu(out) if i else out)
        return F.relu(out + (self.identity_conv(x) if hasattr(self, "identity_conv") else x))


class ResNet(nn.Module):
    def __init__(self, units: tuple[int, ...], width: int, classes: int, bottleneck: bool = False, large: bool = True) -> None:
        super().__init__()
        self.large = large
        self.features = nn.Sequential()
        stem = conv_bn(3, width, 7, 2) if large else conv_bn(3, width, 3)
        self.features.init_block = nn.Sequential(OrderedDict(conv=stem)) if large else stem
        inputs = width
        for s, count in enumerate(units, 1):
            outputs, stage = width * 2 ** (s - 1) * (4 if bottleneck else 1), nn.Sequential()
            for u in range(1, count + 1):
                stage.add_module(f"unit{u}", ResUnit(inputs, outputs, 2 if u == 1 and s > 1 else 1, bottleneck))
                inputs = outputs
            self.features.add_module(f"stage{s}", stage)
        self.output = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features[0](x))
        x = F.max_pool2d(x, 3, 2, 1) if self.large else x
        return self.output(self.features[1:](x).mean((2, 3)))


class LinearBottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.residual = inputs == outputs and stride == 1
        self.conv1 = conv_bn(inputs, middle, 1)
        self.conv2 = conv_bn(middle, middle, 3, stride, groups=middle)
        self.conv3 = conv_bn(middle, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv3(F.relu6(self.conv2(F.relu6(self.conv1(x)))))
        return out + x if self.residual else out


class MobileNetV2(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(OrderedDict(init_block=conv_bn(3, 32, 3, 2)))
        inputs = 32
        for s, widths in enumerate(([16], [24] * 2, [32] * 3, [64] * 4 + [96] * 3, [160] * 3 + [320]), 1):
            stage = nn.Sequential()
            for u, outputs in enumerate(widths, 1):
                stride = 2 if u == 1 and s > 1 else 1
                stage.add_module(f"unit{u}", LinearBottleneck(inputs, outputs, stride, 1 if s == 1 else 6))
                inputs = outputs
            self.features.add_module(f"stage{s}", stage)
        self.features.final_block = conv_bn(inputs, 1280, 1)
        self.output = nn.Conv2d(1280, classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features[1:-1](F.relu6(self.features[0](x)))
        return self.output(F.relu6(self.features[-1](x)).mean((2, 3), keepdim=True)).flatten(1)


def theirs(name: str) -> nn.Module:
    """The network behind `name` as its source has it, with weights and statistics that are not at their initial values."""
    makers = {
        "pytorchcv:resnet20_cifar10": lambda: ResNet((3, 3, 3), 16, 10, large=False),
        "pytorchcv:resnet20_cifar100": lambda: ResNet((3, 3, 3), 16, 100, large=False),
        "pytorchcv:resnet18": lambda: ResNet((2, 2, 2, 2), 64, 1000),
        "pytorchcv:resnet50": lambda: ResNet((3, 4, 6, 3), 64, 1000, bottleneck=True),
        "pytorchcv:mobilenetv2_w1": lambda: MobileNetV2(1000),
        "torchvision:resnet18": models.resnet18,
        "torchvision:resnet50": models.resnet50,
        "torchvision:mobilenet_v2": models.mobilenet_v2,
    }
    torch.manual_seed(0)
    network = makers[name]().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.running_var, 0.5, 1.5)):
                nn.init.uniform_(tensor, low, high)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.2)
    return network


def packed(entry: Entry, content: bytes) -> bytes:
    """`content` as the source would send it."""
    if not entry.url.endswith(".zip"):
        return content
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if len(content) < 2**21 else zipfile.ZIP_STORED) as archive:
        archive.writestr(entry.file, content)
    return file.getvalue()


def saved(network: nn.Module, *, old: bool) -> bytes:
    """The weights of `network` in torch's file format, as of 2018 if `old`."""
    file = io.BytesIO()
    torch.save(network.state_dict(), file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no way to the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(zoo, "fetch", lambda url: pytest.fail(f"asked for {url}"))
    return tmp_path / "cache" / "adadfq_lab"


@pytest.fixture
def publish(monkeypatch):
    """publish(name, content): from now on `name` is pinned to `content` and its URL sends it; returns the list of requests."""

    def publish(name: str, content: bytes, sent: bytes | None = None) -> list[str]:
        algorithm = ZOO[name].checksum.split(":")[0]
        entry = dataclasses.replace(ZOO[name], checksum=f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")
        monkeypatch.setitem(ZOO, name, entry)
        requests: list[str] = []
        monkeypatch.setattr(zoo, "fetch", lambda url: requests.append(url) or (sent or packed(entry, content)))
        return requests

    return publish


@pytest.fixture(scope="module")
def resnet20() -> bytes:
    return saved(theirs(RESNET20), old=True)


@pytest.mark.parametrize(
    "name", [name for name in ZOO if name != "torchvision:resnet50"]
)  # as torchvision:resnet18, only larger
def test_a_zoos_weights_give_the_zoos_logits(name, publish, generator):
    """The network that load_teacher fills from a checkpoint computes what the checkpoint's own network computes.

    For pytorchcv's ResNet-50 that includes where the map is halved: torchvision's takes the same weights and computes
    another function.
    """
    network = theirs(name)
    requests = publish(name, saved(network, old=name.startswith("pytorchcv")))
    P = load_teacher(name)
    assert requests == [ZOO[name].url]
    x = torch.randn(2, 3, *(32, 32) if ZOO[name].data.startswith("cifar") else (64, 64), generator=generator)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(P(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert sum(p.numel() for p in P.parameters()) == sum(p.numel() for p in network.parameters())
    assert not any(p.requires_grad for p in P.parameters())
    assert not P.training


# Layers, activations, batch norms and parameters, as the published code counts them.
COUNTS = {
    ("resnet20", 10): (22, 19, 21, 272_474),
    ("resnet20", 100): (22, 19, 21, 278_324),
    ("resnet18", 1000): (21, 17, 20, 11_689_512),
    ("resnet50_v1", 1000): (54, 49, 53, 25_557_032),
    ("mobilenet_v2_full", 1000): (54, 36, 53, 3_504_960),
}


@pytest.mark.parametrize(("network", "classes"), COUNTS)
def test_the_papers_networks_have_the_published_numbers_of_parts(network, classes):
    """Quantised layers, activation quantisers, batch norms and parameters of the paper's five teachers."""
    P = build_network(network, classes)
    Q = quantize(P, "4w4a")
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in P.modules())
    assert (len(Q.layers()), len(Q.activations()), norms, sum(p.numel() for p in P.parameters())) == COUNTS[network, classes]
    assert {(ZOO[name].network, CLASS_COUNTS[ZOO[name].data]) for name in PYTORCHCV} == COUNTS.keys()


@pytest.mark.parametrize("name", ZOO)
def test_every_entry_is_pinned(name):
    """File names carry eight digits of their checksum; pytorchcv publishes all 40 of its sha1, torchvision 8 of its sha256."""
    entry = ZOO[name]
    algorithm, digits = entry.checksum.split(":")
    assert (algorithm, len(digits)) == (("sha1", 40) if name in PYTORCHCV else ("sha256", 8))
    assert set(digits) <= set("0123456789abcdef")
    assert entry.file.endswith(f"-{digits[:8]}.pth")
    assert entry.url.startswith("https://")


# Release, file and top-1 error in percent, as the README of pytorchcv 0.0.58 lists them.
PUBLISHED = {
    "pytorchcv:resnet20_cifar10": ("v0.0.163/resnet20_cifar10-0597-9b0024ac.pth", 5.97),
    "pytorchcv:resnet20_cifar100": ("v0.0.180/resnet20_cifar100-2964-a5322afe.pth", 29.64),
    "pytorchcv:resnet18": ("v0.0.153/resnet18-0982-0126861b.pth", 28.53),
    "pytorchcv:resnet50": ("v0.0.329/resnet50-0633-b00d1c8e.pth", 22.28),
    "pytorchcv:mobilenetv2_w1": ("v0.0.213/mobilenetv2_w1-0887-13a021bc.pth", 26.97),
}


def test_pytorchcvs_entries_are_the_papers():
    """Release, file and accuracy are those of the checkpoints the paper started from, not of what has their names today."""
    assert list(PUBLISHED) == PYTORCHCV
    for name, (file, error) in PUBLISHED.items():
        assert ZOO[name].url == f"https://github.com/osmr/imgclsmob/releases/download/{file}.zip"
        assert ZOO[name].top1 == pytest.approx(100 - error)


def test_torchvisions_entries_are_torchvisions():
    """URL, accuracy and number of classes agree with what torchvision itself says of its first weights."""
    weights = [models.ResNet18_Weights, models.ResNet50_Weights, models.MobileNet_V2_Weights]
    for name, kind in zip(TORCHVISION, weights, strict=True):
        first = kind.IMAGENET1K_V1
        assert (ZOO[name].url, ZOO[name].top1) == (first.url, first.meta["_metrics"]["ImageNet-1K"]["acc@1"])
        assert zoo.imagenet_classes() == tuple(first.meta["categories"])
        assert (tuple(first.transforms().mean), tuple(first.transforms().std)) == zoo._IMAGENET


def test_a_zoo_teacher_knows_its_facts(publish, resnet20):
    """Name, classes, shape, normalisation, and an accuracy that is marked as the source's."""
    publish(RESNET20, resnet20)
    info = load_teacher(RESNET20).info
    assert (info.name, info.network, info.data, info.classes) == (RESNET20, "resnet20", "cifar10", CLASSES["cifar10"])
    assert (info.input_shape, info.mean, info.std) == ((3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert (info.top1, info.seed) == (94.03, None)
    assert "as pytorchcv states" in info.evaluated_on


def test_a_zoo_teacher_keeps_its_sha256_when_it_is_saved(publish, tmp_path, generator):
    """save_teacher writes the sha256 the teacher had already, and the file loads: also for a network that is not our own."""
    name = "pytorchcv:mobilenetv2_w1"
    publish(name, saved(theirs(name), old=True))
    P = load_teacher(name)
    path = tmp_path / "saved.safetensors"
    assert save_teacher(P, path) == P.info.sha256
    again = load_teacher(str(path))
    assert again.info == P.info
    x = torch.randn(1, 3, 64, 64, generator=generator)
    assert torch.equal(again(x), P(x))


def test_a_download_happens_once(publish, cache, resnet20):
    """The second load reads the cache, which holds the unpacked weights and nothing else."""
    requests = publish(RESNET20, resnet20)
    first, second = load_teacher(RESNET20), load_teacher(RESNET20)
    assert len(requests) == 1
    assert first.info == second.info
    assert [path.name for path in cache.iterdir()] == ["resnet20_cifar10-0597-9b0024ac.pth"]
    assert (cache / ZOO[RESNET20].file).read_bytes() == resnet20


def test_a_file_put_there_by_hand_is_taken(publish, cache, resnet20):
    """What the error message advises works: the file of the URL, as it is, in the cache folder; no network is asked."""
    requests = publish(RESNET20, resnet20)
    cache.mkdir(parents=True)
    (cache / f"{ZOO[RESNET20].file}.zip").write_bytes(packed(ZOO[RESNET20], resnet20))
    assert load_teacher(RESNET20).info.name == RESNET20
    assert requests == []


def altered(content: bytes) -> bytes:
    """`content` with the lowest bit of its middle byte flipped."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


WRONG = {
    "altered": lambda content: packed(ZOO[RESNET20], altered(content)),
    "truncated": lambda content: packed(ZOO[RESNET20], content)[:-100],
    "no zip": lambda content: b"<html>Not found</html>",
    "another file in the zip": lambda content: packed(ZOO["pytorchcv:resnet18"], content),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_download_with_another_checksum_is_refused(what, publish, cache, resnet20):
    """One bit is enough; nothing of it stays in the cache."""
    publish(RESNET20, resnet20, WRONG[what](resnet20))
    with pytest.raises(UserError, match=r"^what https://.* sent is damaged or not the file that is pinned .*$"):
        load_teacher(RESNET20)
    assert list(cache.iterdir()) == []


def test_a_cached_file_with_another_checksum_is_refused(publish, cache, resnet20):
    """A file that rots in the cache is named, not used and not replaced silently."""
    requests = publish(RESNET20, resnet20)
    load_teacher(RESNET20)
    path = cache / ZOO[RESNET20].file
    path.write_bytes(altered(resnet20))
    with pytest.raises(UserError, match=f"^{path} is damaged .*remove it"):
        load_teacher(RESNET20)
    assert len(requests) == 1


def test_without_a_network_there_is_one_line_that_says_what_to_do(monkeypatch, capsys, cache):
    """adadfq evaluate exits with 2 and one line that names the reason, the URL and the folder to put the file into."""

    def offline(url: str) -> bytes:
        raise urllib.error.URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr(zoo, "fetch", offline)
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", "torchvision:resnet18"])
    output = capsys.readouterr()
    assert exit_.value.code == 2
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith(
        "adadfq: cannot download torchvision:resnet18 ([Errno -2] Name or service not known); fetch https://"
    )
    assert line.endswith(f"resnet18-f37072fd.pth where there is a network and put it, as it is, into {cache}")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError("timed out"), "timed out"),
        (urllib.error.HTTPError("https://there", 404, "Not Found", None, io.BytesIO()), "HTTP Error 404: Not Found"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
def test_every_failed_download_says_why(error, reason, monkeypatch):
    """A timeout, a server's refusal and an error without a text each give their reason in the line."""

    def failing(url: str) -> bytes:
        raise error

    monkeypatch.setattr(zoo, "fetch", failing)
    with pytest.raises(UserError, match=rf"^cannot download {RESNET20} \({reason}\); .*$"):
        load_teacher(RESNET20)


def test_fetch_returns_what_a_url_sends(tmp_path, monkeypatch, capsys):
    """The one function that opens a connection, on a file:// URL: all bytes, progress on standard error only."""
    monkeypatch.undo()
    content = bytes(range(256)) * 5000  # more than one part
    (tmp_path / "weights.pth").write_bytes(content)
    assert zoo.fetch((tmp_path / "weights.pth").as_uri()) == content
    output = capsys.readouterr()
    assert output.out == ""
    assert "weights.pth" in output.err
    with pytest.raises(urllib.error.URLError):
        zoo.fetch((tmp_path / "absent").as_uri())


@pytest.mark.parametrize("old", [True, False])
def test_no_code_in_a_checkpoint_is_run(old, publish, tmp_path):
    """Even a file of the right checksum is read with weights_only=True: what is not a tensor is refused, not executed."""
    proof, file = tmp_path / "proof", io.BytesIO()
    torch.save({"output.weight": Trap(proof)}, file, _use_new_zipfile_serialization=not old)
    publish(RESNET20, file.getvalue())
    with pytest.raises(pickle.UnpicklingError):
        load_teacher(RESNET20)
    assert not proof.exists()


def test_a_cache_that_cannot_be_made_is_said_before_the_download(monkeypatch, tmp_path, publish, resnet20):
    """XDG_CACHE_HOME naming a file ends in one line, and nothing was asked of the network."""
    requests = publish(RESNET20, resnet20)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^cannot make the folder .*; set XDG_CACHE_HOME to another place$"):
        load_teacher(RESNET20)
    assert requests == []


def test_a_teacher_no_zoo_has_is_an_error_that_names_those_there_are():
    """An unknown name of a zoo, and an unknown name altogether, list what can be had."""
    with pytest.raises(UserError, match=r"^no teacher is called 'torchvision:resnet34'; .* torchvision:resnet18,"):
        load_teacher("torchvision:resnet34")
    with pytest.raises(UserError, match=r"^no teacher 'resnet18'; .* pytorchcv:resnet18,"):
        load_teacher("resnet18")


def test_build_network_refuses_what_it_cannot_build():
    """A name nobody knows, and ImageNet's networks on other than RGB images."""
    with pytest.raises(UserError, match=r"^network 'resnet19' is neither"):
        build_network("resnet19", 10)
    with pytest.raises(UserError, match=r"^network resnet18 takes images of 3 channels, not 1$"):
        build_network("resnet18", 10, channels=1)
    assert build_network("resnet20", 10, channels=1).get_parameter("conv1.weight").shape[1] == 1
