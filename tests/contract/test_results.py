"""What a run leaves behind: results, event files as a real TensorBoard server shows them, the saved model."""

import json
import re
import subprocess
import sys
import threading
import time
import types
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, read_events, unchanged_weights

UNITS = ("pool_1", "pool_2", "fc_3")
SHORT = {"n_epoch": 2, "n_batch_size": 64, "log_every": 5}
STEPS = 2 * 8  # 480 images left to train on


@pytest.fixture(scope="module")
def runs(script, small, tmp_path_factory):
    """A folder with a finished run `stitched` and a finished run `baseline`."""
    folder = tmp_path_factory.mktemp("runs")
    for name, enabled in (("stitched", True), ("baseline", False)):
        flags = {**SHORT, "cross_stitch_enabled": enabled, "validation_fraction": 0.2, "data_dir": small}
        assert script.main([f"--{k}={v}" for k, v in flags.items()] + [f"--log_dir={folder / name}"]) == 0
    return folder


def read_results(log_dir):
    return json.loads((log_dir / "results.json").read_text())


def test_results(script, runs, small):
    results = read_results(runs / "stitched")
    assert results["arguments"]["n_batch_size"] == 64 and results["arguments"]["tasks"] is None
    assert results["data"]["source"] == str(small)
    assert results["data"]["sizes"] == {"train": 480, "test": 100, "validation": 120}
    assert (results["epochs"], results["steps"], results["seed"]) == (2, STEPS, 0)
    assert results["parameters"] - read_results(runs / "baseline")["parameters"] == 4 * (32 + 64 + 1024)
    assert results["classes"]["group"] == ["Shoes", "For Women", "Other"]
    assert results["images_per_second"] > 0 and results["versions"] == script.VERSIONS
    for part, size in (("test", 100), ("validation", 120)):
        accuracy = results[part]
        assert accuracy["accuracy"] == (accuracy["item"] + accuracy["group"]) / 2
        assert accuracy["item"] * size == pytest.approx(round(accuracy["item"] * size))
        assert accuracy["item"] > 0.2  # chance is 0.1
    assert set(results["cross_stitch"]) == set(UNITS) and not read_results(runs / "baseline")["cross_stitch"]
    assert json.loads((runs / "stitched" / "run.json").read_text())["data"] == results["data"]


def test_events(runs):
    events = read_events(runs / "stitched")
    for tag in ("summary/loss_total", "summary/accuracy_train", "item/loss", "group/loss"):
        assert [step for step, _ in events[tag]] == list(range(1, STEPS + 1))
    columns = ("summary/loss_total", "item/loss", "group/loss", "summary/accuracy_train")
    for total, item, group, accuracy in np.transpose([[float(value) for _, value in events[tag]] for tag in columns]):
        assert 0 < total - item - group < 0.1  # the L2 term
        assert accuracy * 2 * 64 == pytest.approx(round(accuracy * 2 * 64))  # hits
    results = read_results(runs / "stitched")
    for part in ("test", "validation"):
        for task, tag in (("accuracy", "summary"), ("item", "item"), ("group", "group")):
            values = events[f"{tag}/accuracy_{part}"]
            assert [step for step, _ in values] == [8, 16]
            assert values[-1][1] == np.float32(results[part][task])
    for unit in UNITS:
        assert [step for step, _ in events[f"units/{unit}/alpha_self"]] == list(range(STEPS + 1))
        assert events[f"units/{unit}/alpha_self"][0][1] == 1
        assert events[f"units/{unit}/alpha_cross"][0][1] == 0
        assert 0 < abs(events[f"units/{unit}/alpha_cross"][-1][1]) < 0.1
    text = str(events["group/confusion_matrix"][-1][1])
    counts = np.array([int(n) for n in re.findall(r"\d+", text)]).reshape(3, 3)
    assert counts.sum(axis=1).tolist() == [30, 30, 40]
    assert counts.trace() / 100 == pytest.approx(results["test"]["group"])


