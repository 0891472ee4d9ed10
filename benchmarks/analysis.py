"""Pairs, intervals and corrected p-values from the stored runs, with pandas and SciPy.

A seed decides which part of the training images is used, in which order, and, where the network is the same, the
initial weights. So settings are compared seed by seed: only runs of one commit, one data set and the same versions of
the libraries make a pair. (The commit of the oldest runs is unknown. Two such runs with the same seed are taken for a
pair; TABLES.md says which experiments have them.)
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

RESULTS = Path(__file__).resolve().parent / "results"
ALIKE = ["seed", "commit", "data_sha256", "versions"]  # what the two runs of a pair have in common


def load(path=RESULTS / "runs.jsonl"):
    """Return the stored runs as a table, a row for each, with a column for each measure, such as `test/accuracy`.

    There is at most one row for each experiment, setting and seed.
    """
    with open(path) as file:
        records = [json.loads(line) for line in file]
    return table_of(records)


def table_of(records):
    """Return the table of a list of records, as `run.py` stores them."""
    rows = []
    for record in records:
        row = {name: value for name, value in record.items() if name not in ("measures", "arguments", "sizes")}
        row["versions"] = json.dumps(record["versions"], sort_keys=True)
        row["commit"] = record["commit"] or "unknown"  # with None, pandas would leave the run out of all pairs
        rows.append(row | record["measures"])
    return pd.DataFrame(rows)


def load_curves():
    """Return all stored curves, a table with the columns experiment, setting, seed, run, tag, step and value.

    `run` is 0, or counts the trainings of a setting in which every task is trained by itself.
    """
    curves = pd.read_csv(RESULTS / "curves.csv.gz")
    # If a process was killed while it stored a run, the run was stored again, and its curves stand there twice.
    return curves.drop_duplicates(["experiment", "setting", "seed", "run", "tag", "step"], keep="last")


def values(runs, experiment, setting, measure):
    """Return a measure of a setting, a Series with the seeds as index. Seeds without this measure are left out."""
    chosen = runs[(runs.experiment == experiment) & (runs.setting == setting)]
    return chosen.set_index("seed")[measure].dropna() if measure in chosen else pd.Series(dtype=float)


def differences(runs, experiment, setting, other, measure):
    """Return a measure of one setting minus that of another, pair by pair, a Series with the seeds as index."""
    chosen = runs[(runs.experiment == experiment) & runs.setting.isin([setting, other])]
    if measure not in chosen or not len(chosen):
        return pd.Series(dtype=float)
    table = chosen.pivot(index=ALIKE, columns="setting", values=measure)
    if not {setting, other} <= set(table.columns):
        return pd.Series(dtype=float)
    difference = (table[setting] - table[other]).dropna()
    return difference.droplevel(ALIKE[1:]).sort_index()


def interval(sample, clusters=None):
    """Return the mean of a sample, its 95 % confidence interval by Student's t, and the p-value for "the mean is zero".

    With `clusters`, one name for each value, the values of a cluster may depend on each other. Then the variance is
    that of the sums over clusters (a cluster-robust one, with the correction G / (G - 1) for G clusters). Without
    clusters this is the usual standard error. With fewer than three values or clusters the interval and the p-value are
    NaN, since they would say nothing.
    """
    sample = np.asarray(sample, float)
    mean = sample.mean()
    if clusters is None:
        clusters = np.arange(len(sample))
    names = pd.unique(pd.Series(clusters))
    count = len(names)
    if count < 3:
        return mean, (np.nan, np.nan), np.nan
    sums = np.array([(sample - mean)[np.asarray(clusters) == name].sum() for name in names])
    error = np.sqrt(np.sum(sums**2) * count / (count - 1)) / len(sample)
    if error == 0:  # all values are equal
        return mean, (mean, mean), 1.0 if mean == 0 else 0.0
    reach = stats.t.ppf(0.975, count - 1) * error
    p = 2 * stats.t.sf(abs(mean / error), count - 1)
    return mean, (mean - reach, mean + reach), float(p)


def holm(p_values):
    """Return p-values corrected for their number by Holm's method; NaN stays NaN and does not count."""
    p_values = np.asarray(p_values, float)
    corrected = np.full(len(p_values), np.nan)
    known = [index for index in np.argsort(p_values) if np.isfinite(p_values[index])]
    largest = 0.0
    for rank, index in enumerate(known):
        largest = max(largest, min(1.0, p_values[index] * (len(known) - rank)))
        corrected[index] = largest
    return corrected


FEWEST_PAIRS = 3  # the pages show a gain only if it has so many pairs; TABLES.md has the others, too


def pooled(runs, experiments, setting, other, measure):
    """Return mean, interval and p-value of a gain as `interval` does, and the number of pairs, of several experiments.

    Every pair has the same weight. The seeds are the clusters, since a seed's data in one experiment can be part of its
    data in another one.
    """
    joined = pd.concat([gains(runs, experiment, setting, other, measure) for experiment in experiments])
    return (*interval(joined.to_numpy(), joined.index.to_numpy()), len(joined))


def scores_of_images(experiment, setting, seed, tasks, folder=RESULTS / "predictions"):
    """Return a score for each test image of a stored run, or None if its predictions are not stored.

    The score is the share of `tasks` whose class is right. For landmarks it is the mean error of a face, in widths of
    the face's box, and `tasks` is ignored. The mean of the scores is the test/accuracy or the test/mean_error of the
    run.
    """
    path = Path(folder) / f"{experiment}.npz"
    if not path.exists():
        return None
    with np.load(path) as file:
        if f"{setting}|{seed}|mean_error" in file:
            return file[f"{setting}|{seed}|mean_error"] / 1e4  # stored in hundredths of a per cent
        keys = [f"{setting}|{seed}|{task}" for task in tasks]
        truths = [f"truth|{task}" for task in tasks]
        if not keys or not all(key in file for key in keys + truths):
            return None
        return np.mean([file[key] == file[truth] for key, truth in zip(keys, truths)], axis=0)


def over_seeds_and_images(differences_of_images):
    """Return a 95 % interval of a mean difference that allows for other seeds and for other test images.

    Its half width is the root of the sum of two squares: that of the half width over the seeds, by Student's t, and
    that of the half width over the images, by the normal distribution. (A bootstrap over the few seeds would be too
    narrow, often narrower than Student's t alone.)

    Args:
        differences_of_images: (seeds, images), for each pair the differences of the images' scores. All pairs have the
            same test images in the same order.
    """
    matrix = np.asarray(differences_of_images, float)
    num_seeds, num_images = matrix.shape
    mean = matrix.mean()
    over_seeds = stats.t.ppf(0.975, num_seeds - 1) * matrix.mean(axis=1).std(ddof=1) / np.sqrt(num_seeds)
    over_images = stats.norm.ppf(0.975) * matrix.mean(axis=0).std(ddof=1) / np.sqrt(num_images)
    reach = np.hypot(over_seeds, over_images)
    return mean - reach, mean + reach


def gains(runs, experiment, setting, other, measure):
    """Return by how much a setting is better than the other one, for each seed. An error that falls is a gain."""
    pairs = differences(runs, experiment, setting, other, measure)
    return -pairs if lower_is_better(measure) else pairs


def lower_is_better(measure):
    """Return whether a measure is an error, which a gain makes smaller."""
    return "error" in measure or "failure" in measure
