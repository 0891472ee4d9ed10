"""Make TABLES.md and runs.csv from the stored runs, fill in the tables and numbers of the other pages, and draw.

In a page, what stands between `<!-- table: NAME -->` or `<!-- value: NAME -->` and `<!-- end -->` is made here.
"""

import re
import sys

import numpy as np
import pandas as pd

from . import analysis, figures, speed
from .analysis import RESULTS
from .experiments import EXPERIMENTS, FACES, LANDMARKS
from .pages import (
    CONTROLS,
    EXCHANGE,
    FACES_TOGETHER,
    FURTHER_CONTROLS,
    GROUP_OF_ITEM,
    MAIN_ROWS,
    NO_ATTRIBUTES,
    PARTS,
    README_COLUMNS,
    README_ROWS,
    RECIPE,
    RECIPE_ROWS,
    SHARING,
    SHARING_ROWS,
    SHARING_TESTS,
    SPLIT_CHOICES,
    SPLIT_ROWS,
)
from .speed import table

ROOT = RESULTS.parent.parent
NAMES = ("RESULTS.md", "SETTING_2018.md", "SPEED.md", "TRIALS.md")
PAGES = [ROOT / "README.md", *(ROOT / "benchmarks" / name for name in NAMES)]
TABLES = ROOT / "benchmarks" / "TABLES.md"
WINDOWS_OF_2018 = [(3, 5), (6, 10), (11, 15), (16, 20), (21, 30)]  # epochs, the first and the last


def percent(value, sign=False):
    """Return a share in per cent with two decimals."""
    rounded = round(100 * float(value), 2) + 0.0  # -0.0 + 0.0 is 0.0
    return f"{rounded:{'+' if sign else ''}.2f}"


def mean_and_deviation(sample):
    """Return the mean of some shares in per cent, and their standard deviation if there are two or more."""
    if not len(sample):
        return ""
    return percent(sample.mean()) + (f" ± {percent(sample.std(ddof=1))}" if len(sample) > 1 else "")


def in_brackets(bounds):
    """Return an interval in points, or nothing if it is not known."""
    low, high = bounds
    return f"[{percent(low, True)}, {percent(high, True)}]" if np.isfinite(low) else ""


def with_interval(mean, bounds):
    """Return a difference in points with its interval, if there is one."""
    return f"{percent(mean, True)} {in_brackets(bounds)}".strip()


def p_value(p):
    """Return a p-value with two decimals; one that would be 0.00 is "< 0.01"."""
    if not np.isfinite(p):
        return ""
    return "< 0.01" if p < 0.005 else f"{p:.2f}"


def differences_of_images(experiment, setting, other, seeds):
    """Return for each seed the differences of the test images' scores, or None if predictions of a pair are not stored.

    For landmarks the scores are errors, and there are no tasks.
    """
    measures = EXPERIMENTS[experiment].measures.values()
    names = [measure.removeprefix("test/") for measure in measures if measure.startswith("test/")]
    tasks = [name for name in names if name not in ("accuracy", "mean_error", "failure_rate")]
    pairs = [[analysis.of_images(experiment, name, seed, tasks) for name in (setting, other)] for seed in seeds]
    if any(scores is None for pair in pairs for scores in pair):
        return None
    return [one - two for one, two in pairs]


def interval_over_seeds_and_images(experiment, setting, other, seeds):
    """Return the interval of a difference for other seeds and other test images.

    It is NaN for less than three pairs, for other measures than accuracy and mean error, and without predictions.
    """
    if len(seeds) < 3 or EXPERIMENTS[experiment].primary not in ("test/accuracy", "test/mean_error"):
        return np.nan, np.nan
    differences = differences_of_images(experiment, setting, other, seeds)
    return (np.nan, np.nan) if differences is None else analysis.over_seeds_and_images(differences)


def of_errors(runs, experiment, setting, other, measure):
    """Return by how much the errors of the other setting change, in per cent. Fewer errors are a negative change."""
    pairs = analysis.differences(runs, experiment, setting, other, measure)
    of_seeds = analysis.values(runs, experiment, other, measure).loc[pairs.index]
    base = of_seeds.groupby(level=0).mean().mean()  # a seed counts once, also if two commits trained it
    if analysis.lower_is_better(measure):
        change = pairs.mean() / base
    else:
        change = -pairs.mean() / (1 - base)
    return f"{100 * change:+.1f} %"


