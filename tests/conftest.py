"""What the tests share: the scripts as modules, small data sets for them, runs in this process and in others."""

import functools
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FASHION = "fashion_mnist_multi_task_learning"
FACES = "gender_age_multi_task_learning"
LANDMARKS = "facial_landmark_multi_task_learning"
SCRIPTS = (FASHION, FACES, LANDMARKS)


def load(path):
    """Return the file `path` of the repository as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sample = load("data/make_fashion_mnist_sample.py")
draw = load("tests/draw_faces.py")


def write_folder(folder, train, test):
    """Write (images, labels) of both splits as the four gzipped IDX files into `folder` and return it."""
    for name, (images, labels) in (("train", train), ("t10k", test)):
        sample.write(folder / f"{name}-images-idx3-ubyte.gz", images)
        sample.write(folder / f"{name}-labels-idx1-ubyte.gz", labels)
    return folder


TRAINED = ("finished", "stopped", "whole", "continued")  # fixtures of several tests that train a network


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for the groups
def pytest_collection_modifyitems(items):
    """Run the tests that share a trained network in one process, so that it is trained once; the slow tests first.

    (The slow tests come first, so that none of them is left when the other processes have nothing more to do.)
    """
    for item in items:
        for name in TRAINED:
            if name in item.fixturenames:
                which = item.callspec.params.get(name, "") if hasattr(item, "callspec") else ""
                item.add_marker(pytest.mark.xdist_group(f"{item.module.__name__}.{name}.{which}"))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def threads():
    """Start TensorFlow as a run of two tasks does: this process has many runs, but only one number of threads."""
    import tensorflow as tf

    from fashion_mnist_multi_task_learning import available_cores

    tf.config.threading.set_intra_op_parallelism_threads(max(1, available_cores() - 2))
    tf.config.list_logical_devices()


@pytest.fixture(scope="session", autouse=True)
def no_more_than_required(tmp_path_factory):
    """Hide from processes that tests start what requirements-dev.txt adds and Keras imports wherever it finds it.

    So the scripts are seen to need none of it, and each process starts a second sooner.
    """
    folder = tmp_path_factory.mktemp("hidden")
    for name in ("matplotlib", "pandas", "scipy", "sklearn"):
        (folder / f"{name}.py").write_text("raise ImportError\n")
    os.environ["PYTHONPATH"] = str(folder)


@pytest.fixture(scope="session")
def script():
    """The Fashion-MNIST script as a module."""
    return importlib.import_module(FASHION)


@pytest.fixture(scope="session")
def faces_script():
    """The script for gender and age as a module."""
    return importlib.import_module(FACES)


@pytest.fixture(scope="session")
def landmark_script():
    """The script for facial landmarks as a module."""
    return importlib.import_module(LANDMARKS)


@pytest.fixture(params=SCRIPTS)
def any_script(request):
    """Each of the scripts as a module."""
    return importlib.import_module(request.param)


def classes_of(script):
    """Return {task: its classes} of the tasks of a script that are classified."""
    return script.ATTRIBUTES if hasattr(script, "ATTRIBUTES") else script.TASKS


def parse(script, *flags):
    """Return the arguments that flags give, without any check of data."""
    parser = script.make_parser()
    args = parser.parse_args(list(flags))
    parser.set_defaults(**script.PRESETS[args.preset])
    return parser.parse_args(list(flags))


@pytest.fixture(scope="session")
def garments(script):
    """The embedded sample: images (6000, 28, 28) and labels, images (1000, 28, 28) and labels."""
    train, test, _ = script.read_folder(script.SAMPLE)
    of_train, of_test = (split.labels["item"].astype(np.uint8) for split in (train, test))
    return train.images[..., 0], of_train, test.images[..., 0], of_test


@pytest.fixture(scope="session")
def small(script, garments, tmp_path_factory):
    """A folder with a tenth of each class of the sample, cut to 8x8 pixels: 600 to train, 100 to test."""
    splits = []
    for images, labels in (garments[:2], garments[2:]):
        kept = script.stratified(labels, 0.1, seed=0)
        splits.append((images[kept, 2:26:3, 2:26:3], labels[kept]))
    return write_folder(tmp_path_factory.mktemp("small"), *splits)


@pytest.fixture(scope="session")
def utkface(tmp_path_factory):
    """600 drawn faces in the layout of UTKFace."""
    folder = tmp_path_factory.mktemp("utkface")
    draw.draw_utkface(str(folder), 600, size=48)
    return folder


@pytest.fixture(scope="session")
def vggface2(tmp_path_factory):
    """30 drawn people in the layout of VGGFace2."""
    folder = tmp_path_factory.mktemp("vggface2")
    draw.draw_vggface2(str(folder), 30, size=48)
    return folder


@pytest.fixture(scope="session")
def mtfl(tmp_path_factory):
    """300 + 60 + 40 drawn photos in the layout of MTFL."""
    folder = tmp_path_factory.mktemp("mtfl")
    draw.draw_mtfl(str(folder), 300, 60, 40, size=48)
    return folder


class Experiment(NamedTuple):
    """A script with a small data set, on which an epoch takes a second or two."""

    name: str
    script: object
    data_dir: Path
    flags: dict
    steps_per_epoch: int
    loss_tags: tuple
    units: tuple


def experiment_of(name, request):
    """Return the `Experiment` of a script."""
    module = importlib.import_module(name)
    if name == FASHION:
        flags = {"n_batch_size": 200}
        units = ("pool_1", "pool_2", "fc_3")
        return Experiment(name, module, request.getfixturevalue("small"), flags, 3, ("item", "group"), units)
    if name == FACES:
        flags = {"n_batch_size": 190, "image_size": 16}
        units = ("pool_1", "pool_2", "pool_3", "fc_4")
        return Experiment(name, module, request.getfixturevalue("utkface"), flags, 3, ("gender", "age"), units)
    flags = {"n_batch_size": 80, "image_size": 32, "lr": 1e-3}
    tasks = ("landmarks", "gender", "smile", "glasses", "pose")
    return Experiment(
        name, module, request.getfixturevalue("mtfl"), flags, 3, tasks, ("pool_1", "pool_2", "pool_3", "fc_5")
    )


@pytest.fixture(params=SCRIPTS)
def experiment(request):
    """Each script with its small data set."""
    return experiment_of(request.param, request)


@pytest.fixture
def run(script, small, tmp_path, capfd):
    """A function that runs the first script's main on the small garments, in this process, and returns its Result."""
    return functools.partial(run_main, script, capfd, tmp_path / "run", data_dir=small)


