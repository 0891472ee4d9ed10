"""The same run on one device, on four of one machine, and on two machines, as processes on loopback."""

import json
import re
import socket
import subprocess
import sys
import time

import pytest
from conftest import (
    FASHION,
    LANDMARKS,
    ROOT,
    assert_error,
    assert_nearly_same_run,
    assert_same_run,
    finish,
    read_events,
    run_on_devices,
    start,
)

pytestmark = pytest.mark.slow
# 600 images: batches of 199 leave 3 for the last one, less than four devices. Adam divides by the size of the
# gradient, so at the usual rate rounding grows without bound where the gradient is all but zero; at this one it
# stays small, and the weights still move by 12 times the tolerance.
FLAGS = {"n_epoch": 3, "n_batch_size": 199, "lr": 1e-5, "keep_prob": 1, "log_every": 1, "cross_stitch_init": 0.9}


def flags(small, log_dir, **changed):
    return [f"--{k}={v}" for k, v in {**FLAGS, "data_dir": small, "log_dir": log_dir, **changed}.items()]


def cluster_of(count):
    """Return the addresses of so many processes on loopback, at ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return addresses


def start_worker(addresses, index, *arguments, **environment):
    """Start one process of a cluster; the first is the chief."""
    config = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
    return start(FASHION, *arguments, environment={"TF_CONFIG": config, **environment})


def start_workers(*arguments, for_second=(), **environment):
    """Start two processes of one cluster; the second gets further arguments."""
    addresses = cluster_of(2)
    further = [(), for_second]
    return [start_worker(addresses, k, *arguments, *further[k], **environment) for k in (0, 1)]


def test_four_devices(script, small, tmp_path):
    """They agree with one, and every test image is counted once."""
    alone, log_dir = tmp_path / "alone", tmp_path / "run"
    assert script.main(flags(small, alone)) == 0
    result = run_on_devices(4, FASHION, *flags(small, log_dir))
    assert result.status == 0 and "on 4 devices" in result.out, result
    assert_nearly_same_run(alone, log_dir, ("item/loss", "summary/accuracy_train", "summary/accuracy_test"), 1e-5)
    for events in map(read_events, (alone, log_dir)):
        assert sum(int(n) for n in re.findall(r"\d+", str(events["group/confusion_matrix"][-1][1]))) == 100


def test_two_devices_with_augmentation(landmark_script, mtfl, tmp_path):
    """The same crops, related weights and measures as on one."""
    flags = [f"--data_dir={mtfl}", "--image_size=32", "--n_batch_size=78", "--weight_reg=l2", "--log_every=1"]
    flags += ["--n_epoch=2", "--lr=1e-5", "--keep_prob=1", "--cross_stitch_init=0.9"]
    assert landmark_script.main([*flags, f"--log_dir={tmp_path / 'one'}"]) == 0
    result = run_on_devices(2, LANDMARKS, *flags, f"--log_dir={tmp_path / 'two'}")
    assert result.status == 0 and "on 2 devices" in result.out, result
    tags = ["landmarks/loss", "pose/loss", "summary/related_weights", "landmarks/mean_error_test"]
    assert_nearly_same_run(tmp_path / "one", tmp_path / "two", tags, tolerance=1e-4)


def test_two_workers_a_signal_to_one_and_a_lost_one(small, tmp_path):
    """Both stop all workers; what is resumed by the same command ends with the bits of one process on two devices."""
    whole, log_dir = tmp_path / "whole", tmp_path / "run"
    changed = {"n_epoch": 8, "n_batch_size": 200, "keep_prob": 0.8, "resume": "auto"}  # 24 steps
    result = run_on_devices(2, FASHION, *flags(small, whole, **changed))
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
    chief.kill()  # it writes the run
    killed = time.monotonic()
    left = finish(other)
    chief.communicate()
    assert time.monotonic() - killed < 180
    assert left.status == 1, left
    assert re.fullmatch(rf"error: .{{1,300}}--resume {log_dir}", left.err.splitlines()[-1]), left

    chief, other = (finish(worker) for worker in start_workers(*flags(small, log_dir, **changed)))
    assert (chief.status, other.status) == (0, 0), (chief, other)
    assert "on 2 devices" in chief.out and "overall" in chief.out, chief
    assert "epoch" not in other.out
    assert len(list(log_dir.glob("*tfevents*"))) == 3  # one for each start, by the chief alone
    assert_same_run(whole, log_dir)


def test_workers_that_do_not_agree_are_refused(script, small, tmp_path):
    """Before the first step, all of them, with nothing written. A web proxy is not asked."""
    others = ["--lr=0.1", f"--data_dir={script.SAMPLE}"]
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    for result in map(finish, start_workers(*flags(small, tmp_path / "run"), for_second=others, **proxy)):
        assert_error(result, "TF_CONFIG", "arguments, data")
    assert not (tmp_path / "run").exists()


def test_workers_have_to_agree_on_the_names_of_classes(script):
    """The checksum of the data leaves the names out, but their number is that of the network's outputs."""
    record = {"arguments": {}, "data": {"sha256": "0"}, "classes": {"item": ["shirt", "coat"]}, "versions": {}}
    other = {**record, "classes": {"item": ["shirt", "coat", "bag"]}}
    assert script.facts_to_agree_on(record, None) != script.facts_to_agree_on(other, None)


def test_a_worker_that_waits_says_for_whom_and_can_be_stopped(small, tmp_path):
    addresses = [*cluster_of(1), "no-such-host.invalid:2222"]
    worker = start_worker(addresses, 0, *flags(small, tmp_path / "run"))
    assert "no-such-host.invalid:2222" in worker.stdout.readline()
    told = worker.stdout.readline()
    assert told.startswith("still waiting for no-such-host.invalid:2222 (") and len(told) < 200
    worker.terminate()
    began = time.monotonic()
    assert finish(worker, 30).status == 143 and time.monotonic() - began < 5
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_one_line(small, tmp_path):
    with socket.create_server(("", 0)) as taken:
        addresses = [f"127.0.0.1:{taken.getsockname()[1]}", *cluster_of(1)]
        result = finish(start_worker(addresses, 0, *flags(small, tmp_path / "run")))
        assert_error(result, addresses[0])


def test_a_process_that_answers_with_something_else_is_not_a_worker(script):
    """As a web server, or TensorFlow itself in a process that is about to end."""
    seen = set()
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        command = (
            f"import socket; s = socket.create_server; c = socket.create_connection(('127.0.0.1', {address[10:]}))"
        )
        subprocess.Popen([sys.executable, "-c", command], cwd=ROOT).wait()
        other.settimeout(5)
        import threading

        def answer():
            for _ in range(2):
                connection, _ = other.accept()
                connection.sendall(b"HTTP/1.1 400\r\n")
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        script.greet(address, "127.0.0.1:1", seen)
    assert not seen
