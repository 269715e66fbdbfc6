"""Tables: the protocol, the arithmetic of their cells, and the results that come with the package."""

import csv
import dataclasses
import io
import json

import pytest
from helpers.rows import a_row

from adadfq_lab.cli import main as cli
from adadfq_lab.data.accuracy import wilson
from adadfq_lab.errors import UserError
from adadfq_lab.methods.registry import METHODS, every_method, make_method
from adadfq_lab.studies import tables
from adadfq_lab.studies.grid import folder_name
from adadfq_lab.studies.tables import table_figure, write_table_figure


def test_every_method_gets_the_same_updates_and_images_in_each():
    """At every bit width and seed: one batch size, one number of student updates, ranges observed 200 rounds into the play."""
    configs = tables.configurations(tuple(METHODS), ("3w3a", "5w5a"), (0, 1), dataset="cifar10", budget="short")
    assert len(configs) == len(set(map(folder_name, configs))) == len(METHODS) * 4
    assert {c.rounds - c.schedule.warmup for c in configs} == {1500}
    assert {c.schedule.batch for c in configs} == {16}
    for config in configs:
        warmup, method = config.schedule.warmup, make_method(config.method)
        observed = config.schedule.observed(method)
        assert warmup == {"intraq": 1600, "zaq": 0}.get(config.method, 200)
        assert observed.start == (1590 if config.method == "intraq" else 0)
        assert observed.stop == (warmup if method.ranges != "observed" else warmup + 200)
    assert all(c.schedule.student_lr is None and c.fidelity == "corrected" for c in configs)


def test_the_long_budget_decays_once():
    schedule = tables.BUDGETS["long"].schedule("adadfq")
    assert schedule.milestones == (200 + 4000,)
    assert [schedule.factor(i) for i in (4199, 4200)] == pytest.approx([1, 0.1])


def test_the_quick_budget_has_one_rate_and_warms_up_only_as_far_as_it_must():
    schedules = {name: tables.BUDGETS["quick"].schedule(name) for name in every_method()}
    assert {schedule.student_lr for schedule in schedules.values()} == {3e-4}
    warmups = {name: schedule.warmup for name, schedule in schedules.items() if schedule.warmup != 20}
    assert warmups == {"intraq": 1600, "zaq": 0, "real": 0}


def test_a_cell_is_the_mean_of_its_runs_and_the_paper_stays_apart():
    rows = [a_row(seed=s, last=v) for s, v in enumerate((85.0, 86.0, 87.0))] + [a_row(method="gdfq", last=70.0)]
    gdfq, adadfq = tables.summaries(rows)
    assert (adadfq.last, adadfq.seeds, adadfq.paper) == (86.0, 3, 84.89)
    assert (gdfq.last, gdfq.half, gdfq.paper) == (70.0, None, 75.11)
    other = tables.summaries([a_row(teacher_name="mine")])[0]
    assert other.paper is None  # the paper measured no such teacher


def test_rows_are_kept_by_key(tmp_path):
    """A run that is played again replaces its row; others stay."""
    path = tmp_path / "table.json"
    tables.write_rows(path, [a_row(), a_row(seed=1)])
    assert tables.write_rows(path, [a_row(last=80.0)]) == tables.read_rows(path) == [a_row(last=80.0), a_row(seed=1)]
    path.write_text("[{")
    with pytest.raises(UserError, match="damaged"):
        tables.read_rows(path)


def test_markdown_and_csv_say_the_same():
    rows = [a_row(), a_row(seed=1, last=87.0), a_row(bits="5w5a", last=91.0)]
    text = tables.markdown(rows)
    assert "| adadfq | 3w3a | 92.0    | 12.0  | 70.0       | 86.5 ± 6.4 | 5.5  | 2     |" in text
    assert [float(line["last"]) for line in csv.DictReader(io.StringIO(tables.as_csv(rows)))] == [86.0, 87.0, 91.0]


