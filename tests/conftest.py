"""What the tests share: the scripts as modules, a small data set of real garments, processes of their own."""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def load(path):
    """Returns the file `path` of the repository as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sample = load("data/make_fashion_mnist_sample.py")


def write_folder(folder, train, test):
    """Writes (images, labels) of both parts as the four gzipped IDX files into `folder` and returns it."""
    for name, (images, labels) in (("train", train), ("t10k", test)):
        sample.write(folder / f"{name}-images-idx3-ubyte.gz", images)
        sample.write(folder / f"{name}-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.fixture(scope="session", autouse=True)
def threads():
    """Starts TensorFlow as a run of two tasks does: this process has many runs, but only one number of threads."""
    import tensorflow as tf

    from fashion_mnist_multi_task_learning import CORES

    tf.config.threading.set_intra_op_parallelism_threads(max(1, CORES // 2))
    tf.config.list_logical_devices()


@pytest.fixture(scope="session", autouse=True)
def no_more_than_required(tmp_path_factory):
    """Hides from processes that tests start what requirements-dev.txt adds and Keras imports wherever it finds it.

    So the scripts are seen to need none of it, and each process starts a second sooner.
    """
    folder = tmp_path_factory.mktemp("hidden")
    for name in ("matplotlib", "scipy", "sklearn"):
        (folder / f"{name}.py").write_text("raise ImportError\n")
    os.environ["PYTHONPATH"] = str(folder)


@pytest.fixture(scope="session")
def script():
    """The Fashion-MNIST script as a module."""
    import fashion_mnist_multi_task_learning

    return fashion_mnist_multi_task_learning


@pytest.fixture(scope="session")
def faces_script():
    """The script for gender and age as a module."""
    import gender_age_multi_task_learning

    return gender_age_multi_task_learning


@pytest.fixture(scope="session")
def landmark_script():
    """The script for facial landmarks as a module."""
    import facial_landmark_multi_task_learning

    return facial_landmark_multi_task_learning


@pytest.fixture(scope="session")
def garments(script):
    """The embedded sample: images (6000, 28, 28) and labels, images (1000, 28, 28) and labels."""
    (images, labels), (test_images, test_labels), _ = script.read_folder(script.SAMPLE)
    return images[..., 0], labels[:, 0].astype(np.uint8), test_images[..., 0], test_labels[:, 0].astype(np.uint8)


@pytest.fixture(scope="session")
def small(script, garments, tmp_path_factory):
    """A folder with a tenth of each class of the sample, cut to 8x8 pixels: 600 to train, 100 to test."""
    parts = []
    for images, labels in (garments[:2], garments[2:]):
        kept = script.stratified(labels, 0.1, seed=0)
        parts.append((images[kept, 2:26:3, 2:26:3], labels[kept]))
    return write_folder(tmp_path_factory.mktemp("small"), *parts)


@pytest.fixture
def run(script, small, tmp_path, capfd):
    """A function that runs the script's main on the small garments, in this process, and returns its Result."""
    return functools.partial(run_main, script, capfd, tmp_path / "run", data_dir=small)


def command_line(arguments):
    """Returns {name: value or list of values} as words of a command line; None is left out."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in arguments.items()}
    return [word for name, values in lists.items() if values != [None] for word in (f"--{name}", *map(str, values))]


def run_main(script, capfd, default_log_dir, *flags, **named):
    """Runs a script's main in this process with flags as they are and others by name, and returns its Result."""
    named = {"log_dir": default_log_dir, **named}
    flags = [*map(str, flags), *command_line(named)]
    capfd.readouterr()
    try:
        status = script.main(flags)
    except SystemExit as stop:
        status = stop.code
    return Result(named["log_dir"] or default_log_dir, status, *capfd.readouterr())


class Result:
    """A run that ended: its log folder, exit status, standard output and standard error."""

    def __init__(self, log_dir, status, out, err):
        self.log_dir, self.status, self.out, self.err = log_dir, status, out, err

    def __repr__(self):
        return f"status {self.status}\n{self.out}\n{self.err}"


def assert_refused(result, message):
    """Asserts that a run ended with one clear line that begins with `message`, status 2, and nothing written."""
    assert result.status == 2
    assert result.err.splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in result.err and "usage:" not in result.err
    assert not result.log_dir.exists()


SEVERAL_DEVICES = """
import importlib, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1]))
sys.exit(importlib.import_module(sys.argv[2]).main(sys.argv[3:]))
"""


