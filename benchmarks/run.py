"""Train what is missing of an experiment, seed by seed, and store each finished run at once.

Every run is a process of its script with a log folder of its own below --folder. It can be stopped at any time: a run
that was finished is stored and never repeated, one that was interrupted is resumed. Several processes may run different
seeds at the same time; they store under a lock.
"""

import contextlib
import csv
import fcntl
import gzip
import hashlib
import importlib
import io
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy.special import softmax

from . import analysis
from .experiments import EXPERIMENTS, FACES, LANDMARKS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OF_ONE_RUN = ("seed", "log_dir", "data_dir")  # arguments that differ between the seeds of a setting
CURVES = ["experiment", "setting", "seed", "run", "tag", "step", "value"]


def run_experiment(name, seeds, settings, data_dir, folder, keep_models):
    """Train what is missing of some settings of an experiment, or of all. Print the table of one that is not stored."""
    experiment = EXPERIMENTS[name]
    settings = settings or list(experiment.settings)
    if unknown := set(settings) - set(experiment.settings):
        raise SystemExit(f"error: {name} has no setting {min(unknown)!r}; it has {', '.join(experiment.settings)}.")
    check_arguments(name, data_dir)
    commit = checked_out_commit() if experiment.stored else None
    todo = [(seed, setting) for seed in seeds for setting in settings]
    if experiment.stored:
        of_experiment = [record for record in read_records() if record["experiment"] == name]
        stored = {(record["setting"], record["seed"]) for record in of_experiment}
        todo = [(seed, setting) for seed, setting in todo if (setting, seed) not in stored]
        check_commit(name, {seed for seed, _ in todo}, of_experiment, commit)

    began = time.monotonic()
    records = []
    for number, (seed, setting) in enumerate(todo):
        left = ""
        if number > 0:
            minutes = (time.monotonic() - began) / number * (len(todo) - number) / 60
            left = f", about {minutes:.0f} minutes left"
        print(f"{name}: {setting}, seed {seed} ({number + 1} of {len(todo)}{left})", flush=True)
        same = same_run(name, setting, seed, commit, data_dir) if experiment.stored else None
        if same is not None:
            print(f"  copied from {same['experiment']}, {same['setting']}, which is the same run", flush=True)
            store(*copy_of(same, name, setting))
            continue
        record, curves, predictions = train(name, setting, seed, commit, data_dir, folder)
        records.append(record)
        if experiment.stored:
            store(record, curves, predictions)
            if not keep_models:
                shutil.rmtree(folder_of(folder, name, setting, seed), ignore_errors=True)
    if not experiment.stored:
        print_table(experiment, name, records)


def check_commit(name, seeds, records, commit):
    """Refuse to train seeds of which runs of another commit are stored: only runs of one commit make pairs."""
    for record in records:
        if record["seed"] in seeds and record["commit"] != commit:
            raise SystemExit(
                f"error: of {name}, seed {record['seed']}, a run by commit {record['commit']} is stored, and this is "
                f"{commit}; only runs of one commit are compared. Choose new seeds, or go on from that commit."
            )


def check_arguments(name, data_dir):
    """Let the script itself judge the arguments of every setting, before hours are spent on the first."""
    experiment = EXPERIMENTS[name]
    script = load_script(experiment.script)
    for setting, of_setting in experiment.settings.items():
        for arguments in of_setting.runs:
            try:
                script.parse_arguments(command_line({**arguments, "data_dir": data_dir, "log_dir": "unused"}))
            except script.Failure as failure:
                raise SystemExit(f"error: {name}, {setting}: {failure}") from None


def same_run(name, setting, seed, commit, data_dir):
    """Return the stored record of another experiment whose run is this one, or None.

    Script, arguments, seed, commit, data and versions are the same, so that training again would give the same bits.
    """
    import tensorflow as tf

    experiment = EXPERIMENTS[name]
    others = [other for other in EXPERIMENTS if other != name and EXPERIMENTS[other].script == experiment.script]
    candidates = [
        record
        for record in read_records()
        if record["experiment"] in others and record["seed"] == seed and record["commit"] == commit
    ]
    if not candidates:
        return None  # the data need not be read

    script = load_script(experiment.script)
    described = []
    for arguments in experiment.settings[setting].runs:
        words = command_line({**arguments, "seed": seed, "data_dir": data_dir, "log_dir": "unused"})
        args, _ = script.parse_arguments(words)
        with contextlib.redirect_stdout(io.StringIO()):
            described.append(script.describe_run(args, script.prepare_data(args), tf.distribute.get_strategy()))
    wanted = {
        "arguments": [common_arguments(description) for description in described],
        "data_sha256": described[0]["data"]["sha256"],
        "versions": described[0]["versions"],
    }
    for record in candidates:
        if all(record[what] == value for what, value in wanted.items()):
            return record
    return None


