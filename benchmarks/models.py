"""Measure networks again that `python -m benchmarks run EXPERIMENT --keep_models` has trained and kept.

    python -m benchmarks average EXPERIMENT       # the accuracy of two networks whose predictions are averaged
    python -m benchmarks exchange EXPERIMENT      # the accuracy without the exchange between the columns

Both measure on the test images, and add rows to a table in benchmarks/results: averages.csv or exchange.csv. They do
not change the rows that the table has already. To measure a network again, first remove its rows.
"""

import itertools
import json
from pathlib import Path

import numpy as np
from scipy.special import softmax

from . import run
from .experiments import EXPERIMENTS, LANDMARKS


def average(name, folder):
    """Measure the averaged predictions of two networks, for every pair of seeds of a setting.

    To train twice and to average is another way to spend the computation that a second column takes.

    Args:
        name: The name of an experiment.
        folder: The folder of runs, --folder of `python -m benchmarks run`.
    """
    script = EXPERIMENTS[name].script
    found = False
    for setting_name, setting in EXPERIMENTS[name].settings.items():
        for run_number in range(len(setting.runs)):  # a setting has several runs if each trains a task of its own
            rows, outputs, test = [], {}, None
            for seed, path in kept_models(name, setting_name, run_number, folder).items():
                if test is None:  # all seeds have the same test images
                    test = test_split_of(script, path)
                outputs[seed] = load(script, path).predict(test.images, verbose=0)
            for pair in itertools.combinations(sorted(outputs), 2):
                for measure, value in evaluate(script, [outputs[seed] for seed in pair], test).items():
                    if measure not in setting.untrained:
                        rows.append([name, setting_name, f"test/{measure}", *pair, value])
            run.add_rows("averages.csv", rows)
            found = found or len(outputs) > 1
    if not found:
        raise SystemExit(
            f"error: {folder} has no two kept networks of one setting of {name}. Train seeds that are not stored yet "
            "with --keep_models, and name the same --folder."
        )


def exchange(name, folder):
    """Measure trained networks without the exchange between their columns, and compare with the unchanged networks.

    Without exchange, alpha_ij, which is what column i takes of column j, is zero where i and j differ: in each
    cross-stitch unit alone, and then in all at once. Nothing else changes, so the network is not adapted to it. A row
    of the table tells what the network reaches without exchange, what it reaches as it is, the mean of the alpha_ii,
    and the root mean square of the other alphas. (The mean of the others would hide what they do, since some are
    positive and some negative.) Then come the root mean square of alpha - start, where start is the alpha from which
    --cross_stitch_init lets a unit begin, and what the network reaches if only a mean is exchanged in this unit, see
    `outputs_with_mean_exchange`. The row "all" is over the alphas of all units together, and has no such mean.

    Networks with `ActivationCrossStitch` units are left out: their alpha is a matrix of blocks, and not of the shape
    (columns, columns, ...).

    Args:
        name: The name of an experiment, whose stitched settings have one run.
        folder: The folder of runs, --folder of `python -m benchmarks run`.
    """
    script = EXPERIMENTS[name].script
    module = run.load_script(script)
    found, test = False, None
    for setting_name, setting in EXPERIMENTS[name].settings.items():
        for seed, path in kept_models(name, setting_name, 0, folder).items():
            network, rows = load(script, path), []
            units = {
                unit.name: unit
                for unit in module.units_of(network)
                if not isinstance(unit, module.ActivationCrossStitch)
            }
            if not units:
                continue
            if test is None:  # all networks of an experiment have the same test images
                test = test_split_of(script, path)
            as_it_is = evaluate(script, [network.predict(test.images, verbose=0)], test)
            alphas = {unit_name: unit.alpha.numpy() for unit_name, unit in units.items()}
            own = {unit_name: own_alphas(alpha) for unit_name, alpha in alphas.items()}
            init = json.loads((path.parent / "results.json").read_text())["arguments"]["cross_stitch_init"]
            changes = {unit_name: alphas[unit_name] - unit.alpha_from_init(init) for unit_name, unit in units.items()}

            units_to_cut = {unit_name: [unit_name] for unit_name in units}
            units_to_cut["all"] = list(units)
            for label, cut in units_to_cut.items():
                for unit_name in cut:
                    units[unit_name].alpha.assign(np.where(own[unit_name], alphas[unit_name], 0))
                without = evaluate(script, [network.predict(test.images, verbose=0)], test)
                for unit_name in cut:
                    units[unit_name].alpha.assign(alphas[unit_name])
                with_mean = {}
                if label != "all":
                    outputs = outputs_with_mean_exchange(network, units[label], test.images)
                    with_mean = evaluate(script, [outputs], test)

                mean_of_own = np.concatenate([alphas[unit_name][own[unit_name]] for unit_name in cut]).mean()
                others = np.concatenate([alphas[unit_name][~own[unit_name]] for unit_name in cut])
                rms_of_others = np.sqrt(np.mean(others**2))
                changes_of_cut = np.concatenate([changes[unit_name].ravel() for unit_name in cut])
                rms_of_changes = np.sqrt(np.mean(changes_of_cut**2))
                for measure, value in without.items():
                    if measure not in setting.untrained:
                        key = [name, setting_name, f"test/{measure}", seed, label]
                        numbers = [value, as_it_is[measure], mean_of_own, rms_of_others, rms_of_changes]
                        rows.append([*key, *numbers, with_mean.get(measure)])
            run.add_rows("exchange.csv", rows)
            found = True
    if not found:
        raise SystemExit(
            f"error: {folder} has no kept network of {name} with units between its columns. Train seeds that are not "
            "stored yet with --keep_models, and name the same --folder."
        )


