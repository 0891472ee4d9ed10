"""The repository keeps what it says: pinned dependencies, README's commands, the order of every script."""

import re
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, load

SCRIPTS = sorted(ROOT.glob("*_multi_task_learning.py"))
README = (ROOT / "README.md").read_text()


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
        assert re.findall(r"^# -{20,} (.+)$", script.read_text(), re.MULTILINE) == order


def test_readme_names_every_argument():
    named = set(re.findall(r"`(--\w+)`", README))
    for script in SCRIPTS:
        flags = set(re.findall(r'add\(\s*"(--\w+)"', script.read_text()))
        assert "--lr" in flags and flags <= named, flags - named


def test_readme_tells_the_defaults():
    """Of the first script in the table of all arguments, of the others where they differ in the table of their own."""
    sections = {heading: text for heading, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", README, re.M | re.S)}

    def told(section):
        """Returns {argument: its default} as the rows `| --a, --b | 1, 2 | ... |` of a section tell."""
        found = {}
        for flags, defaults in re.findall(r"^\| (`--[^|]+) \| ([^|]*)\|", sections[section], re.M):
            flags = re.findall(r"`--(\w+)`", flags)
            defaults = defaults.strip().split(", ") if len(flags) > 1 else [defaults.strip()]
            found |= dict(zip(flags, defaults if len(defaults) == len(flags) else [""] * len(flags)))
        return found

    common = told("Arguments")
    for name, section in (
        ("fashion_mnist", "Arguments"),
        ("gender_age", "Gender and age"),
        ("facial_landmark", "Facial landmarks"),
    ):
        parser, told_here = load(f"{name}_multi_task_learning.py").make_parser(), {**common, **told(section)}
        defaults = parser.parse_args([])
        for argument, value in vars(defaults).items():
            assert told_here[argument] or value is None, (name, argument)
        given = [f"--{argument}={told_here[argument]}" for argument in vars(defaults) if told_here[argument]]
        assert parser.parse_args(given) == defaults, name


def test_readme_links_to_what_is_there():
    for path in re.findall(r"\]\((?!https?:|#)([^)]+)\)|src=\"([^\"]+)\"", README):
        path = "".join(path)
        assert (ROOT / path).exists(), path


def test_readme_has_no_placeholder():
    assert not re.search(r"^[A-Z_]{5,}$", README, re.MULTILINE)


def test_ci_runs_the_readme_test_command():
    assert "-m pytest\n" in README and "-m pytest\n" in (ROOT / ".ci" / "run").read_text()
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_readme_and_figure_are_what_the_results_give():
    compare = load("benchmarks/compare.py")
    assert compare.fill(README) == README and "| baseline |" in compare.tables(["full"])
    assert compare.trials() == (ROOT / "benchmarks" / "TRIALS.md").read_text()
    for figure in compare.FIGURES:
        assert compare.digest().encode() in Path(figure).read_bytes()


def test_readme_tells_how_far_two_runs_differ_at_single_steps():
    """The stitched run on all garments against the baseline, the first seed, over all evaluations."""
    stored = load("benchmarks/compare.py").load("full")
    stitched, baseline = (stored[s]["0"]["curves"][0]["summary/accuracy_test"] for s in ("channel", "baseline"))
    assert [step for step, _ in stitched] == [step for step, _ in baseline]
    differences = [100 * (a - b) for (_, a), (_, b) in zip(stitched, baseline)]
    text = " ".join(README.split())
    assert f"between {-min(differences):.1f} points below and {max(differences):.1f} points above the baseline" in text


def test_readme_tells_how_often_units_that_share_half_are_above_the_baseline():
    compare = load("benchmarks/compare.py")
    names = ("decaying", "scarce_25", "scarce_10", "scarce_5", "scarce_1")
    differences = [d for name in names for d in compare.paired(name, "init 0.5", "baseline")["differences"]]
    assert min(differences) > 0 and f"in all {len(differences)} pairs" in " ".join(README.split())


def test_readme_tells_in_how_many_runs_the_last_third_is_above_the_baseline():
    compare = load("benchmarks/compare.py")
    found = [compare.paired("full", setting, "baseline", compare.LATE) for setting in compare.FULL]
    differences = [d for of_setting in found[1:] if of_setting for d in of_setting["differences"]]
    assert min(differences) > 0 and len(differences) == 9 and "all nine stitched runs" in " ".join(README.split())


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


def test_last_ten_evaluations_by_hand():
    compare = load("benchmarks/compare.py")
    entry = {"curves": [{"accuracy": [[step, step / 100] for step in range(1, 13)]}], "test": {"item": 0.5}}
    assert compare.measured(entry, "late", "accuracy") == pytest.approx(0.075)  # the mean of 3 to 12, in hundredths
    assert compare.measured(entry, "test", "item") == 0.5 and compare.measured(entry, "test", "group") is None


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
        return {**results, "parameters": 1, "images_per_second": 1, "versions": {}, "data": {"sha256": "x"}}

    monkeypatch.setattr(compare, "run_script", run_script)
    monkeypatch.setattr(compare, "read_events", lambda log_dir: ({}, {}))
    try:
        compare.train("tiny", [0, 1], str(tmp_path), None)
    except KeyboardInterrupt:
        compare.train("tiny", [0, 1], str(tmp_path), None)
    assert calls == [(0, None), (0, 0.1), (1, None), (1, 0.1), (1, 0.1)]  # the stopped one again, no other
    assert abs(compare.load("tiny")["channel"]["1"]["test"]["accuracy"] - 0.6) < 1e-12
    compare.EXPERIMENTS["tiny"].settings["control"] = [compare.ALONE["item"]]
    compare.train("tiny", [0], str(tmp_path), None)
    assert compare.load("tiny")["control"]["0"]["test"] == {"item": 0.5}  # what is not trained says nothing
    assert compare.paired("tiny", "control", "baseline") == {}
    assert compare.paired("tiny", "control", "baseline", "item")["differences"] == [0]
    rate = 0.2
    with pytest.raises(SystemExit, match="baseline: other arguments than those of the seeds that are stored"):
        compare.train("tiny", [2], str(tmp_path), None)


@pytest.mark.slow
def test_a_run_of_a_comparison(small, tmp_path):
    compare, log_dir = load("benchmarks/compare.py"), str(tmp_path / "run")
    arguments = {"n_epoch": 1, "n_batch_size": 300, "seed": 7, "cross_stitch_at": ["pool_1", "fc_3"]}
    script = "fashion_mnist_multi_task_learning.py"
    results = compare.run_script(script, log_dir, arguments, str(small))
    assert results["steps"] == 2 and results["seed"] == 7 and not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(SystemExit, match="expected a run with --n_batch_size 200, it has 300"):
        compare.run_script(script, log_dir, {**arguments, "n_batch_size": 200}, str(small))
    curves, histograms = compare.read_events(log_dir)
    assert curves["summary/accuracy_test"] == [[2, round(results["test"]["accuracy"], 6)]]
    counts = {tag: sum(count for *_, count in rows) for tag, rows in histograms.items()}
    assert counts == {"cross_stitch/pool_1/alpha": 4 * 32, "cross_stitch/fc_3/alpha": 4 * 1024}
