"""What do two networks gain that are trained apart, and whose outputs are averaged? A measure for joined columns.

    python benchmarks/average.py landmarks_width --data_dir MTFL     # after compare.py, whose runs it takes

Two networks of one task have as many weights as two columns that are joined for it. Of each setting of an experiment
(of `single-task`, of its first task) every two networks that are still below --folder are evaluated on the test part by
the mean of their probabilities or points. benchmarks/results/averages.json keeps what is found, and compare.py makes a
table of it.
"""

import argparse
import importlib
import itertools
import os
import sys

import numpy as np
from compare import EXPERIMENTS, ROOT, load, log_dir_of, predict, store
from scipy.special import softmax


def evaluate(outputs, truth):
    """Returns the mean error of landmarks, or the accuracy of each task, of what several networks put out.

    `outputs` is a list of what compare.py's `predict` returns, `truth` points (n, 5, 2) or labels (n, tasks).
    """
    if "landmarks" in outputs[0]:
        points = np.mean([x["landmarks"] for x in outputs], axis=0)
        return {"mean_error": float(np.linalg.norm(points - truth, axis=-1).mean())}
    found = {}
    for t, task in enumerate(outputs[0]):
        probabilities = np.mean([softmax(x[task], axis=1) for x in outputs], axis=0)
        found[task] = float(np.mean(probabilities.argmax(axis=1) == truth[:, t]))
    return found


def average(name, folder, data_dir):
    """Stores {measure: {"seed seed": its value}}, of every pair of networks, for each setting that is stored of `name`.

    Pairs that were stored before stay, also where their networks are gone.
    Measures that compare.py does not keep, as those of a task that was not trained, are left out here too.
    """
    module = importlib.import_module(EXPERIMENTS[name].script.removesuffix(".py"))
    for setting, of_seed in load(name).items():
        outputs, part = {}, None
        entry = {measure: {**pairs} for measure, pairs in load("averages").get(name, {}).get(setting, {}).items()}
        for seed, stored in of_seed.items():
            log_dir = log_dir_of(folder, name, setting, 0, seed)
            if os.path.exists(os.path.join(log_dir, "model.keras")):
                args = argparse.Namespace(**stored["arguments"][0], seed=int(seed), data_dir=data_dir)
                part = part or module.prepare_data(args)[0]["test"]  # of all seeds the same
                outputs[seed] = predict(module, log_dir, part[0], args)
        for pair in itertools.combinations(outputs, 2):
            for measure, value in evaluate([outputs[seed] for seed in pair], part[1]).items():
                if measure in of_seed[pair[0]]["test"]:
                    entry.setdefault(measure, {})[" ".join(pair)] = value
        if len(outputs) > 1:
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
