"""The numbers of a report, recomputed from the runs in another way; and the page that shows them."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from scipy import stats

from pruning.errors import UsageError
from utils.experiments import compare
from utils.experiments.report.data import Data, Finished, Wanted, costs, differences, interval, potentials, summary
from utils.experiments.report.gather import gather_runs
from utils.experiments.report.page import write
from utils.experiments.report.plots import curves

SEEDS = (1, 2, 3, 4)
NOISE = {1: 0.011, 2: -0.004, 3: 0.007, 4: -0.013}


def accuracy(method: str, limit: float, seed: int) -> float:
    bad, same = 0.3 * limit + 0.001 * (seed - 2.5), 0.02 * limit + 0.001 * (-1) ** seed
    loss = {"": 0.0, "good": 0.02 * limit, "bad": bad, "same": same}[method]
    return 0.95 - loss + NOISE[seed]


def run(method: str, limit: float, seed: int, folder: Path = Path("runs"), group: str = "") -> Finished:
    record = {"test_accuracy": accuracy(method, limit, seed), "weight_sparsity": limit, "seconds_training": 2.0 + seed}
    record |= {"flops_per_sample_nonzero": 1000 * (1 - limit), "peak_memory_bytes": 5e8, "training_flops": None}
    layers = {"first.weight": limit / 2, "last.weight": limit}
    return Finished(method, group, limit, seed, record, folder / f"{method}{limit}_{seed}", layers, 10.0)


@pytest.fixture
def data(tmp_path):
    runs = [run("", 0.0, seed, tmp_path) for seed in SEEDS]
    runs += [run(m, limit, seed, tmp_path) for m in ("good", "bad", "same") for limit in (0.5, 0.9) for seed in SEEDS]
    return Data("a <title>", runs, Wanted(), [("bad 0.99, seed 1", "NaN & <more>", None)], 2, "a note")


def test_means_and_intervals_over_seeds(data):
    rows = {(row["method"], row["limit"]): row for row in summary(data)}
    assert len(rows) == 7
    row, values = rows["bad", 0.9], [accuracy("bad", 0.9, seed) for seed in SEEDS]
    low, high = stats.t.interval(0.95, 3, loc=stats.tmean(values), scale=stats.sem(values))
    assert (row["test_accuracy"], row["n"]) == (pytest.approx(sum(values) / 4), 4)
    assert (row["test_accuracy_low"], row["test_accuracy_high"]) == (pytest.approx(low), pytest.approx(high))
    # Seed by seed the difference varies far less than the accuracy.
    high = stats.t.interval(0.95, 3, loc=-0.27, scale=stats.sem([-0.0015, -0.0005, 0.0005, 0.0015]))[1]
    assert row["test_accuracy_minus_dense"] == pytest.approx(-0.27)
    assert row["test_accuracy_minus_dense_high"] == pytest.approx(high)
    assert row["flops_per_sample_nonzero"] == pytest.approx(100)


def test_one_seed_has_no_interval():
    found = interval([0.5])
    assert (found.mean, found.n) == (0.5, 1)
    assert math.isnan(found.low)
    assert interval([math.nan, 0.2, 0.4]).mean == pytest.approx(0.3)
    assert interval([]).n == 0


def test_values_without_any_spread_have_no_interval_and_prove_nothing(data):
    same = interval([0.9 - 0.8, 0.7 - 0.6])  # which binary numbers cannot tell exactly
    assert (same.mean, same.n) == (pytest.approx(0.1), 2)
    assert math.isnan(same.low) and math.isnan(same.high)
    assert math.isnan(interval([0.0, 0.0, 0.0]).high)
    row = next(row for row in summary(data) if row["method"] == "good")
    assert math.isnan(row["test_accuracy_minus_dense_low"])
    data.runs = [run(method, 0.5, seed) for method in ("good", "") for seed in (1, 2)]
    data.runs += [Finished("lucky", "", 0.5, one.seed, one.record, one.folder) for one in data.runs if not one.method]
    row = next(row for row in differences(data) if row["other"] == "lucky")
    assert row["difference"].mean == pytest.approx(-0.01)
    assert row["ahead"] == "not told apart"


def test_prune_potential_is_the_largest_sparsity_within_the_tolerance_of_each_seeds_dense_run(data):
    data.wanted.tolerance = [0.0, 0.01, 0.02]
    rows = {row["method"]: row for row in potentials(data)}
    assert [rows["good"][f"within {t}"].mean for t in ("0", "0.01", "0.02")] == [0, 0.5, 0.9]
    assert [rows["bad"][f"within {t}"].mean for t in ("0", "0.01", "0.02")] == [0, 0, 0]
    # At 0.5 odd seeds lose 0.009 and even ones 0.011.
    assert rows["same"]["within 0.01"].mean == pytest.approx(0.25)
    without = Data("no dense run", [one for one in data.runs if one.method], Wanted())
    assert potentials(without) == []


def test_a_winner_is_named_only_where_the_interval_says_so(data):
    rows = {(row["limit"], row["one"], row["other"]): row for row in differences(data)}
    assert len(rows) == 6
    assert rows[0.9, "good", "bad"]["ahead"] == "good"
    assert rows[0.9, "bad", "same"]["ahead"] == "same"
    equal = rows[0.9, "good", "same"]
    values = [accuracy("good", 0.9, seed) - accuracy("same", 0.9, seed) for seed in SEEDS]
    low, high = stats.t.interval(0.95, 3, loc=stats.tmean(values), scale=stats.sem(values))
    assert equal["ahead"] == "not told apart"
    assert equal["difference"] == (pytest.approx(stats.tmean(values), abs=1e-12), *map(pytest.approx, (low, high)), 4)


def test_differences_are_over_common_seeds_and_single_ones_prove_nothing(data):
    data.runs = [one for one in data.runs if one.method != "bad" or one.seed == 2]
    row = next(row for row in differences(data) if (row["one"], row["other"], row["limit"]) == ("good", "bad", 0.9))
    assert row["difference"].n == 1
    assert row["ahead"] == "not told apart"


def test_costs_are_means_of_what_is_known(data):
    row = next(row for row in costs(data) if row["method"] == "good")
    assert (row["runs"], row["seconds_training"], row["seconds_in_all"]) == (8, 4.5, 10.0)
    assert math.isnan(row["training_flops"])


class Page(HTMLParser):
    """Collects what a page points to, and its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.outside: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if tag == "a" and name in ("href", "xlink:href"):
                self.links.append(value or "")
            elif name in ("src", "href") and not (value or "").startswith("#"):
                self.outside.append(value or "")


