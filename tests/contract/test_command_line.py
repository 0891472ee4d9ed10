"""Bad input ends in one clear line, exit status 2, and nothing touched."""

import json
import os
import re
from unittest import mock

import numpy as np
import pytest
from conftest import assert_refused, finish, start

BAD = {
    "--lr nan": "--lr: expected a number in (0, inf), got 'nan'",
    "--lr 0": "--lr: expected a number in (0, inf), got '0'",
    "--lr inf": "--lr: expected a number in (0, inf), got 'inf'",
    "--lr fast": "--lr: expected a number in (0, inf), got 'fast'",
    "--n_epoch 0": "--n_epoch: expected a whole number in [1, inf), got '0'",
    f"--n_epoch 1{'0' * 400}": "--n_epoch: expected a whole number in [1, inf), got '1000",
    "--n_epoch 1.5": "--n_epoch: expected a whole number in [1, inf), got '1.5'",
    "--n_batch_size 0": "--n_batch_size: expected a whole number in [1, inf), got '0'",
    "--reg_lambda -1": "--reg_lambda: expected a number in [0, inf), got '-1'",
    "--keep_prob 0": "--keep_prob: expected a number in [0.01, 1], got '0'",
    "--keep_prob 1.5": "--keep_prob: expected a number in [0.01, 1], got '1.5'",
    "--bn_momentum 1": "--bn_momentum: expected a number in [0, 1), got '1'",
    "--cross_stitch_enabled maybe": "--cross_stitch_enabled: invalid choice: 'maybe' (choose from True, False)",
    "--cross_stitch_unit pixel": "--cross_stitch_unit: invalid choice: 'pixel'",
    "--cross_stitch_init 0": "--cross_stitch_init: expected a number in (0, 1], got '0'",
    "--cross_stitch_init 1.1": "--cross_stitch_init: expected a number in (0, 1], got '1.1'",
    "--cross_stitch_at pool_3": "--cross_stitch_at: invalid choice: 'pool_3'",
    "--cross_stitch_lr_scale -1": "--cross_stitch_lr_scale: expected a number in [0, inf), got '-1'",
    "--pretrain_epoch -1": "--pretrain_epoch: expected a whole number in [0, inf), got '-1'",
    "--pretrain_epoch 30": "--pretrain_epoch 30: expected less than --n_epoch, 30",
    "--tasks item shoe": "--tasks item shoe: expected some of item group, each once",
    "--tasks item item": "--tasks item item: expected some of item group, each once",
    "--tasks": "--tasks: expected at least one argument",
    "--task_weights item": "--task_weights: expected a number in [0, inf), got 'item'",
    "--task_weights 1 -1": "--task_weights: expected a number in [0, inf), got '-1'",
    "--task_weights nan 1": "--task_weights: expected a number in [0, inf), got 'nan'",
    "--task_weights 1": "--task_weights: expected 2 numbers, one each for item group",
    "--precision float16": "--precision: invalid choice: 'float16'",
    "--preset 2017": "--preset: invalid choice: '2017'",
    "--preset 2018 --preset ours": "--preset ours: expected one preset, found 2018 before it",
    "--train_fraction 0": "--train_fraction: expected a number in (0, 1], got '0'",
    "--validation_fraction 1": "--validation_fraction: expected a number in [0, 1), got '1'",
    "--validation_fraction 0.999": "--validation_fraction 0.999: nothing left to train on",
    "--seed -1": "--seed: expected a whole number in [0, 4294967295], got '-1'",
    "--log_every 0": "--log_every: expected a whole number in [1, inf), got '0'",
    "--eval_every -1": "--eval_every: expected a whole number in [0, inf), got '-1'",
    "--learning_rate 1": "unrecognized arguments: --learning_rate 1",
    "--n_epo 1": "unrecognized arguments: --n_epo 1; did you mean --n_epoch?",
    "--lr-half-life 5": "unrecognized arguments: --lr-half-life 5; did you mean --lr_half_life?",
    "--lr": "--lr: expected one argument",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_flag(run, flags):
    result = run(*flags.split())
    assert_refused(result, BAD[flags])


def test_bad_data_folder(run, tmp_path):
    for folder, expected in (
        (tmp_path / "absent", "No such file or directory"),
        (tmp_path, "train-images-idx3-ubyte.gz: expected one of Fashion-MNIST's four .gz files"),
    ):
        result = run(data_dir=folder)
        assert result.status == 2 and str(folder) in result.err and expected in result.err.splitlines()[-1]
        assert not result.log_dir.exists()


def test_log_folder_that_cannot_be_made(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    result = run(log_dir=tmp_path / "file" / "run")
    assert result.status == 2
    line = result.err.splitlines()[-1]
    assert line.startswith(f"error: --log_dir {tmp_path}/file/run: expected a folder that can be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_log_folder_that_holds_a_run(run, tmp_path):
    for name in ("run.json", "events.out.tfevents.1", "checkpoints", "results.json", "model.keras"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("a run")
        result = run(log_dir=folder)
        assert result.status == 2 and f"--log_dir {folder}: already holds a run" in result.err.splitlines()[-1]
        assert os.listdir(folder) == [name] and (folder / name).read_text() == "a run"


def test_a_file_that_is_called_lock_is_left_as_it_is(script, tmp_path):
    (tmp_path / "lock").write_text("mine")
    with script.claim(str(tmp_path), None):
        pass
    assert (tmp_path / "lock").read_text() == "mine"


def test_bad_tf_config(run, monkeypatch):
    wrong = '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}'
    with_ps = '{"cluster": {"worker": ["a:1"], "ps": ["a:2"]}, "task": {"type": "worker", "index": 0}}'
    chiefs = '{"cluster": {"chief": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}'
    no_list, no_words, negative = (
        f'{{"cluster": {{"worker": {workers}}}, "task": {{"type": "worker", "index": {index}}}}}'
        for workers, index in (('"a:1"', 0), ("[5, 6]", 0), ('["a:1", "b:1"]', -1))
    )
    for text in ("", "workers", "[]", wrong, with_ps, chiefs, no_list, no_words, negative):
        monkeypatch.setenv("TF_CONFIG", text)
        result = run()
        assert result.status == 2 and result.err.splitlines()[-1].startswith("error: TF_CONFIG: expected")
        assert not result.log_dir.exists()
    assert run(log_dir=None).err.splitlines()[-1].startswith("error: --log_dir: required with TF_CONFIG")


def test_resume_names_the_folder_alone(run, tmp_path):
    result = run("--resume", tmp_path / "other")
    expected = f"error: --log_dir {result.log_dir}: expected none beside --resume {tmp_path}/other"
    assert result.status == 2 and result.err.splitlines()[-1].startswith(expected)
    nothing = run("--resume", "", log_dir=None)  # as of a variable of the shell that is not set
    assert nothing.status == 2 and nothing.err.splitlines()[-1].startswith("error: run.json: expected the JSON file")


def test_resume_of_what_is_no_run(run, tmp_path):
    content = {
        "absent": None,
        "empty": "",
        "no JSON": "{",
        "a list": "[]",
        "no arguments": json.dumps({"data": {}}),
    }
    for name, text in content.items():
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "run.json").write_text(text)
        result = run("--resume", tmp_path / name, log_dir=None, data_dir=None)
        assert result.status == 2
        assert result.err.splitlines()[-1].startswith(f"error: {tmp_path}/{name}/run.json: expected the JSON file")


def test_resume_of_a_run_of_another_script(run, faces_script, landmark_script, tmp_path):
    for script, flag in ((faces_script, "--age_bins"), (landmark_script, "--augment")):
        arguments = vars(script.parse_arguments(["--log_dir", str(tmp_path)])[0])
        (tmp_path / "run.json").write_text(json.dumps({"arguments": arguments, "data": {}, "versions": {}}))
        result = run("--resume", tmp_path, log_dir=None, data_dir=None)
        expected = f"--resume {tmp_path}: expected a run of fashion_mnist_multi_task_learning.py, found one with {flag}"
        assert_refused(result, expected)


def test_too_little_memory_is_one_line(run, script, monkeypatch):
    monkeypatch.setattr(script, "run", lambda *_: np.empty(2**57))
    result = run()
    assert result.status == 1 and result.err.splitlines()[-1].startswith("error: Unable to allocate 1.00 EiB")
    monkeypatch.setattr(script, "run", mock.Mock(side_effect=MemoryError))  # as Python itself raises it
    assert run().err.splitlines()[-1] == "error: MemoryError"


@pytest.mark.parametrize("word", ["True", "true", "YES", "1"])
def test_words_for_true(script, word):
    assert script.boolean(word) is True


@pytest.mark.parametrize("word", ["False", "false", "no", "0"])
def test_words_for_false(script, word):
    assert script.boolean(word) is False


def test_default_log_folder_tells_the_experiment(script):
    for flags, kind in (([], "stitched"), (["--cross_stitch_enabled=no"], "baseline"), (["--tasks=item"], "single")):
        args, _ = script.parse_arguments([*flags, "--seed=3"])
        folder, run = os.path.split(args.log_dir)
        assert folder == "tf_logs/fashion_mnist"
        assert re.fullmatch(rf"{kind}-seed3-\d{{8}}-\d{{6}}-{os.getpid()}", run)  # two of one second are two


def test_defaults_of_the_original(script):
    args, _ = script.parse_arguments([])
    original = {"lr": 0.001, "n_epoch": 30, "n_batch_size": 128, "reg_lambda": 1e-5, "keep_prob": 0.8}
    assert original.items() <= vars(args).items() and args.cross_stitch_enabled is True


@pytest.mark.slow
def test_bad_flag_in_a_process_of_its_own(tmp_path):
    result = finish(start("fashion_mnist_multi_task_learning.py", "--keep_prob", "0", cwd=tmp_path))
    assert result.status == 2 and result.out == ""
    assert result.err.splitlines()[-1] == "error: --keep_prob: expected a number in [0.01, 1], got '0'"
    assert "Traceback" not in result.err and os.listdir(tmp_path) == []


def test_paths_that_cannot_work_are_refused(run, script, tmp_path):
    """TensorFlow reads [ in the path of a checkpoint as a pattern; what is not UTF-8 cannot be written as JSON."""
    result = run(log_dir=tmp_path / "a[1]")
    assert_refused(result, f"--log_dir {tmp_path}/a[1]: expected a path of this machine, without")
    for log_dir in (f"file://{tmp_path}/run", "gs://bucket/run"):
        with pytest.raises(script.Failure, match="expected a path of this machine"):
            script.parse_arguments(["--log_dir", log_dir])
    result = run("--data_dir", "caf\udce9", data_dir=None)
    assert_refused(result, "'caf\\udce9': expected an argument in UTF-8, without control characters")
    assert_refused(run("--data_dir", "a\nb", data_dir=None), "'a\\nb': expected an argument in UTF-8, without control")
    screenshot = "3.04\u202fPM, \u3000and \u200d"  # as macOS writes a time, and other blanks of UTF-8
    assert script.parse_arguments(["--log_dir", screenshot])[0].log_dir == screenshot
    assert_refused(run("--resume", "auto", log_dir=None), "--log_dir: required with TF_CONFIG and with --resume auto")
