"""Pairs, intervals and corrections by hand; the stored data, the pages that are made of them, the runner."""

import dataclasses
import gzip
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import FASHION, ROOT

from benchmarks import __main__ as commands
from benchmarks import analysis, models, pages, report, run, tables
from benchmarks.experiments import EXPERIMENTS, Experiment, one


def records(**values_of_setting):
    """Return records of one experiment, `tiny`: {setting: values of test/accuracy by seed}."""
    found = []
    for setting, values in values_of_setting.items():
        for seed, value in enumerate(values):
            record = {"experiment": "tiny", "setting": setting, "seed": seed, "commit": "a", "versions": {"x": "1"}}
            found.append({**record, "data_sha256": "s", "arguments": [], "measures": {"test/accuracy": value}})
    return found


def test_paired_difference_by_hand():
    """Three seeds whose differences are 1, 2 and 3: mean 2, deviation 1, t = 2 / (1 / sqrt(3)), two degrees."""
    runs = analysis.table_of(records(baseline=[10, 20, 30], stitched=[11, 22, 33]))
    pairs = analysis.differences(runs, "tiny", "stitched", "baseline", "test/accuracy")
    assert pairs.to_dict() == {0: 1, 1: 2, 2: 3}
    mean, (low, high), p = analysis.interval(pairs.to_numpy())
    half = 4.302653 / 3**0.5  # the 97.5 % point of t with two degrees of freedom
    assert (mean, low, high) == pytest.approx((2, 2 - half, 2 + half)) and p == pytest.approx(0.0741799, abs=1e-6)


def test_two_pairs_have_no_interval():
    mean, bounds, p = analysis.interval([1, 2])
    assert mean == 1.5 and np.isnan(bounds).all() and np.isnan(p)


def test_equal_differences_have_no_width():
    assert analysis.interval([1, 1, 1]) == (1, (1, 1), 0.0)


@pytest.mark.parametrize("what, other", [("commit", "b"), ("data_sha256", "t"), ("versions", {"x": "2"}), ("seed", 9)])
def test_runs_that_were_not_run_alike_are_no_pair(what, other):
    rows = records(baseline=[1, 1, 1], stitched=[2, 2, 2])
    rows[1][what] = other
    pairs = analysis.differences(analysis.table_of(rows), "tiny", "stitched", "baseline", "test/accuracy")
    assert list(pairs.index) == [0, 2]


def test_a_measure_that_is_missing_makes_no_pair():
    rows = records(baseline=[1, 1], stitched=[2, 2])
    rows[3]["measures"] = {}
    runs = analysis.table_of(rows)
    assert list(analysis.differences(runs, "tiny", "stitched", "baseline", "test/accuracy").index) == [0]
    assert not len(analysis.differences(runs, "tiny", "stitched", "baseline", "test/item"))
    assert not len(analysis.differences(runs, "tiny", "absent", "baseline", "test/accuracy"))


def test_clusters_by_hand():
    """Two values in each of three clusters that are equal within: the interval of the three means, for equal sizes."""
    sample, clusters = [1, 1, 2, 2, 4, 4], ["a", "a", "b", "b", "c", "c"]
    mean, bounds, p = analysis.interval(sample, clusters)
    expected = analysis.interval([1, 2, 4])
    assert (
        mean == pytest.approx(expected[0]) and bounds == pytest.approx(expected[1]) and p == pytest.approx(expected[2])
    )


def test_holm_by_hand():
    """The smallest of three is tripled, the next doubled, and none is below one before it; at most 1."""
    np.testing.assert_allclose(analysis.holm([0.03, np.nan, 0.01, 0.02]), [0.04, np.nan, 0.03, 0.04])
    np.testing.assert_allclose(analysis.holm([0.9, 0.8]), [1, 1])


def test_both_sources_of_chance():
    """Seeds that differ widen the interval, and so do images that differ; it is never narrower than over the seeds."""
    rng = np.random.default_rng(0)
    assert analysis.over_seeds_and_images(np.ones((5, 100))) == pytest.approx((1, 1))
    images = rng.normal(size=200)
    low, high = analysis.over_seeds_and_images(np.tile(images, (5, 1)))
    assert high - low == pytest.approx(2 * 1.96 * images.std() / 200**0.5, rel=0.1)
    seeds = rng.normal(size=40)
    low, high = analysis.over_seeds_and_images(np.tile(seeds[:, None], (1, 50)))
    assert high - low == pytest.approx(2 * 2.0227 * seeds.std(ddof=1) / 40**0.5, rel=1e-4)  # t with 39 degrees
    few = rng.normal(size=(3, 50))
    low, high = analysis.over_seeds_and_images(few)
    _, (narrow_low, narrow_high), _ = analysis.interval(few.mean(axis=1))
    assert low < narrow_low and narrow_high < high


