"""Make TABLES.md: a table for each experiment, one of two networks that are averaged, and one of the code of 2018.

EXPERIMENTS has an `Experiment` for each name, `spec` below. Its `measures` are {column of the table: measure}, its
`primary` is the measure in which settings are compared with the `baseline`. See experiments.py.
"""

import numpy as np
import pandas as pd

from . import analysis
from .analysis import RESULTS
from .experiments import EXPERIMENTS, FACES, LANDMARKS
from .markdown import in_brackets, mean_and_deviation, p_value, percent, table, with_interval
from .speed import STEPS_PER_EPOCH

# The code of 2018 is the TensorFlow 1 repository of SETTING_2018.md, which published two curves. They begin in the
# third epoch. These are the first and the last epoch of each window over which accuracies are averaged.
WINDOWS_OF_2018 = [(3, 5), (6, 10), (11, 15), (16, 20), (21, 30)]


def all_tables(runs):
    """Return the content of TABLES.md."""
    parts = [
        "# All tables",
        "Made by `python -m benchmarks report` from [results](results/README.md). Accuracies are in per cent of the "
        "images, errors of landmarks in per cent of the width of the face's box. What follows ± is the standard "
        "deviation over the seeds. Differences are paired and in points, with their 95 % interval. *Change of errors* "
        "says how many per cent more errors there are than with the baseline; where there are fewer it is negative. "
        "*Over seeds and images* is the interval that also allows for other test images. Holm's method corrects for "
        "the number of tests in a table. Further comparisons are in a separate table.",
    ]
    for name, spec in EXPERIMENTS.items():
        if (runs.experiment == name).any():
            parts += [f"## {spec.title}", f"`{name}`: `{command_of(runs, name)}`", experiment_table(runs, name)]
            further = comparison_table(runs, name)
            if further:
                parts.append(further)
    parts += [
        "## The setting of 2018, by epochs",
        "Each column is the mean test accuracy over the epochs in its heading.",
        course_of_2018(runs),
    ]
    parts += ["## Two networks, averaged", averages_table(runs)]
    return "\n\n".join(parts) + "\n"


def command_of(runs, name):
    """Return the command that trains an experiment with all its stored seeds."""
    seeds = sorted(runs[runs.experiment == name].seed.unique())
    without_gaps = len(seeds) == seeds[-1] - seeds[0] + 1
    words = f"{seeds[0]}-{seeds[-1]}" if without_gaps and len(seeds) > 1 else ",".join(map(str, seeds))
    data = {FACES: " --data_dir UTKFace", LANDMARKS: " --data_dir MTFL"}.get(EXPERIMENTS[name].script, "")
    return f"python -m benchmarks run {name} --seeds {words}{data}"


def experiment_table(runs, name):
    """Return the table of an experiment: a row for each setting, with its differences from the baseline."""
    spec = EXPERIMENTS[name]
    of_experiment = runs[runs.experiment == name]
    rows, p_values = [], []
    for setting in spec.settings:
        count = (of_experiment.setting == setting).sum()
        if not count:
            continue
        row = [setting, str(count)]
        row += [mean_and_deviation(analysis.values(runs, name, setting, measure)) for measure in spec.measures.values()]
        pairs = (
            () if setting == spec.baseline else analysis.differences(runs, name, setting, spec.baseline, spec.primary)
        )
        p = np.nan
        if len(pairs):
            mean, bounds, p = analysis.interval(pairs.to_numpy())
            note = "" if len(pairs) == count else f" (pairs: {len(pairs)})"
            row += [
                with_interval(mean, bounds) + note,
                change_of_errors(runs, name, setting, spec.baseline, spec.primary),
                in_brackets(interval_over_seeds_and_images(name, setting, spec.baseline, list(pairs.index))),
            ]
        rows.append(row)
        p_values.append(p)

    head = ["setting", "seeds", *spec.measures]
    has_differences = any(len(row) > len(head) for row in rows)
    if has_differences:
        names_of_measures = {measure: column for column, measure in spec.measures.items()}
        difference = f"{names_of_measures[spec.primary]}, minus {spec.baseline}"
        head += [difference, "change of errors", "over seeds and images"]
        rows = [row + [""] * (len(head) - len(row)) for row in rows]  # the baseline has no differences
        head += ["p", "p (Holm)"]
        rows = with_p_values(rows, p_values)
    parts = [table(head, rows)]

    diverged = [run for run in of_experiment.to_dict("records") if run.get("diverged") is True]  # NaN is not True
    if diverged:
        words = ", ".join(f"{run['setting']} (seed {run['seed']})" for run in diverged)
        parts.append(f"The loss did not stay finite, so these have no measures: {words}.")
    unknown = (of_experiment.commit == "unknown").sum()
    if unknown:
        parts.append(
            f"Commit unknown: {unknown} of these {len(of_experiment)} runs. They were made before commits were stored."
        )
    return "\n\n".join(parts)


