"""Train what is missing of an experiment, seed by seed, and store each finished run at once.

An experiment names one of the three scripts at the top of the repository, and several settings, which are arguments of
this script. Every setting is trained with every seed, by the script in a process of its own. (A setting that trains
each task by itself has a process for each, one after the other.) What was measured of a setting with a seed is stored
as one record. You can stop at any time: what is stored is not trained again, and a process that was interrupted is
resumed in its folder. Several commands may train different seeds at the same time; they store under a lock.
"""

import contextlib
import csv
import fcntl
import gzip
import hashlib
import importlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from . import analysis
from .experiments import EXPERIMENTS, FACES, LANDMARKS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NOT_OF_THE_SETTING = ("seed", "log_dir", "data_dir")  # arguments that differ between the seeds of a setting
PARTS = ("test", "aflw", "validation")  # the parts of the data on which scripts measure; aflw is MTFL's own test set
CURVE_COLUMNS = ["experiment", "setting", "seed", "run", "tag", "step", "value"]  # of curves.csv.gz, in its first line


def run_experiment(name, seeds, settings, data_dir, folder, keep_models):
    """Train what is missing of some settings of an experiment, or of all of them if `settings` is None.

    The results of an experiment with `stored=False`, which is for trying things out, are not added to those in the
    repository. They stay in `folder`, and their table is printed.
    """
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
        check_alike(name, {seed for seed, _ in todo}, of_experiment, commit, installed_versions())
        if not todo:
            print(f"{name}: all of this is stored; nothing is trained", flush=True)

    began = time.monotonic()
    records = []  # of the runs that were trained
    for number, (seed, setting) in enumerate(todo):
        left = ""
        if records:
            minutes = (time.monotonic() - began) / len(records) * (len(todo) - number) / 60
            left = f", about {minutes:.0f} minutes left"
        print(f"{name}: {setting}, seed {seed} ({number + 1} of {len(todo)}{left})", flush=True)
        if experiment.stored and checked_out_commit() != commit:
            raise SystemExit(f"error: this began at commit {commit}, and another one is checked out now.")
        same = None
        if experiment.stored and not keep_models:  # a copy would leave no model
            same = same_run(name, setting, seed, commit, data_dir)
        if same is not None:
            print(f"  copied from {same['experiment']}, {same['setting']}, which is the same run", flush=True)
            store(*copy_of(same, name, setting))
            continue
        record, curves, predictions = train(name, setting, seed, commit, data_dir, folder)
        records.append(record)
        if experiment.stored:
            store(record, curves, predictions)
            if not keep_models and not record.get("diverged"):  # its folder may tell why it diverged
                shutil.rmtree(folder_of(folder, name, setting, seed), ignore_errors=True)
    if not experiment.stored:
        print_table(experiment, name, records)


def check_alike(name, seeds, records, commit, versions):
    """Refuse a seed of which another commit, or other versions of the libraries, have already trained runs.

    Settings are compared seed by seed, and only if they were trained alike.
    """
    for record in records:
        if record["seed"] in seeds and record["commit"] != commit:
            raise SystemExit(
                f"error: the stored runs of {name} with seed {record['seed']} were trained by commit "
                f"{record['commit']}, and {commit} is checked out. Only runs of one commit are compared, so choose new "
                "seeds, or check out that commit."
            )
        if record["seed"] in seeds and record["versions"] != versions:
            raise SystemExit(
                f"error: the stored runs of {name} with seed {record['seed']} were trained with {record['versions']}, "
                f"and {versions} is installed. Only runs with the same versions are compared, so choose new seeds."
            )


def installed_versions():
    """Return the versions of the libraries, in the form in which a record has them."""
    import keras
    import tensorflow as tf

    return {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__}


def check_arguments(name, data_dir):
    """Let the script itself judge the arguments of every setting, before hours are spent on the first."""
    experiment = EXPERIMENTS[name]
    script = load_script(experiment.script)
    for setting, definition in experiment.settings.items():
        for arguments in definition.runs:
            try:
                script.parse_arguments(command_line({**arguments, "data_dir": data_dir, "log_dir": "unused"}))
            except script.Failure as failure:
                raise SystemExit(f"error: {name}, {setting}: {failure}") from None