def test_predictions_of_images(tmp_path):
    """A network that is right for both tasks of an image adds 1, for one of them a half."""
    truth = np.array([0, 1, 2], np.uint8)
    arrays = {
        "truth|item": truth,
        "truth|group": truth,
        "a|0|item": np.array([0, 1, 0]),
        "a|0|group": np.array([0, 0, 0]),
    }
    np.savez(tmp_path / "tiny.npz", **arrays, **{"b|0|mean_error": np.array([100, 300])})
    assert analysis.scores_of_images("tiny", "a", 0, ["item", "group"], tmp_path).tolist() == [1, 0.5, 0]
    assert analysis.scores_of_images("tiny", "b", 0, [], tmp_path).tolist() == [0.01, 0.03]
    assert analysis.scores_of_images("tiny", "a", 1, ["item", "group"], tmp_path) is None


def test_every_experiment_is_whole():
    for name, experiment in EXPERIMENTS.items():
        assert experiment.primary in experiment.measures.values(), name
        assert experiment.baseline in experiment.settings or len(experiment.settings) == 1, name
        for comparison in experiment.comparisons:
            assert {comparison.setting, comparison.other} <= experiment.settings.keys(), name


def test_stored_runs_belong_to_experiments():
    runs = analysis.load()
    assert len(runs) >= 381 and not runs.duplicated(["experiment", "setting", "seed"]).any()
    known = {(name, setting) for name, experiment in EXPERIMENTS.items() for setting in experiment.settings}
    trials = ("gender_age_trials", "landmark_trials")
    stored = set(zip(runs.experiment, runs.setting))
    assert {pair for pair in stored if pair[0] not in trials} <= known


def test_pages_are_what_the_data_give():
    assert report.main(check=True) == 0


def test_all_that_is_made_for_pages_is_in_one():
    text = "".join(path.read_text() for path in report.PAGES)
    assert [name for name in report.MAKERS if f"<!-- {name} -->" not in text] == []


def test_both_intervals_of_a_gain_are_around_it():
    """Also where the measure is an error, whose fall is the gain. The one over images, too, is the wider one."""
    number = r"[+-]\d+\.\d+"
    rows = re.findall(
        rf"({number}) \[({number}), ({number})\] \| \[({number}), ({number})\]",
        report.gains_table(analysis.load(), pages.MAIN_ROWS),
    )
    assert len(rows) > 5
    for row in rows:
        mean, low, high, low_of_both, high_of_both = map(float, row)
        assert low_of_both <= low < mean < high <= high_of_both
        assert mean == pytest.approx((low_of_both + high_of_both) / 2, abs=0.011)


def test_the_three_lines_of_pandas(capsys):
    """Those of the results' README give README's cell of units from 0.5 on all garments."""
    text = (ROOT / "benchmarks" / "results" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0].replace("benchmarks/", f"{ROOT}/benchmarks/")
    exec(code, {})
    out = capsys.readouterr().out
    assert "mean     0.28" in out and "count    5.00" in out


def test_seeds_of_the_command_line():
    assert commands.seeds("0-4") == [0, 1, 2, 3, 4] and commands.seeds("3,7") == [3, 7] and commands.seeds("5") == [5]
    for wrong in ("some", "5-3", ""):
        with pytest.raises(Exception, match="0-4"):
            commands.seeds(wrong)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """An experiment of two settings in the runner, whose results go to a folder of the test."""
    settings = {
        "baseline": one({"n_epoch": 1}, cross_stitch_enabled=False),
        "stitched": one({"n_epoch": 1}, width=0.5, cross_stitch_init=0.5),
    }
    experiment = Experiment("Tiny", FASHION, settings, {"overall": "test/accuracy"}, "test/accuracy")
    monkeypatch.setitem(EXPERIMENTS, "tiny", experiment)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "checked_out_commit", lambda: "abc")
    return experiment


