"""The repository keeps what it says: pinned dependencies, README's commands, the order of every script."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, load

SCRIPTS = sorted(ROOT.glob("*_multi_task_learning.py"))
README, REPORT = ((ROOT / path).read_text() for path in ("README.md", "benchmarks/RESULTS.md"))


def test_inline_metadata_equals_requirements():
    requirements = (ROOT / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in requirements] == ["tensorflow", "numpy", "tensorboard"]
    for script in SCRIPTS:
        block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", script.read_text(), re.MULTILINE)[1]
        metadata = tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))
        assert metadata["dependencies"] == requirements


def test_development_requirements_are_pinned():
    lines = (ROOT / "requirements-dev.txt").read_text().split("\n")
    assert lines[0] == "-r requirements.txt"
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines[1:] if line)


def test_sections_stand_in_one_order():
    order = ["data", "cross-stitch unit", "network", "losses and metrics", "training"]
    order += ["checkpoints and summaries", "command line"]
    for script in SCRIPTS:
        assert re.findall(r"^# -{20,} (.+?)(?: \(.*shared\))?$", script.read_text(), re.MULTILINE) == order


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_readme_tells_the_defaults():
    """Of the first script, as the rows `| --a, --b | 1, 2 | ... |` of its table tell."""
    parser = load("fashion_mnist_multi_task_learning.py").make_parser()
    told = []
    for flags, defaults in re.findall(r"^\| (`--[^|]+) \| ([^|]*)\|", README, re.M):
        told += zip(re.findall(r"`(--\w+)`", flags), defaults.strip().split(", "), strict=True)
    assert len(told) == 12
    given = [word for flag_and_default in told for word in flag_and_default]
    assert parser.parse_args(given) == parser.parse_args([])


def test_readme_names_no_argument_that_is_not_there():
    flags = {flag for script in SCRIPTS for flag in re.findall(r'add\(\s*"(--\w+)"', script.read_text())}
    others = {"--layout", "--logdir", "--fix", "--help", "--seeds"}
    assert set(re.findall(r"(--[a-z]\w+)", README + REPORT)) <= flags | others


@pytest.mark.slow
def test_readme_makes_data_and_trains_on_them(tmp_path):
    """The commands of its section, as they are written."""
    section = README.split("## Your own data")[1]
    make, train = (re.search(rf"```{kind}\n(.*?)```", section, re.S)[1] for kind in ("python", "bash"))
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": ""})
    words = train.replace(".venv/bin/python fashion", f"{sys.executable} {ROOT}/fashion")
    result = subprocess.run(words, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result
    accuracy = dict(re.findall(r"^(digit|odd) +(\d\.\d+)", result.stdout, re.M))
    assert float(accuracy["digit"]) > 0.8 and float(accuracy["odd"]) > 0.8, result.stdout


def test_readme_builds_a_network_with_the_unit():
    (code,) = re.findall(r"```python\n(from keras.*?)```", README, re.S)
    found = {}
    exec(code, found)
    assert [x.shape[1] for x in found["model"].output] == [10, 10]
    assert [layer.alpha.shape for layer in found["model"].layers if hasattr(layer, "alpha")] == [(2, 2, 16)]


def test_links_lead_to_what_is_there():
    for page in (ROOT / "README.md", ROOT / "benchmarks" / "RESULTS.md"):
        for path, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
            target = page.parent / path if path else page
            assert target.exists(), path
            words = heading.replace("-", "[^\\w\n]+")
            assert not heading or re.search(rf"^#+ {words}\W*$", target.read_text(), re.M | re.I), heading


def test_report_and_figures_are_what_the_results_give():
    compare = load("benchmarks/compare.py")
    assert compare.fill(README) == README and compare.fill(REPORT) == REPORT
    assert "| baseline |" in compare.tables(["full"])
    for figure in compare.FIGURES:
        assert compare.digest().encode() in Path(figure).read_bytes()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_tells_the_defaults(path):
    """What stands in the last brackets of a flag's help, as its type reads it, up to a ; or :"""
    no_value = {"all", "1 each", "else", "identity, if known"}
    told = set()
    for action in load(path).make_parser()._actions:
        match = re.search(r"\(([^()]*)\)$", action.help or "")
        word = match and re.split("[;:]", match[1])[0]
        if not word or word in no_value or word.startswith(("tf_logs", "the middle")):
            continue
        words = word.split() if action.nargs == "+" else [word]
        values = [action.type(w) if action.type else w for w in words]
        assert action.default == (values if action.nargs == "+" else values[0]), action.dest
        told.add(action.dest)
    assert len(told) >= 17, told


