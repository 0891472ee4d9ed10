"""Runs that were stopped, killed or damaged go on as if nothing had happened; of all scripts, in this process."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import assert_error, assert_same_run, checkpoint_arrays, last_checkpoint, read_events, steps_saved
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

SHORT = {"n_epoch": 3, "n_batch_size": 200, "log_every": 1}  # 9 steps


@pytest.fixture(scope="module")
def finished(script, small, tmp_path_factory):
    """The log folder of a short finished run of the first script; the tests change copies of it."""
    log_dir = tmp_path_factory.mktemp("finished") / "run"
    flags = [f"--{name}={value}" for name, value in {**SHORT, "data_dir": small, "log_dir": log_dir}.items()]
    assert script.main(flags) == 0
    return log_dir


@pytest.fixture(scope="module")
def stopped(script, small, tmp_path_factory):
    """The same run, killed after two of three epochs: it has two checkpoints and no results."""
    log_dir = tmp_path_factory.mktemp("stopped") / "run"
    flags = [f"--{name}={value}" for name, value in {**SHORT, "data_dir": small, "log_dir": log_dir}.items()]

    class Killed(Exception):
        pass

    saved = []
    save = script.Checkpoints.save

    def save_twice(checkpoints, step, *rest):
        save(checkpoints, step, *rest)
        saved.append(step)
        if step == 6:
            raise Killed

    script.Checkpoints.save = save_twice
    try:
        with pytest.raises(Killed):
            script.main(flags)
    finally:
        script.Checkpoints.save = save
    assert saved == [0, 3, 6] and steps_saved(log_dir) == [3, 6]
    return log_dir


@pytest.fixture
def unfinished(stopped, tmp_path):
    """A copy of the stopped run."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def contents(log_dir):
    return {path: path.read_bytes() for path in log_dir.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_every_script_goes_on_as_if_nothing_had_happened(experiment, run_experiment, tmp_path, monkeypatch):
    """Stopped by a signal within an epoch, before its first evaluation; rates decay, columns are pretrained."""
    flags = {"n_epoch": 3, "log_every": 1, "lr_half_life": 2, "pretrain_epoch": 1, "cross_stitch_init": 0.9}
    whole = run_experiment(**flags, log_dir=tmp_path / "whole")
    assert whole.status == 0, whole

    collected_stop_signals = experiment.script.collected_stop_signals

    class Signals(list):
        """A list of signals to which one is added when it is looked at for the fifth time."""

        looks = 0

        def __len__(self):
            Signals.looks += 1
            if Signals.looks == 5:
                self.append(15)
            return super().__len__()

    import contextlib

    @contextlib.contextmanager
    def at_the_fifth_step():
        with collected_stop_signals():
            yield Signals()

    with monkeypatch.context() as patch:
        patch.setattr(experiment.script, "collected_stop_signals", at_the_fifth_step)
        result = run_experiment(**flags, log_dir=tmp_path / "run")
    assert result.status == 143 and f"--resume {tmp_path}/run" in result.last_line(), result
    assert steps_saved(tmp_path / "run") == [3, 5]
    again = run_experiment("--resume", tmp_path / "run", **dict.fromkeys(experiment.flags))
    assert again.status == 0, again
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "run"))
    for key in ("test", "cross_stitch", "steps", "parameters"):
        assert one[key] == other[key], key
    assert steps_saved(tmp_path / "run") == [9]  # of a finished run the last checkpoint stays


def test_a_finished_run_shows_its_table_again(run, small, finished):
    before = contents(finished)
    result = run("--resume", finished)
    accuracy = json.loads((finished / "results.json").read_text())["test"]["accuracy"]
    assert result.status == 0 and f"overall{accuracy:17.4f}" in result.out
    assert str(small) in result.out  # where its data were, whatever --data_dir says now
    assert contents(finished) == before


@pytest.mark.slow
def test_more_epochs(run, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "longer")
    straight = run(**{**SHORT, "n_epoch": 5}, log_dir=tmp_path / "straight")
    longer = run("--resume", tmp_path / "longer", "--n_epoch", 5)
    assert (straight.status, longer.status) == (0, 0), (straight, longer)
    for name in ("results.json", "run.json"):
        assert json.loads((tmp_path / "longer" / name).read_text())["arguments"]["n_epoch"] == 5
    steps = [step for step, _ in read_events(tmp_path / "longer")["summary/loss_total"]]
    assert steps == list(range(1, 16))
    a, b = (checkpoint_arrays(last_checkpoint(tmp_path / name)) for name in ("straight", "longer"))
    assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def test_killed_before_the_first_checkpoint(run, finished, unfinished):
    shutil.rmtree(unfinished / "checkpoints")
    for path in unfinished.glob("*tfevents*"):
        path.unlink()
    assert run("--resume", unfinished).status == 0
    assert_same_run(finished, unfinished)


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(run, unfinished):
    shutil.rmtree(unfinished / "checkpoints")
    before = contents(unfinished)
    assert_error(run("--resume", unfinished), unfinished / "checkpoints")
    assert contents(unfinished) == before