def test_a_run_is_stored_once(tiny):
    """Also if two processes have trained it at once; the first one counts."""
    (record,) = records(baseline=[0.5])
    for accuracy in (0.5, 0.6):
        record["measures"] = {"test/accuracy": accuracy}
        run.store(record, [("tiny", "baseline", 0, 0, "tag", 1, accuracy)], {"item": np.zeros(3, np.uint8)})
    assert [stored["measures"]["test/accuracy"] for stored in run.read_records()] == [0.5]
    assert len(pd.read_csv(run.RESULTS / "curves.csv.gz", names=run.CURVE_COLUMNS)) == 1


def test_a_commit_in_the_meantime_ends_the_command(tiny, small, tmp_path, monkeypatch):
    """A record must not carry the commit of the command's start if another one trained it."""
    commits = iter(["abc", "abc", "xyz"])
    monkeypatch.setattr(run, "checked_out_commit", lambda: next(commits))
    monkeypatch.setattr(run, "same_run", lambda *_: None)
    monkeypatch.setattr(run, "train", lambda *_: (records(baseline=[0.5])[0], [], {}))
    with pytest.raises(SystemExit, match=r"commit abc.* another"):
        run.run_experiment("tiny", [0], None, str(small), str(tmp_path), keep_models=False)
    assert len(run.read_records()) == 1


@pytest.mark.parametrize("measure, sign", [("test/accuracy", 1), ("test/mean_error", -1)])
def test_readme_table_by_hand(tiny, monkeypatch, measure, sign):
    """Differences 1, 2, 3 points, ± 2.48: bold if the interval is above zero. An error that falls is a gain."""
    rows = records(
        baseline=[0.5, 0.5, 0.5],
        stitched=[0.5 + sign * x for x in (0.01, 0.02, 0.03)],
        ahead=[0.5 + sign * x for x in (0.03, 0.04, 0.05)],
        behind=[0.5 - sign * x for x in (0.03, 0.04, 0.05)],
    )
    for row in rows:
        row["measures"] = {measure: row["measures"]["test/accuracy"]}
    monkeypatch.setitem(EXPERIMENTS, "tiny", dataclasses.replace(tiny, primary=measure))
    cells = [("tiny", "stitched"), None, ("tiny", "ahead"), ("tiny", "behind")]
    monkeypatch.setattr(report, "README_ROWS", {"some garments": cells})
    line = report.readme_table(analysis.table_of(rows)).splitlines()[-1]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "some garments (3 seeds)",
        "accuracy 50.00" if sign == 1 else "mean error 50.00",
        "+2.00 [-0.48, +4.48]",
        "",
        "**+4.00 [+1.52, +6.48]**",
        "-4.00 [-6.48, -1.52]",
    ]


@pytest.mark.slow
def test_a_run_of_the_runner(tiny, small, tmp_path, monkeypatch):
    """It trains the settings that are asked for, stores each run at once, and repeats nothing."""
    run.run_experiment("tiny", [0], ["stitched"], str(small), str(tmp_path / "runs"), keep_models=True)
    assert [record["setting"] for record in run.read_records()] == ["stitched"]
    run.run_experiment("tiny", [0], None, str(small), str(tmp_path / "runs"), keep_models=True)
    stored = run.read_records()[::-1]
    assert [(record["setting"], record["seed"], record["commit"]) for record in stored] == [
        ("baseline", 0, "abc"),
        ("stitched", 0, "abc"),
    ]
    results = json.loads((tmp_path / "runs" / "tiny" / "stitched-seed0" / "run0" / "results.json").read_text())
    assert stored[1]["measures"]["test/accuracy"] == results["test"]["accuracy"]
    assert stored[1]["arguments"][0]["width"] == 0.5 and "seed" not in stored[1]["arguments"][0]
    with np.load(tmp_path / "results" / "predictions" / "tiny.npz") as file:
        right = [np.mean(file[f"stitched|0|{task}"] == file[f"truth|{task}"]) for task in ("item", "group")]
    assert right == pytest.approx([results["test"]["item"], results["test"]["group"]])
    curves = pd.read_csv(tmp_path / "results" / "curves.csv.gz", names=run.CURVE_COLUMNS)
    assert set(curves.setting) == {"baseline", "stitched"} and "units/pool_1/item_from_group" in set(curves.tag)
    run.run_experiment("tiny", [1], ["stitched"], str(small), str(tmp_path / "runs"), keep_models=True)
    check_measures_of_models(tmp_path, small, monkeypatch)
    with pytest.raises(SystemExit, match="keep_models"):
        models.average("tiny", "elsewhere")
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("a stored run was trained again"))
    run.run_experiment("tiny", [0], None, str(small), str(tmp_path / "runs"), keep_models=True)
    with pytest.raises(SystemExit, match="stiched"):
        run.run_experiment("tiny", [1], ["stiched"], str(small), str(tmp_path / "runs"), keep_models=True)


