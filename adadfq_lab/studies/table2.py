"""The paper's Table 2, whole: what each method scores in print, at 79,200 updates and the best epoch on the test set.

Another protocol than ours, from other teachers: it stands in a column of its own and enters no average.
"""

METHODS = ("zaq", "intraq", "arc_ait", "gdfq", "arc", "qimera", "adasg", "adadfq")
_: None = None
_ROWS: dict[str, dict[str, tuple[float | None, ...]]] = {
    "cifar10": {
        "3w3a": (_, 77.07, _, 75.11, _, 74.43, 84.14, 84.89),
        "4w4a": (92.13, 91.49, 90.49, 90.11, 88.55, 91.26, 92.10, 92.31),
        "5w5a": (93.36, _, 92.98, 93.38, 92.88, 93.46, 93.76, 93.81),
    },
    "cifar100": {
        "3w3a": (_, 48.25, 41.34, 47.61, 40.15, 46.13, 52.76, 52.74),
        "4w4a": (60.42, 64.98, 61.05, 63.75, 62.76, 65.10, 66.42, 66.81),
        "5w5a": (68.70, _, 68.40, 67.52, 68.40, 69.02, 69.42, 69.93),
    },
    "imagenet-resnet18": {
        "3w3a": (_, _, _, 20.23, 23.37, 1.17, 37.04, 38.10),
        "4w4a": (52.64, 66.47, 65.73, 60.60, 61.32, 63.84, 66.50, 66.53),
        "5w5a": (64.54, 69.94, 70.28, 68.49, 68.88, 69.29, 70.29, 70.29),
    },
    "imagenet-mobilenetv2": {
        "3w3a": (_, _, _, 1.46, 14.30, _, 26.90, 28.99),
        "4w4a": (0.10, 65.10, 66.47, 59.43, 60.13, 61.62, 65.15, 65.41),
        "5w5a": (62.35, 71.28, 71.96, 68.11, 68.40, 70.45, 71.61, 71.61),
    },
    "imagenet-resnet50": {
        "3w3a": (_, _, _, 0.31, 1.63, _, 16.98, 17.63),
        "4w4a": (53.02, _, 68.27, 54.16, 64.37, 66.25, 68.58, 68.38),
        "5w5a": (73.38, _, 76.00, 71.63, 74.13, 75.32, 76.03, 76.03),
    },
}
PAPER: dict[str, dict[str, dict[str, float]]] = {
    cell: {bits: {m: v for m, v in zip(METHODS, row, strict=True) if v is not None} for bits, row in rows.items()}
    for cell, rows in _ROWS.items()
}
"""Cell -> bits -> method -> top-1 in percent. A cell is a data set and, for ImageNet, the network; CIFAR's is ResNet-20."""
FULL_PRECISION = {
    "cifar10": 93.89,
    "cifar100": 70.33,
    "imagenet-resnet18": 71.47,
    "imagenet-mobilenetv2": 73.03,
    "imagenet-resnet50": 77.73,
}
"""Top-1 of the paper's teacher of each cell."""
_CELLS = {
    "cifar10_resnet20": "cifar10",
    "pytorchcv:resnet20_cifar10": "cifar10",
    "pytorchcv:resnet20_cifar100": "cifar100",
    "pytorchcv:resnet18": "imagenet-resnet18",
    "pytorchcv:mobilenetv2_w1": "imagenet-mobilenetv2",
    "pytorchcv:resnet50": "imagenet-resnet50",
}


def cell_of(dataset: str, teacher: str) -> str:
    """The cell that a teacher's rows stand beside, if it is of the paper's network and data; otherwise nothing."""
    cell = _CELLS.get(teacher, "")
    return cell if cell and cell.partition("-")[0] == dataset else ""
