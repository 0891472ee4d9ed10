"""Does cross-stitch help, when, and how sure are we? Settings x seeds through the real script, and what came of it.

    python benchmarks/compare.py scarce_10 --seeds 0,1,2,3,4     # train what is not yet in benchmarks/results
    python benchmarks/compare.py                                 # no training: README's table and figure anew

Every run is a process of the script, in a log folder of its own below --folder. Stop it at any time: a finished run
is kept in benchmarks/results/EXPERIMENT.json and never repeated, one that was stopped is resumed. The accuracy is
that on the test images after the last epoch, never that of the best. A seed stands for the same part of the data and
the same order in all settings, and in all with two columns for the same initial weights, so that differences to the
baseline are paired.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = os.path.join(ROOT, "benchmarks", "results")
README = os.path.join(ROOT, "README.md")
FIGURE = os.path.join(ROOT, "img", "results.png")
SCRIPT = "fashion_mnist_multi_task_learning.py"

BASELINE = {"cross_stitch_enabled": False}
PAPER = {"cross_stitch_init": 0.9, "cross_stitch_lr_scale": 100.0}


def scarce(fraction, n_epoch):
    """Returns the experiment on a part of the training images, at 1,410 to 1,500 steps, evaluated every 141."""
    common = {"train_fraction": fraction, "n_epoch": n_epoch, "eval_every": 141}
    settings = {
        "single-task": [{"tasks": ["item"]}, {"tasks": ["group"]}],
        "baseline": [BASELINE],
        "channel": [{}],
        "channel, as in the paper": [{**PAPER, "pretrain_epoch": n_epoch // 3}],
    }
    return {name: [{**common, **run} for run in runs] for name, runs in settings.items()}


# experiment: (title, {setting: the arguments of its runs, more than one where each trains some of the tasks})
EXPERIMENTS = {
    "full": (
        "all 60,000 training images, 30 epochs",
        {
            "baseline": [BASELINE],
            "channel": [{}],
            "layer": [{"cross_stitch_unit": "layer"}],
            "channel, 0.9, ×100": [PAPER],
        },
    ),
    "scarce_25": ("25 % of the training images, 1,416 steps", scarce(0.25, 12)),
    "scarce_10": ("10 % of the training images, 1,410 steps", scarce(0.1, 30)),
    "scarce_5": ("5 % of the training images, 1,440 steps", scarce(0.05, 60)),
    "scarce_1": ("1 % of the training images, 1,500 steps", scarce(0.01, 300)),
}


def load(experiment):
    """Returns {setting: {seed: {"test": accuracies, ...}}} as stored, seeds as strings; empty if there is none."""
    path = os.path.join(RESULTS, f"{experiment}.json")
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        return json.load(file)


def store(experiment, setting, seed, entry):
    """Adds the entry of one setting and seed to the results of the experiment, all of the file or nothing."""
    results = load(experiment)
    results.setdefault(setting, {})[str(seed)] = entry
    path = os.path.join(RESULTS, f"{experiment}.json")
    with open(f"{path}.partial", "w") as file:
        json.dump(results, file, indent=1)
        file.write("\n")
    os.replace(f"{path}.partial", path)


def run_script(log_dir, arguments):
    """Trains in `log_dir`, or goes on there, unless the run is finished, and returns its results.json.

    Raises SystemExit if the run fails, or if the folder holds a run of other arguments.
    """
    path = os.path.join(log_dir, "results.json")
    if not os.path.exists(path):
        words = {name: ",".join(value) if isinstance(value, list) else value for name, value in arguments.items()}
        flags = [f"--{name}={value}" for name, value in words.items()] + [f"--log_dir={log_dir}"]
        if os.path.exists(os.path.join(log_dir, "run.json")):
            flags = [f"--resume={log_dir}"]
        finished = subprocess.run([sys.executable, SCRIPT, *flags], cwd=ROOT, stdout=subprocess.DEVNULL)
        if finished.returncode:
            raise SystemExit(f"error: {SCRIPT} {' '.join(flags)} ended with status {finished.returncode}")
    with open(path) as file:
        results = json.load(file)
    for name, value in arguments.items():
        if results["arguments"][name] != value:
            raise SystemExit(
                f"error: {log_dir}: expected a run with --{name} {value}, it has {results['arguments'][name]}"
            )
    if results["data"]["source"] == "embedded sample":
        raise SystemExit("error: Fashion-MNIST was not found, and figures from its sample say nothing about it")
    shutil.rmtree(os.path.join(log_dir, "checkpoints"), ignore_errors=True)  # 156 MB
    return results


def read_curves(log_dir):
    """Returns {tag: [[step, value], ...]} of the test accuracy and of the means of α."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(log_dir, size_guidance={"tensors": 0}).Reload()
    tags = [
        t
        for t in events.Tags()["tensors"]
        if t == "summary/accuracy_test" or t.endswith(("/alpha_self", "/alpha_cross"))
    ]
    return {t: [[e.step, round(float(make_ndarray(e.tensor_proto)), 6)] for e in events.Tensors(t)] for t in tags}