@pytest.mark.parametrize("state", ["missing", "empty", "whole"])
def test_the_list_of_checkpoints_may_be_lost(run, finished, unfinished, state):
    """TensorFlow's manager knows its checkpoints from a file alone; a power cut can leave it empty."""
    path = unfinished / "checkpoints" / "checkpoint"
    if state == "missing":
        path.unlink()
    elif state == "empty":
        path.write_bytes(b"")
    assert run("--resume", unfinished).status == 0
    assert_same_run(finished, unfinished)
    assert steps_saved(unfinished) == [9]


def test_files_of_others_stay_where_they_are(run, unfinished):
    mine = ["thesis/weights.bin", "notes.txt", "ckpt-one.index", "ckpt-3.x.index", "step-0000000001.txt"]
    for name in mine:
        path = unfinished / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (unfinished / "mine.txt").write_text("mine")
    assert run("--resume", unfinished).status == 0
    assert all((unfinished / "checkpoints" / name).read_text() == name for name in mine if name != "ckpt-3.x.index")
    assert (unfinished / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_resume_auto(run, small, tmp_path):
    """The same command begins a run, goes on with it, and shows the results of a finished one; another is refused."""
    flags = {**SHORT, "n_epoch": 2, "data_dir": small, "log_dir": tmp_path / "run"}
    words = [f"--{name}={value}" for name, value in flags.items()]
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)  # as of a process that was killed while it began
    first = run("--resume", "auto", *words)
    assert first.status == 0 and "epoch 1/2" in first.out, first
    (tmp_path / "run" / "results.json").unlink()
    second = run("--resume", "auto", *words)
    assert second.status == 0 and "epoch" not in second.out and "overall" in second.out, second
    assert "epoch" not in run("--resume", "auto", *words).out
    assert_error(run("--resume", "auto", *words, "--lr=0.01"), "--lr", "0.001", "0.01")


def test_killed_between_the_last_step_and_the_results(run, finished, tmp_path):
    """The checkpoint that it goes on from may be the only good one, and is not written again."""
    log_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    (log_dir / "results.json").unlink()
    index = Path(f"{last_checkpoint(log_dir)}.index")
    written = index.stat().st_mtime_ns
    assert run("--resume", log_dir).status == 0
    assert index.stat().st_mtime_ns == written
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (finished, log_dir))
    assert one["test"] == other["test"] and one["steps"] == other["steps"]
    assert_same_run(finished, log_dir)


@pytest.mark.parametrize(
    "flag, value, then",
    [
        ("lr", "0.01", "0.001"),
        ("n_epoch", "2", "3"),
        ("tasks", "item", "None"),
        ("precision", "bfloat16", "float32"),
        ("seed", "1", "0"),
        ("width", "2", "1.0"),
        ("split_after", "fc_3", "None"),
    ],
)
def test_another_experiment_is_refused(run, unfinished, flag, value, then):
    before = contents(unfinished)
    assert_error(run("--resume", unfinished, f"--{flag}={value}"), f"--{flag}", then, value)
    assert contents(unfinished) == before


def test_data_may_move_but_not_change(run, script, small, unfinished, tmp_path):
    before = contents(unfinished)
    result = run("--resume", unfinished, "--data_dir", script.SAMPLE)
    assert_error(result, small, script.SAMPLE)
    assert contents(unfinished) == before
    shutil.copytree(small, tmp_path / "moved")
    assert run("--resume", unfinished, "--data_dir", tmp_path / "moved").status == 0


def test_other_libraries_are_refused(run, unfinished):
    record = json.loads((unfinished / "run.json").read_text())
    record["versions"]["tensorflow"] = "1.15.0"
    (unfinished / "run.json").write_text(json.dumps(record))
    assert_error(run("--resume", unfinished), "versions", "1.15.0")