def check_measures_of_models(tmp_path, small, monkeypatch):
    """Check the mean of two networks, and a network without exchange, computed once more; the folder is relative."""
    (tmp_path / "results" / "averages.csv").write_text("experiment,setting,measure,seed,other_seed,value\n")
    names = "experiment,setting,measure,seed,unit,without,value,own,others,change,mean\n"
    (tmp_path / "results" / "exchange.csv").write_text(names)
    monkeypatch.chdir(tmp_path)
    models.exchange("tiny", "runs")
    for _ in range(2):  # the second time adds nothing
        models.average("tiny", "runs")
    test = run.load_script(FASHION).read_fashion_mnist(str(small), "test")
    networks = [keras.models.load_model(f"runs/tiny/stitched-seed{seed}/run0/model.keras") for seed in (0, 1)]
    outputs = [network.predict(test["images"][..., None], verbose=0) for network in networks]
    expected = []
    for task in ("item", "group"):
        probabilities = [keras.ops.softmax(output[task]).numpy() for output in outputs]
        accuracy = np.mean((probabilities[0] + probabilities[1]).argmax(axis=1) == test[task])
        expected.append(["tiny", "stitched", f"test/{task}", 0, 1, pytest.approx(accuracy)])
    assert pd.read_csv("results/averages.csv").values.tolist() == expected

    found = pd.read_csv("results/exchange.csv")
    assert len(found) == 2 * 2 * 4  # seeds, tasks, three units and all of them
    for name in ("pool_1", "pool_2", "fc_3"):
        alpha = networks[0].get_layer(name).alpha
        own, others = np.array([alpha[0, 0], alpha[1, 1]]), np.array([alpha[0, 1], alpha[1, 0]])
        row = found[(found.seed == 0) & (found.measure == "test/item") & (found.unit == name)].iloc[0]
        assert [row.own, row.others] == pytest.approx([own.mean(), (others**2).mean() ** 0.5], rel=1e-5)
        change = np.concatenate([own, others]) - 0.5
        assert row.change == pytest.approx((change**2).mean() ** 0.5, rel=1e-4)
        alpha.assign(np.stack([[own[0], 0 * own[0]], [0 * own[1], own[1]]]))
    without = networks[0].predict(test["images"][..., None], verbose=0)
    for task in ("item", "group"):
        row = found[(found.seed == 0) & (found.measure == f"test/{task}") & (found.unit == "all")].iloc[0]
        assert row.value == np.mean(outputs[0][task].argmax(axis=1) == test[task])
        assert row.without == np.mean(without[task].argmax(axis=1) == test[task])

    # If only the mean is exchanged in a unit, it returns its own part, plus the mean of the rest over the images.
    unit = networks[1].get_layer("fc_3")
    after_unit = keras.Model(networks[1].input, unit.output)
    as_it_is = after_unit.predict(test["images"][..., None], verbose=0)
    unit.alpha.assign(unit.alpha * np.eye(2)[:, :, None])
    own_parts = after_unit.predict(test["images"][..., None], verbose=0)
    for task, whole, own_part in zip(("item", "group"), as_it_is, own_parts):
        row = found[(found.seed == 1) & (found.measure == f"test/{task}") & (found.unit == "fc_3")].iloc[0]
        output = networks[1].get_layer(f"{task}.output")
        logits = (own_part + (whole - own_part).mean(axis=0)) @ output.kernel.numpy() + output.bias.numpy()
        assert row["mean"] == np.mean(logits.argmax(axis=1) == test[task])


