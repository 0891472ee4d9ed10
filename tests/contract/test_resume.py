"""Runs that are stopped, killed or damaged, and go on as if nothing had happened."""

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, assert_same_run, finish, last_checkpoint, read_events, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

SCRIPT = "fashion_mnist_multi_task_learning.py"
FLAGS = {"n_epoch": 6, "n_batch_size": 40, "log_every": 3, "eval_every": 7, "lr_half_life": 5}
FLAGS |= {"cross_stitch_init": 0.9, "cross_stitch_lr_scale": 3}


def words(flags, small, log_dir):
    return [f"--{name}={value}" for name, value in {**flags, "data_dir": small, "log_dir": log_dir}.items()]


def wait_for(process, condition, seconds=60):
    """Waits until `condition` holds, the process running; returns whether it still ran then."""
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process.poll() is None


def steps_saved(log_dir):
    return [int(path.stem[5:]) for path in sorted(Path(log_dir, "checkpoints").glob("step-*.index"))]


def last_step(log_dir):
    return max(steps_saved(log_dir), default=-1)


def half_written(log_dir):
    """Whether a checkpoint is being written: its data are there and its index is not."""
    names = os.listdir(Path(log_dir, "checkpoints"))
    return any(n.split(".")[0] + ".index" not in names for n in names)


@pytest.fixture(scope="module")
def whole(script, small, tmp_path_factory):
    """The log folder of a run of 90 steps that nothing stopped."""
    log_dir = tmp_path_factory.mktemp("whole") / "run"
    assert script.main(words(FLAGS, small, log_dir)) == 0
    return log_dir


@pytest.mark.slow
def test_a_signal_and_a_kill(small, whole, tmp_path):
    """SIGTERM, then kill -9 inside the writing of a checkpoint, and the run ends with the same bits."""
    log_dir = tmp_path / "run"
    process = start(SCRIPT, *words(FLAGS, small, log_dir))
    assert wait_for(process, lambda: last_step(log_dir) > 0), finish(process)
    stopped = asked_to_stop(process, signal.SIGTERM)
    assert stopped.status == 143 and "Traceback" not in stopped.err
    line, command = stopped.err.splitlines()[-1].split("; go on with: ")
    before = last_step(log_dir)
    assert before == int(line.split()[3])
    process = subprocess.Popen(f"exec {command}", shell=True, stdout=subprocess.DEVNULL)  # as it is printed
    assert wait_for(process, lambda: last_step(log_dir) > before and half_written(log_dir))
    process.kill()
    process.communicate()
    result = finish(start(SCRIPT, "--resume", log_dir))
    assert result.status == 0, result
    assert_same_run(whole, log_dir)
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (whole, log_dir))
    assert one["test"] == other["test"] and one["cross_stitch"] == other["cross_stitch"]
    assert scalar_steps(log_dir, "summary/loss_total") == list(range(3, 91, 3))
    assert scalar_steps(log_dir, "summary/accuracy_test") == [*range(7, 85, 7), 90]


def asked_to_stop(process, number):
    """Sends the signal and returns the Result; a process obeys within ten seconds."""
    asked = time.monotonic()
    process.send_signal(number)
    result = finish(process)
    assert time.monotonic() - asked < 10
    return result