def experiment_table(runs, name):
    """Return the tables of an experiment: each setting beside the baseline, and its further comparisons."""
    spec = EXPERIMENTS[name]
    chosen = runs[runs.experiment == name]
    present = [setting for setting in spec.settings if (chosen.setting == setting).any()]
    rows, tests = [], []
    for setting in present:
        row = [setting, str((chosen.setting == setting).sum())]
        row += [mean_and_deviation(analysis.values(runs, name, setting, measure)) for measure in spec.measures.values()]
        pairs = analysis.differences(runs, name, setting, spec.baseline, spec.primary)
        if setting == spec.baseline or not len(pairs):
            rows.append((row, None))
            continue
        mean, bounds, p = analysis.interval(pairs.to_numpy())
        count = "" if len(pairs) == int(row[1]) else f" (pairs: {len(pairs)})"
        row += [with_interval(mean, bounds) + count, of_errors(runs, name, setting, spec.baseline, spec.primary)]
        row += [in_brackets(interval_over_seeds_and_images(name, setting, spec.baseline, list(pairs.index)))]
        rows.append((row, len(tests)))
        tests.append(p)
    corrected = analysis.holm(tests)
    head = ["setting", "seeds", *spec.measures]
    column = next(key for key, measure in spec.measures.items() if measure == spec.primary)
    if tests:
        head += [f"{column}, minus {spec.baseline}", "change of errors", "over seeds and images", "p", "p (Holm)"]
    width = len(head)
    cells = []
    for row, test in rows:
        if test is not None:
            row += [p_value(tests[test]), p_value(corrected[test])]
        cells.append(row + [""] * (width - len(row)))
    text = table(head, cells)
    if "diverged" in chosen and chosen.diverged.any():
        runs_that_diverged = chosen[chosen.diverged.eq(True)]
        words = ", ".join(f"{run.setting} (seed {run.seed})" for run in runs_that_diverged.itertuples())
        text += f"\n\nThe loss did not stay finite, so these have no measures: {words}."
    unknown = (chosen.commit == "unknown").sum()
    if unknown:
        text += f"\n\nCommit unknown: {unknown} of these {len(chosen)} runs, which are from before commits were stored."
    further = comparison_table(runs, name)
    return text + (f"\n\n{further}" if further else "")


def comparison_table(runs, name):
    """Return the table of an experiment's further comparisons, or nothing."""
    rows, tests = [], []
    for comparison in EXPERIMENTS[name].comparisons:
        pairs = analysis.differences(runs, name, comparison.setting, comparison.other, comparison.measure)
        if len(pairs):
            mean, bounds, p = analysis.interval(pairs.to_numpy())
            what = f"{comparison.measure}: {comparison.setting}, minus {comparison.other}"
            rows.append([what, str(len(pairs)), with_interval(mean, bounds), p_value(p)])
            tests.append(p)
    if not rows:
        return ""
    corrected = analysis.holm(tests)
    return table(
        ["comparison", "pairs", "difference", "p", "p (Holm)"],
        [[*row, p_value(p)] for row, p in zip(rows, corrected)],
    )


def command_of(runs, name):
    """Return the command that trains the stored runs of an experiment."""
    seeds = sorted(runs[runs.experiment == name].seed.unique())
    without_gaps = len(seeds) == seeds[-1] - seeds[0] + 1
    words = f"{seeds[0]}-{seeds[-1]}" if without_gaps and len(seeds) > 1 else ",".join(map(str, seeds))
    data = {FACES: " --data_dir UTKFace", LANDMARKS: " --data_dir MTFL"}.get(EXPERIMENTS[name].script, "")
    return f"python -m benchmarks run {name} --seeds {words}{data}"


def all_tables(runs):
    """Return the content of TABLES.md."""
    parts = [
        "# All tables",
        "Made by `python -m benchmarks report` from [results](results/README.md). Measures are in per cent, and what "
        "follows ± is the standard deviation over the seeds. Differences are paired and in points, with their 95 % "
        "interval. *Change of errors* is the same difference in per cent of the baseline's errors, so it is negative "
        "where there are fewer errors. Holm's method corrects for the number of rows of a table. Further comparisons "
        "are a table of their own.",
    ]
    for name, spec in EXPERIMENTS.items():
        if (runs.experiment == name).any():
            parts += [f"## {spec.title}", f"`{name}`: `{command_of(runs, name)}`", experiment_table(runs, name)]
    parts += [
        "## The setting of 2018, by epochs",
        "Mean test accuracy over the epochs that the first row names.",
        course_of_2018(runs),
    ]
    parts += ["## Two networks, averaged", averages_table(runs)]
    return "\n\n".join(parts) + "\n"


def averages_table(runs):
    """Return the table of what the mean of two networks' outputs gives, beside one network."""
    stored = pd.read_csv(RESULTS / "averages.csv")
    rows = []
    for (experiment, setting, measure), pairs in stored.groupby(["experiment", "setting", "measure"], sort=False):
        one = analysis.values(runs, experiment, setting, measure)
        seeds = sorted({*pairs.seed, *pairs.other_seed})
        change = change_by_averaging(one, pairs)
        rows.append(
            [
                f"`{experiment}`, {setting}, {measure.removeprefix('test/').replace('_', ' ')}",
                percent(one[seeds].mean()),
                percent(pairs.value.mean()),
                str(len(pairs)),
                f"{percent(change.mean(), True)} ({percent(change.min(), True)} to {percent(change.max(), True)})",
            ]
        )
    return table(["network", "one", "two, averaged", "pairs", "difference (lowest and highest pair)"], rows)


