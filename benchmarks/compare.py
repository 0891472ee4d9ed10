"""Does cross-stitch help, when, and how sure are we? Settings x seeds through the real scripts, and what came of it.

    python benchmarks/compare.py scarce_5 --seeds 6,7,8          # train what is not yet in benchmarks/results
    python benchmarks/compare.py gender_age --data_dir UTKFace   # faces have to be named
    python benchmarks/compare.py                                 # no training: the tables and figures anew

Every run is a process of its script, in a log folder of its own below --folder. Stop it at any time: a finished run
is kept in benchmarks/results/EXPERIMENT.json and never repeated, one that was stopped is resumed. The figures are
those after the last epoch or, where a column says so, means of the last ten evaluations, never those of the best. A
seed stands for the same part of the data and the same order in all settings, and in all with two columns for the same
initial weights, so that differences to the baseline are paired: of runs on the same data, begun at the same commit or
before commits were stored. How the defaults were chosen stands in benchmarks/TRIALS.md.
"""

import argparse
import collections
import dataclasses
import functools
import hashlib
import importlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = os.path.join(ROOT, "benchmarks", "results")
README, REPORT = (os.path.join(ROOT, *path) for path in (("README.md",), ("benchmarks", "RESULTS.md")))
CHANCE = "always the class most frequent in training"
FIGURES = [os.path.join(ROOT, "img", name) for name in ("results.png", "curves.png", "alphas.png")]

BASELINE = {"cross_stitch_enabled": False}
OF_ONE_RUN = ("seed", "log_dir", "data_dir")  # arguments that differ between the seeds of a setting
PAPER = {"cross_stitch_init": 0.9, "cross_stitch_lr_scale": 100.0}
HALF = {"cross_stitch_init": 0.5}
STARTS = {"baseline": BASELINE, "channel": {}, "init 0.5": HALF}
NOT_TRAINED = {  # controls: the column of a task that is not trained has nothing to learn but the other task
    "init 0.5, group not trained": {**HALF, "task_weights": [1.0, 0.0]},
    "init 0.5, item not trained": {**HALF, "task_weights": [0.0, 1.0]},
}
AGE_ALONE = {"init 0.5, gender not trained": {**HALF, "task_weights": [0.0, 1.0]}}


@dataclasses.dataclass
class Experiment:
    """Settings of one script, and what is told of them.

    settings: {name: the arguments of its runs}, more than one run where each trains some of the tasks.
    measures: {column of the table: (part, measure) as in results.json or, of the part `late`, as in TensorBoard},
        shares, shown in per cent; the last one is compared with that of the setting `baseline`, seed by seed.
    attributes: the same for a second table, without comparison.
    further: (column, setting, other), differences in a column of either table that are told too.
    """

    title: str
    settings: dict
    measures: dict
    script: str = "fashion_mnist_multi_task_learning.py"
    baseline: str = "baseline"
    attributes: dict = dataclasses.field(default_factory=dict)
    further: tuple = ()


GARMENTS = {"item": ("test", "item"), "group": ("test", "group"), "overall": ("test", "accuracy")}
CONTROL = "cross-stitch, attributes not trained, no L2"
CONTROL_OF_ATTRIBUTES = "cross-stitch, landmarks not trained, no L2"
WIDE = "one network, twice as wide, no L2"
LATE = "overall, last ten evaluations"  # their mean: at a constant rate a single one says little
LONG = {"item": ("test", "item"), "group": ("test", "group"), LATE: ("late", "summary/accuracy_test")}
LONG |= {"overall": ("test", "accuracy")}
SHARING = (  # what a task gains, without and with what the other one learns; and what is gained by learning α
    ("item", "init 0.5, group not trained", "baseline"),
    ("item", "init 0.5", "init 0.5, group not trained"),
    ("group", "init 0.5, item not trained", "baseline"),
    ("group", "init 0.5", "init 0.5, item not trained"),
    ("overall", "init 0.5", "init 0.5, α fixed"),
)
FACES = {"gender": ("test", "gender"), "age": ("test", "age"), "overall": ("test", "accuracy")}
PAPERS = {"cross_stitch_unit": "channel"}
OF_2018 = {
    name: {"preset": "2018", "precision": "bfloat16", **run}
    for name, run in {"baseline": PAPERS | BASELINE, "channel": PAPERS, "activation": {}}.items()
}
POSTER = {"preset": "poster", "eval_every": 630}  # ten epochs
ATTRIBUTES = ("gender", "smile", "glasses", "pose")


FULL = {  # settings on all training images, otherwise the script's defaults
    "baseline": [BASELINE],
    "channel": [{}],
    "layer": [{"cross_stitch_unit": "layer"}],
    "channel, 0.9, ×100": [PAPER],
}
AVERAGED = {"baseline, batch norm over 1000 steps": [{**BASELINE, "bn_momentum": 0.999}]}  # as the original did
LATER = tuple((LATE, setting, "baseline") for setting in FULL | STARTS if setting != "baseline")


def decaying(settings, n_epoch):
    """Returns the settings of so many epochs with a learning rate that halves in each sixth of them.

    At a constant one the last steps of some runs throw them back by more than what is compared (RESULTS.md, Garments).
    """
    return {name: [{**run, "lr_half_life": n_epoch / 6} for run in runs] for name, runs in settings.items()}