def test_another_fidelity_is_another_table():
    """Released losses and ranges stand under a heading of their own and enter no average of the corrected ones."""
    rows = [a_row(), a_row(fidelity="released", last=70.0)]
    assert [one.last for one in tables.summaries(rows)] == [86.0, 70.0]
    assert "### cifar10, short budget, released losses and ranges" in tables.markdown(rows)


def test_the_figure_shows_means_seeds_teacher_and_paper(tmp_path):
    rows = [a_row(seed=s, last=v) for s, v in enumerate((85.0, 87.0))]
    fig = table_figure(rows)
    by_name = {trace.name: trace for trace in fig.data}
    assert tuple(by_name["mean, 95 % interval"].y) == (86.0,) and tuple(by_name["one seed"].y) == (85.0, 87.0)
    assert tuple(by_name["the paper's (another protocol)"].y) == (84.89,) and fig.layout.shapes[0].y0 == 92.0
    with pytest.raises(ValueError, match="one data set"):
        table_figure([a_row(), a_row(fidelity="released")])
    write_table_figure([*rows, a_row(bits="4w4a")], tmp_path / "table.html")
    page = (tmp_path / "table.html").read_text()
    assert page.count("plotly-graph-div") == 2 and "<script src=" not in page


def test_the_command_prints_the_results_of_a_file(tmp_path, capsys):
    path = tmp_path / "mine.json"
    tables.write_rows(path, [a_row(), a_row(method="gdfq")])
    cli.main(["table", "--results", str(path), "--methods", "gdfq", "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == [dataclasses.asdict(a_row(method="gdfq"))]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--play", "--methods", "gdqf"], "no method is called 'gdqf'; choose from "),
        (["--play", "--dataset", "mnist"], "no teacher is shipped for 'mnist'"),
        (["--seeds", "7", "9"], "no result has seed 7 or 9, but there are 0, 1, 2; or play it with --play"),
        (["--methods", "zaq", "--budget", "long"], "no result fits these options; play it with --play"),
        (["--results", "nowhere.json"], "there is no results file nowhere.json; make it with --play"),
        (["--results", "."], ". is a folder; give a file"),
        (["--figure", "nowhere/table.html"], "cannot write nowhere/table.html; name a file in a folder that exists"),
        (["--play", "--workers", "0", "--dataset", "fashion_mnist"], "workers must be at least 1"),
    ],
)
def test_mistakes_end_in_one_line(options, what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(["table", *options])
    assert caught.value.code == 2 and what in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_shipped_rows_are_of_the_images_that_are_said():
    """The interval of every shipped row is Wilson's over just so many images as USUAL_IMAGES says of its data set."""
    for row in tables.read_rows(tables.shipped_results()):
        count = int(tables.USUAL_IMAGES[row.dataset].split()[0].replace(",", ""))
        assert (row.low, row.high) == pytest.approx(wilson(round(row.last * count / 100), count), abs=1e-6)


def test_rows_of_other_teachers_and_images_stand_apart():
    """Under a heading that names both; the paper's numbers beside its own networks only, with their teachers' accuracy."""
    rows = [a_row(), a_row(teacher_name="mine", sha256="abc", source="40 images in photos"), a_row(source="first 500 of 9,979")]
    text = tables.markdown(rows)
    assert "### cifar10, short budget\n" in text
    assert "### cifar10, short budget, teacher mine (abc) on 40 images in photos\n" in text
    assert "### cifar10, short budget, teacher cifar10_resnet20 on first 500 of 9,979\n" in text
    assert "another teacher (93.89 % on cifar10)" in text
    assert "paper:" not in tables.markdown(rows[1:2])
    cifar100 = a_row(dataset="cifar100", teacher_name="pytorchcv:resnet20_cifar100")
    assert tables.summaries([cifar100])[0].paper == 52.74
    assert "another teacher (70.33 % on cifar100)" in tables.markdown([cifar100])
