"""What do two networks gain that are trained apart, and whose outputs are averaged? A measure for joined columns.

    python benchmarks/average.py landmarks_width --data_dir MTFL     # behind compare.py, whose runs it takes

Two networks of one task have as many weights as two columns that are joined for it. The finished runs of every setting
of an experiment are evaluated on the test part, each alone, and each with every other by the means of their
probabilities or points. benchmarks/results/averages.json keeps what is found, and compare.py makes a table of it.
"""

import argparse
import importlib
import itertools
import json
import os
import sys

import numpy as np
from compare import EXPERIMENTS, ROOT, log_dir_of, store


def predict(script, log_dir, images, args):
    """Returns {task: probabilities (n, classes)} or {"mean error": points (n, 5, 2)} of a run's network."""
    network = script.keras.models.load_model(os.path.join(log_dir, "model.keras"))
    if "landmarks" in network.output:
        return {"mean error": network.predict(script.centre(images, args.image_size), verbose=0)["landmarks"]}
    return {task: script.tf.nn.softmax(x).numpy() for task, x in network.predict(images, verbose=0).items()}


def evaluate(outputs, truth):
    """Returns the accuracy of each task, or the mean error of landmarks, of what `predict` returns."""
    if "mean error" in outputs:
        return {"mean error": float(np.linalg.norm(outputs["mean error"] - truth, axis=-1).mean())}
    return {task: float(np.mean(x.argmax(axis=1) == truth[:, t])) for t, (task, x) in enumerate(outputs.items())}


def average(name, folder, data_dir):
    """Stores {measure: {"one": [of each run], "two": [of each pair]}} for each setting with two finished runs."""
    experiment, part = EXPERIMENTS[name], None
    script = importlib.import_module(experiment.script.removesuffix(".py"))
    for setting in experiment.settings:
        outputs, untrained = [], set()
        for log_dir in [log_dir_of(folder, name, setting, 0, seed) for seed in range(10)]:
            if not os.path.exists(path := os.path.join(log_dir, "results.json")):
                continue
            with open(path) as file:
                results = json.load(file)
            args = argparse.Namespace(**results["arguments"])
            args.data_dir = data_dir or args.data_dir
            part = part or script.prepare_data(args)[0]["test"]  # of all runs the same
            outputs.append(predict(script, log_dir, part[0], args))
            weights = zip(results["classes"], results["arguments"].get("task_weights") or ())
            untrained = {task for task, weight in weights if weight == 0}
        if len(outputs) > 1:
            pairs = [{task: (a[task] + b[task]) / 2 for task in a} for a, b in itertools.combinations(outputs, 2)]
            one, two = ([evaluate(x, part[1]) for x in of] for of in (outputs, pairs))
            entry = {t: {"one": [x[t] for x in one], "two": [x[t] for x in two]} for t in one[0] if t not in untrained}
            store("averages", name, setting, entry)
            print(setting, entry, flush=True)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--data_dir", help="of the script, for faces")
    parser.add_argument("--folder", default=os.path.join(ROOT, "tf_logs", "compare"), help="of the log folders")
    args = parser.parse_args()
    sys.path.insert(0, ROOT)
    average(args.experiment, args.folder, args.data_dir)


if __name__ == "__main__":
    main()