def test_the_page_is_one_file_whose_points_link_to_the_runs(data, tmp_path):
    for one in data.runs:
        one.folder.mkdir()
    write(data, tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    page = Page(text)
    assert page.outside == []
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert page.tags.count("svg") == 3
    # Every run is a point of both curves, but the dense ones, which are a line.
    assert len(page.links) == 2 * 24
    assert {(tmp_path / "report" / link).resolve() for link in page.links} == {r.folder for r in data.runs if r.method}
    assert "a &lt;title&gt;" in text
    assert "NaN &amp; &lt;more&gt;" in text
    assert not re.search(r"\bnan\b", text)
    names = {path.name for path in (tmp_path / "report" / "plots").iterdir()}
    curves = ("test_accuracy_weight_sparsity", "test_accuracy_flops_per_sample_nonzero", "layers")
    assert names == {f"{name}.{kind}" for name in curves for kind in ("png", "pdf")}


def test_tables_as_csv_markdown_and_tex(data, tmp_path):
    write(data, tmp_path, plots=False)
    with open(tmp_path / "table.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    values = [accuracy("good", 0.5, seed) for seed in SEEDS]
    row = next(row for row in rows if (row["method"], row["limit"]) == ("good", "0.5"))
    assert float(row["test_accuracy"]) == pytest.approx(sum(values) / 4)
    assert "| good | 0.5 | 4 |" in (tmp_path / "table.md").read_text()
    tex = (tmp_path / "table.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 4
    assert not list((tmp_path / "plots").iterdir())


@pytest.mark.parametrize("name", [r"$\nope$", "cost in $", "_private", "100 % & <b>"])
def test_names_are_drawn_letter_by_letter(tmp_path, name):
    dense = run("", 0.0, 1, group=name)
    other = Finished(name, name, 0.5, 1, run("good", 0.5, 1).record, Path("x"))
    write(Data("names", [dense, other], Wanted()), tmp_path)
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "report.html").read_text())
    assert [unescape(text).strip() for text in drawn].count(name) == 4, "a legend and a title in each of two pictures"


@pytest.mark.parametrize("what", ["nothing", "only dense", "one run", "groups", "many methods"])
def test_a_report_of_whatever_there_is(tmp_path, what):
    runs = {
        "nothing": [],
        "only dense": [run("", 0.0, 1)],
        "one run": [run("good", 0.9999, 1)],
        "groups": [run(m, 0.5, s, group=g) for g in ("data A", "data B") for m in ("", "good") for s in SEEDS],
        "many methods": [Finished(f"m{n}", "", 0.5, 1, run("good", 0.5, 1).record, Path("x")) for n in range(23)],
    }[what]
    write(Data(what, runs, Wanted()), tmp_path)
    assert f"<h1>{what}</h1>" in (tmp_path / "report.html").read_text()


def test_a_report_is_not_written_again_before_twenty_times_its_own_time_has_passed(cells, monkeypatch):
    written, now = [], [100.0]

    def write(data, folder, *, plots):
        written.append((now[0], plots))
        now[0] += 2.0  # seconds that it takes

    monkeypatch.setattr(compare, "write", write)
    monkeypatch.setattr(compare.time, "monotonic", lambda: now[0])
    report = compare.CurrentReport(cells())
    for now[0] in (100.0, 110.0, 141.0, 142.0, 150.0):
        report(False)
    report(True)
    assert written == [(100.0, False), (142.0, False), (150.0, True)]


# -- finished runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def make_run(tmp_path):
    def make_run(name: str, status: str = "finished", **settings: object) -> None:
        folder = tmp_path / "results" / name
        (folder / "output").mkdir(parents=True)
        base = {"model": "MLP5", "data_set": "DIGITS", "prune_criterion": "SNIP", "pruning_limit": 0.9, "epochs": 3}
        (folder / "settings.yaml").write_text(yaml.safe_dump({**base, "seed": 1, "run_name": name, **settings}))
        (folder / "result.json").write_text(json.dumps({"status": status, "test_accuracy": 0.7}))
        events = [{"sparsities": {"a": 0.1}}, {"sparsities": {"a": 0.9}}]
        (folder / "output" / "pruning_events.json").write_text(json.dumps(events))

    return make_run


def test_runs_found_by_a_pattern_are_told_apart_by_what_differs(make_run, tmp_path):
    make_run("d1", prune_criterion="EmptyCrit", pruning_limit=0.0)
    make_run("a1")
    make_run("a2", seed=2)
    make_run("a3", epochs=6)
    make_run("b1", prune_criterion="GRASP")
    make_run("b2", "failed", prune_criterion="GRASP", seed=2)
    make_run("b3", "interrupted", prune_criterion="GRASP", seed=3)
    make_run("e", eval=True)
    make_run("f")
    (tmp_path / "results" / "f" / "settings.yaml").write_text("")
    data = gather_runs("*", tmp_path / "results")
    assert {(one.method, one.seed) for one in data.runs} == {
        *{("", 1), ("SNIP (epochs 3)", 1), ("SNIP (epochs 3)", 2), ("SNIP (epochs 6)", 1), ("GRASP", 1)}
    }
    assert ([what for what, _, _ in data.lost], data.open, data.interrupted) == (["f", "b2"], 0, 1)
    assert "5 finished, 2 failed, 1 interrupted; " in data.note
    assert data.runs[-1].layers == {"a": 0.9}
    assert len(gather_runs(str(tmp_path / "results" / "a*"), Path("elsewhere")).runs) == 3


def test_dense_runs_that_differ_are_said_to(make_run, tmp_path):
    make_run("d1", prune_criterion="EmptyCrit")
    assert "differ" not in gather_runs("d*", tmp_path / "results").note
    make_run("d2", prune_criterion="EmptyCrit", epochs=9)
    assert "Dense runs differ in epochs" in gather_runs("d*", tmp_path / "results").note


def test_long_names_stay_inside_the_picture(tmp_path):
    name = "SNIP (" + ", ".join(f"option_{n} {n}" for n in range(20)) + ")"
    runs = [Finished(f"{name}{n}", "", 0.5, 1, run("good", 0.5, 1).record, Path("x")) for n in range(3)]
    figure = curves(Data("long", runs, Wanted()), "", "weight_sparsity", "test_accuracy", str)
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    assert box.y1 < figure.axes[0].get_window_extent().y0, "the legend lies below the axes"


def test_models_and_data_sets_are_groups(make_run, tmp_path):
    make_run("a1")
    make_run("a2", model="LeNet5")
    assert [one.group for one in gather_runs("a*", tmp_path / "results").runs] == ["MLP5", "LeNet5"]


def test_no_run_to_report_is_one_clear_line(tmp_path):
    with pytest.raises(UsageError, match=r"--report none\*: no run folder matches"):
        gather_runs("none*", tmp_path)


def of_language(run_of_classes: Finished) -> Finished:
    """The same run, as if perplexities had been measured: the lower the better."""
    perplexity = 100 * (1 - run_of_classes.record["test_accuracy"])
    record = {**run_of_classes.record, "test_perplexity": perplexity, "measures": {"perplexity": "lower"}}
    del record["test_accuracy"]
    return replace(run_of_classes, record=record)


def test_a_report_shows_the_main_measure_of_its_runs_and_knows_which_way_is_good(data, tmp_path):
    runs_of_classes = list(data.runs)
    data.runs = [of_language(one) for one in runs_of_classes]
    assert data.shown() == ["test_perplexity"] and "test_perplexity_minus_dense" in summary(data)[0]
    rows = {(row["limit"], row["one"], row["other"]): row for row in differences(data)}
    assert rows[0.9, "good", "bad"]["difference"].mean == pytest.approx(-25.2, abs=0.2)
    assert rows[0.9, "good", "bad"]["ahead"] == "good", "the lower one"
    # A tolerance of a perplexity, which may have any size, is a share of it.
    data.wanted.tolerance = [0.1, 10.0]
    found = {row["method"]: row for row in potentials(data)}
    dense = {one.seed: one.value("test_perplexity") for one in data.runs if not one.method}
    for method in ("good", "bad"):
        within = []
        for seed in SEEDS:
            fits = [0.0]
            for one in data.runs:
                if (one.method, one.seed) == (method, seed) and one.value("test_perplexity") <= 1.1 * dense[seed]:
                    fits.append(one.limit)
            within.append(max(fits))
        assert found[method]["within 0.1"].mean == pytest.approx(sum(within) / 4)
        assert found[method]["within 10"].mean == pytest.approx(0.9)
    page = (write(data, tmp_path / "report", plots=False) / "report.html").read_text()
    assert "test perplexity" in page and "accuracy" not in page


def test_where_nobody_said_which_way_is_good_nobody_is_ahead(data):
    data.runs = [replace(one, record={**one.record, "test_x": 1.0, "measures": {"x": None}}) for one in data.runs]
    assert potentials(data) == []
    assert {row["ahead"] for row in differences(data)} == {"which way is good is not known"}