@pytest.mark.slow
def test_a_run_that_two_experiments_have_is_trained_once(tiny, small, tmp_path, monkeypatch):
    """Another seed, another commit or another argument is another run."""
    args = (None, str(small), str(tmp_path / "runs"), False)
    run.run_experiment("tiny", [0], ["baseline"], *args[1:])
    settings = {"none": tiny.settings["baseline"], "other": one({"n_epoch": 1}, lr=0.002)}
    for name in ("tiny_too", "tiny_three"):
        monkeypatch.setitem(EXPERIMENTS, name, dataclasses.replace(tiny, settings=settings, baseline="none"))
    trained = []

    def train(name, setting, seed, commit, *_):
        trained.append((setting, seed, commit))
        facts = {"experiment": name, "setting": setting, "seed": seed, "commit": commit}
        return {**run.read_records()[0], **facts, "arguments": [], "measures": {}}, [], {}

    monkeypatch.setattr(run, "train", train)
    run.run_experiment("tiny_too", [0, 1], *args)
    monkeypatch.setattr(run, "checked_out_commit", lambda: "xyz")
    run.run_experiment("tiny_three", [0], *args)
    of_another_seed = [("none", 1, "abc"), ("other", 1, "abc")]
    of_another_commit = [("none", 0, "xyz"), ("other", 0, "xyz")]
    assert trained == [("other", 0, "abc"), *of_another_seed, *of_another_commit]
    trained.clear()
    monkeypatch.setattr(run, "checked_out_commit", lambda: "abc")
    monkeypatch.setitem(EXPERIMENTS, "tiny_four", EXPERIMENTS["tiny_three"])
    run.run_experiment("tiny_four", [0], ["none"], *args[1:3], keep_models=True)
    assert trained == [("none", 0, "abc")]  # a copy would have no model

    first, copied = (
        next(record for record in run.read_records() if (record["setting"], record["seed"]) == (setting, 0))
        for setting in ("baseline", "none")
    )
    assert copied == {**first, "experiment": "tiny_too", "setting": "none", "copied_from": "tiny"}
    predictions = tmp_path / "results" / "predictions"
    with np.load(predictions / "tiny.npz") as old, np.load(predictions / "tiny_too.npz") as new:
        assert set(new) == {"truth|item", "truth|group", "none|0|item", "none|0|group"}
        assert all(np.array_equal(new[key], old[key.replace("none", "baseline")]) for key in new)
    curves = pd.read_csv(tmp_path / "results" / "curves.csv.gz", names=run.CURVE_COLUMNS)
    points = [
        curves[curves.setting == setting][["seed", "run", "tag", "step", "value"]] for setting in ("baseline", "none")
    ]
    assert len(points[1]) and np.array_equal(*points)


def test_the_table_of_quick(capsys):
    """Differences 1, 2 and 3 points: their mean is 2, and t(2) = 4.303 times 1 / sqrt(3) on each side is 2.48."""
    records = [
        {"experiment": "quick", "setting": setting, "seed": seed, "commit": None, "data_sha256": "x", "versions": {}}
        | {"measures": {"test/accuracy": accuracy}}
        for setting, accuracies in (("baseline", (0.8, 0.8, 0.8)), ("init 0.5", (0.81, 0.82, 0.83)))
        for seed, accuracy in enumerate(accuracies)
    ]
    run.print_table(EXPERIMENTS["quick"], "quick", records)
    assert "82.00   +2.00 over baseline, 95 % interval -0.48 to +4.48   (3 seeds)" in capsys.readouterr().out
    run.print_table(EXPERIMENTS["quick"], "quick", [record for record in records if record["seed"] < 2])
    assert "+1.50 over baseline, too few seeds for an interval   (2 seeds)" in capsys.readouterr().out
    run.print_table(EXPERIMENTS["quick"], "quick", [record for record in records if record["setting"] == "init 0.5"])
    assert "init 0.5              82.00   (3 seeds)" in capsys.readouterr().out


def test_arguments_are_judged_before_anything_is_trained(tiny, small, monkeypatch):
    tiny.settings["wrong"] = one({"keep_prob": 7})
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("it began to train"))
    with pytest.raises(SystemExit, match=r"wrong.*--keep_prob"):
        run.run_experiment("tiny", [0], None, str(small), "unused", keep_models=False)


def test_a_seed_goes_on_only_from_its_commit_and_versions():
    """The runs of other seeds do not matter."""
    old, new = {"keras": "3.14"}, {"keras": "3.15"}
    stored = [{"seed": 0, "commit": "abc", "versions": new}, {"seed": 1, "commit": None, "versions": new}]
    run.check_alike("tiny", {0, 2}, stored, "abc", new)
    run.check_alike("tiny", {2}, stored, "xyz", old)
    for seeds, commit, versions in (({0, 2}, "xyz", new), ({1}, "abc", new), ({0}, "abc", old)):
        with pytest.raises(SystemExit, match="seed"):
            run.check_alike("tiny", seeds, stored, commit, versions)