@pytest.fixture
def run_experiment(experiment, tmp_path, capfd):
    """A function that runs the script of `experiment` on its data, in this process, and returns its Result."""
    flags = {**experiment.flags, "data_dir": experiment.data_dir}
    return functools.partial(run_main, experiment.script, capfd, tmp_path / "run", **flags)


def command_line(arguments):
    """Return {name: value or list of values} as words of a command line; None is left out."""
    words = []
    for name, value in arguments.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)]
    return words


def run_main(script, capfd, default_log_dir, *flags, **named):
    """Run a script's main in this process with flags as they are and others by name, and return its Result."""
    named = {"log_dir": default_log_dir, **named}
    if "--resume" in flags or "--predict" in flags:
        named["log_dir"] = named["data_dir"] = None
    capfd.readouterr()
    status = script.main([*map(str, flags), *command_line(named)])
    return Result(named["log_dir"] or default_log_dir, status, *capfd.readouterr())


class Result:
    """A run that ended: its log folder, exit status, standard output and standard error."""

    def __init__(self, log_dir, status, out, err):
        self.log_dir, self.status, self.out, self.err = log_dir, status, out, err

    def last_line(self):
        return self.err.splitlines()[-1]

    def __repr__(self):
        return f"status {self.status}\n{self.out}\n{self.err}"


def assert_refused(result, *words):
    """Assert that a run ended with status 2 and one clear line that has all `words`, and that nothing was written."""
    assert_error(result, *words)
    assert not result.log_dir.exists()


def assert_error(result, *words, status=2):
    """Assert that a run ended with a status and one clear line on standard error that has all `words`."""
    assert result.status == status, result
    line = result.last_line()
    assert line.startswith("error: ")
    for word in words:
        assert str(word) in line, (word, line)
    assert "Traceback" not in result.err and "usage:" not in result.err


SEVERAL_DEVICES = """
import importlib, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1]))
sys.exit(importlib.import_module(sys.argv[2]).main(sys.argv[3:]))
"""


def run_on_devices(n, name, *flags):
    """Run a script to its end in a process with `n` logical devices, and return its Result."""
    command = [sys.executable, "-c", SEVERAL_DEVICES, str(n), name, *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return finish(subprocess.Popen(command, cwd=ROOT, **pipes))


def start(name, *flags, environment=None, **options):
    """Start a script in a process of its own, its output in pipes, and return the Popen."""
    command = [sys.executable, str(ROOT / f"{name}.py"), *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **(environment or {})}, **{**pipes, **options})


def finish(process, timeout=240):
    """Wait for a process of `start` and return its Result, the log folder unknown."""
    out, err = process.communicate(timeout=timeout)
    return Result(None, process.returncode, out, err)


def read_events(log_dir):
    """Return {tag: [(step, value), ...]} as TensorBoard reads a run's event files; values are NumPy arrays or bytes."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(log_dir), tensor_size_guidance=None, size_guidance={"tensors": 0}).Reload()
    found = {}
    for tag in events.Tags()["tensors"]:
        found[tag] = [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
    return found


def checkpoint_arrays(prefix):
    """Return {name: array} of everything in a checkpoint but the number of times that one was saved."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(prefix))
    left_out = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE")
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if name not in left_out}


def steps_saved(log_dir):
    """Return the steps of the checkpoints in a run's folder, sorted."""
    return sorted(int(path.stem.removeprefix("ckpt-")) for path in Path(log_dir, "checkpoints").glob("ckpt-*.index"))


def last_checkpoint(log_dir):
    """Return the prefix of the newest checkpoint of a run."""
    return Path(log_dir, "checkpoints", f"ckpt-{steps_saved(log_dir)[-1]}")


def assert_same_run(one, other):
    """Assert that two runs end with the same bits: state, and scalars and histograms at the same steps, each once."""
    a, b = (checkpoint_arrays(last_checkpoint(log_dir)) for log_dir in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    a, b = read_events(one), read_events(other)
    assert a.keys() == b.keys()
    for tag in a:
        if not tag.startswith(("throughput/", "arguments", "data", "_hparams_", "__run_graph__")):
            assert [step for step, _ in a[tag]] == [step for step, _ in b[tag]], tag
            for (step, x), (_, y) in zip(a[tag], b[tag]):
                np.testing.assert_array_equal(x, y, err_msg=f"{tag} at step {step}")


def assert_nearly_same_run(one, other, tags, tolerance):
    """Assert that weights, moving statistics, Adam's mean gradients (which show a wrong scale) and scalars agree.

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


def as_if_killed(log_dir, copy):
    """Copy a finished run, without its results and its last evaluation's checkpoint if there is another; return it."""
    shutil.copytree(log_dir, copy)
    (copy / "results.json").unlink()
    return copy
