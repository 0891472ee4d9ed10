"""The same run on one device, on four of one machine, and on two machines, as processes on loopback."""

import json
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import (
    ROOT,
    assert_nearly_same_run,
    assert_same_run,
    finish,
    read_events,
    run_on_devices,
    start,
)

pytestmark = pytest.mark.slow
SCRIPT = "fashion_mnist_multi_task_learning.py"
# 600 images: batches of 199 leave 3 for the last one, less than four devices. Adam divides by the size of the
# gradient, so at the usual rate rounding grows without bound where the gradient is all but zero; at this one it
# stays small, and the weights still move by 12 times the tolerance.
FLAGS = {"n_epoch": 3, "n_batch_size": 199, "lr": 1e-5, "keep_prob": 1, "log_every": 1, "cross_stitch_init": 0.9}


def flags(small, log_dir, **changed):
    return [f"--{k}={v}" for k, v in {**FLAGS, "data_dir": small, "log_dir": log_dir, **changed}.items()]


def start_workers(*arguments, for_second=()):
    """Starts two workers of one cluster on loopback, the chief first; the second gets further arguments."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    cluster = {"worker": [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]}
    for s in sockets:
        s.close()
    configs = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}) for index in range(2)]
    further = [(), for_second]
    return [start(SCRIPT, *arguments, *f, environment={"TF_CONFIG": c}) for c, f in zip(configs, further)]


def test_four_devices(script, small, tmp_path):
    """They agree with one, and every test image is counted once."""
    alone, log_dir = tmp_path / "alone", tmp_path / "run"
    assert script.main(flags(small, alone)) == 0
    result = run_on_devices(4, SCRIPT, *flags(small, log_dir))
    assert result.status == 0 and "on 4 devices" in result.out, result
    assert_nearly_same_run(alone, log_dir, ("item/loss", "summary/accuracy_train", "summary/accuracy_test"), 1e-5)
    for events in map(read_events, (alone, log_dir)):
        assert sum(int(n) for n in re.findall(r"\d+", str(events["group/confusion_matrix"][-1][1]))) == 100


def test_two_workers_a_signal_to_one_and_a_lost_one(small, tmp_path):
    """Both stop all workers; what is resumed by the same command ends with the bits of one process on two devices."""
    whole, log_dir = tmp_path / "whole", tmp_path / "run"
    changed = {"n_epoch": 8, "n_batch_size": 200, "keep_prob": 0.8, "resume": "auto"}  # 24 steps
    result = run_on_devices(2, SCRIPT, *flags(small, whole, **changed))
    assert result.status == 0 and "on 2 devices" in result.out, result

    workers = start_workers(*flags(small, log_dir, **changed))
    for line in workers[0].stdout:
        if line.startswith("epoch 2/"):
            break
    workers[1].terminate()
    results = [finish(worker) for worker in workers]
    assert [result.status for result in results] == [143, 143], results
    assert re.search(r"stopped at step \d+ of 24; go on with: .*python .* --resume", results[0].err), results[0]

    chief, other = start_workers(*flags(small, log_dir, **changed))
    for line in chief.stdout:
        if line.startswith("epoch 5/"):
            break
    chief.kill()  # which writes the run
    killed = time.monotonic()
    left = finish(other)
    chief.communicate()
    assert time.monotonic() - killed < 180
    assert left.status == 1, left
    assert re.fullmatch(rf"error: .{{1,300}}--resume {log_dir}", left.err.splitlines()[-1]), left

    chief, other = (finish(worker) for worker in start_workers(*flags(small, log_dir, **changed)))
    assert (chief.status, other.status) == (0, 0), (chief, other)
    assert "on 2 devices" in chief.out and "overall" in chief.out, chief
    assert re.fullmatch(r"127.0.0.1:\d+: waiting until all of .* are there\n", other.out), other
    assert len(list(log_dir.glob("*tfevents*"))) == 3  # one for each start, by the chief alone
    assert_same_run(whole, log_dir)


def test_workers_that_do_not_agree_are_refused(script, small, tmp_path):
    """Before the first step, all of them, with nothing written."""
    others = ["--lr=0.1", f"--data_dir={script.SAMPLE}"]
    for result in map(finish, start_workers(*flags(small, tmp_path / "run"), for_second=others)):
        assert result.status == 2 and "Traceback" not in result.err, result
        assert "error: TF_CONFIG: expected the same arguments, data on all workers" in result.err, result
    assert not (tmp_path / "run").exists()


def test_a_worker_that_waits_says_so_and_can_be_stopped(small, tmp_path):
    worker, other = start_workers(*flags(small, tmp_path / "run"))
    other.kill()
    other.communicate()
    line = worker.stdout.readline()
    assert "waiting until all of 127.0.0.1:" in line
    time.sleep(2)
    worker.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert finish(worker, 30).status == -signal.SIGINT and time.monotonic() - began < 10
    assert not (tmp_path / "run").exists()


DRAWS = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import gender_age_multi_task_learning as script
strategy = tf.distribute.MirroredStrategy(tf.config.list_logical_devices("CPU"))
with strategy.scope():
    layers = [script.Dropout(0.5), script.MirrorAndShift()]
    images = tf.random.normal((6, 8, 8, 1))
    for layer in layers:
        layer(images)
for layer in layers:
    for _ in range(2):
        one, other = strategy.run(tf.function(lambda: layer(images, training=True))).values
        print("same" if (one.numpy() == other.numpy()).all() else "different")
"""


def test_each_device_draws_for_itself():
    """Dropout masks and augmentation of two devices with the same images."""
    command = [sys.executable, "-c", DRAWS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == ["different"] * 4, result