def test_measures_of_what_was_not_trained():
    """A name stands for all that is measured of it, also for each landmark."""
    untrained = ("group", "accuracy", "landmarks")
    for measure in ("test/group", "validation/group", "late/accuracy", "test/landmarks/nose", "aflw/landmarks/nose"):
        assert run.is_untrained(measure, untrained)
    for measure in ("test/item", "test/mean_error", "test/gender"):
        assert not run.is_untrained(measure, untrained)


def test_results_of_another_folder_are_merged(tiny, tmp_path, monkeypatch):
    """A run that both have stays as it is here. A second time adds nothing."""
    here, there = run.RESULTS, tmp_path / "there"
    there.mkdir()
    for folder, accuracies in ((there, {0: 0.6, 1: 0.7}), (here, {0: 0.5})):
        monkeypatch.setattr(run, "RESULTS", folder)
        (folder / "averages.csv").write_text("experiment,setting,measure,seed,other_seed,value\n")
        for seed, accuracy in accuracies.items():
            (record,) = records(baseline=[accuracy])
            curves = [("tiny", "baseline", seed, 0, "tag", 1, accuracy)]
            items = {"item": np.full(3, seed, np.uint8), "truth|item": np.ones(3, np.uint8)}
            run.store({**record, "seed": seed}, curves, items)
        run.add_rows("averages.csv", [["tiny", "baseline", "test/item", 0, 1, accuracies[0]]])
    run.add_rows("averages.csv", [["tiny", "baseline", "test/item", 0, 2, 0.5]])
    run.merge(there)
    run.merge(there)
    assert [record["measures"]["test/accuracy"] for record in run.read_records()] == [0.5, 0.7]
    curves = pd.read_csv(here / "curves.csv.gz", names=run.CURVE_COLUMNS)
    assert curves[["seed", "value"]].values.tolist() == [[0, 0.5], [1, 0.7]]
    with np.load(here / "predictions" / "tiny.npz") as file:
        assert sorted(file) == ["baseline|0|item", "baseline|1|item", "truth|item"]
        assert (file["baseline|1|item"] == 1).all()
    assert pd.read_csv(here / "averages.csv").value.tolist() == [0.5, 0.5]
    with pytest.raises(SystemExit, match=r"runs\.jsonl"):
        run.merge(tmp_path)


def test_a_run_of_another_version_of_the_script_is_not_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "script.py").write_text("one")
    run.claim_folder(tmp_path / "run", "script", "abc")
    run.claim_folder(tmp_path / "run", "script", "abc")
    with pytest.raises(SystemExit, match="another commit"):
        run.claim_folder(tmp_path / "run", "script", "xyz")
    (tmp_path / "script.py").write_text("two")
    with pytest.raises(SystemExit, match="another version"):
        run.claim_folder(tmp_path / "run", "script", "abc")


def test_a_run_that_diverged_is_stored_as_that(tiny, small, tmp_path, monkeypatch):
    """The script ends with status 3 after it has written run.json; the next run is trained all the same."""
    began = []

    def diverge(command, **_):
        log_dir = tmp_path / "runs" / "tiny" / f"{'baseline' if not began else 'stitched'}-seed0" / "run0"
        began.append(command)
        log_dir.mkdir(parents=True)
        facts = {"versions": {}, "data": {"sha256": "s", "sizes": {"test": 1}}, "arguments": {"seed": 0, "lr": 9.0}}
        (log_dir / "run.json").write_text(json.dumps(facts))
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(run.subprocess, "run", diverge)
    run.run_experiment("tiny", [0], None, str(small), str(tmp_path / "runs"), keep_models=True)
    stored = run.read_records()
    assert [(record["setting"], record["diverged"], record["measures"]) for record in stored] == [
        ("baseline", True, {}),
        ("stitched", True, {}),
    ]
    assert stored[0]["arguments"] == [{"lr": 9.0}]
    runs = analysis.table_of(stored + records(other=[0.5])[:1])
    assert not len(analysis.differences(runs, "tiny", "stitched", "baseline", "test/accuracy"))
    assert "baseline (seed 0), stitched (seed 0)" in tables.experiment_table(runs, "tiny")