@pytest.mark.parametrize("path", sorted(ROOT.glob("*_multi_task_learning.py")), ids=lambda path: path.stem)
def test_interrupt_while_the_libraries_load(path, tmp_path):
    """Which takes seconds: the process ends by the signal, and no traceback is shown."""
    (tmp_path / "keras.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    process = start(path, environment={"PYTHONPATH": str(tmp_path)})
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert (result.status, result.err) == (-signal.SIGINT, "")


@pytest.mark.slow
def test_interrupt_before_the_first_step(small, tmp_path):
    """While the step is being traced, for a second or more, no Ctrl-C is lost: the run stops, and can go on.

    Not even if nobody reads its output any more, as in `... | tee log`, where Ctrl-C ends tee too.
    """
    process = start(SCRIPT, *words(FLAGS, small, tmp_path / "run"), "--eval_every", "1000")
    for line in process.stdout:
        if line.startswith("writing to"):
            break
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    error = process.stderr.read()
    assert process.wait() == 130 and "stopped at step 1 of 90; go on with: " in error.splitlines()[-1], error
    assert steps_saved(tmp_path / "run") == [0, 1]


SHORT = {"n_epoch": 3, "n_batch_size": 200, "log_every": 1}  # 9 steps


@pytest.fixture(scope="module")
def finished(script, small, tmp_path_factory):
    """The log folder of a short finished run; the tests change copies of it."""
    log_dir = tmp_path_factory.mktemp("finished") / "run"
    assert script.main(words(SHORT, small, log_dir)) == 0
    return log_dir


@pytest.fixture
def unfinished(finished, tmp_path):
    """A copy of the finished run, as it is when killed before it writes its results."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    return tmp_path / "run"


def contents(log_dir):
    return {path: path.read_bytes() for path in log_dir.rglob("*") if path.is_file()}


def go_on(run, log_dir, **changed):
    return run("--resume", log_dir, **{"log_dir": None, "data_dir": None, **changed})


def scalar_steps(log_dir, tag):
    return [step for step, _ in read_events(log_dir)[tag]]


def test_finished_run_shows_its_table_again(run, small, finished):
    before = contents(finished)
    result = go_on(run, finished)
    accuracy = json.loads((finished / "results.json").read_text())["test"]["accuracy"]
    assert result.status == 0 and f"overall{accuracy:17.4f}" in result.out
    assert f"this run is finished; it was trained on {small}\n" in result.out  # whatever --data_dir says now
    assert contents(finished) == before


@pytest.mark.slow
def test_more_epochs(run, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "longer")
    record = json.loads((tmp_path / "longer" / "run.json").read_text())
    (tmp_path / "longer" / "run.json").write_text(json.dumps({**record, "cores": 99, "devices": 4}))
    straight = run(**{**SHORT, "n_epoch": 5}, log_dir=tmp_path / "straight")
    longer = go_on(run, tmp_path / "longer", n_epoch=5)
    assert (straight.status, longer.status) == (0, 0)
    assert f"last on 99 cores, here are {record['cores']}: the last bits may differ\n" in longer.out
    assert "last on 4 devices, here are 1: other random numbers are drawn\n" in longer.out
    assert json.loads((tmp_path / "longer" / "results.json").read_text())["epochs"] == 5
    assert json.loads((tmp_path / "longer" / "run.json").read_text())["arguments"]["n_epoch"] == 5
    assert scalar_steps(tmp_path / "longer", "summary/loss_total") == list(range(1, 16))
    events = EventAccumulator(str(tmp_path / "longer")).Reload()  # as TensorBoard reads them
    metadata = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert HParamsPluginData.FromString(metadata).session_start_info.hparams["n_epoch"].number_value == 5
    (arguments,) = events.Tensors("arguments")
    assert dict(tf.make_ndarray(arguments.tensor_proto))[b"n_epoch"] == b"5"
    assert_same_run(tmp_path / "straight", tmp_path / "longer")


def test_killed_before_the_first_checkpoint(run, finished, unfinished):
    shutil.rmtree(unfinished / "checkpoints")
    for path in unfinished.glob("*tfevents*"):
        path.unlink()
    assert go_on(run, unfinished).status == 0
    assert_same_run(finished, unfinished)


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(run, finished, tmp_path):
    log_dir = tmp_path / "gone"
    shutil.copytree(finished, log_dir)
    shutil.rmtree(log_dir / "checkpoints")
    before = contents(log_dir)
    result = go_on(run, log_dir, n_epoch=4)
    assert result.status == 2 and "all checkpoints in its folder are damaged or gone" in result.err.splitlines()[-1], (
        result
    )
    before[log_dir / "lock"] = b""
    assert contents(log_dir) == before


def test_files_of_others_stay_where_they_are(script, tmp_path):
    folder = tmp_path / "checkpoints"
    mine = [
        "thesis/weights.bin",
        "notes.txt",
        "step-one.index",
        "step-0000000003.x.index",
        "step-0000000001.txt",
        "step-0000000001.index.txt",
    ]
    ours = ["step-0000000001_temp/part", "step-0000000001.data-00000-of-00001.tempstate123", "step-0000000009.index"]
    for name in mine + ours:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    checkpoint = tf.train.Checkpoint(network=[tf.Variable(1.0)])
    for step in (2, 3, 4):
        script.write_checkpoint(checkpoint, tmp_path, step)
    assert all((folder / name).read_text() == name for name in mine)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - set(mine)
    assert left == {f"step-000000000{k}.{end}" for k in (3, 4) for end in ("index", "data-00000-of-00001")}


@pytest.mark.slow
def test_one_process_at_a_time_writes_a_run_until_it_is_interrupted(run, small, tmp_path):
    """While a run is going on, a second --resume of it and a new run in its folder are refused; Ctrl-C ends it."""
    log_dir = tmp_path / "busy"
    process = start(SCRIPT, *words({**FLAGS, "n_epoch": 200}, small, log_dir))
    assert wait_for(process, lambda: last_step(log_dir) > 5)
    again = go_on(run, log_dir)
    assert again.status == 2 and "which no other process is writing" in again.err.splitlines()[-1], again
    assert "already holds a run" in run(log_dir=log_dir).err.splitlines()[-1]
    result = asked_to_stop(process, signal.SIGINT)
    assert result.status == 130 and "Traceback" not in result.err
    assert f"stopped at step {steps_saved(log_dir)[-1]} of 3000; go on with: " in result.err.splitlines()[-1]


@pytest.mark.slow
def test_two_runs_begun_at_once_do_not_share_a_folder(small, tmp_path):
    runs = [start(SCRIPT, *words({**SHORT, "seed": seed}, small, tmp_path / "run")) for seed in (1, 2)]
    results = [finish(process) for process in runs]
    assert sorted(result.status for result in results) == [0, 2], results
    seeds = {
        json.loads((tmp_path / "run" / name).read_text())["arguments"]["seed"] for name in ("run.json", "results.json")
    }
    assert len(seeds) == 1


@pytest.mark.slow
def test_resume_auto(run, tmp_path, small):
    """The same command begins a run, goes on with it, and shows the results of a finished one; another is refused."""
    flags = {**SHORT, "resume": "auto", "n_epoch": 2}
    (tmp_path / "run").mkdir()
    first = run(**flags)
    assert first.status == 0 and "epoch 1/2" in first.out
    (first.log_dir / "results.json").unlink()
    for path in first.log_dir.glob("checkpoints/step-0000000006*"):
        path.unlink()
    second = run(**flags)
    assert second.status == 0 and "epoch 2/2" in second.out, second
    assert "epoch" not in run(**flags).out
    refused = run(**{**flags, "lr": 0.01})
    assert refused.status == 2 and "the run has --lr 0.001, got 0.01" in refused.err.splitlines()[-1]


def test_killed_between_the_last_step_and_the_results(run, finished, unfinished):
    """The checkpoint that it goes on from may be the only good one, and is not written again."""
    index = Path(f"{last_checkpoint(unfinished)}.index")
    written = index.stat().st_mtime_ns
    assert go_on(run, unfinished).status == 0
    assert index.stat().st_mtime_ns == written
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (finished, unfinished))
    assert one["test"] == other["test"] and one["steps"] == other["steps"]
    assert_same_run(finished, unfinished)


@pytest.mark.parametrize(
    "flag, value, then",
    [
        ("lr", "0.01", "0.001"),
        ("n_epoch", "2", "3"),
        ("tasks", "item", "None"),
        ("precision", "bfloat16", "float32"),
        ("seed", "1", "0"),
    ],
)
def test_another_experiment_is_refused(run, unfinished, flag, value, then):
    before = contents(unfinished)
    result = go_on(run, unfinished, **{flag: value})
    assert result.status == 2
    expected = f"error: --resume {unfinished}: the run has --{flag} {then}, got"
    assert result.err.splitlines()[-1].startswith(expected)
    assert contents(unfinished) == before


def test_data_may_move_but_not_change(run, script, small, unfinished, tmp_path):
    before = contents(unfinished)
    result = go_on(run, unfinished, data_dir=script.SAMPLE)
    assert result.status == 2 and f"expected the data that it was begun with, --data_dir {small}" in result.err
    assert contents(unfinished) == before
    shutil.copytree(small, tmp_path / "moved")
    assert go_on(run, unfinished, data_dir=tmp_path / "moved").status == 0


def test_other_libraries_are_refused(run, unfinished):
    record = json.loads((unfinished / "run.json").read_text())
    record["versions"]["tensorflow"] = "1.15.0"
    (unfinished / "run.json").write_text(json.dumps(record))
    result = go_on(run, unfinished)
    assert result.status == 2 and "'tensorflow': '1.15.0'" in result.err.splitlines()[-1]


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "zeroed":
        middle = len(content) // 2
        content[middle : middle + 4096] = bytes(len(content[middle : middle + 4096]))
        path.write_bytes(content)
    else:
        path.unlink()


HOWS = [(".data-00000-of-00001", how) for how in ("truncated", "zeroed", "missing")]
HOWS += [(".index", how) for how in ("truncated", "zeroed", "empty", "missing")]


@pytest.mark.parametrize("suffix, how", HOWS)
def test_a_damaged_checkpoint_is_passed_over(script, tmp_path, capsys, suffix, how):
    state = tf.Variable(np.zeros(10_000, np.float32))
    checkpoint = tf.train.Checkpoint(network=[state])
    for step in (3, 6):
        state.assign(np.full(10_000, step, np.float32))
        script.write_checkpoint(checkpoint, tmp_path, step)
    newest = last_checkpoint(tmp_path)
    damage(Path(f"{newest}{suffix}"), how)
    assert script.restore_checkpoint(checkpoint, str(tmp_path)) == 3 and set(state.numpy()) == {3}
    assert (suffix, how) == (".index", "missing") or f"{newest} is damaged" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(run, finished, unfinished):
    newest = last_checkpoint(unfinished)
    damage(Path(f"{newest}.data-00000-of-00001"), "zeroed")
    result = go_on(run, unfinished)
    assert result.status == 0 and f"{newest} is damaged" in result.out, result
    assert_same_run(finished, unfinished)


def test_no_good_checkpoint_is_an_error(run, unfinished):
    for path in (unfinished / "checkpoints").glob("*.data*"):
        damage(path, "truncated")
    result = go_on(run, unfinished)
    assert result.status == 2
    expected = f"error: --resume {unfinished}: all checkpoints in its folder are damaged or gone, expected a whole one"
    assert result.err.splitlines()[-1] == expected


def test_torn_event_file(run, finished, unfinished):
    for path in unfinished.glob("checkpoints/step-0000000009*"):
        path.unlink()
    (events,) = unfinished.glob("*tfevents*")
    events.write_bytes(events.read_bytes()[:-20])
    result = go_on(run, unfinished)
    assert result.status == 0 and "is torn or damaged" in result.out
    assert_same_run(finished, unfinished)


def test_events_after_a_damaged_record_are_not_lost_in_silence(script, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    (events,) = (tmp_path / "run").glob("*tfevents*")
    script.open_events(str(tmp_path / "run"), 10).close()
    assert "damaged" not in capsys.readouterr().out
    before, after = read_events(finished), read_events(tmp_path / "run")  # all is kept but what is logged at each start
    setting = {"arguments", "data", "_hparams_/experiment", "_hparams_/session_start_info"}
    assert before.keys() - after.keys() == setting and all(len(before[tag]) == len(after[tag]) for tag in after)
    content = events.read_bytes()
    place = len(content) // 2
    events.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    script.open_events(str(tmp_path / "run"), 10).close()
    kept = events.read_bytes()
    assert f"{events} is torn or damaged" in capsys.readouterr().out
    assert 0 < len(kept) <= place and content.startswith(kept)


def test_loss_that_is_not_finite(run):
    result = run(**{**SHORT, "lr": 1e30})
    assert result.status == 3
    line = result.err.splitlines()[-1]
    assert line.startswith("error: step 2: the loss is no longer finite")
    assert "go on with" not in line  # it would end so again
    assert steps_saved(result.log_dir)  # step 0 at least
    result = go_on(run, result.log_dir)
    assert result.status == 3  # the checkpoint was good, and the run ends where it ended before
    assert result.err.splitlines()[-1] == line


def test_weights_that_are_not_finite_are_not_saved(script, tmp_path):
    """As after a last step whose loss was finite and whose gradient was not."""
    checkpoint = tf.train.Checkpoint(network=[tf.Variable([1.0, np.nan])])
    with pytest.raises(script.Failure, match="step 5: the weights are no longer finite") as failure:
        script.write_checkpoint(checkpoint, tmp_path, 5)
    assert failure.value.status == 3 and not any(tmp_path.iterdir())


def test_a_checkpoint_is_on_the_disk_before_an_older_one_goes(script, tmp_path, monkeypatch):
    """And so are the events that were logged before it."""
    done, unlink = [], Path.unlink

    def fsync(descriptor):
        (path,) = (p for p in (tmp_path / "checkpoints").iterdir() if p.stat().st_ino == os.fstat(descriptor).st_ino)
        done.append(("saved", path.stem))

    monkeypatch.setattr(script.os, "fsync", fsync)
    monkeypatch.setattr(Path, "unlink", lambda path: done.append(("gone", path.stem)) or unlink(path))
    checkpoint = tf.train.Checkpoint(network=[tf.Variable(1.0)])
    with tf.summary.create_file_writer(str(tmp_path)).as_default(step=1):
        tf.summary.scalar("x", 1.0)
        for step in (1, 2, 3):
            script.write_checkpoint(checkpoint, tmp_path, step)
        assert "x" in read_events(tmp_path)
    saved = [("saved", f"step-000000000{k}") for k in (1, 1, 2, 2, 3, 3)]
    assert done == saved + [("gone", "step-0000000001")] * 2


def test_json_is_on_the_disk_before_it_takes_the_place_of_another(script, tmp_path, monkeypatch):
    path, calls, replace = tmp_path / "run.json", [], os.replace
    monkeypatch.setattr(script.os, "fsync", lambda fd: calls.append(os.fstat(fd).st_size))
    monkeypatch.setattr(script.os, "replace", lambda *ends: calls.append("replace") or replace(*ends))
    script.write_json(path, {"a": 1})
    assert calls == [path.stat().st_size, "replace"] and json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(TypeError):
        script.write_json(path, {"a": [0] * 10_000, "b": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def limit_file_size():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, resource.RLIM_INFINITY))  # a checkpoint has 7 MB


@pytest.mark.slow
def test_full_disk(run, small, finished, tmp_path):
    log_dir = tmp_path / "run"
    result = finish(start(SCRIPT, *words(SHORT, small, log_dir), preexec_fn=limit_file_size))
    assert result.status == 1, result
    assert result.err.splitlines()[-1].startswith("error: ") and "Traceback" not in result.err
    assert go_on(run, log_dir).status == 0
    assert_same_run(finished, log_dir)