def change_by_averaging(one, pairs):
    """Return, for each pair of networks, the measure of their averaged outputs minus the mean of their own measures.

    Args:
        one: The measure of a network alone, by seed.
        pairs: Rows of averages.csv, with the columns seed, other_seed and value.
    """
    return np.array([pair.value - one[[pair.seed, pair.other_seed]].mean() for pair in pairs.itertuples()])


def averaging_value(experiment, setting, measures):
    """Return a function that gives the mean change of some measures by averaging two networks."""

    def value(runs):
        stored = pd.read_csv(RESULTS / "averages.csv")
        stored = stored[(stored.experiment == experiment) & (stored.setting == setting)]
        changes = [
            change_by_averaging(analysis.values(runs, experiment, setting, measure), stored[stored.measure == measure])
            for measure in measures
        ]
        return percent(np.mean(changes), True)

    return value


def course_of_2018(runs):
    """Return the table of test accuracy by epochs in the setting of 2018, ours and the published one.

    Two runs make a pair if they have the same experiment, seed and commit. A seed with several runs, for instance in
    both precisions, counts once, by their mean; so does a seed with several pairs.
    """
    dense = ["setting_2018", "dense_2018", "dense_2018_30"]
    curves = load_curves()
    curves = curves[curves.experiment.isin(dense) & (curves.tag == "summary/accuracy_test")]
    curves = curves.merge(runs[["experiment", "setting", "seed", "commit"]], on=["experiment", "setting", "seed"])
    published = pd.read_csv(RESULTS / "published_2018_test_accuracy.csv")

    without_units = means_by_epochs(curves[curves.setting == "baseline"])
    dense_units = means_by_epochs(curves[curves.setting == "activation"])
    units_of_paper = means_by_epochs(curves[curves.setting == "channel"])
    published_without = pd.DataFrame([means_of_windows(published.step, published.without_units_smoothed)])
    published_dense = pd.DataFrame([means_of_windows(published.step, published.with_units_smoothed)])
    levels = {
        "without units": mean_by_seed(without_units.loc[["setting_2018"]]),
        "dense units": mean_by_seed(dense_units),
        "the paper's units": mean_by_seed(units_of_paper.loc[["setting_2018"]]),
        "without units, published": published_without,
        "dense units, published": published_dense,
    }
    differences = {
        "dense units, minus none": mean_by_seed(dense_units - without_units),
        "dense units, minus none, published": published_dense - published_without,
        "the paper's units, minus none": mean_by_seed((units_of_paper - without_units).loc[["setting_2018"]]),
    }
    rows = [
        [label, str(len(of_seeds)), *(mean_and_deviation(of_seeds[window].dropna()) for window in of_seeds)]
        for label, of_seeds in levels.items()
    ]
    for label, of_pairs in differences.items():
        of_windows = [of_pairs[window].dropna() for window in of_pairs]
        cells = [with_interval(*analysis.interval(pairs)[:2]) if len(pairs) else "" for pairs in of_windows]
        rows.append([label, str(len(of_pairs)), *cells])
    return table(["", "seeds", *(f"{first} to {last}" for first, last in WINDOWS_OF_2018)], rows)


def means_by_epochs(curves):
    """Return the `means_of_windows` of each run, a table with the index experiment, seed and commit."""
    names = ["experiment", "seed", "commit"]
    means = {run: means_of_windows(points.step, points.value) for run, points in curves.groupby(names)}
    return pd.DataFrame(means.values(), index=pd.MultiIndex.from_tuples(means, names=names))


def means_of_windows(steps, accuracies):
    """Return the mean accuracy over each of `WINDOWS_OF_2018`, NaN where there was no evaluation."""
    epochs = np.asarray(steps) / 469  # an epoch has 469 steps of 128 images
    accuracies = np.asarray(accuracies)
    windows = [accuracies[(first - 1 < epochs) & (epochs <= last)] for first, last in WINDOWS_OF_2018]
    return [window.mean() if len(window) else np.nan for window in windows]


def mean_by_seed(table_of_runs):
    """Return the means over the runs of each seed, without seeds that have none."""
    return table_of_runs.groupby(level="seed").mean().dropna(how="all")


def load_curves():
    """Return all stored curves, a table with the columns experiment, setting, seed, run, tag, step and value."""
    curves = pd.read_csv(RESULTS / "curves.csv.gz")
    # A run that was killed while it was stored has its curves twice.
    return curves.drop_duplicates(["experiment", "setting", "seed", "run", "tag", "step"], keep="last")


