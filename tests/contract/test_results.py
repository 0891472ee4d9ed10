"""What a run of any script leaves behind: results, events as a real TensorBoard server shows them, the saved model."""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import (
    FACES,
    FASHION,
    LANDMARKS,
    ROOT,
    assert_error,
    checkpoint_arrays,
    draw,
    experiment_of,
    last_checkpoint,
    read_events,
    run_main,
)
from PIL import Image


class Finished:
    """A finished run, stitched from 0.9, of two epochs with a validation part; and one without units."""

    def __init__(self, experiment, folder):
        self.experiment = experiment
        self.stitched, self.baseline = folder / "stitched", folder / "baseline"
        common = {**experiment.flags, "n_epoch": 2, "log_every": 1, "validation_fraction": 0.2}
        for log_dir, own in (
            (self.stitched, {"cross_stitch_init": 0.9}),
            (self.baseline, {"cross_stitch_enabled": False}),
        ):
            flags = {**common, **own, "data_dir": experiment.data_dir, "log_dir": log_dir}
            assert experiment.script.main([f"--{name}={value}" for name, value in flags.items()]) == 0
        self.results = json.loads((self.stitched / "results.json").read_text())
        self.events = read_events(self.stitched)


@pytest.fixture(scope="module", params=[FASHION, FACES, LANDMARKS])
def finished(request, tmp_path_factory):
    experiment = experiment_of(request.param, request)
    return Finished(experiment, tmp_path_factory.mktemp("finished"))