def train(experiment, seeds, folder):
    """Runs what is missing of an experiment, seed by seed, so that a part of it is a fair comparison too."""
    settings = EXPERIMENTS[experiment][1]
    missing = [(seed, s) for seed in seeds for s in settings if str(seed) not in load(experiment).get(s, {})]
    began = time.monotonic()
    for done, (seed, setting) in enumerate(missing):
        left = f", {(time.monotonic() - began) / done * (len(missing) - done) / 60:.0f} min left" if done else ""
        print(f"{experiment}: {setting}, seed {seed} ({done + 1} of {len(missing)}{left})", flush=True)
        entry = {"test": {}, "curves": []}
        for number, arguments in enumerate(settings[setting]):
            name = "".join(c if c.isalnum() else "-" for c in setting)
            log_dir = os.path.abspath(os.path.join(folder, experiment, f"{name}-{number}-seed{seed}"))
            results = run_script(log_dir, {**arguments, "seed": seed})
            entry["test"] |= {task: results["test"][task] for task in results["arguments"]["tasks"]}
            entry["curves"].append(read_curves(log_dir))
            entry |= {key: results[key] for key in ("parameters", "images_per_second", "versions")}
            entry["sha256"] = results["data"]["sha256"]
        entry["test"]["accuracy"] = statistics.fmean(entry["test"].values())
        store(experiment, setting, seed, entry)


def compare(results):
    """Returns a row per setting: name, seeds, accuracies by task, mean and deviation, and the paired difference.

    The difference to the baseline is over the seeds that both have: its mean, the 95 % confidence interval and the
    p-value of the paired t-test; None where fewer than two seeds leave them undefined.
    """
    from scipy.stats import ttest_rel

    rows = []
    for setting, of_seed in results.items():
        row = {"setting": setting, "seeds": len(of_seed)}
        for task in ("item", "group", "accuracy"):
            values = [entry["test"][task] for entry in of_seed.values()]
            row[task] = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
        common = sorted(of_seed.keys() & results.get("baseline", {}).keys())
        pairs = [[r[seed]["test"]["accuracy"] for seed in common] for r in (of_seed, results.get("baseline", {}))]
        if setting != "baseline" and common:
            row["difference"] = statistics.fmean(a - b for a, b in zip(*pairs))
            if len(common) > 1:
                test = ttest_rel(*pairs)
                row["interval"] = tuple(test.confidence_interval(0.95))
                row["p"] = float(test.pvalue)
        rows.append(row)
    return rows


def percent(value, sign=False):
    """Returns a share as per cent with two digits."""
    return f"{100 * value:{'+' if sign else ''}.2f}"


def table(experiment):
    """Returns the Markdown table of one experiment, a list of lines."""
    lines = [f"**{EXPERIMENTS[experiment][0][0].upper()}{EXPERIMENTS[experiment][0][1:]}**", ""]
    lines += [
        "| setting | seeds | item | group | overall | minus baseline, paired | p |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in compare(load(experiment)):
        means = []
        for task in ("item", "group", "accuracy"):
            mean, deviation = row[task]
            means.append(percent(mean) + (f" ± {percent(deviation)}" if deviation is not None else ""))
        difference = percent(row["difference"], sign=True) if "difference" in row else ""
        if "interval" in row:
            difference += f" [{percent(row['interval'][0], True)}, {percent(row['interval'][1], True)}]"
        p = f"{row['p']:.2f}" if "p" in row else ""
        lines.append(f"| {row['setting']} | {row['seeds']} | {' | '.join(means)} | {difference} | {p} |")
    return lines


def tables():
    """Returns the text between the two marks of README.md: the tables of all experiments that have results."""
    return "\n\n".join("\n".join(table(name)) for name in EXPERIMENTS if load(name))


def digest():
    """Returns a hash of all stored results, which the figure carries to show what it was drawn from."""
    content = json.dumps({name: load(name) for name in EXPERIMENTS}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def draw():
    """Draws every run as a dot and each setting's mean with its 95 % confidence interval into img/results.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from scipy.stats import t

    shown = [name for name in EXPERIMENTS if load(name)]
    figure, panels = plt.subplots(1, len(shown), figsize=(5.2 * len(shown), 3.6), squeeze=False)
    for axes, experiment in zip(panels[0], shown):
        results = load(experiment)
        for place, (setting, of_seed) in enumerate(results.items()):
            values = [100 * entry["test"]["accuracy"] for entry in of_seed.values()]
            colour = "#777777" if setting in ("baseline", "single-task") else "#2a6fbb"
            axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.45, markersize=6)
            if len(values) > 1:
                half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
                axes.errorbar(statistics.fmean(values), place, xerr=half, fmt="D", color=colour, capsize=5, lw=2)
        axes.set_yticks(range(len(results)), [f"{name} ({len(v)})" for name, v in results.items()])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xlabel("test accuracy, mean of both tasks (%)")
        axes.set_title(EXPERIMENTS[experiment][0], fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.margins(x=0.12)
        low, high = axes.get_xlim()
        if high - low < 0.6:  # per cent: dots closer than the noise of one seed shall look close
            axes.set_xlim((low + high) / 2 - 0.3, (low + high) / 2 + 0.3)
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=150, facecolor="white", metadata={"Source": digest()})
    plt.close(figure)


def write():
    """Puts the tables into README.md between the marks, and draws the figure."""
    with open(README) as file:
        text = file.read()
    begin, end = "<!-- results, by benchmarks/compare.py -->\n", "\n<!-- end of results -->"
    before, after = text.split(begin)[0], text.split(end)[1]
    with open(README, "w") as file:
        file.write(before + begin + tables() + end + after)
    draw()


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "experiments",
        nargs="*",
        metavar="EXPERIMENT",
        choices=[[], *EXPERIMENTS],
        help="what to train: " + ", ".join(EXPERIMENTS),
    )
    parser.add_argument(
        "--seeds", type=lambda text: [int(k) for k in text.split(",")], default=[0, 1, 2], help="(0,1,2)"
    )
    parser.add_argument("--folder", default=os.path.join(ROOT, "tf_logs", "compare"), help="of the log folders")
    args = parser.parse_args()
    for experiment in args.experiments:
        train(experiment, args.seeds, args.folder)
    write()


if __name__ == "__main__":
    main()