def comparison_table(runs, name):
    """Return the table of an experiment's further comparisons, or nothing."""
    rows, p_values = [], []
    for comparison in EXPERIMENTS[name].comparisons:
        pairs = analysis.differences(runs, name, comparison.setting, comparison.other, comparison.measure)
        if len(pairs):
            mean, bounds, p = analysis.interval(pairs.to_numpy())
            what = f"{comparison.measure}: {comparison.setting}, minus {comparison.other}"
            rows.append([what, str(len(pairs)), with_interval(mean, bounds)])
            p_values.append(p)
    if not rows:
        return ""
    return table(["comparison", "pairs", "difference", "p", "p (Holm)"], with_p_values(rows, p_values))


def with_p_values(rows, p_values):
    """Return rows with two more cells each: the p-value, and what Holm's correction over all rows makes of it."""
    return [
        [*row, p_value(p), p_value(corrected)] for row, p, corrected in zip(rows, p_values, analysis.holm(p_values))
    ]


def change_of_errors(runs, experiment, setting, other, measure):
    """Return how many per cent more errors a setting has than the other one. It is negative if it has fewer."""
    pairs = analysis.differences(runs, experiment, setting, other, measure)
    level = analysis.values(runs, experiment, other, measure).loc[pairs.index].mean()
    if analysis.lower_is_better(measure):
        change = pairs.mean() / level
    else:
        change = -pairs.mean() / (1 - level)
    return f"{round(100 * change, 1) + 0.0:+.1f} %"  # so that there is no -0.0


def interval_over_seeds_and_images(experiment, setting, other, seeds):
    """Return an interval for a difference of the primary measure that allows for other seeds and other test images.

    It is NaN for fewer than three pairs, for measures other than accuracy and mean error, and if predictions of any of
    the runs are not stored.
    """
    if len(seeds) < 3 or EXPERIMENTS[experiment].primary not in ("test/accuracy", "test/mean_error"):
        return np.nan, np.nan
    differences = differences_of_images(experiment, setting, other, seeds)
    if differences is None:
        return np.nan, np.nan
    return analysis.over_seeds_and_images(differences)


def differences_of_images(experiment, setting, other, seeds):
    """Return an array (seeds, images): the score of each test image with one setting minus that with the other one.

    The score is the share of the tasks whose class is right; for landmarks it is the error. The result is None if
    predictions of any of the runs are not stored.
    """
    measures = EXPERIMENTS[experiment].measures.values()
    names = [measure.removeprefix("test/") for measure in measures if measure.startswith("test/")]
    tasks = [name for name in names if name not in ("accuracy", "mean_error", "failure_rate")]
    differences = []
    for seed in seeds:
        scores = analysis.scores_of_images(experiment, setting, seed, tasks)
        other_scores = analysis.scores_of_images(experiment, other, seed, tasks)
        if scores is None or other_scores is None:
            return None
        differences.append(scores - other_scores)
    return np.array(differences)


# ---- two networks, averaged


def averages_table(runs):
    """Return the table that compares one network with two networks of different seeds whose outputs are averaged.

    Two pairs of networks can have one of them in common. So there is no interval, but the lowest and the highest pair.
    """
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