def scarce(fraction, n_epoch, further):
    """Returns the settings on a part of the training images, and `further` ones, {name: arguments of its one run}.

    All have 1,410 to 1,500 steps, and are evaluated every 141.
    """
    common = {"train_fraction": fraction, "n_epoch": n_epoch, "eval_every": 141}
    settings = {
        "single-task": [{"tasks": ["item"]}, {"tasks": ["group"]}],
        "baseline": [BASELINE],
        "channel": [{}],
        "channel, as in the paper": [{**PAPER, "pretrain_epoch": n_epoch // 3}],
        **{name: [run] for name, run in further.items()},
    }
    return {name: [{**common, **run} for run in runs] for name, runs in settings.items()}


# The last three are controls. The column of a task that is not trained has nothing of its own to learn, so what the
# other one gains is gained by a wider network, not by sharing between tasks. Units whose α are fixed share without
# learning how much.
HALVES = {"init 0.5": HALF, **NOT_TRAINED, "init 0.5, α fixed": {**HALF, "cross_stitch_lr_scale": 0.0}}
ABLATIONS = {  # what differs from `channel` in one thing
    "layer": {"cross_stitch_unit": "layer"},
    "activation": {"cross_stitch_unit": "activation"},
    "init 0.9": {"cross_stitch_init": 0.9},
    "units' rate × 10": {"cross_stitch_lr_scale": 10.0},
    "units' rate × 100": {"cross_stitch_lr_scale": 100.0},
    "units' rate × 1000": {"cross_stitch_lr_scale": 1000.0},
    "pretrained, 5 epochs": {"pretrain_epoch": 5},
    "unit at pool_1 only": {"cross_stitch_at": ["pool_1"]},
    "unit at pool_2 only": {"cross_stitch_at": ["pool_2"]},
    "unit at fc_3 only": {"cross_stitch_at": ["fc_3"]},
}


def landmarks():
    """Returns the six settings of the poster's table, one network, a split one, and two columns, and controls.

    The first control has units and no attributes to learn: what it gains is gained by a wider network, not by sharing.
    Its second column gets small gradients, and the L2 term starves it in most runs, so the others have no L2.
    """
    not_trained = {"aux_lambda": [0.0]}
    settings = {
        "one network, landmarks alone": {"network": "single"},
        "one network, split": {"network": "split"},
        "two columns": BASELINE,
        "cross-stitch": {},
        "cross-stitch, attributes not trained": not_trained,
        "cross-stitch, related weights, l2": {"weight_reg": "l2", "weight_reg_lambda": 1e-6},
        "cross-stitch, related weights, exp": {"weight_reg": "exp", "weight_reg_lambda": 1e-2},
        "two columns, no L2": BASELINE | {"reg_lambda": 0.0},
        "cross-stitch, no L2": {"reg_lambda": 0.0},
        CONTROL: not_trained | {"reg_lambda": 0.0},
    }
    return {name: [{"eval_every": 625, **change}] for name, change in settings.items()}


def long_landmarks():
    """Returns four of these settings, trained three times as long.

    The half-life was chosen by the single network's error on the validation faces: 1.95 % with 12, 2.00 with 18.
    """
    names = ("one network, landmarks alone", "two columns", "cross-stitch", CONTROL)
    return {name: [{**landmarks()[name][0], "n_epoch": 60, "lr_half_life": 12.0}] for name in names}


def wide_landmarks():
    """Returns the settings without L2, and one network, as it is and as wide as two columns, in bfloat16.

    And a control the other way round: what the attributes gain beside a column whose landmarks are not trained.
    The wide one's learning rate is the best of three by its error on the validation faces: 2.73 % with 0.004, the
    default, 2.50 with 0.002, 2.46 with 0.001.
    """
    without = {name: runs[0] for name, runs in landmarks().items() if name.endswith("no L2")}
    without[CONTROL_OF_ATTRIBUTES] = {"landmark_lambda": 0.0, "reg_lambda": 0.0}
    without["one network, no L2"] = {"network": "single", "reg_lambda": 0.0}
    without[WIDE] = {"network": "single", "preset": "wide", "reg_lambda": 0.0, "lr": 0.001}
    return {name: [{"eval_every": 625, "precision": "bfloat16", **run}] for name, run in without.items()}


SHOWN = (  # README's figure: what it says, the experiment, the setting and the measure; its table has the rows with *
    ("* Fashion-MNIST, all images, setting of 2018", "setting_2018", "channel", LATE),
    ("* all images, constant rate", "full", "channel", LATE),
    ("* all images, decaying rate, 15 epochs", "decaying_15", "channel", "overall"),
    ("* 15 epochs, each unit starts at one half", "decaying_15", "init 0.5", "overall"),
    ("* all images, decaying rate, 30 epochs", "decaying", "channel", "overall"),
    ("* 30 epochs, each unit starts at one half", "decaying", "init 0.5", "overall"),
    ("* 10 % of the images, constant rate", "constant_10", "channel", "overall"),
    ("25 % of the images, decaying rate", "scarce_25", "channel", "overall"),
    ("25 %, each unit starts at one half", "scarce_25", "init 0.5", "overall"),
    ("10 % of the images, decaying rate", "scarce_10", "channel", "overall"),
    ("10 %, each unit starts at one half", "scarce_10", "init 0.5", "overall"),
    ("5 % of the images, decaying rate", "scarce_5", "channel", "overall"),
    ("5 %, each unit starts at one half", "scarce_5", "init 0.5", "overall"),
    ("1 % of the images, decaying rate", "scarce_1", "channel", "overall"),
    ("1 %, each unit starts at one half", "scarce_1", "init 0.5", "overall"),
    ("* faces (UTKFace): gender and age", "gender_age_decaying", "channel", "overall"),
    ("* faces, each unit starts at one half", "gender_age_decaying", "init 0.5", "overall"),
    ("* faces, from one half, constant rate", "gender_age", "init 0.5", "overall"),
    ("* landmarks (MTFL), 20 epochs", "landmarks", "cross-stitch", "mean error"),
    ("the same without L2", "landmarks_width", "cross-stitch, no L2", "mean error"),
    ("without L2, the second column has no task", "landmarks_width", CONTROL, "mean error"),
    ("without L2, no units: one network of twice the width", "landmarks_width", WIDE, "mean error"),
    ("* landmarks, 60 epochs", "landmarks_60", "cross-stitch", "mean error"),
    ("the same, without L2, the second column has no task", "landmarks_60", CONTROL, "mean error"),
)
EXPERIMENTS = {
    "full": Experiment(
        "Fashion-MNIST, all 60,000 training images, constant learning rate", FULL | AVERAGED, LONG, further=LATER
    ),
    "decaying": Experiment(
        "Fashion-MNIST, all 60,000 training images",
        decaying({name: [run] for name, run in STARTS.items()}, 30),
        LONG,
        further=LATER,
    ),
    "decaying_15": Experiment(
        "Fashion-MNIST, all 60,000 training images, 15 epochs, in bfloat16",
        decaying(
            {name: [{**run, "n_epoch": 15, "precision": "bfloat16"}] for name, run in (STARTS | NOT_TRAINED).items()},
            15,
        ),
        LONG,
        further=LATER + SHARING[:4],
    ),
    **{
        f"scarce_{percentage}": Experiment(
            f"Fashion-MNIST, {percentage} % of the training images, {steps} steps",
            decaying(scarce(percentage / 100, n_epoch, HALVES | (ABLATIONS if percentage == 10 else {})), n_epoch),
            GARMENTS,
            further=SHARING,
        )
        for percentage, n_epoch, steps in ((25, 12, "1,416"), (10, 30, "1,410"), (5, 60, "1,440"), (1, 300, "1,500"))
    },
    "constant_10": Experiment("Fashion-MNIST, 10 %, constant learning rate", scarce(0.1, 30, {}), GARMENTS),
    "constant_1": Experiment("Fashion-MNIST, 1 %, constant learning rate", scarce(0.01, 300, {}), GARMENTS),
    "gender_age": Experiment(
        "UTKFace, 12,784 training images, 8 epochs, constant learning rate",
        {name: [run] for name, run in STARTS.items()},
        FACES,
        "gender_age_multi_task_learning.py",
    ),
    "gender_age_decaying": Experiment(
        "UTKFace, 8 epochs, the rate halves in each sixth of them, in bfloat16",
        decaying({name: [{**run, "precision": "bfloat16"}] for name, run in (STARTS | AGE_ALONE).items()}, 8),
        FACES,
        "gender_age_multi_task_learning.py",
        further=(
            ("age", "init 0.5", "baseline"),
            ("age", "init 0.5, gender not trained", "baseline"),
            ("age", "init 0.5", "init 0.5, gender not trained"),
        ),
    ),
    "three_tasks": Experiment(
        "UTKFace, 12,784 training images, 8 epochs, constant learning rate, three tasks",
        {"channel": [{"tasks": ["gender", "age", "ethnicity"]}]},
        {"ethnicity": ("test", "ethnicity"), **FACES},
        "gender_age_multi_task_learning.py",
    ),
    "landmarks": Experiment(
        "MTFL, 8,000 training faces, 20 epochs",
        landmarks(),
        {
            "failure rate": ("test", "failure_rate"),
            "failure rate of AFLW": ("aflw", "failure_rate"),
            "mean error of AFLW": ("aflw", "mean_error"),
            "mean error": ("test", "mean_error"),
        },
        "facial_landmark_multi_task_learning.py",
        "two columns",
        attributes={f"{task} of AFLW": ("aflw", task) for task in ATTRIBUTES},
        further=(
            ("mean error", "cross-stitch", "cross-stitch, attributes not trained"),
            ("mean error", "cross-stitch, no L2", "two columns, no L2"),
            ("mean error", CONTROL, "two columns, no L2"),
            ("mean error", "cross-stitch, no L2", CONTROL),
            ("mean error", "cross-stitch, related weights, l2", "cross-stitch"),
            ("mean error", "cross-stitch, related weights, exp", "cross-stitch"),
            ("mean error", "one network, split", "one network, landmarks alone"),
        ),
    ),
    "landmarks_60": Experiment(
        "MTFL, 8,000 training faces, 60 epochs",
        long_landmarks(),
        {"failure rate": ("test", "failure_rate"), "mean error": ("test", "mean_error")},
        "facial_landmark_multi_task_learning.py",
        "two columns",
        attributes={f"{task} of AFLW": ("aflw", task) for task in ATTRIBUTES},
        further=(("mean error", "cross-stitch", CONTROL),),
    ),
    "landmarks_width": Experiment(
        "MTFL, 7,999 training faces, 20 epochs, without L2, in bfloat16",
        wide_landmarks(),
        {"failure rate": ("test", "failure_rate"), "mean error": ("test", "mean_error")},
        "facial_landmark_multi_task_learning.py",
        "two columns, no L2",
        attributes={f"{task} of AFLW": ("aflw", task) for task in ATTRIBUTES},
        further=(
            ("mean error", "cross-stitch, no L2", CONTROL),
            ("mean error", CONTROL, "one network, no L2"),
            ("mean error", WIDE, "one network, no L2"),
            *(
                (f"{task} of AFLW", one, other)
                for task in ATTRIBUTES
                for one, other in (
                    ("cross-stitch, no L2", "two columns, no L2"),
                    (CONTROL_OF_ATTRIBUTES, "two columns, no L2"),
                    ("cross-stitch, no L2", CONTROL_OF_ATTRIBUTES),
                )
            ),
        ),
    ),
    "bfloat16": Experiment(
        "Fashion-MNIST, 10 % of the images, decaying rate, cross-stitch in both precisions",
        {
            name: [{**decaying(scarce(0.1, 30, {}), 30)["channel"][0], "precision": name}]
            for name in ("float32", "bfloat16")
        },
        GARMENTS,
        baseline="float32",
    ),
    "bfloat16_landmarks": Experiment(
        "MTFL, 20 epochs, cross-stitch in both precisions",
        {name: [{"eval_every": 625, "precision": name}] for name in ("float32", "bfloat16")},
        {"failure rate": ("test", "failure_rate"), "mean error": ("test", "mean_error")},
        "facial_landmark_multi_task_learning.py",
        baseline="float32",
    ),
    "setting_2018": Experiment(
        "Fashion-MNIST, all 60,000 training images, the setting of 2018, in bfloat16",
        {name: [run] for name, run in OF_2018.items()},
        {"overall": ("test", "accuracy"), LATE: ("late", "summary/accuracy_test")},
        further=(("overall", "channel", "baseline"),),
    ),
    "dense_2018": Experiment(
        "Fashion-MNIST, all 60,000 training images, the setting of 2018, its first 20 of 30 epochs, in bfloat16",
        {name: [{**run, "n_epoch": 20}] for name, run in OF_2018.items()},
        {"overall": ("test", "accuracy"), LATE: ("late", "summary/accuracy_test")},
    ),
    "dense_2018_30": Experiment(
        "Fashion-MNIST, all 60,000 training images, the setting of 2018, in float32",
        {"baseline": [{"preset": "2018", **BASELINE}], "activation": [{"preset": "2018"}]},
        {"overall": ("test", "accuracy"), LATE: ("late", "summary/accuracy_test")},
    ),
    "poster": Experiment(
        "MTFL, 7,999 training faces, the poster's setting, 100 epochs",
        {
            "two columns": [{**POSTER, **BASELINE, "weight_reg": "none"}],
            "cross-stitch": [{**POSTER, "weight_reg": "none"}],
            "cross-stitch, related weights, l2": [POSTER],
        },
        {"failure rate": ("test", "failure_rate"), "mean error": ("test", "mean_error")},
        "facial_landmark_multi_task_learning.py",
        "two columns",
        further=(("mean error", "cross-stitch, related weights, l2", "cross-stitch"),),
    ),
}


@functools.cache
def load(experiment):
    """Returns {setting: {seed: {part: measures, ...}}} as stored, seeds as strings; empty if there is none."""
    path = os.path.join(RESULTS, f"{experiment}.json")
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        return json.load(file)


def store(experiment, setting, seed, entry):
    """Adds the entry of one setting and seed to the results of the experiment, all of the file or nothing.

    Raises SystemExit if the entries of other seeds have other arguments, sizes or versions.
    """
    load.cache_clear()  # another process may have stored since
    results = load(experiment)
    of_setting = results.setdefault(setting, {})
    for other in of_setting.values():
        for key in ("arguments", "sizes", "versions"):
            if entry.get(key) != other.get(key):
                raise SystemExit(f"error: {experiment}, {setting}: other {key} than those of the seeds that are stored")
    of_setting[str(seed)] = entry
    path = os.path.join(RESULTS, f"{experiment}.json")
    with open(f"{path}.partial", "w") as file:
        lines = [
            f'"{setting}": {{\n' + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in of_seed.items()) + "\n}"
            for setting, of_seed in results.items()
        ]
        file.write("{\n" + ",\n".join(lines) + "\n}\n")  # a line for each run
    os.replace(f"{path}.partial", path)


def run_script(script, log_dir, arguments, data_dir):
    """Trains in `log_dir`, or goes on there, unless the run is finished; returns its results.json and `commit`.

    That is the one that was checked out when it began, which a file beside the run's tells. Raises SystemExit if the
    run fails, or if the folder holds a run of other arguments.
    """
    begun, path, of_commit = (os.path.join(log_dir, name) for name in ("run.json", "results.json", "commit"))
    if not os.path.exists(begun):
        os.makedirs(log_dir, exist_ok=True)
        with open(of_commit, "w") as file:
            file.write(commit())
    else:
        with open(begun) as file:
            had = json.load(file)["arguments"]
        for name, value in arguments.items():
            if had.get(name) != value:
                raise SystemExit(f"error: {log_dir}: expected a run with --{name} {value}, it has {had.get(name)}")
    if not os.path.exists(path):
        named = {"resume": log_dir} if os.path.exists(begun) else {**arguments, "log_dir": log_dir}
        named |= {"data_dir": data_dir} if data_dir else {}
        lists = {name: value if isinstance(value, list) else [value] for name, value in named.items()}
        flags = [str(word) for name, values in lists.items() for word in (f"--{name}", *values)]
        finished = subprocess.run([sys.executable, script, *flags], cwd=ROOT, stdout=subprocess.DEVNULL)
        if finished.returncode:
            raise SystemExit(f"error: {script} {' '.join(flags)} ended with status {finished.returncode}")
    with open(path) as file, open(of_commit) as commit_file:
        results = {**json.load(file), "commit": commit_file.read()}
    if "SAMPLE" in results["data"].get("warning", ""):
        raise SystemExit("error: Fashion-MNIST was not found, and figures from its sample say nothing about it")
    shutil.rmtree(os.path.join(log_dir, "checkpoints"), ignore_errors=True)  # 156 MB
    return results


def log_dir_of(folder, name, setting, number, seed):
    """Returns the log folder of a run: of an experiment, a setting, the number of the run in it, and a seed."""
    words = "".join(c if c.isalnum() else "-" for c in setting)
    return os.path.abspath(os.path.join(folder, name, f"{words}-{number}-seed{seed}"))


def commit():
    """Returns the commit that is checked out, after it a + and a hash of the changes in the tree if it has any."""
    git = ["git", "-C", ROOT]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changes = subprocess.run([*git, "diff", "HEAD", "*.py"], capture_output=True).stdout
    return name + (f"+{hashlib.sha256(changes).hexdigest()[:7]}" if changes else "")


def predict(module, log_dir, images, args):
    """Returns the outputs of a run's network, {task: logits (n, classes)}, of landmarks points (n, 5, 2)."""
    network = module.keras.models.load_model(os.path.join(log_dir, "model.keras"))
    if "landmarks" in network.output:
        images = module.centre(images, args.image_size)
    return network.predict(images, verbose=0)


def read_predictions(script, log_dir, arguments):
    """Returns what a run's network makes of the test part: {task: its class for each image, a digit or letter each}.

    Beside each task stands `<task>_truth`. Of landmarks it is each face's mean error, in hundredths of a per cent of
    the box.
    """
    sys.path.insert(0, ROOT)
    module, args = importlib.import_module(script.removesuffix(".py")), argparse.Namespace(**arguments)
    images, *_ = truth = module.prepare_data(args)[0]["test"]
    outputs = predict(module, log_dir, images, args)
    if "landmarks" in outputs:
        errors = module.face_measures(outputs["landmarks"], truth[1]).numpy()[:, 10]
        return {"mean_error": np.round(1e4 * errors).astype(int).tolist()}
    found = {task: x.argmax(axis=1) for task, x in outputs.items()}
    found |= {f"{task}_truth": truth[1][:, t] for t, task in enumerate(list(found))}
    return {name: "".join(np.base_repr(k, 36) for k in classes) for name, classes in found.items()}


def read_events(log_dir):
    """Returns the curves and the histograms of a run: {tag: [[step, value], ...]} and {tag: [[low, high, count], ...]}.

    The curves are the accuracies of `test`, all measures of `validation` and the means of α, the histograms those of α
    at the end.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(log_dir, size_guidance={"tensors": 0}).Reload()
    ends = ("/accuracy_test", "_validation", "/alpha_self", "/alpha_cross")
    tags = events.Tags()["tensors"]
    curves = {tag: [(e.step, make_ndarray(e.tensor_proto)) for e in events.Tensors(tag)] for tag in tags}
    return (
        {tag: [[step, round(float(v), 6)] for step, v in curve] for tag, curve in curves.items() if tag.endswith(ends)},
        {tag: np.round(curve[-1][1], 5).tolist() for tag, curve in curves.items() if tag.endswith("/alpha")},
    )


def train(name, seeds, folder, data_dir):
    """Runs what is missing of an experiment, seed by seed, so that a part of it is a fair comparison too."""
    experiment = EXPERIMENTS[name]
    missing = [(seed, s) for seed in seeds for s in experiment.settings if str(seed) not in load(name).get(s, {})]
    began = time.monotonic()
    for done, (seed, setting) in enumerate(missing):
        left = f", {(time.monotonic() - began) / done * (len(missing) - done) / 60:.0f} min left" if done else ""
        print(f"{name}: {setting}, seed {seed} ({done + 1} of {len(missing)}{left})", flush=True)
        entry = {"curves": [], "histograms": [], "arguments": []}
        for number, arguments in enumerate(experiment.settings[setting]):
            log_dir = log_dir_of(folder, name, setting, number, seed)
            results = run_script(experiment.script, log_dir, {**arguments, "seed": seed}, data_dir)
            weights = zip(results["classes"], arguments.get("task_weights", ()))
            meaningless = {task for task, weight in weights if weight == 0}
            meaningless |= set(ATTRIBUTES) if arguments.get("aux_lambda") == [0.0] else set()
            meaningless |= set(results["test"]) if arguments.get("landmark_lambda") == 0 else set()
            meaningless |= {"accuracy"} if meaningless else set()  # the mean with tasks that were not trained
            for part in results.keys() & {"test", "aflw", "validation"}:
                kept = {key: value for key, value in results[part].items() if key not in meaningless}
                entry[part] = {**entry.get(part, {}), **kept}
            for kind, found in zip(("curves", "histograms"), read_events(log_dir)):
                entry[kind].append(found)
            entry["arguments"].append({k: v for k, v in results["arguments"].items() if k not in OF_ONE_RUN})
            predictions = read_predictions(experiment.script, log_dir, results["arguments"])
            kept = {key: value for key, value in predictions.items() if key not in meaningless}
            entry["predictions"] = {**entry.get("predictions", {}), **kept}
            entry |= {key: results[key] for key in ("parameters", "images_per_second", "versions", "commit")}
            entry |= {key: results["data"][key] for key in ("sha256", "sizes", "majority") if key in results["data"]}
        for part in entry.keys() & {"test", "aflw", "validation"}:
            if "accuracy" in entry[part]:  # of tasks that were trained each in a run of its own
                entry[part]["accuracy"] = statistics.fmean(v for k, v in entry[part].items() if k != "accuracy")
        store(name, setting, seed, entry)


def measured(entry, part, measure):
    """Returns a measure of a stored run, a share, or None if it does not have it.

    The part `late` is a curve's mean over the last ten evaluations.
    """
    if part == "late":
        values = [value for _, value in entry["curves"][0][measure]]
        return statistics.fmean(values[-10:]) if len(values) > 10 and "accuracy" in entry["test"] else None
    return entry[part].get(measure)


def paired(name, setting, other, column=None):
    """Returns what a column of an experiment, by default the last, is in one setting minus in another, seed by seed.

    `common`, those seeds; `differences`, a number each; their mean `difference`; and from three on `interval`, its 95 %
    confidence interval, and `p`, the p-value of the paired t-test. Empty where no seed of both has this measure.
    """
    measures, attributes = EXPERIMENTS[name].measures, EXPERIMENTS[name].attributes
    part, measure = (measures | attributes)[column or list(measures)[-1]]
    one, two = (load(name).get(key, {}) for key in (setting, other))
    values = [{seed: measured(entry, part, measure) for seed, entry in of_seed.items()} for of_seed in (one, two)]
    both = [seed for seed in sorted(one.keys() & two.keys()) if None not in (values[0][seed], values[1][seed])]
    common = [seed for seed in both if all(one[seed].get(k) == two[seed].get(k) for k in ("commit", "sha256"))]
    if not common:
        return {}
    return {"common": common, **difference([values[0][seed] - values[1][seed] for seed in common])}


def difference(differences):
    """Returns the `differences`, their mean `difference` and, of three or more, `interval` and `p`, by the t-test."""
    from scipy.stats import ttest_1samp

    found = {"differences": differences, "difference": statistics.fmean(differences)}
    if len(differences) > 2:  # of two seeds it is so wide that it says nothing
        test = ttest_1samp(differences, 0)
        found |= {"interval": tuple(test.confidence_interval(0.95)), "p": float(test.pvalue)}
    return found


def scores(entry):
    """Returns what each test image adds to the last measure of a stored run, or None where that is not stored."""
    predictions = entry.get("predictions", {})
    if "mean_error" in predictions:
        return np.array(predictions["mean_error"]) / 1e4
    hits = [
        np.equal(*(np.array(list(predictions[key])) for key in (task, f"{task}_truth")))
        for task in predictions
        if f"{task}_truth" in predictions
    ]
    return np.mean(hits, axis=0) if hits else None


def over_images(name, setting, other, seeds):
    """Returns half the width of a 95 % interval of a difference, over the test images instead of over the seeds.

    That is what other test images of the same kind could change in the mean over these seeds' networks. None where
    the predictions of one of them are not stored.
    """
    pairs = [[scores(load(name)[key][seed]) for key in (setting, other)] for seed in seeds]
    if any(of_images is None for pair in pairs for of_images in pair):
        return None
    of_images = np.mean([one - two for one, two in pairs], axis=0)
    return 1.96 * np.std(of_images, ddof=1) / len(of_images) ** 0.5


def compare(name):
    """Returns a row per setting with results: its name, how many seeds it has, and how it differs from the baseline."""
    experiment, results, rows = EXPERIMENTS[name], load(name), []
    for setting in [setting for setting in experiment.settings if setting in results]:
        difference = paired(name, setting, experiment.baseline) if setting != experiment.baseline else {}
        if difference and list(experiment.measures.values())[-1][0] == "test":
            difference["over_images"] = over_images(name, setting, experiment.baseline, difference["common"])
        rows.append({"setting": setting, "seeds": len(results[setting]), **difference})
    return rows


def compare_further(name):
    """Returns a row per further pair of settings with results: what is compared, and how they differ."""
    rows = []
    for column, one, other in EXPERIMENTS[name].further:
        if found := paired(name, one, other, column):
            rows.append({"setting": f"{column}: {one}, minus {other}", **found})
    return rows


def percent(value, sign=False):
    """Returns a share as per cent with two digits."""
    return f"{100 * value:{'+' if sign else ''}.2f}"


def spread(values):
    """Returns the mean of shares and, if there are several, their standard deviation, in per cent, or nothing."""
    text = percent(statistics.fmean(values)) if values else ""
    return text + (f" ± {percent(statistics.stdev(values))}" if len(values) > 1 else "")


def columns_of(of_seed, measures):
    """Returns the cells of a row: each measure over the seeds, empty where the setting does not have it."""
    values = [[measured(entry, part, measure) for entry in of_seed.values()] for part, measure in measures]
    return [spread([value for value in of_measure if value is not None]) for of_measure in values]


def chance(results, measures):
    """Returns the cells of the row of the most frequent class, None if the data do not tell it."""
    majority = next(iter(next(iter(results.values())).values())).get("majority", {})
    shares = [majority[measure] for _, measure in measures if measure in majority]
    if not shares:
        return None
    shares = [share if isinstance(share, float) else share["aflw"] for share in shares]
    if measures[-1][1] == "accuracy":
        shares.append(statistics.fmean(shares))
    return [percent(share) for share in shares]


def holm(values):
    """Returns p-values corrected for their number by Holm's method, None where there is none."""
    known = sorted((p, k) for k, p in enumerate(values) if p is not None)
    corrected, largest = [None] * len(values), 0.0
    for place, (p, k) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - place)))
        corrected[k] = largest
    return corrected