def readme_table(runs):
    """Return README's table: what units and one trunk gain over separate columns. A lower error is a gain.

    A gain is bold if its interval lies above zero.
    """
    rows = []
    for label, cells in README_ROWS.items():
        experiment, _ = next(cell for cell in cells if cell)  # all experiments of a row have the same baseline
        spec = EXPERIMENTS[experiment]
        level = percent(analysis.values(runs, experiment, spec.baseline, spec.primary).mean())
        row = [label, f"{'error' if analysis.lower_is_better(spec.primary) else 'accuracy'} {level}"]
        counts = set()
        for cell in cells:
            if cell is None:
                row.append("")
                continue
            experiment, setting = cell
            pairs = gains(runs, experiment, setting, EXPERIMENTS[experiment].baseline, spec.primary)
            counts.add(len(pairs))
            mean, bounds, _ = analysis.interval(pairs.to_numpy())
            gain = with_interval(mean, bounds)
            row.append(f"**{gain}**" if bounds[0] > 0 else gain)
        rows.append([*row, " or ".join(map(str, sorted(counts)))])
    columns = [f"gain of {column}" for column in README_COLUMNS]
    return table(["", "separate columns", *columns, "seeds"], rows)


def main_table(runs):
    """Return RESULTS.md's main table: what settings gain over columns without units. A lower error is a gain."""
    rows = []
    for title, group in MAIN_ROWS.items():
        _, experiment, _ = group[0]  # all experiments of a group have the same baseline
        spec = EXPERIMENTS[experiment]
        level = percent(analysis.values(runs, experiment, spec.baseline, spec.primary).mean())
        measure = "mean error" if analysis.lower_is_better(spec.primary) else "accuracy"
        rows.append([f"**{title}**: separate columns, {measure} {level}", "", "", "", ""])
        for words, experiment, setting in group:
            spec = EXPERIMENTS[experiment]
            pairs = gains(runs, experiment, setting, spec.baseline, spec.primary)
            mean, bounds, _ = analysis.interval(pairs.to_numpy())
            low, high = interval_over_seeds_and_images(experiment, setting, spec.baseline, list(pairs.index))
            if analysis.lower_is_better(spec.primary):
                low, high = -high, -low
            errors = of_errors(runs, experiment, setting, spec.baseline, spec.primary)
            gain = with_interval(mean, bounds)
            rows.append([words, gain, in_brackets((low, high)), errors, str(len(pairs))])
    return table(["", "gain, in points", "also over test images", "change of errors", "seeds"], rows)


def gains(runs, experiment, setting, other, measure):
    """Return by how much a setting is better than the other one, for each seed."""
    pairs = analysis.differences(runs, experiment, setting, other, measure)
    return -pairs if analysis.lower_is_better(measure) else pairs


def further_controls_table(runs):
    """Return RESULTS.md's table of controls on faces and landmarks, as gains."""
    rows, tests = [], []
    for label, *comparison in FURTHER_CONTROLS:
        pairs = gains(runs, *comparison)
        mean, bounds, p = analysis.interval(pairs.to_numpy())
        rows.append([label, with_interval(mean, bounds), str(len(pairs)), p_value(p)])
        tests.append(p)
    corrected = analysis.holm(tests)
    rows = [[*row, p_value(p)] for row, p in zip(rows, corrected)]
    return table(["", "gain, in points", "pairs", "p", "p (Holm)"], rows)


def controls_table(runs):
    """Return RESULTS.md's table of controls on garments, pooled over experiments with seeds as clusters."""
    rows, tests = [], []
    for label, experiments, setting, other, measure in CONTROLS:
        mean, bounds, p, count = analysis.pooled(runs, experiments, setting, other, measure)
        found = [analysis.differences(runs, name, setting, other, measure) for name in experiments]
        seeds = len({seed for pairs in found for seed in pairs.index})
        rows.append([label, with_interval(mean, bounds), f"{count} ({seeds})", p_value(p)])
        tests.append(p)
    corrected = analysis.holm(tests)
    return table(
        ["", "points", "pairs (seeds)", "p", "p (Holm)"], [[*row, p_value(p)] for row, p in zip(rows, corrected)]
    )


def parts_table(runs):
    """Return RESULTS.md's table of what units gain with few and with many training images of garments."""
    measure = "test/accuracy"
    rows = []
    for label, experiment in PARTS.items():
        row = [label, percent(analysis.values(runs, experiment, "baseline", measure).mean())]
        for setting in ("channel", "init 0.5"):
            pairs = gains(runs, experiment, setting, "baseline", measure)
            mean, bounds, _ = analysis.interval(pairs.to_numpy())
            row.append(f"{with_interval(mean, bounds)}, {len(pairs)} seeds")
        row.append(of_errors(runs, experiment, "init 0.5", "baseline", measure))
        rows.append(row)
    heads = ["separate columns", "units from the identity", "units from one half", "change of errors, from one half"]
    return table(["", *heads], rows)