def test_a_script_that_was_changed_is_refused(monkeypatch):
    def git(command, **_):
        return SimpleNamespace(returncode=0, stdout=" M a.py\n" if "status" in command else "abc\n")

    monkeypatch.setattr(run.subprocess, "run", git)
    with pytest.raises(SystemExit, match=r"a\.py"):
        run.checked_out_commit()


STORE = """
import sys
from pathlib import Path
from benchmarks import run
run.RESULTS = Path(sys.argv[1])
for k in range(20):
    record = {"experiment": "tiny", "setting": sys.argv[2], "seed": k}
    run.store(record, [("tiny", sys.argv[2], k, 0, "tag", 1, 0.5)], {"item": run.np.zeros(3, run.np.uint8)})
"""


@pytest.mark.slow
def test_two_processes_that_store_at_once_lose_nothing(tmp_path):
    environment = {**os.environ, "PYTHONPATH": ""}
    processes = [
        subprocess.Popen([sys.executable, "-c", STORE, str(tmp_path), name], cwd=ROOT, env=environment)
        for name in ("one", "other")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len({(line["setting"], line["seed"]) for line in lines}) == 40 == len(lines)
    assert len(pd.read_csv(tmp_path / "curves.csv.gz", header=None)) == 40
    with np.load(tmp_path / "predictions" / "tiny.npz") as file:
        assert len(file.files) == 40


def test_curves_that_were_stored_twice_count_once(tmp_path, monkeypatch):
    """A run that was killed after its curves, but before its record, is finished and stored again."""
    (tmp_path / "curves.csv.gz").write_bytes(gzip.compress((",".join(run.CURVE_COLUMNS) + "\n").encode()))
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(analysis, "RESULTS", tmp_path)
    for value in (0.25, 0.5):
        run.store_curves([("tiny", "baseline", 0, 0, "tag", step, value) for step in (1, 2)])
    assert analysis.load_curves().value.tolist() == [0.5, 0.5]


def test_a_page_is_filled_between_its_marks(tmp_path, monkeypatch):
    monkeypatch.setitem(report.MAKERS, "value: x", lambda runs: "7")
    monkeypatch.setitem(report.MAKERS, "table: x", lambda runs: "| a |")
    page = "It is <!-- value: x -->6<!-- end -->.\n\n<!-- table: x --><!-- end -->\n"
    expected = "It is <!-- value: x -->7<!-- end -->.\n\n<!-- table: x -->\n| a |\n<!-- end -->\n"
    path = tmp_path / "page.md"
    for text in (page, expected):
        path.write_text(text)
        assert report.fill(path, None) == expected


@pytest.mark.parametrize(
    "page",
    [
        "<!-- value: x -->6 and <!-- value: x -->6<!-- end -->",
        "<!-- value: x -->6<!--\nend --> and <!-- value: x -->6<!-- end -->",
        "<!--\nvalue: x -->6<!-- end -->",
        "6<!-- end --> and <!-- value: x -->6<!-- end -->",
        "<!-- value: unknown -->6<!-- end -->",
    ],
)
def test_a_mark_that_is_broken_or_unknown_is_refused(page, tmp_path, monkeypatch):
    """To fill in up to the next end would lose what stands between."""
    monkeypatch.setitem(report.MAKERS, "value: x", lambda runs: "7")
    path = tmp_path / "page.md"
    path.write_text(page)
    with pytest.raises(SystemExit, match=r"page\.md has .* mark"):
        report.fill(path, None)


def test_the_group_of_the_predicted_item_by_hand(tmp_path, monkeypatch):
    """Ten images, one of each kind. Of two wrong kinds one is of the right group; of the groups three are wrong."""
    items = np.arange(10)
    groups = items % 3
    found_items = np.array([3, 2, 2, 3, 4, 5, 6, 7, 8, 9])  # 3 for 0: both are in group 0; 2 for 1 is wrong
    found_groups = np.concatenate([(groups[:3] + 1) % 3, groups[3:]])
    arrays = {"truth|item": items, "truth|group": groups}
    for seed in range(3):
        arrays |= {f"a|{seed}|item": found_items, f"a|{seed}|group": found_groups}
    (tmp_path / "predictions").mkdir()
    np.savez(tmp_path / "predictions" / "tiny.npz", **arrays)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "GROUP_OF_ITEM", [("garments", "tiny", "a")])
    line = report.group_of_item_table().splitlines()[-1]
    assert line == "| garments | 70.00 | 90.00 | +20.00 [+20.00, +20.00] | 3 |"