def copy_of(record, name, setting):
    """Return the record, the curves and the predictions of a stored run as those of a setting of another experiment."""
    copied = {**record, "experiment": name, "setting": setting, "copied_from": record["experiment"]}

    of_run = [record["experiment"], record["setting"], str(record["seed"])]
    with gzip.open(RESULTS / "curves.csv.gz", "rt", newline="") as file:
        curves = [(name, setting, *row[2:]) for row in csv.reader(file) if row[:3] == of_run]

    predictions = {}
    own = f"{record['setting']}|{record['seed']}|"
    with np.load(RESULTS / "predictions" / f"{record['experiment']}.npz") as file:
        for key in file:
            if key.startswith("truth|"):
                predictions[key] = file[key]
            elif key.startswith(own):
                predictions[key.removeprefix(own)] = file[key]
    return copied, curves, predictions


def common_arguments(description):
    """Return the arguments in a run.json or results.json that the seeds of a setting have in common."""
    return {name: value for name, value in description["arguments"].items() if name not in OF_ONE_RUN}


def load_script(name):
    """Return a script as a module."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(name)


def command_line(arguments):
    """Return {name: value or list of values} as the words of a command line; None is left out."""
    words = []
    for name, value in arguments.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(str(value) for value in values)]
    return words


def checked_out_commit():
    """Return the commit that is checked out. Refuse to begin if there is none, or if a script was changed since."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "--", "*.py"], capture_output=True, text=True).stdout
    if found.returncode != 0:
        raise SystemExit("error: results are stored with their commit, and this is not a git repository.")
    if changed.strip():
        raise SystemExit(f"error: results are stored with their commit; commit these first: {changed.split()[1]}, ...")
    return found.stdout.strip()


def folder_of(folder, experiment, setting, seed):
    """Return the folder in which a setting is trained with a seed."""
    words = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in setting)
    return Path(folder, experiment, f"{words}-seed{seed}").absolute()


def check_script(folder, script):
    """Refuse to go on in a folder whose runs were begun with another text of the script."""
    digest = hashlib.sha256((ROOT / f"{script}.py").read_bytes()).hexdigest()
    path = folder / "script.sha256"
    if path.exists() and path.read_text() != digest:
        raise SystemExit(
            f"error: the run in {folder} was begun by another version of {script}.py. Remove it, or choose another "
            "--folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(digest)


def commit_of(folder, commit):
    """Return the commit by which the runs in a folder were begun. That is `commit` if they begin now."""
    path = folder / "commit"
    if commit and not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)
    return path.read_text() if path.exists() else None


def train(name, setting, seed, commit, data_dir, folder):
    """Train a setting with a seed, and return its record, its curves and its predictions."""
    experiment = EXPERIMENTS[name]
    of_setting = experiment.settings[setting]
    check_script(folder_of(folder, name, setting, seed), experiment.script)
    commit = commit_of(folder_of(folder, name, setting, seed), commit)
    record = {"experiment": name, "setting": setting, "seed": seed, "commit": commit}
    arguments_of_runs, measures, curves, predictions = [], {}, [], {}
    for number, arguments in enumerate(of_setting.runs):
        log_dir = folder_of(folder, name, setting, seed) / f"run{number}"
        results = run_script(experiment.script, {**arguments, "seed": seed, "data_dir": data_dir}, log_dir)
        if results is None:
            return of_diverged_run(record, log_dir, arguments), [], {}
        arguments_of_runs.append(common_arguments(results))
        measures |= measures_of(results)
        of_run = read_curves(log_dir)
        curves += [(name, setting, seed, number, *point) for point in of_run]
        late = [value for tag, _, value in of_run if tag == "summary/accuracy_test"]
        if len(late) > 10 and len(of_setting.runs) == 1:
            measures["late/accuracy"] = statistics.fmean(late[-10:])
        if experiment.stored:
            predictions |= predict(experiment.script, log_dir, results)
        record |= {
            "versions": results["versions"],
            "data_sha256": results["data"]["sha256"],
            "sizes": results["data"]["sizes"],
            "parameters": record.get("parameters", 0) + results["parameters"],
            "steps": results["steps"],
            "images_per_second": results["images_per_second"],
            "seconds": record.get("seconds", 0) + seconds_of(log_dir),
        }
    if len(of_setting.runs) > 1:  # the mean of tasks that were trained apart
        for part in {key.split("/")[0] for key in measures}:
            tasks = [
                value for key, value in measures.items() if key.startswith(f"{part}/") and key != f"{part}/accuracy"
            ]
            measures[f"{part}/accuracy"] = statistics.fmean(tasks)
    untrained = {f"{part}/{what}" for part in ("test", "aflw", "validation") for what in of_setting.untrained}
    if "accuracy" in of_setting.untrained:
        untrained.add("late/accuracy")
    kept = {key: value for key, value in measures.items() if key not in untrained}
    predictions = {task: x for task, x in predictions.items() if task not in of_setting.untrained}
    return {**record, "arguments": arguments_of_runs, "measures": kept}, curves, predictions