def test_ci_runs_the_readme_test_command():
    assert "-m pytest\n" in README and "-m pytest\n" in (ROOT / ".ci" / "run").read_text()
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_paired_difference_by_hand(monkeypatch):
    """Three seeds whose differences are 1, 2 and 3: mean 2, deviation 1, t = 2 / (1 / sqrt(3)), two degrees."""
    compare = load("benchmarks/compare.py")

    def entries(values):
        return {str(k): {"test": {"item": v, "group": v, "accuracy": v}} for k, v in enumerate(values)}

    stored = {"baseline": entries([10, 20, 30]), "channel": entries([11, 22, 33])}
    monkeypatch.setattr(compare, "load", lambda name: stored)
    baseline, row = compare.compare("full")
    assert compare.columns_of(stored["baseline"], [("test", "item")]) == ["2000.00 ± 1000.00"]
    assert "difference" not in baseline
    assert row["difference"] == 2
    half = 4.302653 / 3**0.5  # the 97.5 % point of t with two degrees of freedom
    assert abs(row["interval"][0] - (2 - half)) < 1e-5 and abs(row["interval"][1] - (2 + half)) < 1e-5
    assert abs(row["p"] - 0.0741799) < 1e-6


def test_holm_by_hand():
    """The smallest of three is tripled, the next doubled, and none is below one before it; at most 1."""
    holm = load("benchmarks/compare.py").holm
    assert holm([0.03, None, 0.01, 0.02]) == pytest.approx([0.04, None, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1, 1]


def test_interval_over_test_images_by_hand(monkeypatch):
    """Of four images the baseline alone tells one in each of two seeds: mean differences 0, -1/2, 0 and -1/2."""
    compare = load("benchmarks/compare.py")

    def entries(*found):
        return {str(k): {"predictions": {"item": x, "item_truth": "0111"}} for k, x in enumerate(found)} | {"2": {}}

    stored = {"baseline": entries("0111", "0111"), "channel": entries("0011", "0110")}
    monkeypatch.setattr(compare, "load", lambda name: stored)
    assert compare.over_images("full", "channel", "baseline", ["0", "1"]) == pytest.approx(1.96 * (1 / 12) ** 0.5 / 2)
    assert compare.over_images("full", "channel", "baseline", ["0", "1", "2"]) is None  # predictions are not stored
    faces = {"predictions": {"mean_error": [100, 300]}}
    np.testing.assert_allclose(compare.scores(faces), [0.01, 0.03])


def test_averages_by_hand(monkeypatch, tmp_path):
    """Each of two networks is sure of two images and errs a little on the other two; together they know all four."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    average, compare, stored = load("benchmarks/average.py"), load("benchmarks/compare.py"), {}
    sure, unsure = np.log([0.1, 0.9]), np.log([0.6, 0.4])
    logits = {3: np.array([sure, sure, unsure, unsure]), 5: np.array([unsure, unsure, sure, sure])}
    results = {}
    for setting, tasks in (("single-task", ["item"]), ("init 0.5", None)):
        for seed in logits:
            folder = Path(average.log_dir_of(tmp_path, "decaying", setting, 0, seed))
            folder.mkdir(parents=True)
            (folder / "model.keras").touch()
        # of seed 4 no model is left, and of group no measure is kept
        results[setting] = {seed: {"arguments": [{"tasks": tasks}], "test": {"item": 0.5}} for seed in "345"}

    def prepare_data(args):
        return ({"test": (np.zeros((4, 8, 8, 1)), np.ones((4, len(args.tasks or "ab")), int))},)

    def load_results(name):
        return stored if name == "averages" else results

    script = argparse.Namespace(prepare_data=prepare_data)
    monkeypatch.setattr(average.importlib, "import_module", lambda name: script)
    monkeypatch.setattr(average, "load", load_results)
    monkeypatch.setattr(
        average, "predict", lambda *a: {task: logits[a[-1].seed] for task in a[-1].tasks or ("item", "group")}
    )
    monkeypatch.setattr(average, "store", lambda _, name, *pair: stored.setdefault(name, {}).update([pair]))
    average.average("decaying", str(tmp_path), None)
    assert stored == {"decaying": {setting: {"item": {"3 5": 1.0}} for setting in results}}
    monkeypatch.setattr(compare, "load", load_results)
    assert compare.averages()[2:] == [
        f"| `decaying` | {setting} | item | 50.00 | 100.00 | 1 | +50.00 (+50.00 to +50.00) |" for setting in results
    ]
    shutil.rmtree(folder)  # the pair that is stored stays
    average.average("decaying", str(tmp_path), None)
    stored["decaying"]["init 0.5"]["item"]["7 8"] = 0.75
    folder.mkdir()
    (folder / "model.keras").touch()
    average.average("decaying", str(tmp_path), None)
    assert stored["decaying"]["init 0.5"] == {"item": {"3 5": 1.0, "7 8": 0.75}}
    points = [{"landmarks": np.full((1, 5, 2), [x, 0.4])} for x in (0.0, 0.6)]
    assert average.evaluate(points, np.zeros((1, 5, 2))) == pytest.approx({"mean_error": 0.5})


def test_runs_of_different_commits_or_data_are_not_paired(monkeypatch):
    compare = load("benchmarks/compare.py")
    entry = {"test": {"item": 1, "group": 1, "accuracy": 1}}
    stored = {
        "baseline": {"0": entry, "1": {**entry, "commit": "a"}, "2": {**entry, "sha256": "a"}},
        "channel": {"0": entry, "1": {**entry, "commit": "b"}, "2": {**entry, "sha256": "b"}},
    }
    monkeypatch.setattr(compare, "load", lambda name: stored)
    assert compare.paired("full", "channel", "baseline")["common"] == ["0"]
    assert compare.difference_cells(compare.compare("full"))[1] == ["+0.00 (pairs: 1)", "", ""]  # of three seeds


def test_a_seed_in_both_precisions_counts_once(monkeypatch):
    """Dense units: seed 1 with 92 and 94 % in 30 epochs counts as 93, seed 0 has 91 in 20; none have 90."""
    compare = load("benchmarks/compare.py")

    def entry(accuracy, n_epoch):
        return {"curves": [{"summary/accuracy_test": [[469 * epoch, accuracy] for epoch in range(1, n_epoch + 1)]}]}

    stored = {
        "setting_2018": {"baseline": {"1": entry(0.9, 30)}, "activation": {"1": entry(0.92, 30)}},
        "dense_2018": {"baseline": {"0": entry(0.9, 20)}, "activation": {"0": entry(0.91, 20)}},
        "dense_2018_30": {"baseline": {"1": entry(0.9, 30)}, "activation": {"1": entry(0.94, 30)}},
    }
    monkeypatch.setattr(compare, "load", stored.get)
    lines = compare.course_of_2018()
    assert "| dense units | 2 |" + " 92.00 ± 1.41 |" * 4 + " 93.00 |" in lines
    assert "| dense units, minus none, paired | 2 |" + " +2.00 |" * 4 + " +3.00 |" in lines


def test_last_ten_evaluations_by_hand():
    compare = load("benchmarks/compare.py")
    entry = {"curves": [{"accuracy": [[step, step / 100] for step in range(1, 13)]}]}
    entry["test"] = {"item": 0.5, "accuracy": 0.5}
    assert compare.measured(entry, "late", "accuracy") == pytest.approx(0.075)  # the mean of 3 to 12, in hundredths
    assert compare.measured(entry, "test", "item") == 0.5 and compare.measured(entry, "test", "group") is None
    del entry["test"]["accuracy"]  # a task was not trained, and the curve is a mean with it
    assert compare.measured(entry, "late", "accuracy") is None


def test_comparison_keeps_finished_runs_and_resumes_others(tmp_path, monkeypatch):
    compare = load("benchmarks/compare.py")
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(compare, "RESULTS", str(tmp_path / "results"))
    settings = {"baseline": [{"cross_stitch_enabled": False}], "channel": [{"lr": 0.1}]}
    monkeypatch.setattr(compare, "EXPERIMENTS", {"tiny": compare.Experiment("tiny", settings, compare.GARMENTS)})
    calls, rate = [], 0.1

    def run_script(script, log_dir, arguments, data_dir):
        calls.append((arguments["seed"], arguments.get("lr")))
        if calls[-1] == (1, 0.1) and len(calls) == 4:
            raise KeyboardInterrupt
        results = {"test": {"accuracy": 0, "item": 0.5, "group": 0.7}, "arguments": {**arguments, "lr": rate}}
        results["classes"] = {"item": [], "group": []}
        results |= {"parameters": 1, "images_per_second": 1, "versions": {}, "data": {"sha256": "x"}}
        return {**results, "commit": f"of seed {arguments['seed']}"}

    monkeypatch.setattr(compare, "run_script", run_script)
    monkeypatch.setattr(compare, "read_events", lambda log_dir: ({}, {}))
    monkeypatch.setattr(compare, "read_predictions", lambda *_: {"item": "01", "group": "10"})
    try:
        compare.train("tiny", [0, 1], str(tmp_path), None)
    except KeyboardInterrupt:
        compare.train("tiny", [0, 1], str(tmp_path), None)
    assert calls == [(0, None), (0, 0.1), (1, None), (1, 0.1), (1, 0.1)]  # the stopped one again, no other
    assert abs(compare.load("tiny")["channel"]["1"]["test"]["accuracy"] - 0.6) < 1e-12
    assert compare.load("tiny")["channel"]["1"]["commit"] == "of seed 1"
    controls = {"control": [{"task_weights": [1.0, 0.0]}], "no landmarks": [{"landmark_lambda": 0.0}]}
    compare.EXPERIMENTS["tiny"].settings |= controls  # what is not trained says nothing
    compare.train("tiny", [0], str(tmp_path), None)
    control = compare.load("tiny")["control"]["0"]
    assert control["test"] == {"item": 0.5} and control["predictions"] == {"item": "01"}
    assert compare.load("tiny")["no landmarks"]["0"]["test"] == {}
    assert compare.paired("tiny", "control", "baseline") == {}
    assert compare.paired("tiny", "control", "baseline", "item")["differences"] == [0]
    rate = 0.2
    with pytest.raises(SystemExit, match="baseline: other arguments than those of the seeds that are stored"):
        compare.train("tiny", [2], str(tmp_path), None)


@pytest.mark.slow
def test_a_run_of_a_comparison(small, tmp_path, monkeypatch):
    compare, log_dir = load("benchmarks/compare.py"), str(tmp_path / "run")
    arguments = {"n_epoch": 1, "n_batch_size": 300, "seed": 7, "cross_stitch_at": ["pool_1", "fc_3"]}
    script = "fashion_mnist_multi_task_learning.py"
    monkeypatch.setattr(compare, "commit", lambda: "abc")
    compare.run_script(script, log_dir, arguments, str(small))
    monkeypatch.setattr(compare, "commit", lambda: "def")
    results = compare.run_script(script, log_dir, arguments, str(small))  # is finished, and was begun before
    assert results["commit"] == "abc"
    assert results["steps"] == 2 and results["seed"] == 7 and not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(SystemExit, match="expected a run with --n_batch_size 200, it has 300"):
        compare.run_script(script, log_dir, {**arguments, "n_batch_size": 200}, str(small))
    predicted = compare.read_predictions(script, log_dir, results["arguments"])
    truth = load(script).read_folder(small)[1][1][:, 0]
    assert np.mean([int(k) for k in predicted["item"]] == truth) == results["test"]["item"]
    curves, histograms = compare.read_events(log_dir)
    assert curves["summary/accuracy_test"] == [[2, round(results["test"]["accuracy"], 6)]]
    counts = {tag: sum(count for *_, count in rows) for tag, rows in histograms.items()}
    assert counts == {"units/pool_1/alpha": 4 * 32, "units/fc_3/alpha": 4 * 1024}
