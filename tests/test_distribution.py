"""The same run on one device, on four of one machine, and on two machines, as processes on loopback."""

import json
import re
import socket
import time

import pytest
from conftest import assert_nearly_same_run, finish, last_checkpoint, read_events, run_on_devices, start

pytestmark = pytest.mark.slow
SCRIPT = "fashion_mnist_multi_task_learning.py"
# 600 images: batches of 199 leave 3 for the last one, less than four devices. Adam divides by the size of the
# gradient, so at the usual rate rounding grows without bound where the gradient is all but zero; at this one it
# stays small, and the weights still move by 24 times the tolerance.
FLAGS = {"n_epoch": 6, "n_batch_size": 199, "lr": 1e-5, "keep_prob": 1, "log_every": 1, "cross_stitch_init": 0.9}


def flags(small, log_dir, **changed):
    return [f"--{k}={v}" for k, v in {**FLAGS, "data_dir": small, "log_dir": log_dir, **changed}.items()]


def start_workers(*arguments):
    """Starts two workers of one cluster on loopback with the same arguments, the chief first."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    cluster = {"worker": [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]}
    for s in sockets:
        s.close()
    configs = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}) for index in range(2)]
    return [start(SCRIPT, *arguments, environment={"TF_CONFIG": config}) for config in configs]


@pytest.fixture(scope="module")
def alone(script, small, tmp_path_factory):
    """The log folder of the run by one process on one device."""
    log_dir = tmp_path_factory.mktemp("alone") / "run"
    assert script.main(flags(small, log_dir)) == 0
    return log_dir


def assert_nearly_same(one, other, tolerance=1e-5):
    """Asserts that two runs nearly agree, and that every test image was counted once."""
    assert_nearly_same_run(one, other, ("item/loss", "summary/accuracy_train", "summary/accuracy_test"), tolerance)
    for events in map(read_events, (one, other)):
        assert sum(int(n) for n in re.findall(r"\d+", str(events["group/confusion_matrix"][-1][1]))) == 100


def test_four_devices(small, alone, tmp_path):
    result = run_on_devices(4, SCRIPT, *flags(small, tmp_path / "run"))
    assert result.status == 0 and "on 4 devices" in result.out, result
    assert_nearly_same(alone, tmp_path / "run")


def test_two_workers(small, alone, tmp_path):
    log_dir = tmp_path / "run"
    chief, other = (finish(process) for process in start_workers(*flags(small, log_dir)))
    assert (chief.status, other.status) == (0, 0), (chief, other)
    assert (
        "on 2 devices" in chief.out
        and "overall" in chief.out
        and re.fullmatch(r"127.0.0.1:\d+: waiting until all of .* are there\n", other.out)
    )
    assert len(list(log_dir.glob("*tfevents*"))) == 1
    assert_nearly_same(alone, log_dir)


LONG = {"n_epoch": 12, "n_batch_size": 100, "keep_prob": 0.8}


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """The log folder of a run of 12 epochs by two workers that nothing stopped."""
    log_dir = tmp_path_factory.mktemp("whole") / "run"
    for process in start_workers(*flags(small, log_dir, **LONG)):
        assert finish(process).status == 0
    return log_dir


def test_a_signal_to_one_worker_stops_all_at_one_step(small, whole, tmp_path):
    log_dir = tmp_path / "run"
    workers = start_workers(*flags(small, log_dir, **LONG))
    for line in workers[0].stdout:
        if line.startswith("epoch 2/"):
            break
    workers[1].terminate()
    results = [finish(worker) for worker in workers]
    assert [result.status for result in results] == [143, 143], results
    assert re.search(r"stopped at step \d+ of 72; go on with: .*python .* --resume", results[0].out), results[0]
    for process in start_workers("--resume", log_dir):
        assert finish(process).status == 0
    assert_nearly_same(whole, log_dir, tolerance=0)


def test_a_lost_worker_ends_the_others_and_all_resume(small, whole, tmp_path):
    log_dir = tmp_path / "run"
    for lost in (1, 0):
        arguments = ["--resume", log_dir] if log_dir.exists() else flags(small, log_dir, **LONG)
        workers = start_workers(*arguments)
        seen = len(list(log_dir.glob("checkpoints/*.index"))) and last_checkpoint(log_dir)
        while workers[0].poll() is None and (
            not log_dir.exists() or not list(log_dir.glob("checkpoints/*.index")) or last_checkpoint(log_dir) == seen
        ):
            time.sleep(0.05)
        workers[lost].kill()
        killed = time.monotonic()
        left = finish(workers[1 - lost])
        print(f"worker {lost} killed; the other ended after {time.monotonic() - killed:.0f} s")
        workers[lost].communicate()
        assert time.monotonic() - killed < 180
        assert left.status == 1, left
        assert re.fullmatch(rf"error: .{{1,300}}--resume {log_dir}", left.err.splitlines()[-1]), left
    for process in start_workers("--resume", log_dir):
        result = finish(process)
        assert result.status == 0, result
    assert_nearly_same(whole, log_dir, tolerance=0)
