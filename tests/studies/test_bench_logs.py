"""The benchmark of logs: what it writes is a log, and each of its tasks runs on it."""

from adadfq_lab.runs.log import read_past, read_records
from adadfq_lab.runs.watch import Watch
from adadfq_lab.studies.bench_logs import TASKS, LogCost, table, write_log


def test_the_synthetic_log_is_a_log(tmp_path):
    """It is whole, has the samples of its batch, and is watched like any other; each task takes some time on it."""
    path = write_log(tmp_path, 450, 3)
    past = read_past(path, 450, batch=3)
    assert (past.trouble, past.in_place, len(read_records(path))) == ("", True, 450)
    status = Watch(tmp_path).look()
    assert (status.state, len(status.curve)) == ("finished", 1)
    costs = [LogCost(name, 3, 0.1, task(tmp_path, 450, 3), 0.0) for name, task in TASKS.items() if "widget" not in name]
    assert all(cost.cpu_seconds > 0 for cost in costs) and all(name in table(costs, 450) for name in (c.task for c in costs))