def group_of_item_table():
    """Return RESULTS.md's table of `group` as its own output, and as the group of the predicted `item`.

    Every kind of garment belongs to one group, which the test labels tell.
    """
    rows = []
    for label, experiment, setting in GROUP_OF_ITEM:
        with np.load(RESULTS / "predictions" / f"{experiment}.npz") as stored:
            items, groups = stored["truth|item"], stored["truth|group"]
            group_of_item = np.array([groups[items == item][0] for item in range(10)])
            seeds = [key.split("|")[1] for key in stored if key.startswith(f"{setting}|") and key.endswith("|group")]
            own = np.array([np.mean(stored[f"{setting}|{seed}|group"] == groups) for seed in seeds])
            derived = np.array([np.mean(group_of_item[stored[f"{setting}|{seed}|item"]] == groups) for seed in seeds])
        mean, bounds, _ = analysis.interval(derived - own)
        gain = with_interval(mean, bounds)
        rows.append([label, percent(own.mean()), percent(derived.mean()), gain, str(len(seeds))])
    return table(["", "its own output", "the group of the predicted `item`", "difference", "seeds"], rows)


def with_enough_pairs(runs):
    """Return {experiment: words} of SHARING for the experiments all of whose tests have three pairs or more."""
    return {
        experiment: words
        for experiment, words in SHARING.items()
        if all(
            len(gains(runs, experiment, setting, other, "test/accuracy")) >= 3
            for _, setting, other in SHARING_TESTS[experiment]
        )
    }


def gain_cells(runs, experiments, setting):
    """Return a cell for each experiment: what a setting gains over the baseline, or how good the baseline itself is.

    A cell with fewer than three pairs stays empty; such runs are in TABLES.md.
    """
    cells = []
    for experiment in experiments:
        spec = EXPERIMENTS[experiment]
        level = analysis.values(runs, experiment, spec.baseline, spec.primary)
        pairs = gains(runs, experiment, setting, spec.baseline, spec.primary)
        if setting == spec.baseline:
            measure = "mean error" if analysis.lower_is_better(spec.primary) else "accuracy"
            cells.append(f"{measure} {percent(level.mean())}, {len(level)} seeds")
        elif len(pairs) < 3:
            cells.append("")
        else:
            mean, bounds, _ = analysis.interval(pairs.to_numpy())
            seeds = f", {len(pairs)} seeds" if len(pairs) != len(level) else ""
            cells.append(with_interval(mean, bounds) + seeds)
    return cells


def sharing_table(runs):
    """Return RESULTS.md's table of units beside hard sharing, on garments and on faces, with weights and time.

    The number of weights and the time of a step are multiples of those of separate columns, on garments. They stay
    empty where they were not measured there.
    """
    experiments = with_enough_pairs(runs)
    garments = runs[runs.experiment == "sharing_garments_25"]
    weights = garments.groupby("setting").parameters.first()
    rows = []
    for setting, (words, timed_as) in SHARING_ROWS.items():
        of_baseline = f"{weights[setting] / weights['baseline']:.1f}" if setting in weights else ""
        time = f"{speed.relative_time(timed_as):.2f}" if timed_as else ""
        rows.append([words, of_baseline, time, *gain_cells(runs, experiments, setting)])
    return table(["", "weights", "time of a step", *(f"gain, {words}" for words in experiments.values())], rows)


def recipe_table(runs):
    """Return RESULTS.md's table of the published recipe and its parts, as far as there are three pairs or more."""
    experiments = [name for name in RECIPE if gain_cells(runs, [name], "recipe, × 100") != [""]]
    rows = [[words, *gain_cells(runs, experiments, setting)] for setting, words in RECIPE_ROWS.items()]
    return table(["", *(f"gain, {RECIPE[name]}" for name in experiments)], [row for row in rows if any(row[1:])])


def exchange_table(runs):
    """Return RESULTS.md's table of what each unit's alphas are, and of what is lost without its exchange.

    A loss is a mean over the seeds, with its interval if there are three or more.
    """
    stored = pd.read_csv(RESULTS / "exchange.csv")
    stored = stored[(stored.experiment == EXCHANGE[0]) & (stored.setting == EXCHANGE[1])]
    measures = list(stored.measure.unique())
    rows = []
    for unit, of_unit in stored.groupby("unit", sort=False):
        row = ["all units" if unit == "all" else f"`{unit}`"]
        row += [f"{of_unit.own_alpha.mean():.2f}", f"{of_unit.other_alphas_rms.mean():.2f}"]
        for measure in measures:
            of_measure = of_unit[of_unit.measure == measure]
            change = (of_measure.without_exchange - of_measure.value).to_numpy()
            row.append(with_interval(*analysis.interval(change)[:2]))
        rows.append(row)
    tasks = [f"`{measure.removeprefix('test/')}` without exchange" for measure in measures]
    return table(["", "own α, mean", "α between columns, root mean square", *tasks], rows)