def outputs_with_mean_exchange(network, unit, images):
    """Return the outputs of a network in which the columns exchange the same at every image in one unit.

    Instead of the sum over j of alpha_ij x_j, column i goes on with alpha_ii x_i plus the mean, over the images, of the
    sum of the other alpha_ij x_j. So it gets from the other columns what it usually gets, but nothing that tells one
    image from another.

    Args:
        network: A trained network.
        unit: One of its cross-stitch units, but no `ActivationCrossStitch`.
        images: The images, (n, height, width, channels).

    Returns:
        {task: outputs for all images}, as from `network.predict`.
    """
    import keras

    columns = [x.astype(np.float32) for x in keras.Model(network.input, unit.input).predict(images, verbose=0)]
    alpha = unit.alpha.numpy()
    mixed = []
    for i, own in enumerate(columns):
        exchanged = sum(alpha[i, j] * other for j, other in enumerate(columns) if j != i)
        mixed.append(alpha[i, i] * own + exchanged.mean(axis=0))
    return keras.Model(unit.output, network.output).predict(mixed, verbose=0)


def own_alphas(alpha):
    """Return a mask of the shape of alpha, (columns, columns, ...), that is true for the alpha_ij with i = j."""
    same_column = np.eye(len(alpha), dtype=bool)
    return np.broadcast_to(same_column.reshape(same_column.shape + (1,) * (alpha.ndim - 2)), alpha.shape)


def kept_models(name, setting_name, run_number, folder):
    """Return {seed: path of the model.keras} of one run of a setting, `Setting.runs[run_number]`."""
    paths = {}
    for path in sorted(Path(folder, name).absolute().glob(f"*-seed*/run{run_number}/model.keras")):
        seed = json.loads((path.parent / "results.json").read_text())["seed"]
        if path.parent.parent == run.folder_of(folder, name, setting_name, seed):  # the folder is not another setting's
            paths[seed] = path
    return paths


def load(script, path):
    """Return the network in a model.keras."""
    import keras  # it starts TensorFlow, which takes seconds that `python -m benchmarks --help` should not take

    run.load_script(script)  # Keras has to know the script's layers
    return keras.models.load_model(path)


def test_split_of(script, path):
    """Return the test images and labels of the run that trained a model."""
    return run.test_split(script, json.loads((path.parent / "results.json").read_text()))


def evaluate(script, outputs, test):
    """Return what one network reaches, or several whose predictions are averaged.

    Classes are chosen by the mean of the networks' probabilities.

    Args:
        script: The script that trained the networks.
        outputs: The outputs of each network for the test images, {task: logits}. Networks of landmarks also have the
            places of the landmarks.
        test: The test images and labels.

    Returns:
        {task: accuracy}. For landmarks {"mean_error": the mean distance from their true places, in widths of the face's
        box}, and nothing of the attributes.
    """
    if script == LANDMARKS:
        points = np.mean([output["landmarks"] for output in outputs], axis=0)
        errors = run.load_script(script).landmark_errors(points, test.labels["landmarks"])
        return {"mean_error": float(errors.mean())}
    accuracies = {}
    for task in outputs[0]:
        probabilities = np.mean([softmax(output[task], axis=1) for output in outputs], axis=0)
        accuracies[task] = float(np.mean(probabilities.argmax(axis=1) == test.labels[task]))
    return accuracies