def test_results(finished):
    results, experiment = finished.results, finished.experiment
    assert results["arguments"]["cross_stitch_init"] == 0.9 and results["arguments"]["seed"] == results["seed"] == 0
    assert not {"resume", "predict", "model"} & results["arguments"].keys()
    assert results["data"]["source"] == str(experiment.data_dir) and len(results["data"]["sha256"]) == 64
    assert results["epochs"] == 2 and results["images_per_second"] > 0
    assert results["versions"].keys() == {"tensorflow", "keras", "numpy"} and results["devices"] == 1
    batch = experiment.flags["n_batch_size"]
    assert results["steps"] == 2 * -(-results["data"]["sizes"]["train"] // batch)
    assert results["cross_stitch"].keys() == set(experiment.units)
    alone = json.loads((finished.baseline / "results.json").read_text())
    alphas = sum(np.prod(x.shape) for name, x in state(finished.stitched).items() if is_alpha(x) and "SLOT" not in name)
    assert results["parameters"] - alone["parameters"] == alphas and alone["cross_stitch"] == {}
    assert json.loads((finished.stitched / "run.json").read_text())["data"] == results["data"]
    for split in ("test", "validation"):
        measures = results[split]
        if "accuracy" in measures:
            tasks = [value for name, value in measures.items() if name != "accuracy"]
            assert measures["accuracy"] == pytest.approx(np.mean(tasks)) and len(tasks) == 2
            size = results["data"]["sizes"][split]
            assert all(value * size == pytest.approx(round(value * size)) for value in tasks)


def state(log_dir):
    return checkpoint_arrays(last_checkpoint(log_dir))


def is_alpha(array):
    return array.ndim == 3 and array.shape[:2] == (2, 2)


def test_scalars(finished):
    events, results = finished.events, finished.results
    steps = list(range(1, results["steps"] + 1))
    tags = ["summary/loss_total", "throughput/images_per_second"]
    tags += [f"{task}/loss" for task in finished.experiment.loss_tags]
    for tag in tags:
        assert [step for step, _ in events[tag]] == steps, tag
        assert all(value > 0 for _, value in events[tag]), tag
    total = np.array([value for _, value in events["summary/loss_total"]])
    losses = [np.array([value for _, value in events[f"{task}/loss"]]) for task in finished.experiment.loss_tags]
    weights = [1, 1] if len(losses) == 2 else [1] + 4 * [0.003]
    rest = total - sum(weight * loss for weight, loss in zip(weights, losses))
    assert (rest > 0).all() and rest.max() < 0.3  # the L2 term


def test_an_evaluation_prints_each_split(run):
    """So hyper-parameters can be chosen by the validation images while a run goes on."""
    result = run(n_epoch=1, validation_fraction=0.2)
    results = json.loads((result.log_dir / "results.json").read_text())
    (line,) = [line for line in result.out.splitlines() if "overall" in line and "item" in line]
    for split in ("test", "validation"):
        _, _, printed = line.partition(f"{split} accuracy: ")
        measures = [results[split][name] for name in ("item", "group", "accuracy")]
        assert [float(number) for number in re.findall(r"\d\.\d{4}", printed)[:3]] == pytest.approx(measures, abs=6e-5)


def test_measures(finished):
    """Test and validation measures after every epoch; the last ones are those of results.json."""
    events, results = finished.events, finished.results
    ends = [results["steps"] // 2, results["steps"]]
    for split in ("test", "validation"):
        measures = results[split]
        if "mean_error" in measures:
            expected = {f"landmarks/{name}_{split}": measures[name] for name in ("mean_error", "failure_rate")}
        else:
            expected = {f"{task}/accuracy_{split}": value for task, value in measures.items() if task != "accuracy"}
            expected[f"summary/accuracy_{split}"] = measures["accuracy"]
        for tag, value in expected.items():
            assert [step for step, _ in events[tag]] == ends
            assert events[tag][-1][1] == np.float32(value)


def test_units_are_logged_for_every_pair(finished):
    events, experiment = finished.events, finished.experiment
    one, other = ("landmarks", "attributes") if experiment.name == LANDMARKS else experiment.loss_tags
    for unit in experiment.units:
        for i, to in enumerate((one, other)):
            for j, source in enumerate((one, other)):
                values = events[f"units/{unit}/{to}_from_{source}"]
                assert [step for step, _ in values] == list(range(finished.results["steps"] + 1))
                assert values[0][1] == pytest.approx(0.9 if i == j else 0.1)
                assert values[-1][1] == pytest.approx(finished.results["cross_stitch"][unit][i][j], abs=1e-6)
                assert values[-1][1] != values[0][1]
        assert f"units/{unit}/alpha" in events  # the histogram
    assert not any(tag.startswith("units/") for tag in read_events(finished.baseline))


def test_confusion_matrices(finished):
    """Each row sums to the number of test images of its class, the diagonal is the accuracy."""
    results = finished.results
    part = "aflw" if finished.experiment.name == LANDMARKS else "test"
    for task, names in results["classes"].items():
        ((_, table),) = finished.events[f"{task}/confusion_matrix"]
        assert [name.decode() for name in table[0][1:]] == names == [row[0].decode() for row in table[1:]]
        counts = np.array([[int(cell) for cell in row[1:]] for row in table[1:]])
        assert counts.sum() == results["data"]["sizes"][part]
        assert counts.trace() / counts.sum() == pytest.approx(results[part][task])


def test_a_confusion_of_very_many_classes_is_not_shown(script, tmp_path):
    """As a table it would be unreadable, and of ten thousand classes take all the memory."""
    import tensorflow as tf

    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        for n in (100, 101):
            script.log_confusions(1, {f"task_{n}": np.zeros((n, n), int)}, {f"task_{n}": list(map(str, range(n)))})
    assert read_events(tmp_path).keys() == {"task_100/confusion_matrix"}


def get(url, body=None):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, body and json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


@pytest.fixture(scope="module")
def continued(script, small, tmp_path_factory):
    """A folder with a run, `stitched`, that went on after two of its four epochs."""
    folder = tmp_path_factory.mktemp("continued")
    flags = [f"--data_dir={small}", "--n_batch_size=200", "--log_every=1", f"--log_dir={folder / 'stitched'}"]
    assert script.main([*flags, "--n_epoch=2"]) == 0
    assert script.main(["--resume", str(folder / "stitched"), "--n_epoch=4"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("fast", ["true", "false"])
def test_tensorboard_shows_all_of_it(continued, fast):
    """By both of its loaders: a run and a resumed one, each step once; texts, graph, histograms, hyper-parameters."""
    log_dir = continued / "stitched"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(continued), "--port", "0", "--bind_all"]
    server = subprocess.Popen(
        [*command, "--load_fast", fast], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in server.stderr:
            if match := re.search(r"http://[^:]+:(\d+)", line):
                break
        base = f"http://127.0.0.1:{match[1]}/data/"
        deadline = time.monotonic() + 60
        points = []
        while [point[1] for point in points] != list(range(1, 13)):
            assert time.monotonic() < deadline, points
            time.sleep(0.5)
            if "summary/loss_total" in json.loads(get(base + "plugin/scalars/tags")).get("stitched", ()):
                points = json.loads(get(base + "plugin/scalars/scalars?run=stitched&tag=summary%2Floss_total"))
        texts = json.loads(get(base + "plugin/text/tags"))["stitched"]
        assert set(texts) == {"arguments", "data", "item/confusion_matrix", "group/confusion_matrix"}
        assert json.loads(get(base + "plugin/graphs/info"))["stitched"]["run_graph"]
        tags = json.loads(get(base + "plugin/histograms/tags"))["stitched"]
        assert set(tags) == {f"units/{unit}/alpha" for unit in ("pool_1", "pool_2", "fc_3")}
        experiment = json.loads(get(base + "plugin/hparams/experiment", {"experimentName": ""}))
        assert {"lr", "cross_stitch_enabled", "seed"} <= {info["name"] for info in experiment["hparamInfos"]}
        metrics = [info["name"] for info in experiment["metricInfos"]]
        statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        request = {"experimentName": "", "allowedStatuses": statuses, "colParams": [{"metric": m} for m in metrics]}
        groups = json.loads(get(base + "plugin/hparams/session_groups", {**request, "startIndex": 0, "sliceSize": 9}))
        (group,) = groups["sessionGroups"]
        values = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
        results = json.loads((log_dir / "results.json").read_text())
        assert values["summary/accuracy_test"] == pytest.approx(results["test"]["accuracy"])
    finally:
        server.terminate()
        server.wait(30)


LOAD = """
import importlib, sys, keras, numpy as np
script = importlib.import_module(sys.argv[1])
args = script.make_parser().parse_args(sys.argv[3:])
args.age_bins = getattr(args, "age_bins", None)
split = script.prepare_data(args).splits["test"]
print("result", script.evaluate(keras.models.load_model(sys.argv[2]).predict, split).measures)
"""


@pytest.mark.slow
def test_the_saved_model_in_a_fresh_process(finished):
    """It takes raw pixels, and importing its script is all that loading needs."""
    experiment = finished.experiment
    if experiment.name == FACES:
        pytest.skip("its network has the layers of the first script")
    flags = [f"--{name}={value}" for name, value in experiment.flags.items()]
    model = str(finished.stitched / "model.keras")
    command = [sys.executable, "-c", LOAD, experiment.name, model, f"--data_dir={experiment.data_dir}", *flags]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    measures = eval(re.search(r"^result (.*)$", out, re.M)[1])
    for name, value in finished.results["test"].items():
        assert measures[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.slow
def test_three_tasks_by_one_more_entry(script, run, monkeypatch, garments, small, tmp_path):
    """And five tasks, whose units are logged by means."""
    train, test, _ = script.read_folder(small)
    for count, flags in ((3, {"cross_stitch_init": 0.8}), (5, {})):
        folder = tmp_path / str(count)
        folder.mkdir()
        for name, split in (("train", train), ("test", test)):
            labels = {f"task_{k}": split.labels["item"] % (k + 2) for k in range(count)}
            np.savez(folder / f"{name}.npz", images=split.images, **labels)
        result = run(n_epoch=1, n_batch_size=600, width=0.1, data_dir=folder, log_dir=folder / "run", **flags)
        assert result.status == 0, result
        results = json.loads((folder / "run" / "results.json").read_text())
        assert results["test"].keys() == {"accuracy", *(f"task_{k}" for k in range(count))}
        assert np.shape(results["cross_stitch"]["pool_1"]) == (count, count)
        events = read_events(folder / "run")
        if count == 3:
            assert events["units/fc_3/task_0_from_task_2"][0][1] == pytest.approx(0.1)
        else:
            assert events["units/fc_3/own"][0][1] == 1 and events["units/fc_3/others"][0][1] == 0


@pytest.mark.slow
def test_in_a_thread_as_ray_train_calls_it(run):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(n_epoch=1, n_batch_size=200)))
    thread.start()
    thread.join()
    assert results[0].status == 0, results


@pytest.mark.slow
def test_a_single_task(run):
    result = run(n_epoch=1, n_batch_size=200, tasks="group")
    assert result.status == 0
    results = json.loads((result.log_dir / "results.json").read_text())
    assert results["cross_stitch"] == {} and results["test"].keys() == {"accuracy", "group"}
    assert results["test"]["accuracy"] == results["test"]["group"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [
    {"split_after": "pool_1"}, {"split_after": "fc_3", "width": 1.41}, {"cross_stitch_unit": "activation"},
    {"precision": "bfloat16"}, {"preset": "2018", "cross_stitch_unit": "layer"},
])  # fmt: skip
def test_other_networks_of_the_first_script(run, flags):
    result = run(n_epoch=2, n_batch_size=100, **flags)
    assert result.status == 0, result
    results = json.loads((result.log_dir / "results.json").read_text())
    assert results["test"]["item"] > 0.2  # chance is 0.1
    assert {name: results["arguments"][name] for name in flags} == flags
    if flags == {"cross_stitch_unit": "activation"}:
        assert f"{results['parameters'] * 16 / 1e6:,.0f} MB" in result.out
        assert "units/pool_1/alpha" not in read_events(result.log_dir)  # the histogram


@pytest.mark.slow
@pytest.mark.parametrize("flags", [
    {"network": "single", "width": 2}, {"network": "split"}, {"preset": "poster", "n_epoch": 1},
    {"weight_reg": "exp", "precision": "bfloat16", "split_after": "pool_1"},
])  # fmt: skip
def test_other_networks_of_landmarks(landmark_script, mtfl, tmp_path, capfd, flags):
    common = {"n_epoch": 1, "n_batch_size": 80, "data_dir": mtfl, "image_size": 39}
    result = run_main(landmark_script, capfd, tmp_path / "run", **{**common, **flags})
    assert result.status == 0, result
    results = json.loads((result.log_dir / "results.json").read_text())
    assert results["test"].keys() >= {"mean_error", "failure_rate", "mean_error_interocular"}
    assert ("smile" in results["aflw"]) == (flags.get("network") != "single") and "smile" not in results["test"]
    assert ("network" in flags) == (results["cross_stitch"] == {})


def test_pretraining_holds_the_units_and_then_stitches(run):
    result = run(
        n_epoch=3, n_batch_size=100, log_every=1, pretrain_epoch=2, cross_stitch_init=0.9, cross_stitch_lr_scale=5
    )
    alpha = dict(read_events(result.log_dir)["units/fc_3/item_from_item"])  # 6 steps an epoch
    assert [alpha[step] for step in range(13)] == [1] * 13
    assert abs(alpha[13] - 0.9) < 0.006 and alpha[13] != np.float32(0.9)  # one step of Adam at 5 times the rate


@pytest.mark.slow
def test_pretraining_trains_the_columns_as_the_baseline_does(run, tmp_path):
    flags = {"n_epoch": 2, "n_batch_size": 100, "log_every": 1}
    one = run(**flags, pretrain_epoch=1, log_dir=tmp_path / "stitched")
    other = run(**flags, cross_stitch_enabled="no", log_dir=tmp_path / "baseline")
    losses = [[value for _, value in read_events(r.log_dir)["summary/loss_total"]] for r in (one, other)]
    assert losses[0][:6] == losses[1][:6] and losses[0][8:] != losses[1][8:]


def unchanged(log_dir, before):
    """Return the names of the arrays that are not Adam's and are as they were."""
    a, b = state(log_dir), before
    return {name for name in a if "SLOT" not in name and name.startswith("weights/") and (a[name] == b[name]).all()}


@pytest.mark.slow
def test_what_trains_nothing(run, script, monkeypatch, tmp_path):
    """With a half-life of a hundredth of an epoch the second epoch changes no weight; nor does a task of weight 0."""
    states = []
    keep_last = script.Checkpoints.keep_last
    monkeypatch.setattr(
        script.Checkpoints,
        "keep_last",
        lambda c: states.append([checkpoint_arrays(p) for p in c.paths()]) or keep_last(c),
    )
    for name, flags in (
        ("rate", {"lr_half_life": 0.01}),
        ("weight", {"task_weights": [1, 0], "cross_stitch_enabled": "no"}),
    ):
        result = run(n_epoch=2, n_batch_size=100, reg_lambda=0, log_dir=tmp_path / name, **flags)
        assert result.status == 0, result
        same = unchanged(tmp_path / name, states[-1][0])
        kernels = 2 * 4 if name == "rate" else 4
        assert sum(states[-1][0][key].ndim in (2, 4) and states[-1][0][key].size > 9 for key in same) == kernels, name


@pytest.mark.slow
def test_evaluation_every_few_steps_and_at_the_end(run):
    result = run(n_epoch=2, n_batch_size=100, eval_every=5)
    assert [step for step, _ in read_events(result.log_dir)["summary/accuracy_test"]] == [5, 10, 12]
    assert result.out.count("training loss") == 3


@pytest.mark.slow
def test_the_sample_is_announced(script, run, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "DEBIAN", str(tmp_path / "no-package"))
    monkeypatch.setattr(script, "DOWNLOAD", "http://127.0.0.1:9/")
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    result = run(n_epoch=1, train_fraction=0.05, data_dir=None)
    assert result.status == 0 and result.out.count("SAMPLE") == 2
    assert result.out.index("SAMPLE") < result.out.index("epoch 1/1") < result.out.rindex("SAMPLE")


def test_the_start_tells_tasks_and_classes(run, tmp_path):
    for name in ("train", "test"):
        labels = {"place": np.arange(24) % 12, "colour": np.arange(24) % 3, "colour_names": ["red", "green", "blue"]}
        np.savez(tmp_path / f"{name}.npz", images=np.zeros((24, 8, 8), np.uint8), **labels)
    result = run(data_dir=tmp_path, n_epoch=1, width=0.1)
    assert "place: 12 classes (0..11)" in result.out and "colour: 3 classes (red, green, blue)" in result.out
    assert "threads in the pool: " in result.out and "seed 0" in result.out


def test_the_speed_leaves_evaluations_out(run, script, monkeypatch):
    """By a clock on which each evaluation takes a thousand seconds, and a step some."""
    evaluate = script.evaluate
    now = [0.0]

    class Clock:
        @staticmethod
        def perf_counter():
            now[0] += 1
            return now[0]

        time, strftime, gmtime, monotonic = time.time, time.strftime, time.gmtime, time.monotonic

    def evaluate_slowly(*given):
        now[0] += 1000
        return evaluate(*given)

    monkeypatch.setattr(script, "time", Clock)
    monkeypatch.setattr(script, "evaluate", evaluate_slowly)
    result = run(n_epoch=3, n_batch_size=100)
    results = json.loads((result.log_dir / "results.json").read_text())
    assert 10 < results["images_per_second"] < 600
    assert re.search(r"epoch 3/3, step 18: \d\d+ images/s", result.out)


# ---- prediction


def test_predicting_garments(finished, tmp_path, capfd):
    """Or faces, or landmarks: a picture of another size and one that is missing; the rest is predicted."""
    experiment = finished.experiment
    model = finished.stitched / "model.keras"
    rng = np.random.default_rng(7)
    photos = []
    for k in range(2):
        photos.append(str(tmp_path / f"photo{k}.png"))
        Image.fromarray(draw.draw_face(rng, k, 60, 0, size=90)[0]).save(photos[-1])
    out = ["--out", tmp_path] if experiment.name == LANDMARKS else []
    predicted = run_main(experiment.script, capfd, tmp_path, "--predict", *photos, "--model", model, *out)
    assert predicted.status == 0, predicted
    for photo in photos:
        assert photo in predicted.out
    for task, names in finished.results["classes"].items():
        found = re.findall(rf"{task} +({'|'.join(map(re.escape, names))}) (\d\.\d+)", predicted.out)
        assert len(found) == 2 and all(1 / len(names) - 1e-3 <= float(probability) <= 1 for _, probability in found)
    words = ["--predict", photos[0], tmp_path / "absent.jpg", photos[1], "--model", model, *out]
    failed = run_main(experiment.script, capfd, tmp_path, *words)
    assert_error(failed, "--predict", tmp_path / "absent.jpg")
    assert failed.out == predicted.out
    if experiment.name == LANDMARKS:
        for photo in photos:
            assert f"{photo}.landmarks.png" in predicted.out
            assert Image.open(f"{photo}.landmarks.png").size == (360, 360)  # small photos are drawn larger


def test_a_prediction_is_that_of_the_network(finished, tmp_path, capfd):
    """For an image of the test set as a file, with TF_CONFIG in the environment, which has nothing to do with it."""
    experiment = finished.experiment
    if experiment.name == LANDMARKS:
        pytest.skip("its photos need a box; see test_landmarks_are_predicted_in_the_box")
    flags = [f"--{name}={value}" for name, value in experiment.flags.items()]
    args = experiment.script.make_parser().parse_args([f"--data_dir={experiment.data_dir}", *flags])
    split = experiment.script.prepare_data(args).splits["test"]
    image = split.images[3]
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(tmp_path / "image.png")
    network = keras.models.load_model(finished.stitched / "model.keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_CONFIG", "nonsense")
        words = ["--predict", tmp_path / "image.png", "--model", finished.stitched / "model.keras"]
        out = run_main(experiment.script, capfd, tmp_path, *words).out
    for task, logits in network.predict(image[None], verbose=0).items():
        p = np.exp(logits[0] - logits[0].max())
        best = finished.results["classes"][task][int(np.argmax(p))]
        assert f"{task} {best} {p.max() / p.sum():.3f}" in out


def test_models_that_cannot_be_used(finished, tmp_path, capfd, faces_script, script):
    experiment = finished.experiment
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "photo.png")

    def predict(*words):
        return run_main(experiment.script, capfd, tmp_path, "--predict", tmp_path / "photo.png", *words)

    assert_error(predict(), "--model")
    assert_error(predict("--model", tmp_path / "photo.png"), "results.json")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("results.json", "model.keras"):
        (other / name).write_bytes((finished.stitched / name).read_bytes())
    content = (other / "model.keras").read_bytes()
    for k in range(3):
        (other / "model.keras").write_bytes(content[: k * len(content) // 3])
        assert_error(predict("--model", other / "model.keras"), other, "Keras")
    keras.Sequential([keras.layers.Input((3,)), keras.layers.ReLU()], name="other").save(other / "model.keras")
    assert_error(predict("--model", other / "model.keras"), "other.py", experiment.name)


MALICIOUS = """
import keras
from keras.layers import Flatten, Lambda
x = keras.Input((4, 4, 3))
y = Lambda(lambda v: __import__("os").system("touch pwned") or v, output_shape=(4, 4, 3))(x)
keras.Model(x, {"gender": Flatten()(y)}, name="gender_age_multi_task_learning").save("model.keras")
"""


@pytest.mark.slow
def test_a_model_file_runs_no_code(faces_script, tmp_path, monkeypatch, capfd):
    """One whose Lambda layer holds some."""
    subprocess.run([sys.executable, "-c", MALICIOUS], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "pwned").unlink(missing_ok=True)
    (tmp_path / "results.json").write_text(json.dumps({"arguments": {}, "classes": {"gender": ["male", "female"]}}))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "face.png")
    monkeypatch.chdir(tmp_path)
    words = ["--predict", "face.png", "--model", "model.keras"]
    assert_error(run_main(faces_script, capfd, tmp_path, *words), "--model model.keras")
    assert not (tmp_path / "pwned").exists()


def test_landmarks_are_predicted_in_the_box(landmark_script, tmp_path, monkeypatch, capsys):
    """A photo taller than wide, stored lying, by a network that finds all points in the middle of the face."""
    faces = []

    class Network:
        input_shape = (None, 32, 32, 1)

        @staticmethod
        def predict(face, verbose):
            faces.append(np.array(face[0]))
            logits = {"gender": [0.0, 1], "smile": [2.0, 0], "glasses": [0.0, 1], "pose": [0.0, 0, 1, 0, 3]}
            points = np.array([[[0.5, 0.5], [0.6, 0.5], [0.5, 0.6], [0.4, 0.7], [0.6, 0.7]]])
            return {"landmarks": points, **{task: np.array([x]) for task, x in logits.items()}}

    results = {"arguments": {"preset": "poster"}, "classes": landmark_script.ATTRIBUTES}
    monkeypatch.setattr(landmark_script, "load_run", lambda _: (Network, results))
    picture = np.random.default_rng(0).integers(0, 256, (100, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = str(tmp_path / "photo.png")
    Image.fromarray(np.rot90(picture)).save(photo, exif=exif)
    for box, square in (([], (-0.5, 19.5, 60)), (["--box", "10", "40", "20", "90"], (10, 40, 30))):
        assert landmark_script.main(["--predict", photo, "--model=m", "--out", str(tmp_path / "out"), *box]) == 0
        np.testing.assert_array_equal(faces[-1], landmark_script.crop(Image.fromarray(picture), square, 32))
        left, top, side = square
        lines = capsys.readouterr().out.splitlines()[1:]
        x, y = left + 0.4 * side, top + 0.7 * side
        assert lines[3].split() == ["left", "mouth", "corner", "x", f"{x:.1f}", "y", f"{y:.1f}"]
        assert [" ".join(line.split()) for line in lines[5:9]] == [
            "gender female 0.731",
            "smile smiling 0.881",
            "glasses no glasses 0.731",
            "pose right profile 0.953",
        ]  # the poses by sigmoids
        copy = Image.open(tmp_path / "out" / "photo.png.landmarks.png")
        assert copy.size == (240, 400) and str(tmp_path / "out" / "photo.png.landmarks.png") in lines[9]
        red = (np.asarray(copy) == (230, 0, 0)).all(axis=-1)
        assert red[round((y + 0.5) * 4 - 0.5), round((x + 0.5) * 4 - 0.5)] and red.sum() < 5000
    for wrong, named in ((["999", "1999", "0", "99"], photo), (["9", "2", "3", "4"], "--box 9 2 3 4")):
        assert landmark_script.main(["--predict", photo, "--model=m", "--box", *wrong]) == 2
        assert named in capsys.readouterr().err


def test_photos_in_a_folder_that_cannot_be_written(landmark_script, tmp_path, monkeypatch, capsys):
    """The copy goes where one can write: the current folder, or --out. What cannot be drawn is told, with status 2."""

    class Network:
        input_shape = (None, 32, 32, 1)

        @staticmethod
        def predict(face, verbose):
            return {"landmarks": np.full((1, 5, 2), 0.5)}

    monkeypatch.setattr(landmark_script, "load_run", lambda _: (Network, {"arguments": {"preset": "x"}, "classes": {}}))
    for name in ("one.png", "two.png"):
        Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(tmp_path / name)
    photos = [str(tmp_path / name) for name in ("one.png", "two.png")]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert landmark_script.main(["--predict", *photos, "--model=m"]) == 0
    assert sorted(path.name for path in Path().iterdir()) == ["one.png.landmarks.png", "two.png.landmarks.png"]
    capsys.readouterr()
    Path("one.png.landmarks.png").unlink()
    Path("one.png.landmarks.png").mkdir()  # so that it cannot be written
    Path("two.png.landmarks.png").unlink()
    assert landmark_script.main(["--predict", *photos, "--model=m"]) == 2
    told = capsys.readouterr()
    assert photos[0] in told.err and photos[1] not in told.err and "two.png.landmarks.png" in told.out
    assert Path("two.png.landmarks.png").is_file()


def test_photos_with_one_name_are_refused_before_one_is_drawn_over_the_other(landmark_script, capsys):
    assert landmark_script.main(["--predict", "a/me.jpg", "b/you.jpg", "b/me.jpg", "--model=m"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ") and "a/me.jpg" in told and "b/me.jpg" in told and "you" not in told