def test_confusion_of_very_many_classes_is_not_shown(script, tmp_path):
    """As a table it would be unreadable, and of ten thousand classes take all the memory."""
    with tf.summary.create_file_writer(str(tmp_path)).as_default(step=1):
        for n in (100, 101):
            script.log_confusion({f"task_{n}": np.zeros((n, n), int)}, {f"task_{n}": list(map(str, range(n)))})
    assert read_events(tmp_path).keys() == {"task_100/confusion_matrix"}


def get(url, body=None):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, body and json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


@pytest.mark.slow
def test_tensorboard_shows_all_of_it(runs):
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", "0", "--bind_all"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            if match := re.search(r"http://[^:]+:(\d+)", line):
                break
        base = f"http://127.0.0.1:{match[1]}/data/"
        deadline = time.monotonic() + 60
        while True:
            scalars = json.loads(get(base + "plugin/scalars/tags"))
            texts = json.loads(get(base + "plugin/text/tags"))
            if all("item/confusion_matrix" in texts.get(run, ()) for run in ("stitched", "baseline")):
                break
            assert time.monotonic() < deadline, (scalars, texts)
            time.sleep(0.5)
        common = {"summary/loss_total", "summary/accuracy_train", "throughput/images_per_second"}
        for part in ("test", "validation"):
            common |= {f"{prefix}/accuracy_{part}" for prefix in ("summary", "item", "group")}
        common |= {"item/loss", "group/loss"}
        alphas = {f"units/{unit}/alpha_{kind}" for unit in UNITS for kind in ("self", "cross")}
        hidden = {"_hparams_/session_start_info", "_hparams_/experiment"}
        assert set(scalars["baseline"]) - hidden == common
        assert set(scalars["stitched"]) - hidden == common | alphas
        for plugin, kind in (("histograms", "alpha"), ("images", "alpha_mean")):
            tags = json.loads(get(f"{base}plugin/{plugin}/tags"))
            assert set(tags["stitched"]) == {f"units/{unit}/{kind}" for unit in UNITS}
            assert not tags.get("baseline")
        for run in ("stitched", "baseline"):
            assert set(texts[run]) == {"arguments", "data", "item/confusion_matrix", "group/confusion_matrix"}
            info = json.loads(get(base + "plugin/graphs/info"))
            assert info[run]["run_graph"]
            assert b"item_conv_1" in get(f"{base}plugin/graphs/graph?run={run}&conceptual=false")
        points = json.loads(get(base + "plugin/scalars/scalars?run=stitched&tag=summary%2Faccuracy_test"))
        assert [point[1] for point in points] == [8, 16]
        assert points[-1][2] == pytest.approx(read_results(runs / "stitched")["test"]["accuracy"])

        experiment = json.loads(get(base + "plugin/hparams/experiment", {"experimentName": ""}))
        assert {"lr", "cross_stitch_enabled", "seed"} <= {info["name"] for info in experiment["hparamInfos"]}
        metrics = [info["name"] for info in experiment["metricInfos"]]
        statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        request = {"experimentName": "", "allowedStatuses": statuses, "colParams": [{"metric": m} for m in metrics]}
        groups = json.loads(get(base + "plugin/hparams/session_groups", {**request, "startIndex": 0, "sliceSize": 9}))
        found = {}
        for group in groups["sessionGroups"]:
            values = {m["name"]["tag"]: m["value"] for m in group["metricValues"]}
            found[group["hparams"]["cross_stitch_enabled"]] = values["summary/accuracy_test"]
        for enabled, run in ((True, "stitched"), (False, "baseline")):
            assert found[enabled] == pytest.approx(read_results(runs / run)["test"]["accuracy"])
    finally:
        server.terminate()
        server.wait(30)


LOAD = """
import sys, keras, numpy as np
import fashion_mnist_multi_task_learning as script
_, (images, labels), classes = script.read_folder(sys.argv[1])
for path in sys.argv[2:]:
    logits = keras.models.load_model(path).predict(images, verbose=0)
    for task, x in logits.items():
        print(task, float(np.mean(x.argmax(axis=1) == labels[:, list(classes).index(task)])))
"""


