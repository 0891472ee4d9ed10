"""Runs in processes of their own, stopped by signals and kills, resumed by the command that they print."""

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import FASHION, assert_same_run, finish, read_events, start, steps_saved

pytestmark = pytest.mark.slow
FLAGS = {"n_epoch": 6, "n_batch_size": 40, "log_every": 3, "eval_every": 7, "lr_half_life": 5}
FLAGS |= {"cross_stitch_init": 0.9, "cross_stitch_lr_scale": 3}


def words(flags, small, log_dir):
    return [f"--{name}={value}" for name, value in {**flags, "data_dir": small, "log_dir": log_dir}.items()]


def wait_for(process, condition, seconds=60):
    """Wait until `condition` holds, the process running; return whether it still ran then."""
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process.poll() is None


def last_step(log_dir):
    return max(steps_saved(log_dir), default=-1)


def half_written(log_dir):
    """Whether a checkpoint is being written: its data are there and its index is not."""
    names = [name for name in os.listdir(Path(log_dir, "checkpoints")) if name.startswith("ckpt-")]
    return any(name.split(".")[0] + ".index" not in names for name in names)


@pytest.fixture(scope="module")
def whole(script, small, tmp_path_factory):
    """The log folder of a run of 90 steps that nothing stopped."""
    log_dir = tmp_path_factory.mktemp("whole") / "run"
    assert script.main(words(FLAGS, small, log_dir)) == 0
    return log_dir


def asked_to_stop(process, number):
    """Send the signal and return the Result; a process obeys within ten seconds."""
    asked = time.monotonic()
    process.send_signal(number)
    result = finish(process)
    assert time.monotonic() - asked < 10
    return result


def test_a_signal_and_a_kill(small, whole, tmp_path):
    """SIGTERM, then kill -9 inside the writing of a checkpoint, and the run ends with the same bits."""
    log_dir = tmp_path / "run"
    process = start(FASHION, *words(FLAGS, small, log_dir))
    assert wait_for(process, lambda: last_step(log_dir) > 0), finish(process)
    stopped = asked_to_stop(process, signal.SIGTERM)
    assert stopped.status == 143 and "Traceback" not in stopped.err
    line, command = stopped.last_line().split("; go on with: ")
    before = last_step(log_dir)
    assert before == int(line.split()[3])
    process = subprocess.Popen(f"exec {command}", shell=True, stdout=subprocess.DEVNULL)  # as it is printed
    assert wait_for(process, lambda: last_step(log_dir) > before and half_written(log_dir))
    process.kill()
    process.communicate()
    result = finish(start(FASHION, "--resume", log_dir))
    assert result.status == 0, result
    assert_same_run(whole, log_dir)
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (whole, log_dir))
    assert one["test"] == other["test"] and one["cross_stitch"] == other["cross_stitch"]
    assert [step for step, _ in read_events(log_dir)["summary/loss_total"]] == list(range(3, 91, 3))
    assert [step for step, _ in read_events(log_dir)["summary/accuracy_test"]] == [*range(7, 85, 7), 90]


def test_interrupt_before_the_first_step(small, tmp_path):
    """While the step is being traced, for a second or more, no Ctrl-C is lost: the run stops, and can go on.

    Not even if nobody reads its output any more, as in `... | tee log`, where Ctrl-C ends tee too.
    """
    process = start(FASHION, *words(FLAGS, small, tmp_path / "run"), "--eval_every", "1000")
    for line in process.stdout:
        if line.startswith("writing to"):
            break
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    error = process.stderr.read()
    assert process.wait() == 130 and "stopped at step 1 of 90; go on with: " in error.splitlines()[-1], error
    assert steps_saved(tmp_path / "run") == [0, 1]


def test_two_runs_begun_at_once_do_not_share_a_folder(small, tmp_path):
    short = {"n_epoch": 3, "n_batch_size": 200}
    runs = [start(FASHION, *words({**short, "seed": seed}, small, tmp_path / "run")) for seed in (1, 2)]
    results = [finish(process) for process in runs]
    assert sorted(result.status for result in results) == [0, 2], results
    names = ("run.json", "results.json")
    seeds = {json.loads((tmp_path / "run" / name).read_text())["arguments"]["seed"] for name in names}
    assert len(seeds) == 1


def limit_file_size():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, resource.RLIM_INFINITY))  # a checkpoint has 7 MB


def test_full_disk(script, small, tmp_path):
    short = {"n_epoch": 3, "n_batch_size": 200, "log_every": 1}
    assert script.main(words(short, small, tmp_path / "whole")) == 0
    result = finish(start(FASHION, *words(short, small, tmp_path / "run"), preexec_fn=limit_file_size))
    assert result.status == 1, result
    assert result.last_line().startswith("error: ") and "Traceback" not in result.err
    assert script.main(["--resume", str(tmp_path / "run")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def page_faults(process):
    """Return how often a process has been given a new page of memory."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[7])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux tells the page faults of a process")
def test_memory_is_kept_from_step_to_step(script, tmp_path):
    """A step that asked for all of its memory anew would need 30,000 pages."""
    flags = {"n_epoch": 400, "n_batch_size": 128, "train_fraction": 0.1, "log_every": 10, "eval_every": 10**6}
    process = start(FASHION, *words(flags, script.SAMPLE, tmp_path / "run"))
    try:
        for line in process.stdout:
            if line.startswith("writing to"):
                break
        wait_for(process, lambda: last_step(tmp_path / "run") == 0)
        faults = []  # in two seconds each; the first steps do need new memory, so the least of five counts
        while len(faults) < 5 and min(faults, default=20_000) >= 20_000:
            before = page_faults(process)
            time.sleep(2)
            faults.append(page_faults(process) - before)
        assert min(faults) < 20_000
    finally:
        process.kill()
        process.communicate()