def same_run(name, setting, seed, commit, data_dir):
    """Return the record of an identical run that another experiment has stored, or None.

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
        return None  # this saves reading the data

    script = load_script(experiment.script)
    described = []
    for arguments in experiment.settings[setting].runs:
        words = command_line({**arguments, "seed": seed, "data_dir": data_dir, "log_dir": "unused"})
        args, _ = script.parse_arguments(words)
        with contextlib.redirect_stdout(io.StringIO()):  # what the script says about its data
            data = script.prepare_data(args)
        described.append(script.describe_run(args, data, tf.distribute.get_strategy()))
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
    with locked():
        curves, predictions = curves_and_predictions(record, RESULTS)
    return copied, [(name, setting, *row[2:]) for row in curves], predictions


def common_arguments(description):
    """Return the arguments in a run.json or results.json that the seeds of a setting have in common."""
    return {name: value for name, value in description["arguments"].items() if name not in NOT_OF_THE_SETTING}


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
    """Return the commit that is checked out. Refuse to go on if there is none, or if Python files differ from it."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "--", "*.py"], capture_output=True, text=True).stdout
    if found.returncode != 0:
        raise SystemExit("error: results are stored with their commit, and this is not a git repository.")
    if changed.strip():
        files = ", ".join(line.split(maxsplit=1)[1] for line in changed.splitlines())
        raise SystemExit(f"error: results are stored with their commit; first commit or set aside {files}.")
    return found.stdout.strip()


def folder_of(folder, experiment, setting, seed):
    """Return the folder in which a setting is trained with a seed."""
    words = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in setting)
    return Path(folder, experiment, f"{words}-seed{seed}").absolute()