@pytest.mark.slow
def test_saved_models_in_a_fresh_process(runs, small):
    folders = [runs / "stitched", runs / "baseline"]
    command = [sys.executable, "-c", LOAD, small, *(folder / "model.keras" for folder in folders)]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = [line.split() for line in out.splitlines() if line.startswith(("item", "group"))]
    expected = [(task, read_results(folder)["test"][task]) for folder in folders for task in ("item", "group")]
    assert [(task, float(value)) for task, value in found] == expected


@pytest.mark.slow
def test_three_tasks_by_one_more_line(script, run, monkeypatch):
    monkeypatch.setitem(script.TASKS, "sleeves", (["none", "some"], (1, 0, 1, 0, 1, 0, 1, 0, 0, 0)))
    result = run(**SHORT, tasks=["item", "group", "sleeves"], cross_stitch_init=0.8)
    assert result.status == 0, result
    results = read_results(result.log_dir)
    assert set(results["test"]) == {"accuracy", "item", "group", "sleeves"}
    assert np.shape(results["cross_stitch"]["pool_1"]) == (3, 3)
    assert results["test"]["sleeves"] > 0.7 and re.search(r"sleeves +0\.\d{4}\n", result.out)
    assert read_events(result.log_dir)["units/fc_3/alpha_cross"][0][1] == pytest.approx(0.1)


@pytest.mark.slow
def test_in_a_thread_as_ray_train_calls_it(run):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(n_epoch=1, n_batch_size=200)))
    thread.start()
    thread.join()
    assert results[0].status == 0, results


@pytest.mark.slow
def test_a_single_task(run):
    result = run(**SHORT, tasks="group")
    assert result.status == 0
    results = read_results(result.log_dir)
    assert results["cross_stitch"] == {} and set(results["test"]) == {"accuracy", "group"}
    assert results["test"]["accuracy"] == results["test"]["group"]
    assert "summary/accuracy_test" in read_events(result.log_dir)


@pytest.mark.slow
def test_activation_unit_trains_on_small_images(run):
    result = run(**{**SHORT, "n_epoch": 4}, cross_stitch_unit="activation", cross_stitch_init=0.9)
    sides = (2 * 4 * 4 * 32, 2 * 2 * 2 * 64, 2 * 1024)
    results = read_results(result.log_dir)
    assert results["parameters"] > sum(side**2 for side in sides) and results["test"]["item"] > 0.2
    assert f"{results['parameters'] * 16 / 1e6:,.0f} MB with gradients and Adam's moments" in result.out
    events = read_events(result.log_dir)
    assert events["units/pool_1/alpha_self"][0][1] == pytest.approx(0.9)
    assert "units/pool_1/alpha" not in events  # the histogram


def test_pretraining_holds_the_units_and_then_stitches(run):
    flags = {**SHORT, "n_batch_size": 100, "log_every": 1, "n_epoch": 3, "pretrain_epoch": 2}  # 6 steps an epoch
    result = run(**flags, cross_stitch_init=0.9, cross_stitch_lr_scale=5)
    alpha = dict(read_events(result.log_dir)["units/fc_3/alpha_self"])
    assert [alpha[step] for step in range(13)] == [1] * 13
    assert abs(alpha[13] - 0.9) < 0.006 and alpha[13] != np.float32(0.9)  # one step of Adam at 5 times the rate


@pytest.mark.slow
def test_pretraining_trains_the_columns_as_the_baseline_does(run, tmp_path):
    one = run(n_epoch=2, n_batch_size=100, log_every=1, pretrain_epoch=1, log_dir=tmp_path / "stitched")
    other = run(n_epoch=2, n_batch_size=100, log_every=1, cross_stitch_enabled="no", log_dir=tmp_path / "baseline")
    losses = [[v for _, v in read_events(r.log_dir)["summary/loss_total"]] for r in (one, other)]
    assert losses[0][:6] == losses[1][:6] and losses[0][8:] != losses[1][8:]


@pytest.mark.slow
def test_the_learning_rate_halves(run):
    """With a half-life of a hundredth of an epoch the second epoch changes no weight, in columns and units alike."""
    result = run(n_epoch=2, n_batch_size=100, lr_half_life=0.01, reg_lambda=0)
    assert result.status == 0, result
    assert unchanged_weights(result.log_dir) == 2 * 11 + 3  # all but moving averages and the state of dropout