def run_on_devices(n, path, *flags):
    """Runs a script of the repository to its end in a process with `n` logical devices, and returns its Result."""
    command = [sys.executable, "-c", SEVERAL_DEVICES, str(n), Path(path).stem, *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return finish(subprocess.Popen(command, cwd=ROOT, **pipes))


def start(path, *flags, environment=None, **options):
    """Starts a script of the repository in a process of its own, its output in pipes, and returns the Popen."""
    command = [sys.executable, str(ROOT / path), *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **(environment or {})}, **{**pipes, **options})


def finish(process, timeout=240):
    """Waits for a process of `start` and returns its Result, the log folder unknown."""
    out, err = process.communicate(timeout=timeout)
    return Result(None, process.returncode, out, err)


def read_events(log_dir):
    """Returns {tag: [(step, value), ...]} of all event files of a run; values are NumPy arrays or bytes."""
    import tensorflow as tf

    found = {}
    for path in sorted(Path(log_dir).glob("*tfevents*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, tf.make_ndarray(value.tensor)))
    return found


def checkpoint_arrays(prefix):
    """Returns {name: array} of everything in a checkpoint but the images a second, the last number that is shown."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(prefix))
    names = [name for name in reader.get_variable_to_shape_map() if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    arrays = {name: reader.get_tensor(name) for name in names}
    return {name: x[:-1] if name.startswith("shown/") else x for name, x in arrays.items()}


def last_checkpoint(log_dir):
    """Returns the prefix of the newest checkpoint of a run."""
    return max(Path(log_dir, "checkpoints").glob("*.index")).with_suffix("")


def unchanged_weights(log_dir):
    """Returns how many of the network's arrays, Adam's moments aside, are the same in the two checkpoints of a run."""
    a, b = (checkpoint_arrays(path.with_suffix("")) for path in sorted(Path(log_dir, "checkpoints").glob("*.index")))
    names = [name for name in a if name.startswith("network/") and "OPTIMIZER_SLOT" not in name]
    return sum((a[name] == b[name]).all() for name in names)


def assert_same_run(one, other):
    """Asserts that two runs end with the same bits: state, and scalars of everything but time."""
    a, b = (checkpoint_arrays(last_checkpoint(log_dir)) for log_dir in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    a, b = read_events(one), read_events(other)
    assert a.keys() == b.keys()
    for tag in a:
        if tag.endswith("confusion_matrix"):  # one at each end that the run once had
            assert a[tag][-1][0] == b[tag][-1][0] and (a[tag][-1][1] == b[tag][-1][1]).all()
        elif not tag.startswith(("throughput/", "arguments", "data", "_hparams_")):
            assert [step for step, _ in a[tag]] == [step for step, _ in b[tag]], tag
            for (step, x), (_, y) in zip(a[tag], b[tag]):
                np.testing.assert_array_equal(x, y, err_msg=f"{tag} at step {step}")


def assert_nearly_same_run(one, other, tags, tolerance):
    """Asserts that weights, moving statistics, Adam's mean gradients (which show a wrong scale) and scalars agree.

    All but two numbers in a hundred; those within ten times the tolerance. Where a gradient is all but zero Adam
    divides rounding by rounding.
    """
    a, b = (checkpoint_arrays(last_checkpoint(log_dir)) for log_dir in (one, other))
    assert a.keys() == b.keys() and len(a) > 90
    for name in a:
        if a[name].dtype == np.float32 and not name.endswith("/v/.ATTRIBUTES/VARIABLE_VALUE"):
            scale = np.abs(a[name]).max() * 100 if "/m/" in name else 1
            near = np.isclose(a[name], b[name], rtol=tolerance, atol=tolerance * scale)
            assert near.mean() >= 0.98, name
            np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=10 * tolerance * scale, err_msg=name)
    a, b = read_events(one), read_events(other)
    assert a.keys() == b.keys()
    for tag in ("summary/loss_total", *tags):
        assert [step for step, _ in a[tag]] == [step for step, _ in b[tag]], tag
        np.testing.assert_allclose([v for _, v in a[tag]], [v for _, v in b[tag]], atol=tolerance * 10, err_msg=tag)


def assert_goes_on(script, folder, *flags):
    """Asserts that a run of 3 epochs which lost its results and its last checkpoint, as if killed, ends as it did."""
    whole, killed = folder / "whole", folder / "killed"
    assert script.main(["--n_epoch=3", *map(str, flags), f"--log_dir={whole}"]) == 0
    shutil.copytree(whole, killed)
    for path in (killed / "results.json", *killed.glob(f"checkpoints/{last_checkpoint(killed).name}.*")):
        path.unlink()
    assert script.main(["--resume", str(killed)]) == 0
    assert_same_run(whole, killed)