def difference_cells(rows):
    """Returns three cells for each of the rows: the difference with its 95 % interval, p, and p by Holm's method.

    Where fewer pairs than the row has seeds could be made, their number stands beside the difference.
    """
    cells = []
    for row, corrected in zip(rows, holm([row.get("p") for row in rows])):
        cell = percent(row["difference"], True) if "difference" in row else ""
        if "interval" in row:
            cell += f" [{', '.join(percent(end, True) for end in row['interval'])}]"
        if 0 < len(row.get("common", ())) < row.get("seeds", 0):
            cell += f" (pairs: {len(row['common'])})"
        ps = (f"{p:.2f}" if p >= 0.005 else "< 0.01" for p in (row["p"], corrected)) if "p" in row else ("", "")
        cells.append([cell, *ps])
    return cells


def table(name):
    """Returns the Markdown tables of one experiment, a list of lines."""
    experiment, results = EXPERIMENTS[name], load(name)
    columns, measures = list(experiment.measures), list(experiment.measures.values())
    lines = [f"**{experiment.title[0].upper()}{experiment.title[1:]}**, in %", ""]
    rows = compare(name)
    compared = any("difference" in row for row in rows)
    head = ["setting", "seeds", *columns]
    head += [f"{columns[-1]} minus {experiment.baseline}, paired", "p", "p (Holm)"] * compared
    by_image = any(row.get("over_images") for row in rows)
    head += ["± over test images"] * by_image
    lines += [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for row, differences in zip(rows, difference_cells(rows)):
        cells = [row["setting"], str(row["seeds"]), *columns_of(results[row["setting"]], measures)]
        cells += differences * compared
        cells += [percent(row["over_images"]) if row.get("over_images") else ""] * by_image
        lines.append(f"| {' | '.join(cells)} |")
    if always := chance(results, measures):
        lines.append(f"| {' | '.join([CHANCE, '', *always, *[''] * (3 * compared + by_image)])} |")
    if rows := compare_further(name):
        lines += ["", "| paired | seeds | difference | p | p (Holm) |", "|---|---:|---:|---:|---:|"]
        for row, cells in zip(rows, difference_cells(rows)):
            lines.append(f"| {row['setting']} | {len(row['common'])} | {' | '.join(cells)} |")
    if experiment.attributes:
        columns, measures = list(experiment.attributes), list(experiment.attributes.values())
        lines += ["", f"| accuracy | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
        for setting in [setting for setting in experiment.settings if setting in results]:
            cells = columns_of(results[setting], measures)
            if any(cells):
                lines.append(f"| {setting} | {' | '.join(cells)} |")
        lines.append(f"| {CHANCE} | {' | '.join(chance(results, measures))} |")
    return lines


def shown():
    """Returns a row for each of SHOWN that is measured: its label, what `paired` found, and the two means, in words."""
    rows = []
    for label, name, setting, column in SHOWN:
        if found := paired(name, setting, EXPERIMENTS[name].baseline, column):
            part, measure = EXPERIMENTS[name].measures[column]
            means = []
            for key in (EXPERIMENTS[name].baseline, setting):
                values = [measured(load(name)[key][seed], part, measure) for seed in found["common"]]
                means.append(percent(statistics.fmean(values)))
            rows.append({"label": label, **found, "means": means, "column": column})
    return rows


def summary():
    """Returns README's table of what cross-stitch changes, a list of lines."""
    head = "| data | measured, in % | without | with | difference, 95 % interval | seeds |"
    lines = [head, "|---|---|" + "---:|" * 4]
    what = {LATE: "accuracy, last ten evaluations", "mean error": "mean error, of the face box's width"}
    for row in shown():
        if row["label"].startswith("* ") and "interval" in row:
            cells = [
                row["label"][2:],
                what.get(row["column"], "accuracy"),
                *row["means"],
                difference_cells([row])[0][0],
            ]
            lines.append(f"| {' | '.join(cells)} | {len(row['common'])} |")
    return lines


def speed():
    """Returns the table of what throughput.py measured, a list of lines."""
    with open(os.path.join(RESULTS, "throughput.json")) as file:
        seconds = json.load(file)["seconds_per_step"]
    lines = ["| | ms a step | fastest and slowest round | time / ours |", "|---|---:|---:|---:|"]
    for name, values in seconds.items():
        median, low, high = (f"{1e3 * f(values):.0f}" for f in (statistics.median, min, max))
        ratio = statistics.median(a / b for a, b in zip(values, seconds["ours"]))
        lines.append(f"| {name} | {median} | {low} to {high} | {ratio:.2f} |")
    return lines


def published_2018():
    """Returns the curves of test accuracy that the 2018 repository shows, (n, 3): step, without units, with them."""
    return np.genfromtxt(os.path.join(RESULTS, "published_2018_test_accuracy.csv"), delimiter=",", skip_header=1)


def course_of_2018():
    """Returns the table of the test accuracy by epochs in the setting of 2018, a list of lines: ours, the published.

    The last rows are what units gain over none, seed by seed.
    """
    windows = ((3, 5), (6, 10), (11, 15), (16, 20), (21, 30))

    def course(steps, accuracy):  # its mean within each window, NaN if there is none
        epochs = steps / 469
        within = [accuracy[(first - 1 < epochs) & (epochs <= last)] for first, last in windows]
        return np.array([np.nanmean(part) if part.size else np.nan for part in within])

    def runs(names, setting):  # {seed: course}; a seed that was run in both precisions counts once, by their mean
        found = collections.defaultdict(list)
        for seed, entry in [item for name in names for item in load(name).get(setting, {}).items()]:
            found[seed].append(course(*np.transpose(entry["curves"][0]["summary/accuracy_test"])))
        return {seed: np.mean(courses, axis=0) for seed, courses in found.items()}

    dense, papers = ("setting_2018", "dense_2018", "dense_2018_30"), ("setting_2018",)
    steps, *published = published_2018().T
    without, stitched = ({"published": course(steps, accuracy)} for accuracy in published)
    rows = {
        "without units": runs(papers, "baseline"),
        "without units, published": without,
        "dense units": runs(dense, "activation"),
        "dense units, published": stitched,
        "the paper's units": runs(papers, "channel"),
    }
    pairs = {
        "dense units": (rows["dense units"], runs(dense, "baseline")),
        "dense units, published": (stitched, without),
        "the paper's units": (rows["the paper's units"], rows["without units"]),
    }
    lines = ["| | seeds | " + " | ".join(f"{first} to {last}" for first, last in windows) + " |"]
    lines.append("|---|" + "---:|" * (1 + len(windows)))
    for label, found in rows.items():
        cells = [spread([value for value in column if np.isfinite(value)]) for column in zip(*found.values())]
        lines.append(f"| {label} | {len(found)} | {' | '.join(cells)} |")
    for label, (one, other) in pairs.items():
        gains = [one[key] - other[key] for key in sorted(one.keys() & other.keys())]
        columns = [[value for value in column if np.isfinite(value)] for column in zip(*gains)]
        cells = [cell for cell, *_ in difference_cells([difference(column) for column in columns])]
        lines.append(f"| {label}, minus none, paired | {len(gains)} | {' | '.join(cells)} |")
    return lines


def averages():
    """Returns the table of what average.py measured, a list of lines: single networks, and pairs of them, averaged."""
    lines = ["| experiment | network | measure | one | two, averaged | pairs | difference, lowest and highest pair |"]
    lines += ["|---|---|---|" + "---:|" * 4]
    for name, settings in load("averages").items():
        for setting, measures in settings.items():
            for measure, of_pair in measures.items():
                networks = {seed for pair in of_pair for seed in pair.split()}
                one = {seed: load(name)[setting][seed]["test"][measure] for seed in networks}
                gains = [two - statistics.fmean(one[seed] for seed in pair.split()) for pair, two in of_pair.items()]
                cells = [*(percent(statistics.fmean(x.values())) for x in (one, of_pair)), str(len(gains))]
                mean, low, high = (percent(f(gains), True) for f in (statistics.fmean, min, max))
                cells.append(f"{mean} ({low} to {high})")
                lines.append(f"| `{name}` | {setting} | {measure.replace('_', ' ')} | {' | '.join(cells)} |")
    return lines


def tables(names):
    """Returns the tables of those of the named experiments that have results, as Markdown."""
    return "\n\n".join("\n".join(table(name)) for name in names if load(name))


def fill(text):
    """Returns README's text with the tables between their marks, which name the experiments, made anew."""
    marks = re.compile(
        r"(<!-- results of (.+?), by benchmarks/compare\.py -->\n).*?(<!-- end of results -->)", re.DOTALL
    )

    def made(mark):
        special = {"summary": summary, "throughput": speed, "averages": averages, "2018": course_of_2018}
        content = "\n".join(special[mark[2]]()) if mark[2] in special else tables(mark[2].split(", "))
        return mark[1] + content + "\n" + mark[3]

    return marks.sub(made, text)


def digest():
    """Returns a hash of all stored results, which the figures carry to show what they were drawn from."""
    content = json.dumps({name: load(name) for name in EXPERIMENTS}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def draw_differences(plt, path):
    """Draws what cross-stitch gains in each row of SHOWN: a dot for each seed, the mean and its 95 % interval."""
    rows = [row for row in shown() if "interval" in row]
    figure, axes = plt.subplots(figsize=(8.8, 0.42 * len(rows) + 1.2))
    for place, row in enumerate(rows):
        sign = -100 if "error" in row["column"] else 100  # an error that falls is a gain
        name = f"{row['label'].removeprefix('* ')} ({len(row['common'])})"
        axes.text(-0.02, place, name, ha="right", va="center", transform=axes.get_yaxis_transform(), fontsize=10)
        axes.plot([sign * d for d in row["differences"]], [place] * len(row["common"]), "o", color="#2a6fbb", alpha=0.4)
        axes.plot([sign * end for end in row["interval"]], [place, place], color="#2a6fbb", lw=2.2)
        axes.plot(sign * row["difference"], place, "|", color="#2a6fbb", markersize=13, markeredgewidth=2.2)
    axes.axvline(0, color="#444444", lw=1)
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-1.7, 1.5)  # one seed is at -3.4, as README says; with it the others would be too close to see
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_xlabel("gain over two columns without units, same seed (percentage points)      better →")
    figure.savefig(
        path, dpi=110, facecolor="white", bbox_inches="tight", pad_inches=0.15, metadata={"Source": digest()}
    )


def draw_curves(plt, path):
    """Draws the test accuracy over training on all garments, mean and range over the seeds, and the published one."""
    panels = {
        "full": "constant rate",
        "decaying_15": "decaying rate, half the epochs",
        "setting_2018": "setting of 2018",
        "dense_2018_30": "setting of 2018 in float32, and published",
    }
    kinds = [("baseline", "#777777", "without units"), ("channel", "#1b6ca8", "with units")]
    kinds += [("activation", "#d1495b", "dense units")]
    figure, axes_of = plt.subplots(2, 2, figsize=(10, 6.6), sharex=True, sharey=True)
    for axes, (name, title) in zip(axes_of.flat, panels.items()):
        for setting, colour, label in [kind for kind in kinds if kind[0] in load(name)]:
            curves = [entry["curves"][0]["summary/accuracy_test"] for entry in load(name)[setting].values()]
            steps, values = np.transpose(curves[0])[0], 100 * np.array(curves)[:, :, 1]
            axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0)
            axes.plot(steps, values.mean(axis=0), color=colour, lw=1.6, label=f"{label} ({len(curves)})")
        axes.set_title(title, fontsize=11)
        axes.set_ylim(88, 94.2)
        axes.grid(alpha=0.3)
    published = published_2018().T
    for values, (_, colour, label) in zip(published[1:], (kinds[0], kinds[2])):
        axes_of[1, 1].plot(published[0], 100 * values, ":", color=colour, lw=1.8, label=f"{label}, published")
    for axes in axes_of.flat:
        axes.legend(loc="lower right", fontsize=9)
    for axes in axes_of[1]:
        axes.set_xlabel("step")
    for axes in axes_of[:, 0]:
        axes.set_ylabel("test accuracy (%)")
    figure.tight_layout()
    figure.savefig(path, dpi=100, facecolor="white", metadata={"Source": digest()})


def draw_alphas(plt, path):
    """Draws the mean α of each unit over training, from three beginnings."""
    panels = {
        "channel": "from the identity",
        "init 0.5": "from one half",
        "channel, as in the paper": "the paper's values",
    }
    figure, axes_of = plt.subplots(1, 3, figsize=(9, 3.4), sharey=True)
    units = {"pool_1": ("#1b6ca8", 4), "pool_2": ("#d1495b", 2.4), "fc_3": ("#3a7d44", 1.2)}  # one may hide another
    for axes, (setting, title) in zip(axes_of, panels.items()):
        entries = list(load("scarce_10")[setting].values())
        for unit, (colour, width) in units.items():
            for kind, style in (("self", "-"), ("cross", "--")):
                curves = [dict(entry["curves"][0][f"units/{unit}/alpha_{kind}"]) for entry in entries]
                steps = sorted(set.intersection(*map(set, curves)))  # they were not always logged at the same ones
                values = [statistics.fmean(curve[step] for curve in curves) for step in steps]
                axes.plot(steps, values, style, color=colour, lw=width)
        if stitched := 47 * entries[0]["arguments"][0]["pretrain_epoch"]:  # epochs, each of 47 steps here
            axes.axvline(stitched, color="#444444", lw=1)
            axes.text(stitched + 25, 0.5, "stitched\nfrom here\non", fontsize=8, va="center")
        axes.set_title(f"{title} ({len(entries)} seeds)", fontsize=11)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    for place, (unit, (colour, _)) in enumerate(units.items()):
        axes_of[0].text(0.97, 0.6 - 0.09 * place, unit, color=colour, ha="right", transform=axes_of[0].transAxes)
    axes_of[0].set_ylabel("mean α: own (line), other (dashes)")
    figure.tight_layout()
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Source": digest()})


def draw():
    """Draws the figures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for make, path in zip((draw_differences, draw_curves, draw_alphas), FIGURES):
        make(plt, path)
        plt.close("all")


def write():
    """Puts the tables into README.md and RESULTS.md between their marks, and draws the figures."""
    for path in (README, REPORT):
        with open(path) as file:
            text = fill(file.read())
        with open(path, "w") as file:
            file.write(text)
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
    parser.add_argument("--data_dir", help="of the script, for faces")
    parser.add_argument("--folder", default=os.path.join(ROOT, "tf_logs", "compare"), help="of the log folders")
    args = parser.parse_args()
    data_dir = args.data_dir and os.path.abspath(args.data_dir)
    for name in args.experiments:
        train(name, args.seeds, args.folder, data_dir)
    write()


if __name__ == "__main__":
    main()