def of_diverged_run(record, log_dir, arguments):
    """Return the record of a setting whose loss did not stay finite. It has no measures, and is reported as such."""
    begun = json.loads((log_dir / "run.json").read_text())
    facts = {"versions": begun["versions"], "data_sha256": begun["data"]["sha256"], "sizes": begun["data"]["sizes"]}
    return {**record, **facts, "arguments": [arguments], "measures": {}, "diverged": True}


def run_script(script, arguments, log_dir):
    """Train in `log_dir`, or go on there, unless the run is finished.

    Return the content of its results.json, or None if its loss did not stay finite.
    """
    words = command_line({**arguments, "log_dir": str(log_dir), "resume": "auto"})
    command = [sys.executable, str(ROOT / f"{script}.py"), *words]
    log_dir.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{log_dir}.log", "a") as log:
        finished = subprocess.run(command, stdout=log, stderr=log)
    if finished.returncode == load_script(script).DIVERGED:
        return None
    if finished.returncode != 0:
        last = Path(f"{log_dir}.log").read_text().strip().splitlines()[-1]
        raise SystemExit(f"error: {' '.join(command)} ended with status {finished.returncode}: {last}")
    results = json.loads((log_dir / "results.json").read_text())
    if "SAMPLE" in results["data"].get("warning", ""):
        raise SystemExit("error: Fashion-MNIST was not found, and figures from its sample say nothing about it.")
    return results


def measures_of(results):
    """Return {part/name: number} of the measures in a results.json."""
    measures = {}
    for part in ("test", "aflw", "validation"):
        for name, value in results.get(part, {}).items():
            if name == "landmarks":
                measures |= {f"{part}/landmarks/{landmark}": error for landmark, error in value.items()}
            else:
                measures[f"{part}/{name}"] = value
    return measures


def seconds_of(log_dir):
    """Return how long a run took, from its first file to its results."""
    return round(os.path.getmtime(log_dir / "results.json") - os.path.getmtime(log_dir / "run.json"), 1)


def read_curves(log_dir):
    """Return [(tag, step, value), ...] of a run's measures on test and validation images and of its units' alphas."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(log_dir), size_guidance={"tensors": 0}, tensor_size_guidance=None).Reload()
    points = []
    for tag in events.Tags()["tensors"]:
        if tag.endswith(("_test", "_validation")) or (tag.startswith("units/") and not tag.endswith("/alpha")):
            for event in events.Tensors(tag):
                points.append((tag, event.step, round(float(make_ndarray(event.tensor_proto)), 6)))
    return points


def test_split(script, results):
    """Return the test images and their labels of a finished run."""
    module = load_script(script)
    parser = module.make_parser()
    parser.set_defaults(**results["arguments"])
    return module.prepare_data(parser.parse_args([])).splits["test"]


def predict(script, log_dir, results):
    """Return {task: the predicted class of each test image, uint8}, and {truth|task: its class}.

    Of landmarks it is each face's mean error, `mean_error`, in hundredths of a per cent of the box, uint16.
    """
    import keras

    module = load_script(script)
    with contextlib.redirect_stdout(io.StringIO()):
        split = test_split(script, results)
    outputs = keras.models.load_model(log_dir / "model.keras").predict(split.images, verbose=0)
    if script == LANDMARKS:
        errors = module.landmark_errors(outputs["landmarks"], split.labels["landmarks"]).mean(axis=1)
        return {"mean_error": np.round(1e4 * errors).astype(np.uint16)}
    found = {task: logits.argmax(axis=1).astype(np.uint8) for task, logits in outputs.items()}
    return found | {f"truth|{task}": split.labels[task].astype(np.uint8) for task in outputs}


@contextlib.contextmanager
def locked():
    """In this context no other process stores."""
    with open(RESULTS / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_records():
    """Return the stored records, a list of dicts."""
    path = RESULTS / "runs.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def store(record, curves, predictions):
    """Add a run to the stored ones: a line, its curves, and its predictions."""
    with locked():
        store_predictions(record, predictions)
        with gzip.open(RESULTS / "curves.csv.gz", "at", newline="") as file:  # a further member of the archive
            csv.writer(file, lineterminator="\n").writerows(curves)
        with open(RESULTS / "runs.jsonl", "a") as file:  # last: a run with a record is stored
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def store_predictions(record, predictions):
    """Add a run's predictions to the archive of its experiment, which holds the truth once."""
    path = RESULTS / "predictions" / f"{record['experiment']}.npz"
    arrays = {}
    if path.exists():
        with np.load(path) as file:
            arrays = dict(file)
    for task, x in predictions.items():
        if task.startswith("truth|"):
            arrays.setdefault(task, x)
        else:
            arrays[f"{record['setting']}|{record['seed']}|{task}"] = x
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(f"{path}.partial.npz", **arrays)
    os.replace(f"{path}.partial.npz", path)


