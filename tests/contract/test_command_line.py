"""Bad input ends in one clear line that names the flag or the file, exit status 2, and nothing touched."""

import json
import os
import re

import numpy as np
import pytest
from conftest import FACES, FASHION, LANDMARKS, Result, assert_error, assert_refused, finish, parse, run_main, start

# Flags that no script takes, and what the line names beside the first of them.
BAD = {
    "--lr nan": "nan",
    "--lr 0": "0",
    "--lr inf": "inf",
    "--lr fast": "fast",
    "--n_epoch 0": "0",
    f"--n_epoch 1{'0' * 400}x": "1000",
    "--n_epoch 1.5": "1.5",
    "--n_batch_size 0": "0",
    "--reg_lambda -1": "-1",
    "--keep_prob 0": "0.01",
    "--keep_prob 1.5": "1.5",
    "--bn_momentum 1": "below 1",
    "--cross_stitch_enabled maybe": "maybe",
    "--cross_stitch_unit pixel": "channel",
    "--cross_stitch_init 0": "0",
    "--cross_stitch_init 1.1": "1.1",
    "--cross_stitch_at pool_7": "pool_1",
    "--cross_stitch_lr_scale -1": "-1",
    "--split_after pool_7": "pool_1",
    "--width 0": "0",
    "--width x": "x",
    "--pretrain_epoch -1": "-1",
    "--pretrain_epoch 900": "--n_epoch",
    "--precision float16": "bfloat16",
    "--preset 2017": "default",
    "--train_fraction 0": "0",
    "--validation_fraction 1": "below 1",
    "--seed -1": "4294967295",
    "--log_every 0": "0",
    "--eval_every -1": "-1",
    "--learning_rate 1": "",
    "--n_epo 1": "did you mean --n_epoch?",
    "--lr-half-life 5": "did you mean --lr_half_life?",
    "--model m.keras": "--predict",
    "--resume auto": "--log_dir",
    "--split_after pool_2 --cross_stitch_at pool_1 pool_2": "--cross_stitch_enabled False",
}
BAD_OF = {
    FASHION: {
        "--tasks item shoe": "item group",
        "--tasks item item": "item group",
        "--tasks": "at least one",
        "--task_weights item": "item",
        "--task_weights 1 -1": "-1",
        "--task_weights 1": "item group",
        "--tasks item --split_after pool_1": "--split_after",
        "--validation_fraction 0.999": "--validation_fraction",
        "--predict a.jpg": "--model",
    },
    FACES: {
        "--age_bins 30 20": "30 20",
        "--age_bins old": "old",
        "--image_size 8": "16",
        "--tasks gender shoe": "shoe",
        "--tasks age age": "age age",
        "--task_weights 1 2 3": "gender age",
        "--tasks age --split_after pool_1": "--split_after",
        "--augment maybe": "maybe",
        "--data_dir nowhere": "UTKFace",
        "--predict a.jpg": "--model",
    },
    LANDMARKS: {
        "--network triple": "single",
        "--aux_lambda x": "x",
        "--aux_lambda 1 2": "gender smile glasses pose",
        "--weight_reg l1": "exp",
        "--weight_reg l2 --network split": "--weight_reg l2",
        "--network single --split_after pool_1": "--split_after",
        "--validation_fraction 0": "above 0",
        "--box 1 2 3": "4",
        "--box 1 2 3 x": "x",
        "--box 1 2 3 4": "--predict",
        "--data_dir nowhere": "trainImageList.txt",
        "--predict a.jpg": "--model",
    },
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_flag(run_experiment, flags):
    words = flags.split()
    given = {"log_dir": None} if words[0] == "--resume" else {}
    result = run_experiment(*words, **given)
    assert_error(result, words[0], BAD[flags])
    assert given or not result.log_dir.exists()


@pytest.mark.parametrize("name, flags", [(name, flags) for name, of_script in BAD_OF.items() for flags in of_script])
def test_bad_flag_of_one_script(name, flags, request, tmp_path, capfd):
    import conftest

    experiment = conftest.experiment_of(name, request)
    given = {**experiment.flags, "data_dir": experiment.data_dir}
    if "--data_dir" in flags or "--image_size" in flags:
        given = {}
    result = run_main(experiment.script, capfd, tmp_path / "run", *flags.split(), **given)
    assert_error(result, BAD_OF[name][flags])
    assert not (tmp_path / "run").exists()


def test_bad_data_folder(run, tmp_path):
    for folder in (tmp_path / "absent", tmp_path):
        assert_refused(run(data_dir=folder), folder, "train-images-idx3-ubyte.gz", "train.npz")


def test_log_folder_that_cannot_be_made(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_error(run(log_dir=tmp_path / "file" / "run"), f"--log_dir {tmp_path}/file/run")
    assert (tmp_path / "file").read_text() == "mine"


def test_log_folder_that_holds_a_run(run, tmp_path):
    for name in ("run.json", "events.out.tfevents.1", "checkpoints", "results.json", "model.keras"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("a run")
        words = ["--resume auto"] if name in ("run.json", "checkpoints") else []  # the others cannot be resumed
        assert_error(run(log_dir=folder), folder, name, "--log_dir", *words)
        assert os.listdir(folder) == [name] and (folder / name).read_text() == "a run"


def test_a_log_folder_that_holds_a_run_is_refused_at_once(run, script, monkeypatch, tmp_path):
    """And not after minutes of reading images. An error while they are read would name the other run's folder."""
    (tmp_path / "run.json").write_text("a run")
    monkeypatch.setattr(script, "prepare_data", lambda args: pytest.fail("the data were read first"))
    assert_error(run(log_dir=tmp_path), "run.json")


def test_a_folder_with_other_files_is_used_and_they_stay(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert run(n_epoch=1, n_batch_size=300).status == 0
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_bad_tf_config(run, monkeypatch):
    wrong = '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}'
    with_ps = '{"cluster": {"worker": ["a:1"], "ps": ["a:2"]}, "task": {"type": "worker", "index": 0}}'
    chiefs = '{"cluster": {"chief": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}'
    no_port = '{"cluster": {"worker": ["a", "b"]}, "task": {"type": "worker", "index": 0}}'
    no_list, no_words, negative = (
        f'{{"cluster": {{"worker": {workers}}}, "task": {{"type": "worker", "index": {index}}}}}'
        for workers, index in (('"a:1"', 0), ("[5, 6]", 0), ('["a:1", "b:1"]', -1))
    )
    for text in ("", "workers", "[]", wrong, with_ps, chiefs, no_port, no_list, no_words, negative):
        monkeypatch.setenv("TF_CONFIG", text)
        assert_refused(run(), "TF_CONFIG", '{"cluster": {"worker": ["host:port"')
    assert_error(run(log_dir=None), "--log_dir", "TF_CONFIG")


def test_tf_config_after_tensorflow_was_used(run, monkeypatch):
    """As where a notebook calls `main` a second time."""
    config = {"cluster": {"worker": ["127.0.0.1:45677"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert_refused(run(), "TF_CONFIG", "before")


def test_resume_and_log_dir(run, tmp_path):
    assert_error(run("--resume", tmp_path / "other", f"--log_dir={tmp_path}/one"), "--log_dir", "--resume")
    assert_error(run("--resume", f"{tmp_path}/one/", f"--log_dir={tmp_path}/one"), "run.json")  # it is one folder


@pytest.mark.parametrize("flag", ["--log_dir", "--resume", "--data_dir"])
def test_an_empty_path_is_refused(any_script, flag, tmp_path, monkeypatch, capfd):
    """As of a variable of the shell that is not set. Neither / nor the current folder is meant."""
    monkeypatch.chdir(tmp_path)
    assert_error(run_main(any_script, capfd, None, flag, ""), flag, "empty")
    assert os.listdir(tmp_path) == []


def test_blanks_in_a_path_are_kept_in_its_error(run, tmp_path):
    assert_refused(run(data_dir=tmp_path / "my  data"), f"{tmp_path}/my  data")


def test_resume_of_what_is_no_run(run, tmp_path):
    content = {"absent": None, "empty": "", "no JSON": "{", "a list": "[]", "no arguments": json.dumps({"data": {}})}
    for name, text in content.items():
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "run.json").write_text(text)
        assert_error(run("--resume", tmp_path / name), f"{tmp_path}/{name}/run.json")


def test_resume_of_a_run_of_another_script(run, faces_script, landmark_script, tmp_path):
    for script, flag in ((faces_script, "--age_bins"), (landmark_script, "--augment")):
        arguments = {name: x for name, x in vars(parse(script)).items() if name not in script.NOT_RECORDED}
        record = {"arguments": arguments, "data": {}, "classes": {}, "versions": {}}
        (tmp_path / "run.json").write_text(json.dumps(record))
        assert_error(run("--resume", tmp_path), "fashion_mnist_multi_task_learning.py", flag)


def test_too_little_memory_is_one_line(run, script, monkeypatch):
    def of_numpy(*_):
        return np.empty(2**57)

    def of_python(*_):
        raise MemoryError

    for raises, words in ((of_numpy, "1.00 EiB"), (of_python, "MemoryError")):
        monkeypatch.setattr(script, "train", raises)
        assert_error(run(), words, status=1)


@pytest.mark.parametrize(
    "word, value", [("True", True), ("YES", True), ("1", True), ("False", False), ("no", False), ("0", False)]
)
def test_words_for_true_and_false(any_script, word, value):
    assert any_script.boolean(word) is value


def test_the_default_log_folder_tells_the_experiment(script, tmp_path):
    for flags, words in (
        ([], "fashion_mnist-stitched-seed3"),
        (["--cross_stitch_enabled=no"], "fashion_mnist-baseline-seed3"),
        (["--tasks=item", "--width=2"], "fashion_mnist-single-width2.0-tasksitem-seed3"),
        (["--split_after=fc_3"], "fashion_mnist-split_after_fc_3-seed3"),
        (["--cross_stitch_init=0.5"], "fashion_mnist-stitched-init0.5-seed3"),
        ([f"--data_dir={tmp_path}/my digits", "--n_epoch=2"], "my_digits-stitched-n_epoch2-seed3"),
    ):
        args, _ = script.parse_arguments([*flags, "--seed=3"])
        folder, run = os.path.split(args.log_dir)
        assert folder == "tf_logs/fashion_mnist"
        assert re.fullmatch(rf"{words}-\d{{8}}-\d{{6}}-{os.getpid()}", run), run  # two of one second are two


def test_defaults_of_the_original(script):
    args, _ = script.parse_arguments([])
    original = {"lr": 0.001, "n_epoch": 30, "n_batch_size": 128, "reg_lambda": 1e-5, "keep_prob": 0.8}
    assert original.items() <= vars(args).items() and args.cross_stitch_enabled is True


def test_a_preset_and_other_flags(landmark_script, mtfl):
    """What stands on the command line wins, before the preset and after it."""
    for flags in (["--preset=poster", "--lr=0.1"], ["--lr=0.1", "--preset=poster"]):
        args, _ = landmark_script.parse_arguments([f"--data_dir={mtfl}", *flags])
        assert (args.lr, args.n_epoch, args.cross_stitch_init) == (0.1, 100, 0.9)


def test_the_recipe_of_the_paper_is_a_preset(any_script):
    args = parse(any_script, "--preset=paper")
    assert (args.cross_stitch_init, args.cross_stitch_lr_scale) == (0.9, 100)


def test_help_shows_every_argument_and_its_default(any_script):
    text = any_script.make_parser().format_help()
    for action in any_script.make_parser()._actions:
        assert action.option_strings[-1] in text and action.help
        if action.default not in (None, "==SUPPRESS=="):
            shown = f"(default: {action.default})"
            assert shown.replace(" ", "") in "".join(text.split()), shown
    assert "(default:None)" not in "".join(text.split())


@pytest.mark.slow
def test_bad_flag_in_a_process_of_its_own(tmp_path):
    result = finish(start(FACES, "--keep_prob", "0", cwd=tmp_path))
    assert_error(result, "--keep_prob", "'0'")
    assert result.out == "" and os.listdir(tmp_path) == []


def test_paths_that_cannot_work_are_refused(run, script, tmp_path):
    """TensorFlow reads [ in the path of a checkpoint as a pattern; what is not UTF-8 cannot be written as JSON."""
    assert_refused(run(log_dir=tmp_path / "a[1]"), f"--log_dir {tmp_path}/a[1]")
    for log_dir in (f"file://{tmp_path}/run", "gs://bucket/run"):
        with pytest.raises(script.Failure, match="--log_dir"):
            script.parse_arguments(["--log_dir", log_dir])
    assert_refused(run("--data_dir", "caf\udce9", data_dir=None), "UTF-8")
    (tmp_path / "a file").write_text("kept")
    assert_error(run(log_dir=tmp_path / "a file"), f"--log_dir {tmp_path}/a file", "File exists")
    assert (tmp_path / "a file").read_text() == "kept"
    screenshot = "3.04\u202fPM, \u3000and \u200d"  # as macOS writes a time, and other blanks of UTF-8
    assert script.parse_arguments(["--log_dir", screenshot])[0].log_dir == screenshot


def test_a_tilde_is_the_home_folder(any_script, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = parse(any_script, "--log_dir=~/runs/a", "--data_dir=~/data", "--model=~/m", "--resume=~/r", "--predict=~/p")
    assert (args.log_dir, args.data_dir) == (f"{tmp_path}/runs/a", f"{tmp_path}/data")
    assert (args.model, args.resume, args.predict) == (f"{tmp_path}/m", f"{tmp_path}/r", [f"{tmp_path}/p"])


def test_the_result_of_a_run_that_was_refused_shows_itself():
    """The tests' own Result, where a test fails."""
    assert "status 2" in repr(Result(None, 2, "", "error: x"))


def test_a_unit_that_does_not_fit_into_memory_is_refused(experiment, run_experiment, monkeypatch):
    """On a machine of 10 MB. Without a word, the system would end a process that takes more memory than there is."""
    sysconf = os.sysconf
    there = {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 10**6}
    monkeypatch.setattr(os, "sysconf", lambda name: there.get(name) or sysconf(name))
    side = {FASHION: 8, FACES: 16, LANDMARKS: 32}[experiment.name]
    activations = 2 * (side // 2) ** 2 * 32  # of both columns, after the first block of 32 filters
    gigabytes = 4 * 4 * activations**2 / 1e9  # alpha, gradient and two moments, of four bytes each
    result = run_experiment("--cross_stitch_unit=activation")
    assert_refused(result, "activation", "pool_1", f"{gigabytes:.3g} GB", "0.01 GB", "--cross_stitch_at")