def sharing_tests(runs):
    """Return {(experiment, setting, other setting): row} of the comparisons that PROTOCOL.md fixed beforehand.

    Holm's correction is over all of them, as far as `with_enough_pairs` has their experiments.
    """
    rows, tests = {}, []
    for experiment, words in with_enough_pairs(runs).items():
        for other_words, setting, other in SHARING_TESTS[experiment]:
            pairs = gains(runs, experiment, setting, other, "test/accuracy")
            mean, bounds, p = analysis.interval(pairs.to_numpy())
            row = [f"{words}: minus {other_words}", with_interval(mean, bounds), str(len(pairs)), p_value(p)]
            rows[experiment, setting, other] = row
            tests.append(p)
    corrected = analysis.holm(tests)
    return {comparison: [*rows[comparison], p_value(p)] for comparison, p in zip(rows, corrected)}


def sharing_tests_table(runs):
    """Return RESULTS.md's table of `sharing_tests`."""
    return table(["units from one half", "points", "pairs", "p", "p (Holm)"], sharing_tests(runs).values())


def p_of_half_minus_trunk_on_all(runs):
    """Return the corrected p-value of units from one half minus one trunk on all garments."""
    return sharing_tests(runs)["sharing_garments", "init 0.5", "trunk"][-1]


def trials_table(experiment, measures):
    """Return a function that gives the table of trials: {column: measure} on validation images, in per cent."""

    def made(runs):
        trials = runs[runs.experiment == experiment]
        rows = [
            [trial.setting, *(percent(trial[measure]) for measure in measures.values())]
            for _, trial in trials.iterrows()
        ]
        return table(["trial", *measures], rows)

    return made


def pooled_value(label):
    """Return a function that gives the difference and interval of the row of CONTROLS with this label."""

    def value(runs):
        (comparison,) = (row[1:] for row in CONTROLS if row[0] == label)
        experiments, setting, other, measure = comparison
        return with_interval(*analysis.pooled(runs, experiments, setting, other, measure)[:2])

    return value


def corrected_p_value(label, corrected):
    """Return a function that gives the p-value of a row of CONTROLS, as it is or after Holm's correction over them."""

    def value(runs):
        index = [row[0] for row in CONTROLS].index(label)
        tests = [analysis.pooled(runs, *comparison)[2] for _, *comparison in CONTROLS]
        return p_value(analysis.holm(tests)[index] if corrected else tests[index])

    return value


def gain_value(experiment, setting, other, measure):
    """Return a function that gives what one setting gains over another one, and the interval."""

    def value(runs):
        pairs = gains(runs, experiment, setting, other, measure)
        return with_interval(*analysis.interval(pairs.to_numpy())[:2])

    return value


def half_on_faces_together(measure):
    """Return a function that gives what units from one half gain on faces, over all seeds of the newer runs."""
    return lambda runs: with_interval(*analysis.pooled(runs, FACES_TOGETHER, "init 0.5", "baseline", measure)[:2])


def half_on_faces_together_over_images(runs):
    """Return the interval of what units from one half gain on faces, over all newer seeds and also over test images.

    All of these runs have the same test images.
    """
    found = []
    for experiment in FACES_TOGETHER:
        seeds = gains(runs, experiment, "init 0.5", "baseline", "test/accuracy").index
        found += differences_of_images(experiment, "init 0.5", "baseline", seeds)
    return in_brackets(analysis.over_seeds_and_images(found))


def splits_table(runs):
    """Return RESULTS.md's table of trunks that end after different layers, by their accuracy on validation images."""
    rows = []
    for words, layers in SPLIT_ROWS.items():
        cells = [
            mean_and_deviation(analysis.values(runs, experiment, f"split after {layer}", "validation/accuracy"))
            for experiment, layer in zip(SPLIT_CHOICES, layers)
        ]
        rows.append([words, *cells])
    return table(["the trunk ends after", *SPLIT_CHOICES.values()], rows)


def value_over_images(experiment, setting, other):
    """Return a function that gives the interval of what a setting gains over the other one, also over test images.

    Only for accuracies.
    """

    def value(runs):
        pairs = gains(runs, experiment, setting, other, "test/accuracy")
        return in_brackets(interval_over_seeds_and_images(experiment, setting, other, list(pairs.index)))

    return value


def recipe_minus(setting):
    """Return a function that gives what the recipe gains over a setting of `sharing_garments`, on all garments.

    The two experiments have the same baseline, so the difference of their gains is that of the settings.
    """

    def value(runs):
        recipe = gains(runs, "recipe_garments", "recipe, × 100", "baseline", "test/accuracy")
        other = gains(runs, "sharing_garments", setting, "baseline", "test/accuracy")
        return with_interval(*analysis.interval((recipe - other).to_numpy())[:2])

    return value


