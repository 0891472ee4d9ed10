"""Measure the trained networks that `python -m benchmarks run --keep_models` has left in its folder.

`average` measures what the mean of two networks reaches, and `exchange` what a network loses if its columns get nothing
from each other. Each adds lines to a table in the folder of results. Lines that are there are not made again.
"""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
from scipy.special import softmax

from . import run
from .experiments import EXPERIMENTS, LANDMARKS


def average(name, folder):
    """Measure the mean of two networks' outputs, for every two seeds of a setting. The results go to averages.csv."""
    script = EXPERIMENTS[name].script
    rows = []
    for setting, of_setting in EXPERIMENTS[name].settings.items():
        for number in range(len(of_setting.runs)):
            outputs, split = {}, None
            for seed, path in kept_models(name, setting, number, folder).items():
                split = split or test_split_of(script, path)  # all seeds have the same test images
                outputs[seed] = load(script, path).predict(split.images, verbose=0)
            for pair in itertools.combinations(sorted(outputs), 2):
                for measure, value in measures_of_mean(script, [outputs[seed] for seed in pair], split).items():
                    if measure not in of_setting.untrained:
                        rows.append([name, setting, f"test/{measure}", *pair, value])
    add_rows("averages.csv", rows)


def exchange(name, folder):
    """Measure what stitched networks lose if nothing passes between the columns. The results go to exchange.csv.

    In a trained network, alpha_ij is set to zero where i and j differ: in one unit after the other, and in all. The
    table also has the mean of a unit's alpha_ii, and the root mean square of its other alphas. (Their mean would hide
    what they do, since they are both positive and negative.)
    """
    script = EXPERIMENTS[name].script
    module = run.load_script(script)
    rows = []
    for setting in EXPERIMENTS[name].settings:
        for seed, path in kept_models(name, setting, 0, folder).items():
            network, split = load(script, path), test_split_of(script, path)
            units = {
                unit.name: unit
                for unit in module.units_of(network)
                if not isinstance(unit, module.ActivationCrossStitch)  # its alphas have another order
            }
            learned = {place: unit.alpha.numpy() for place, unit in units.items()}
            whole = measures_of_mean(script, [network.predict(split.images, verbose=0)], split)
            cuts = {place: [place] for place in units}
            if units:
                cuts["all"] = list(units)
            for cut, places in cuts.items():
                for place in places:
                    units[place].alpha.assign(np.where(own_alphas(learned[place]), learned[place], 0))
                without = measures_of_mean(script, [network.predict(split.images, verbose=0)], split)
                for place in places:
                    units[place].alpha.assign(learned[place])
                own = np.concatenate([learned[place][own_alphas(learned[place])] for place in places])
                others = np.concatenate([learned[place][~own_alphas(learned[place])] for place in places])
                rms = np.sqrt(np.mean(others**2))
                for measure, value in without.items():
                    row = [name, setting, f"test/{measure}", seed, cut, value, whole[measure], own.mean(), rms]
                    rows.append(row)
    add_rows("exchange.csv", rows)


def own_alphas(alpha):
    """Return a mask of the shape of alpha, (columns, columns, ...), that is true for each column's own activations."""
    own = np.eye(len(alpha), dtype=bool)
    return np.broadcast_to(own.reshape(own.shape + (1,) * (alpha.ndim - 2)), alpha.shape)


def kept_models(name, setting, number, folder):
    """Return {seed: path of its model.keras} of the runs of a setting; `number` is that of a run in `Setting.runs`."""
    paths = {}
    for path in sorted(Path(folder, name).absolute().glob(f"*-seed*/run{number}/model.keras")):
        seed = json.loads((path.parent / "results.json").read_text())["seed"]
        if path.parent.parent == run.folder_of(folder, name, setting, seed):  # and not that of another setting
            paths[seed] = path
    return paths


def load(script, path):
    """Return the network in a model.keras. The script has to be imported, so that Keras knows its layers."""
    import keras

    run.load_script(script)
    return keras.models.load_model(path)


def test_split_of(script, path):
    """Return the test images and labels of the run that trained a model."""
    return run.test_split(script, json.loads((path.parent / "results.json").read_text()))


def measures_of_mean(script, outputs, split):
    """Return what the averaged outputs of some networks reach: {task: accuracy}, or {"mean_error": that of landmarks}.

    Classes are chosen by the mean of the networks' probabilities.
    """
    if script == LANDMARKS:
        points = np.mean([output["landmarks"] for output in outputs], axis=0)
        errors = run.load_script(script).landmark_errors(points, split.labels["landmarks"])
        return {"mean_error": float(errors.mean())}
    accuracies = {}
    for task in outputs[0]:
        probabilities = np.mean([softmax(output[task], axis=1) for output in outputs], axis=0)
        accuracies[task] = float(np.mean(probabilities.argmax(axis=1) == split.labels[task]))
    return accuracies


def add_rows(name, rows):
    """Add rows to a table of the results, without those whose first five columns are there."""
    path = run.RESULTS / name
    with run.locked():
        stored = {tuple(row[:5]) for row in csv.reader(path.read_text().splitlines())}
        with open(path, "a", newline="") as file:
            new = [row for row in rows if tuple(map(str, row[:5])) not in stored]
            csv.writer(file, lineterminator="\n").writerows(new)