def print_table(experiment, name, records):
    """Print each setting's mean and, for the others than the baseline, the paired difference with its interval."""
    runs = analysis.table_of(records)
    column = next(key for key, measure in experiment.measures.items() if measure == experiment.primary)
    print(f"\n{experiment.title}: {column}, in %")
    for setting in experiment.settings:
        found = analysis.values(runs, name, setting, experiment.primary)
        line = f"{setting:20} {100 * found.mean():6.2f}"
        if setting != experiment.baseline:
            pairs = analysis.differences(runs, name, setting, experiment.baseline, experiment.primary)
            mean, (low, high), _ = analysis.interval(pairs.to_numpy())
            line += f"   {100 * mean:+.2f} over {experiment.baseline}"
            if np.isfinite(low):
                line += f", 95 % interval {100 * low:+.2f} to {100 * high:+.2f}"
            else:
                line += ", too few seeds for an interval"
        print(f"{line}   ({len(found)} seeds)")


def average(name, data_dir, folder):
    """Measure what the mean of two networks' outputs gives, for every two seeds of each setting whose models are there.

    Models are kept by `run --keep_models`. The results go to averages.csv.
    """
    import keras

    experiment = EXPERIMENTS[name]
    rows = []
    for setting, of_setting in experiment.settings.items():
        for number, arguments in enumerate(of_setting.runs):
            outputs, split = {}, None
            for path in sorted(Path(folder, name).glob(f"*-seed*/run{number}/model.keras")):
                results = json.loads((path.parent / "results.json").read_text())
                seed = results["seed"]
                if path.parent.parent == folder_of(folder, name, setting, seed):
                    split = split or test_split(experiment.script, {"arguments": {**results["arguments"], **arguments}})
                    outputs[seed] = keras.models.load_model(path).predict(split.images, verbose=0)
            for pair in itertools.combinations(sorted(outputs), 2):
                for measure, value in average_of(experiment.script, [outputs[seed] for seed in pair], split).items():
                    if measure not in of_setting.untrained:
                        rows.append([name, setting, f"test/{measure}", *pair, value])
    with locked():
        lines = (RESULTS / "averages.csv").read_text().splitlines()
        known = {tuple(row[:5]) for row in csv.reader(lines)}
        rows = [row for row in rows if tuple(map(str, row[:5])) not in known]
        with open(RESULTS / "averages.csv", "a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def average_of(script, outputs, split):
    """Return the mean error of the averaged points, or the accuracy of each task of the averaged probabilities."""
    if script == LANDMARKS:
        points = np.mean([output["landmarks"] for output in outputs], axis=0)
        return {"mean_error": float(load_script(script).landmark_errors(points, split.labels["landmarks"]).mean())}
    found = {}
    for task in outputs[0]:
        probabilities = np.mean([softmax(output[task], axis=1) for output in outputs], axis=0)
        found[task] = float(np.mean(probabilities.argmax(axis=1) == split.labels[task]))
    return found


def needs_data(name):
    """Return whether an experiment needs --data_dir."""
    return EXPERIMENTS[name].script in (FACES, LANDMARKS)
