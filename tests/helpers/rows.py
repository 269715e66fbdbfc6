"""A row of the results table."""

from adadfq_lab.studies import tables


def a_row(**different) -> tables.Row:
    usual = {
        "method": "adadfq",
        "bits": "3w3a",
        "seed": 0,
        "dataset": "cifar10",
        "budget": "short",
        "teacher": 92.0,
        "fidelity": "corrected",
    }
    usual |= {"teacher_name": "cifar10_resnet20", "plain": 12.0, "calibrated": 70.0, "last": 86.0, "low": 85.3, "high": 86.7}
    usual |= {"best": 86.5, "updates": 1500, "images": 27200, "seconds": 300.0}
    return tables.Row(**usual | different)