def mean_change_by_averaging(runs, experiment, setting, measures):
    """Return the mean change of some measures if the outputs of two networks are averaged, in points."""
    stored = pd.read_csv(RESULTS / "averages.csv")
    stored = stored[(stored.experiment == experiment) & (stored.setting == setting)]
    changes = [
        change_by_averaging(analysis.values(runs, experiment, setting, measure), stored[stored.measure == measure])
        for measure in measures
    ]
    return percent(np.mean(changes), sign=True)


# ---- the setting of 2018


def course_of_2018(runs):
    """Return the table of test accuracy by epochs in the setting of 2018, ours and the published one.

    Three experiments have it, for 20 or 30 epochs, in float32 or bfloat16. Differences are taken between two runs of
    the same experiment, seed and commit. A seed counts once, by its mean over the experiments.
    """
    experiments = ["setting_2018", "dense_2018", "dense_2018_30"]
    curves = analysis.load_curves()
    curves = curves[curves.experiment.isin(experiments) & (curves.tag == "summary/accuracy_test")]
    of_run = ["experiment", "setting", "seed"]
    curves = curves.merge(runs[[*of_run, "commit"]], on=of_run, validate="many_to_one")
    published = pd.read_csv(RESULTS / "published_2018_test_accuracy.csv").dropna()  # some points could not be read

    without_units = means_by_epochs(curves[curves.setting == "baseline"])
    dense_units = means_by_epochs(curves[curves.setting == "activation"])  # a matrix over all activations, as in 2018
    units_of_paper = means_by_epochs(curves[curves.setting == "channel"])  # as the paper has them, from the identity
    published_without = pd.DataFrame([means_of_windows(published.step, published.without_units_smoothed)])
    published_dense = pd.DataFrame([means_of_windows(published.step, published.with_units_smoothed)])
    # `setting_2018` has all 30 epochs of three seeds, without units and with those of the paper. These two rows use it
    # alone, so that all their windows come from the same runs. No experiment has as much of the dense units.
    levels = {
        "without units": mean_by_seed(without_units.loc[["setting_2018"]]),
        "dense units": mean_by_seed(dense_units),
        "units from the identity, one α per channel": mean_by_seed(units_of_paper.loc[["setting_2018"]]),
        "without units, published": published_without,
        "dense units, published": published_dense,
    }
    differences = {  # pandas subtracts the rows with the same experiment, seed and commit, and gives NaN for others
        "dense units, minus none": mean_by_seed(dense_units - without_units),
        "dense units, minus none, published": published_dense - published_without,
        "units from the identity, minus none": mean_by_seed((units_of_paper - without_units).loc[["setting_2018"]]),
    }
    rows = []
    for label, of_seeds in levels.items():
        cells = [mean_and_deviation(of_seeds[window].dropna()) for window in of_seeds]
        rows.append([label, str(len(of_seeds)), *cells])
    for label, of_pairs in differences.items():
        cells = []
        for window in of_pairs:
            sample = of_pairs[window].dropna().to_numpy()
            cells.append(with_interval(*analysis.interval(sample)[:2]) if len(sample) else "")
        rows.append([label, str(len(of_pairs)), *cells])
    return table(["", "seeds", *(f"{first} to {last}" for first, last in WINDOWS_OF_2018)], rows)


def means_by_epochs(curves):
    """Return the `means_of_windows` of each run of one setting, with the index experiment, seed and commit."""
    names = ["experiment", "seed", "commit"]
    means = {run: means_of_windows(points.step, points.value) for run, points in curves.groupby(names)}
    return pd.DataFrame(list(means.values()), index=pd.MultiIndex.from_tuples(list(means), names=names))


def means_of_windows(steps, accuracies):
    """Return the mean accuracy over each of `WINDOWS_OF_2018`, NaN where there was no evaluation."""
    epochs = np.asarray(steps) / STEPS_PER_EPOCH
    accuracies = np.asarray(accuracies)
    windows = [accuracies[(first - 1 < epochs) & (epochs <= last)] for first, last in WINDOWS_OF_2018]
    return [window.mean() if len(window) else np.nan for window in windows]


def mean_by_seed(table_of_runs):
    """Return the means over the runs of each seed. Seeds without any value are left out."""
    return table_of_runs.groupby(level="seed").mean().dropna(how="all")