def claim_folder(folder, script, commit):
    """Note in a folder which version of the script trains there. Refuse one in which another version began."""
    version = {"sha256": hashlib.sha256((ROOT / f"{script}.py").read_bytes()).hexdigest(), "commit": commit}
    path = folder / "version.json"
    if path.exists() and json.loads(path.read_text()) != version:
        raise SystemExit(
            f"error: the run in {folder} was begun by another version of {script}.py, or from another commit. "
            "Remove the folder, or choose another --folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(version))


def train(name, setting, seed, commit, data_dir, folder):
    """Train a setting with a seed, and return its record, its curves and its predictions."""
    experiment = EXPERIMENTS[name]
    definition = experiment.settings[setting]
    claim_folder(folder_of(folder, name, setting, seed), experiment.script, commit)
    key = {"experiment": name, "setting": setting, "seed": seed, "commit": commit}
    facts, arguments_of_runs, measures, curves, predictions = {}, [], {}, [], {}
    for number, arguments in enumerate(definition.runs):
        log_dir = folder_of(folder, name, setting, seed) / f"run{number}"
        results = run_script(experiment.script, {**arguments, "seed": seed, "data_dir": data_dir}, log_dir)
        if results is None:
            return {**key, **facts_of_diverged_run(log_dir, arguments_of_runs)}, [], {}
        arguments_of_runs.append(common_arguments(results))
        measures |= measures_of(results)
        points = read_curves(log_dir)
        curves += [(name, setting, seed, number, *point) for point in points]
        accuracies = [value for tag, _, value in points if tag == "summary/accuracy_test"]
        # late/accuracy averages the last ten evaluations, since single ones jump. It is that of the mean of the tasks,
        # which the curve of a process with a single task does not show.
        if len(accuracies) > 10 and len(definition.runs) == 1:
            measures["late/accuracy"] = statistics.fmean(accuracies[-10:])
        if experiment.stored:
            predictions |= predict(experiment.script, log_dir, results)
        facts = {
            "versions": results["versions"],
            "data_sha256": results["data"]["sha256"],
            "sizes": results["data"]["sizes"],
            "parameters": facts.get("parameters", 0) + results["parameters"],
            "steps": results["steps"],  # of each process; all train for as many
            "images_per_second": results["images_per_second"],  # of the last process
            "seconds": facts.get("seconds", 0) + seconds_of(log_dir),
        }
    if len(definition.runs) > 1:  # the mean of tasks that were trained apart, of which each measured its own accuracy
        for part in {key.split("/")[0] for key in measures}:
            tasks = [
                value for key, value in measures.items() if key.startswith(f"{part}/") and key != f"{part}/accuracy"
            ]
            measures[f"{part}/accuracy"] = statistics.fmean(tasks)
    # A script also measures tasks whose loss has the weight zero, which says nothing.
    kept = {name: value for name, value in measures.items() if not is_untrained(name, definition.untrained)}
    predictions = {task: classes for task, classes in predictions.items() if task not in definition.untrained}
    return {**key, **facts, "arguments": arguments_of_runs, "measures": kept}, curves, predictions


def is_untrained(measure, untrained):
    """Return whether a measure, such as test/group or test/landmarks/nose, is one of those in `Setting.untrained`."""
    name = measure.split("/")[1]
    return name in untrained


def facts_of_diverged_run(log_dir, arguments_of_runs):
    """Return what is stored of a setting whose loss did not stay finite in `log_dir`.

    There are no measures. TABLES.md names the run below the table. `arguments_of_runs` has the arguments of the
    setting's earlier processes, which ended well.
    """
    begun = json.loads((log_dir / "run.json").read_text())
    facts = {"versions": begun["versions"], "data_sha256": begun["data"]["sha256"], "sizes": begun["data"]["sizes"]}
    arguments = [*arguments_of_runs, common_arguments(begun)]
    return {**facts, "arguments": arguments, "measures": {}, "diverged": True}


def run_script(script, arguments, log_dir):
    """Train in `log_dir`, or go on there. The script does nothing if the run there is finished.

    Return the content of its results.json, or None if its loss did not stay finite. Raise SystemExit if the script
    failed, or if it found no other images than the sample.
    """
    words = command_line({**arguments, "log_dir": str(log_dir), "resume": "auto"})
    command = [sys.executable, str(ROOT / f"{script}.py"), *words]
    log_dir.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{log_dir}.log", "a") as log:
        finished = subprocess.run(command, stdout=log, stderr=log)
    if finished.returncode == load_script(script).DIVERGED:
        return None
    if finished.returncode != 0:
        lines = Path(f"{log_dir}.log").read_text().strip().splitlines()
        last = lines[-1] if lines else "it printed nothing"
        raise SystemExit(f"error: {' '.join(command)} ended with status {finished.returncode}: {last}")
    results = json.loads((log_dir / "results.json").read_text())
    if "SAMPLE" in results["data"].get("warning", ""):
        raise SystemExit(
            "error: Fashion-MNIST was not found, and figures from its sample say nothing about it. Provide it as "
            f"README.md says, remove {log_dir.parent}, and begin again."
        )
    return results


def measures_of(results):
    """Return {part/name: number} of the measures in a results.json."""
    measures = {}
    for part in PARTS:
        for name, value in results.get(part, {}).items():
            if name == "landmarks":
                measures |= {f"{part}/landmarks/{landmark}": error for landmark, error in value.items()}
            else:
                measures[f"{part}/{name}"] = value
    return measures


def seconds_of(log_dir):
    """Return the time of a run, or of its last part if it was resumed, since every process writes run.json anew."""
    return round(os.path.getmtime(log_dir / "results.json") - os.path.getmtime(log_dir / "run.json"), 1)


def read_curves(log_dir):
    """Return [(tag, step, value), ...] of a run's measures on test and validation images and of its mean alphas.

    The histograms of alpha, whose tags end with /alpha, are left out. A step that was logged twice, since the run was
    interrupted after its last checkpoint, is there once: TensorBoard's reader drops the first.
    """
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    no_limit = {"tensors": 0}
    events = EventAccumulator(str(log_dir), size_guidance=no_limit, tensor_size_guidance=None).Reload()
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
    """Return {task: the predicted class of each test image} and {"truth|" + task: its true class}, uint8.

    For landmarks return {"mean_error": the mean error of each test face}, uint16, in hundredths of a per cent of the
    width of the face's box.
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
    with locked():
        return records_in(RESULTS)


def records_in(folder):
    """Return the records in a folder of results. For that of this repository, the process has to hold the lock."""
    path = folder / "runs.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def key_of(record):
    """Return what tells a record from all others."""
    return record["experiment"], record["setting"], record["seed"]


def curves_and_predictions(record, folder):
    """Return the curves and the predictions of a record in a folder of results, in the form that `store` takes."""
    of_run = [record["experiment"], record["setting"], str(record["seed"])]
    with gzip.open(folder / "curves.csv.gz", "rt", newline="") as file:
        curves = [row for row in csv.reader(file) if row[:3] == of_run]
    predictions = {}
    own = f"{record['setting']}|{record['seed']}|"
    path = folder / "predictions" / f"{record['experiment']}.npz"
    if path.exists():  # not for the oldest runs
        with np.load(path) as file:
            for key in file:
                if key.startswith("truth|"):
                    predictions[key] = file[key]
                elif key.startswith(own):
                    predictions[key.removeprefix(own)] = file[key]
    return curves, predictions


def merge(folder):
    """Add what another folder of results has and this repository has not, for instance that of a worktree.

    These are runs, and rows of averages.csv and exchange.csv. What is stored here stays as it is.
    """
    folder = Path(folder)
    if not (folder / "runs.jsonl").is_file():
        raise SystemExit(f"error: {folder} is no folder of results, since it has no runs.jsonl.")
    stored = {key_of(record) for record in read_records()}
    added = [record for record in records_in(folder) if key_of(record) not in stored]
    for record in added:
        store(record, *curves_and_predictions(record, folder))
        print(f"added: {record['experiment']}, {record['setting']}, seed {record['seed']}", flush=True)
    for name in ("averages.csv", "exchange.csv"):
        if (folder / name).exists():
            with open(folder / name, newline="") as file:
                add_rows(name, list(csv.reader(file))[1:])  # without the names of the columns
    print(f"runs that were added: {len(added)}", flush=True)


def store(record, curves, predictions):
    """Add a run to the stored ones, unless it is there: its predictions, its curves, and last its record.

    If the process is killed before it has written the record, the next command stores the run again from its folder.
    Its curves are then in the file twice, and `analysis.load_curves` drops the first of them.
    """
    with locked():
        if key_of(record) in {key_of(other) for other in records_in(RESULTS)}:
            print("  another process has stored this run in the meantime; it is not stored again", flush=True)
            return
        store_predictions(record, predictions)
        store_curves(curves)
        with open(RESULTS / "runs.jsonl", "a") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def store_curves(curves):
    """Add rows to curves.csv.gz. The file is replaced as a whole, so that it is never left half written."""
    path = RESULTS / "curves.csv.gz"
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows(curves)
    stored = path.read_bytes() if path.exists() else b""
    partial = Path(f"{path}.partial")
    partial.write_bytes(stored + gzip.compress(rows.getvalue().encode()))  # an archive may have several members
    os.replace(partial, path)


def store_predictions(record, predictions):
    """Add a run's predictions to the archive of its experiment, which holds the truth once."""
    path = RESULTS / "predictions" / f"{record['experiment']}.npz"
    arrays = {}
    if path.exists():
        with np.load(path) as file:
            arrays = dict(file)
    for name, array in predictions.items():
        if name.startswith("truth|"):
            arrays.setdefault(name, array)
        else:
            arrays[f"{record['setting']}|{record['seed']}|{name}"] = array
    path.parent.mkdir(exist_ok=True)
    partial = f"{path}.partial.npz"  # NumPy wants the ending
    np.savez_compressed(partial, **arrays)
    os.replace(partial, path)


def add_rows(file_name, rows):
    """Add rows to averages.csv or exchange.csv. A row whose first five columns, its key, are there is left out."""
    path = RESULTS / file_name  # the file with the names of its columns is in the repository
    with locked():
        stored = {tuple(row[:5]) for row in csv.reader(path.read_text().splitlines())}
        with open(path, "a", newline="") as file:
            new = [row for row in rows if tuple(map(str, row[:5])) not in stored]
            csv.writer(file, lineterminator="\n").writerows(new)


def print_table(experiment, name, records):
    """Print the mean of each setting that was trained, and its difference from the baseline with its 95 % interval."""
    runs = analysis.table_of(records)
    (column,) = (column for column, measure in experiment.measures.items() if measure == experiment.primary)
    print(f"\n{experiment.title}: {column}, in %")
    for setting in experiment.settings:
        values = analysis.values(runs, name, setting, experiment.primary)
        if not len(values):
            continue
        line = f"{setting:20} {100 * values.mean():6.2f}"
        pairs = analysis.differences(runs, name, setting, experiment.baseline, experiment.primary)
        if setting != experiment.baseline and len(pairs):
            mean, (low, high), _ = analysis.interval(pairs.to_numpy())
            line += f"   {100 * mean:+.2f} over {experiment.baseline}"
            if np.isfinite(low):
                line += f", 95 % interval {100 * low:+.2f} to {100 * high:+.2f}"
            else:
                line += ", too few seeds for an interval"
        print(f"{line}   ({len(values)} seeds)")


def needs_data(name):
    """Return whether an experiment needs --data_dir."""
    return EXPERIMENTS[name].script in (FACES, LANDMARKS)