MADE = {
    "table: readme": readme_table,
    "table: main": main_table,
    "table: controls": controls_table,
    "table: further controls": further_controls_table,
    "table: parts": parts_table,
    "table: group of item": lambda runs: group_of_item_table(),
    "table: 2018": course_of_2018,
    "table: averages": averages_table,
    "table: splits": splits_table,
    "table: sharing": sharing_table,
    "table: sharing tests": sharing_tests_table,
    "table: recipe": recipe_table,
    "table: exchange": exchange_table,
    "table: trials of faces": trials_table(
        "gender_age_trials",
        {"gender": "validation/gender", "age": "validation/age", "mean of tasks": "validation/accuracy"},
    ),
    "table: trials of landmarks": trials_table(
        "landmark_trials", {"failure rate": "validation/failure_rate", "mean error": "validation/mean_error"}
    ),
    "table: speed": lambda runs: speed.peers_table(),
    "table: speed of settings": lambda runs: speed.settings_table(),
    "table: speed of tasks": lambda runs: speed.tasks_table(),
    "table: speed of batches": lambda runs: speed.batches_table(),
    "table: time to accuracy": lambda runs: speed.time_to_accuracy_table(load_curves()),
    "table: machines": lambda runs: speed.machines_table(),
    "table: machines, checked": lambda runs: speed.machines_check_table(),
    "value: processor": speed.processor,
    "value: half": pooled_value("units from one half, minus none"),
    "value: half on a quarter": gain_value("sharing_garments_25", "init 0.5", "baseline", "test/accuracy"),
    "value: half on all": gain_value("sharing_garments", "init 0.5", "baseline", "test/accuracy"),
    "value: identity": pooled_value("units from the identity, minus none"),
    "value: fixed": pooled_value("learning α, minus α that stay at one half"),
    "value: item, column": pooled_value("`item`: a second column without a task of its own"),
    "value: item, labels": pooled_value("`item`: that column learns `group`, too"),
    "value: group, column": pooled_value("`group`: a second column without a task of its own"),
    "value: group, labels": pooled_value("`group`: that column learns `item`, too"),
    "value: p of starts": corrected_p_value("one half, minus the identity", corrected=False),
    "value: p of starts, corrected": corrected_p_value("one half, minus the identity", corrected=True),
    "value: half minus trunk on all": gain_value("sharing_garments", "init 0.5", "trunk", "test/accuracy"),
    "value: p of half minus trunk on all": p_of_half_minus_trunk_on_all,
    "value: half minus identity on a quarter": gain_value(
        "sharing_garments_25", "init 0.5", "channel", "test/accuracy"
    ),
    "value: half minus trunk, equal weights": gain_value(
        "sharing_garments_25", "init 0.5", "trunk, equal weights", "test/accuracy"
    ),
    "value: wide trunk minus half": gain_value(
        "sharing_garments_25", "trunk, double width", "init 0.5", "test/accuracy"
    ),
    "value: single networks": gain_value("sharing_garments_25", "single-task", "baseline", "test/accuracy"),
    "value: wide single networks": gain_value(
        "sharing_garments_25", "single-task, double width", "baseline", "test/accuracy"
    ),
    "value: wide trunk minus wide single networks": gain_value(
        "sharing_garments_25", "trunk, double width", "single-task, double width", "test/accuracy"
    ),
    "value: wide single networks minus half": gain_value(
        "sharing_garments_25", "single-task, double width", "init 0.5", "test/accuracy"
    ),
    "value: trunk minus single networks": gain_value("sharing_garments_25", "trunk", "single-task", "test/accuracy"),
    "value: half minus plain trunk on faces": gain_value("sharing_faces", "init 0.5", "trunk", "test/accuracy"),
    "value: half minus split on faces": gain_value("sharing_faces", "init 0.5", "split after pool_2", "test/accuracy"),
    "value: identity on landmarks": gain_value("recipe_landmarks", "channel", "baseline", "test/mean_error"),
    "value: half on faces": gain_value("sharing_faces", "init 0.5", "baseline", "test/accuracy"),
    "value: half on faces, confirmation": gain_value("faces_confirmation", "init 0.5", "baseline", "test/accuracy"),
    "value: half on faces, together": half_on_faces_together("test/accuracy"),
    "value: half on faces, together, age": half_on_faces_together("test/age"),
    "value: half on faces, together, gender": half_on_faces_together("test/gender"),
    "value: half on faces, together, over images": half_on_faces_together_over_images,
    "value: half on faces, confirmation, over images": value_over_images("faces_confirmation", "init 0.5", "baseline"),
    "value: half on faces, older": gain_value("gender_age_decaying", "init 0.5", "baseline", "test/accuracy"),
    "value: half minus trunk on faces": gain_value(
        "sharing_faces", "init 0.5", "trunk, equal weights", "test/accuracy"
    ),
    "value: identity on faces": gain_value("gender_age_decaying", "channel", "baseline", "test/accuracy"),
    "value: recipe on all garments": gain_value("recipe_garments", "recipe, × 100", "baseline", "test/accuracy"),
    "value: identity on all garments": gain_value("recipe_garments", "channel", "baseline", "test/accuracy"),
    "value: recipe minus identity on all garments": gain_value(
        "recipe_garments", "recipe, × 100", "channel", "test/accuracy"
    ),
    "value: recipe minus half on all garments": recipe_minus("init 0.5"),
    "value: recipe minus trunk on all garments": recipe_minus("trunk"),
    "value: recipe on faces, over images": value_over_images("recipe_faces", "recipe, × 100", "baseline"),
    "value: recipe on faces": gain_value("recipe_faces", "recipe, × 100", "baseline", "test/accuracy"),
    "value: recipe minus identity on faces": gain_value("recipe_faces", "recipe, × 100", "channel", "test/accuracy"),
    "value: recipe on landmarks": gain_value("recipe_landmarks", "recipe, × 100", "baseline", "test/mean_error"),
    "value: recipe minus identity on landmarks": gain_value(
        "recipe_landmarks", "recipe, × 100", "channel", "test/mean_error"
    ),
    "value: pretrained minus identity on landmarks": gain_value(
        "recipe_landmarks", "pretrained", "channel", "test/mean_error"
    ),
    "value: 0.9 minus identity on landmarks": gain_value("recipe_landmarks", "init 0.9", "channel", "test/mean_error"),
    "value: rate × 100 minus identity on landmarks": gain_value(
        "recipe_landmarks", "units' rate × 100", "channel", "test/mean_error"
    ),
    "value: rate × 1000 on landmarks": gain_value(
        "recipe_landmarks", "units' rate × 1000", "baseline", "test/mean_error"
    ),
    "value: recipe × 1000 on landmarks": gain_value(
        "recipe_landmarks", "recipe, × 1000", "baseline", "test/mean_error"
    ),
    "value: recipe on a tenth": gain_value("scarce_10", "channel, as in the paper", "baseline", "test/accuracy"),
    "value: separate columns in the setting of 2018": lambda runs: percent(
        analysis.values(runs, "setting_2018", "baseline", "late/accuracy").mean()
    ),
    "value: setting of 2018": gain_value("setting_2018", "channel", "baseline", "late/accuracy"),
    "value: landmarks": gain_value("landmarks", "cross-stitch", "two columns", "test/mean_error"),
    "value: landmarks, 60 epochs": gain_value("landmarks_60", "cross-stitch", "two columns", "test/mean_error"),
    "value: landmarks without L2": gain_value(
        "landmarks_width", "cross-stitch, no L2", "two columns, no L2", "test/mean_error"
    ),
    "value: landmarks without L2, column": gain_value(
        "landmarks_width", NO_ATTRIBUTES, "two columns, no L2", "test/mean_error"
    ),
    "value: landmarks without L2, labels": gain_value(
        "landmarks_width", "cross-stitch, no L2", NO_ATTRIBUTES, "test/mean_error"
    ),
    "value: pose": gain_value("landmarks_width", "cross-stitch, no L2", "two columns, no L2", "aflw/pose"),
    "value: glasses": gain_value("landmarks_width", "cross-stitch, no L2", "two columns, no L2", "aflw/glasses"),
    "value: landmarks, units minus split": gain_value(
        "landmarks", "cross-stitch", "one network, split", "test/mean_error"
    ),
    "value: averaging": averaging_value("decaying_15", "baseline", ("test/item", "test/group")),
}