@pytest.mark.slow
def test_a_task_without_weight_trains_nothing(run):
    """Without units, L2 and its loss a column stays as it began, all but moving averages; the other is trained."""
    result = run(n_epoch=2, n_batch_size=100, task_weights=[1, 0], cross_stitch_enabled="no", reg_lambda=0)
    assert result.status == 0, result
    assert unchanged_weights(result.log_dir) == 11


@pytest.mark.slow
def test_evaluation_every_few_steps_and_at_the_end(run):
    result = run(**{**SHORT, "n_batch_size": 100}, eval_every=5)
    assert [step for step, _ in read_events(result.log_dir)["summary/accuracy_test"]] == [5, 10, 12]


@pytest.mark.slow
def test_the_sample_is_announced(script, run, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "DEBIAN", str(tmp_path / "no-package"))
    monkeypatch.setattr(script, "DOWNLOAD", "http://127.0.0.1:9/")
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    result = run(n_epoch=1, train_fraction=0.05, data_dir=None)
    assert result.status == 0
    assert result.out.count("this run uses the embedded SAMPLE") == 2
    assert result.out.index("SAMPLE") < result.out.index("epoch 1/1") < result.out.rindex("SAMPLE")
    assert read_results(result.log_dir)["data"]["source"] == script.SAMPLE


@pytest.mark.slow
def test_what_a_run_tells(script, run, monkeypatch):
    """Confusion matrices with their names, the speed in images, alpha as [to][from], facts that workers compare.

    By a clock on which a step takes 1, 2 and 4 seconds in the three epochs and each evaluation a thousand.
    """
    now, pace, evaluate = [0], [1], script.evaluate

    def tick():
        now[0] += pace[0]
        return now[0]

    def evaluate_slowly(*given):
        now[0] += 1000
        pace[0] *= 2
        return evaluate(*given)

    monkeypatch.setattr(script, "time", types.SimpleNamespace(perf_counter=tick))
    monkeypatch.setattr(script, "evaluate", evaluate_slowly)
    facts, determinism, seeds = [], [], []
    monkeypatch.setattr(script, "agree", lambda _, **named: facts.append(named))
    monkeypatch.setattr(script.tf.config.experimental, "enable_op_determinism", lambda: determinism.append(1))
    set_random_seed = keras.utils.set_random_seed
    monkeypatch.setattr(script.keras.utils, "set_random_seed", lambda seed: seeds.append(seed) or set_random_seed(seed))
    result = run(n_epoch=3, n_batch_size=100, cross_stitch_init=0.9, seed=3)
    table = read_events(result.log_dir)["group/confusion_matrix"][-1][1]
    names = [b"Shoes", b"For Women", b"Other"]
    assert table[0].tolist() == [b"true, predicted:", *names] and table[1:, 0].tolist() == names
    results = json.loads((result.log_dir / "results.json").read_text())
    speeds = dict(read_events(result.log_dir)["throughput/images_per_second"])
    assert [speeds[step] for step in (5, 6, 11, 12, 17, 18)] == [100, 100, 50, 50, 25, 25]
    assert results["images_per_second"] == 50  # the median over the epochs
    alpha = keras.models.load_model(result.log_dir / "model.keras").get_layer("pool_1").alpha.numpy()
    np.testing.assert_allclose(results["cross_stitch"]["pool_1"], alpha.mean(axis=2), atol=1e-6)
    assert seeds == [3] and determinism and "seed 3\n" in result.out and " on 1 device; " in result.out
    assert f"--logdir {result.log_dir.parent}\n" in result.out
    assert [set(named) for named in facts] == [{"arguments", "data", "versions", "run"}, {"checkpoint"}]
    assert facts[0]["run"] is False and facts[0]["versions"] == script.VERSIONS and facts[1]["checkpoint"] == 0
    assert not {"data_dir", "log_dir"} & facts[0]["arguments"].keys() and "lr" in facts[0]["arguments"]