def test_an_edited_script_is_told_from_damage(run, script, unfinished, monkeypatch):
    """Another width, another class: the line names them, and does not speak of damage or of other data."""
    before = contents(unfinished)
    with monkeypatch.context() as patch:
        patch.setattr(script, "FILTERS", (48, 64))
        assert_error(run("--resume", unfinished), "[3, 3, 1, 32]", "[3, 3, 1, 48]", "item.conv_1")
    with monkeypatch.context() as patch:
        patch.setitem(script.TASKS, "group", ["Shoes", "Clothes", "Other"])
        patch.setattr(script, "GROUP_OF_ITEM", dict.fromkeys(script.GROUP_OF_ITEM, "Other"))
        assert_error(run("--resume", unfinished), "--resume")
    assert contents(unfinished) == before


def test_a_run_of_a_script_with_other_arguments_is_told(run, unfinished):
    """One argument that the script does not know, and one that the run does not have."""
    path = unfinished / "run.json"
    record = json.loads(path.read_text())
    del record["arguments"]["width"]
    path.write_text(json.dumps(record))
    result = run("--resume", unfinished)
    assert_error(result, "--width")
    assert "None" not in result.last_line()  # the run did not have "--width None"
    record["arguments"] |= {"width": 1.0, "height": 2.0}
    path.write_text(json.dumps(record))
    assert_error(run("--resume", unfinished), "--height")


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


HOWS = [(".data-00000-of-00001", how) for how in ("truncated", "zeroed")]
HOWS += [(".index", how) for how in ("zeroed", "empty", "missing")]


@pytest.mark.parametrize("suffix, how", HOWS)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(run, finished, unfinished, suffix, how):
    newest = last_checkpoint(unfinished)
    damage(Path(f"{newest}{suffix}"), how)
    result = run("--resume", unfinished)
    assert result.status == 0, result
    assert (suffix, how) == (".index", "missing") or f"{newest} is damaged" in result.out
    assert_same_run(finished, unfinished)


def test_no_good_checkpoint_is_an_error(run, unfinished):
    for path in (unfinished / "checkpoints").glob("*.data*"):
        damage(path, "truncated")
    before = contents(unfinished)
    assert_error(run("--resume", unfinished), unfinished / "checkpoints")
    assert contents(unfinished) == before


def test_a_torn_event_file(run, finished, unfinished):
    """TensorBoard reads up to the torn record, and the resumed run logs from its checkpoint on."""
    (events,) = unfinished.glob("*tfevents*")
    size = events.stat().st_size
    with open(events, "ab") as file:
        file.write(b"\x80\x00\x00\x00\x00\x00\x00\x00torn")
    result = run("--resume", unfinished)
    assert result.status == 0
    assert_same_run(finished, unfinished)
    assert size < events.stat().st_size  # nothing is taken away


def test_what_was_logged_after_the_checkpoint_is_shown_once(run, finished, unfinished):
    """A run that was killed between logging a step and its checkpoint."""
    index = last_checkpoint(unfinished)
    for path in Path(unfinished, "checkpoints").glob(f"{index.name}.*"):
        path.unlink()
    assert run("--resume", unfinished).status == 0
    assert_same_run(finished, unfinished)


def test_a_loss_that_is_not_finite(run):
    result = run(n_epoch=2, n_batch_size=200, lr=1e30)
    assert_error(result, "step", "--lr", status=3)
    assert "go on with" not in result.last_line()  # it would end so again
    assert 0 in steps_saved(result.log_dir)
    again = run("--resume", result.log_dir)
    assert again.status == 3 and again.last_line() == result.last_line()


def test_weights_that_are_not_finite_are_not_saved(script, tmp_path):
    """As after a last step whose loss was finite and whose gradient was not."""
    network = tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Dense(1)])
    network.variables[0].assign([[np.nan]])
    checkpoints = script.Checkpoints(str(tmp_path), network, script.Optimizers())
    with pytest.raises(script.Failure, match="step 5") as failure:
        checkpoints.save(5)
    assert failure.value.status == 3 and not any(tmp_path.iterdir())


def test_json_is_written_whole_or_not_at_all(script, tmp_path):
    path = tmp_path / "run.json"
    script.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        script.write_json(path, {"a": [0] * 10_000, "b": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_hyper_parameters_are_those_of_the_run(finished):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished)).Reload()
    metadata = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert HParamsPluginData.FromString(metadata).session_start_info.hparams["n_epoch"].number_value == 3
    (arguments,) = read_events(finished)["arguments"]
    assert dict(arguments[1])[b"n_epoch"] == b"3" and os.path.basename(finished) == "run"