def fill(text, runs):
    """Return a page with what stands between its marks made anew. Raise SystemExit if a mark has no end."""
    marks = re.compile(r"<!-- ((?:table|value): [^>]+?) -->((?:(?!<!--).)*)<!-- end -->", re.DOTALL)
    all_marks = re.findall(r"<!--\s*(?:table:|value:|end\b)[^>]*", text)
    if len(all_marks) != 2 * len(marks.findall(text)):
        raise SystemExit(
            "error: a page has a mark without <!-- end -->, an end without a mark, or a mark on two lines."
        )

    def made(match):
        content = MADE[match[1]](runs)
        if match[1].startswith("table"):
            content = f"\n{content}\n"
        return f"<!-- {match[1]} -->{content}<!-- end -->"

    return marks.sub(made, text)


def main(check):
    """Make again what differs from what the stored runs give. With `check` only print its name, and then return 1."""
    runs = analysis.load()
    wanted = {path: fill(path.read_text(), runs) for path in PAGES}
    wanted[TABLES] = all_tables(runs)
    wanted[RESULTS / "runs.csv"] = runs.drop(columns=["versions", "majority"], errors="ignore").to_csv(index=False)
    changed = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if not check:
        for path in changed:
            path.write_text(wanted[path])
    changed += figures.draw_all(runs, load_curves(), check)
    for path in changed:
        print(f"{'differs from what the data give' if check else 'made'}: {path.relative_to(ROOT)}")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
