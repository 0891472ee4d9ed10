"""The networks against hand-computed counts, a NumPy forward pass, and Keras's own layers."""

import json
import re
import socket
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import FASHION, LANDMARKS, ROOT, classes_of, parse

TASKS = ["item", "group"]
MEAN, VARIANCE = np.full((28, 28, 1), 72.9), np.full((28, 28, 1), 90.0**2)


def build(script, *flags, tasks=TASKS, seed=0):
    """Return the first script's network."""
    keras.utils.set_random_seed(seed)
    return script.build_network(parse(script, *flags), {task: script.TASKS[task] for task in tasks}, MEAN, VARIANCE)


def build_any(script, *flags, classes=None):
    """Return the network of any script, for images of 32x32 pixels."""
    keras.utils.set_random_seed(0)
    channels = 3 if "ethnicity" in classes_of(script) else 1
    shape = (39, 39, 1) if "--preset=poster" in flags else (32, 32, channels)
    if classes is None:
        classes = dict(list(classes_of(script).items())[: 4 if channels == 1 else 2])
    return script.build_network(parse(script, *flags), classes, np.full(shape, 120.0), np.full(shape, 3600.0))


def count(network):
    return sum(int(np.prod(v.shape)) for v in network.trainable_variables)


def units(network):
    return {layer.name: tuple(layer.alpha.shape) for layer in network.layers if hasattr(layer, "alpha")}


def garment_batch(garments, n=8):
    return garments[0][:n, ..., None]


CONV = 3 * 3 * 1 * 32 + 2 * 32 + 3 * 3 * 32 * 64 + 2 * 64  # kernels; gamma and beta
DENSE = 7 * 7 * 64 * 1024 + 2 * 1024
HEADS = (1024 * 10 + 10) + (1024 * 3 + 3)
UNITS = 2 * 2 * (32 + 64 + 1024)
COUNTS = {
    "--cross_stitch_enabled=False": 2 * (CONV + DENSE) + HEADS,
    "--cross_stitch_enabled=True": 2 * (CONV + DENSE) + HEADS + UNITS,
    "--cross_stitch_unit=layer": 2 * (CONV + DENSE) + HEADS + 3 * 4,
    "--split_after=fc_3": CONV + DENSE + HEADS,
    "--split_after=pool_2": CONV + 2 * DENSE + HEADS + 4 * 1024,
    "--split_after=pool_1 --cross_stitch_enabled=False": 2 * (CONV + DENSE) + HEADS - (9 * 32 + 64),
    "--width=2 --cross_stitch_enabled=False": (
        2 * (9 * 64 + 128 + 9 * 64 * 128 + 256 + 49 * 128 * 2048 + 4096) + 2048 * 13 + 13
    ),
    "--width=0.001 --cross_stitch_enabled=False": 2 * (9 + 2 + 9 + 2 + 49 + 2) + 2 * 13,  # one filter at least
}


@pytest.mark.parametrize("flags", COUNTS)
def test_parameter_count_on_garments(script, flags):
    assert COUNTS["--cross_stitch_enabled=False"] == 6_477_773 and COUNTS["--cross_stitch_enabled=True"] == 6_482_253
    assert count(build(script, *flags.split())) == COUNTS[flags]


def test_a_single_task_has_a_single_column(script):
    assert count(build(script, tasks=["item"])) == CONV + DENSE + 1024 * 10 + 10
    assert not units(build(script, tasks=["item"]))


def test_parameter_count_on_faces(faces_script):
    column = 27 * 32 + 2 * 32 + 288 * 64 + 2 * 64 + 576 * 128 + 2 * 128 + 4 * 4 * 128 * 256 + 2 * 256 + 256 * 2 + 2
    assert count(build_any(faces_script, "--cross_stitch_enabled=no")) == 2 * column
    stitched = build_any(faces_script)
    assert count(stitched) == 2 * column + 4 * (32 + 64 + 128 + 256)
    assert list(units(stitched)) == ["pool_1", "pool_2", "pool_3", "fc_4"]


def test_parameter_count_of_landmarks(landmark_script):
    conv = 9 * 32 + 9 * 32 * 48 + 9 * 48 * 64 + 9 * 64 * 80 + 2 * (32 + 48 + 64 + 80)
    column = conv + 4 * 4 * 80 * 256 + 2 * 256
    landmarks, attributes = 257 * 10, 257 * (2 + 2 + 2 + 5)
    stitches = 4 * (32 + 48 + 64 + 256)
    wide = 2 * 9 * 32 + 4 * (conv - 9 * 32) - 4 * (32 + 48 + 64 + 80) + 4 * 4 * 4 * 80 * 256 + 4 * 256 + 513 * 10
    poster = 16 * 20 + 9 * 20 * 40 + 9 * 40 * 60 + 4 * 60 * 80 + 200 + 2 * 2 * 80 * 120 + 120
    expected = {
        "--network=single": column + landmarks,
        "--split_after=fc_5": column + landmarks + attributes,
        "--cross_stitch_enabled=False": 2 * column + landmarks + attributes,
        "--cross_stitch_enabled=True": 2 * column + landmarks + attributes + stitches,
        "--network=single --width=2": wide,
        "--preset=poster": 2 * poster + 121 * (10 + 8) + 4 * (20 + 40 + 60 + 80) + 4 + 2 * 5,  # a_j and b_j of 5 layers
    }
    for flags, number in expected.items():
        classes = {} if "single" in flags else landmark_script.ATTRIBUTES
        network = build_any(landmark_script, *flags.split(), classes=classes)
        assert count(network) == number, flags
        if "poster" in flags:
            assert list(units(network)) == ["pool_1", "pool_2", "pool_3", "pool_4", "fc_5"]
            assert units(network)["fc_5"] == (2, 2)
        elif "enabled=True" in flags:
            assert list(units(network)) == ["pool_1", "pool_2", "pool_3", "fc_5"]
        else:
            assert not units(network)


def test_units_follow_the_layers_that_are_named(any_script):
    assert all(name in units(build_any(any_script)) for name in ("pool_1", "pool_2"))
    assert list(units(build_any(any_script, "--cross_stitch_at", "pool_2", "pool_1"))) == ["pool_1", "pool_2"]
    assert list(units(build_any(any_script, "--split_after=pool_1"))) == list(units(build_any(any_script)))[1:]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["channel", "layer"])
def test_identity_units_are_exactly_the_baseline(any_script, kind, training):
    channels = 3 if "ethnicity" in classes_of(any_script) else 1
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, channels), np.uint8)
    flags = ["--keep_prob=1", f"--cross_stitch_unit={kind}"]
    networks = [build_any(any_script, *flags, f"--cross_stitch_enabled={on}") for on in (True, False)]
    for network in networks:  # the landmarks' last kernel starts at zero, and would hide everything before it
        for layer in network.layers:
            if layer.name == "landmarks.output":
                layer.kernel.assign(np.random.default_rng(0).normal(size=layer.kernel.shape))
    stitched, baseline = (network(images, training=training) for network in networks)
    assert len(stitched) >= 2
    for task in stitched:
        assert np.ptp(stitched[task]) > 0.1
        np.testing.assert_array_equal(stitched[task], baseline[task])


def test_a_trunk_gives_all_tasks_the_same_features(script, garments):
    """After the last layer the tasks differ by their output layers alone: equal ones give equal logits."""
    network = build(script, "--split_after=fc_3", "--keep_prob=1")
    item, group = (network.get_layer(f"{task}.output") for task in TASKS)
    item.kernel.assign(np.tile(group.kernel, 4)[:, :10])
    logits = network(garment_batch(garments))
    np.testing.assert_allclose(logits["item"][:, :3], logits["group"], atol=1e-5)
    assert sum("conv_1" in layer.name for layer in network.layers) == 1


def forward_by_numpy(network, images, tasks):
    """The design's layers in float64 NumPy, in the order of the paper: conv, BN, ReLU, pool."""
    weights = {v.path: np.float64(v.numpy()) for v in network.variables if "seed" not in v.path}

    def batch_norm(x, name):
        gamma, beta, mean, variance = (
            weights[f"{name}/{kind}"] for kind in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    def stitch(columns, name):
        alpha = weights[f"{name}/alpha"]
        return [sum(alpha[i, j] * x for j, x in enumerate(columns)) for i in range(len(columns))]

    columns = [(images - MEAN) / VARIANCE**0.5 for _ in tasks]
    for level in (1, 2):
        for t, task in enumerate(tasks):
            x, kernel = columns[t], weights[f"{task}.conv_{level}/kernel"]
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
            x = np.maximum(batch_norm(np.einsum("nyxcij,ijcd->nyxd", windows, kernel), f"{task}.bn_{level}"), 0)
            n, height, width, channels = x.shape
            columns[t] = x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
        columns = stitch(columns, f"pool_{level}")
    for t, task in enumerate(tasks):
        x = columns[t].reshape(len(images), -1) @ weights[f"{task}.fc_3/kernel"]
        columns[t] = np.maximum(batch_norm(x, f"{task}.bn_3"), 0)
    columns = stitch(columns, "fc_3")
    return {
        task: x @ weights[f"{task}.output/kernel"] + weights[f"{task}.output/bias"] for task, x in zip(tasks, columns)
    }


def test_equals_a_forward_pass_in_numpy(script, garments):
    network = build(script)
    rng = np.random.default_rng(0)
    for v in network.variables:  # no weight may be at a value that hides a mistake, as 0 and 1 do
        if v.name in ("alpha", "gamma", "beta", "bias", "moving_mean"):
            v.assign(rng.normal(size=v.shape))
        elif v.name == "moving_variance":
            v.assign(rng.uniform(0.5, 2, size=v.shape))
    images = garment_batch(garments)
    expected = forward_by_numpy(network, images, TASKS)
    for task, logits in network(images, training=False).items():
        np.testing.assert_allclose(logits, expected[task], rtol=1e-3, atol=1e-3 * np.abs(expected[task]).max())


def test_initialisation_is_he(script, faces_script, landmark_script):
    for network, name, fan_in in (
        (build(script), "item.conv_2", 9 * 32),
        (build(script), "group.fc_3", 3136),
        (build(script), "item.output", 1024),
        (build_any(faces_script), "age.fc_4", 4 * 4 * 128),
        (build_any(landmark_script), "landmarks.fc_5", 4 * 4 * 80),
    ):
        kernel = network.get_layer(name).kernel.numpy()
        assert abs(kernel.std() / (2 / fan_in) ** 0.5 - 1) < 0.03, name


def test_the_network_does_what_its_flags_say(any_script):
    flags = ["--cross_stitch_at", "pool_2", "--cross_stitch_init=0.9", "--keep_prob=0.7", "--bn_momentum=0.6"]
    network = build_any(any_script, *flags)
    assert list(units(network)) == ["pool_2"]
    assert network.get_layer("pool_2").mean_alpha()[0, 0] == pytest.approx(0.9)
    rates = [layer.rate for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    assert len(rates) >= 2 and rates == pytest.approx([0.3] * len(rates))
    momenta = {layer.momentum for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)}
    assert momenta == {0.6}
    held = build_any(any_script, *flags, "--pretrain_epoch=1").get_layer("pool_2")
    np.testing.assert_array_equal(held.mean_alpha(), np.eye(2))


def test_three_columns_have_units_of_three_by_three(faces_script):
    network = build_any(faces_script, "--cross_stitch_init=0.9", classes=faces_script.TASKS)
    assert units(network)["pool_3"] == (3, 3, 128)
    assert {task: x.shape[1] for task, x in network.output.items()} == {"gender": 2, "age": 2, "ethnicity": 5}


def test_a_task_may_be_called_like_a_layer(script, garments, tmp_path):
    """Names of layers have a point, which no name of a task has; the saved network keeps both."""
    classes = {"pool_1": ["a", "b"], "item_conv_1": ["a", "b"], "images": ["a", "b"]}
    network = script.build_network(parse(script), classes, MEAN, VARIANCE)
    network.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = garment_batch(garments)
    for task, logits in network(images).items():
        np.testing.assert_array_equal(logits, loaded(images)[task])


def test_points_begin_in_the_middle_of_the_box(landmark_script):
    start = build_any(landmark_script)(np.zeros((1, 32, 32, 1), np.uint8))["landmarks"]
    np.testing.assert_array_equal(start, np.full((1, 5, 2), 0.5))


def test_the_preset_of_2018(script, garments):
    """Dense units, slow averages, and logits without a bias, normalised over the batch. Other flags win."""
    args = parse(script, "--preset", "2018")
    assert (args.cross_stitch_unit, args.bn_momentum) == ("activation", 0.999)
    for flags in (["--preset", "2018", "--cross_stitch_unit", "channel"], ["--bn_momentum=0.5", "--preset=2018"]):
        args, _ = script.parse_arguments(flags)
        assert args.preset == "2018" and args.cross_stitch_unit == ("channel" if len(flags) == 4 else "activation")
        assert args.bn_momentum == (0.999 if len(flags) == 4 else 0.5)  # also a flag that stands before the preset
    network = build(script, "--preset", "2018", "--cross_stitch_unit=channel")
    assert all(network.get_layer(f"{task}.output").bias is None for task in TASKS)
    for logits in network(garment_batch(garments, 64), training=True).values():
        np.testing.assert_allclose(np.mean(logits, axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(np.std(logits, axis=0), 1, atol=0.01)


def test_the_preset_of_the_poster(landmark_script):
    """The preset's values, its division by 255 and Glorot's weights."""
    expected = {"lr": 0.01, "lr_half_life": 0, "n_epoch": 100, "n_batch_size": 128, "reg_lambda": 0, "keep_prob": 1}
    expected |= {"image_size": 39, "augment": False, "landmark_lambda": 200, "aux_lambda": [0.125]}
    expected |= {"cross_stitch_init": 0.9, "weight_reg": "l2", "weight_reg_lambda": 1}
    args = vars(parse(landmark_script, "--preset", "poster"))
    assert {name: args[name] for name in expected} == expected and args["landmark_lambda"] * 0.5 == 1000 / 10
    images = np.arange(39 * 39, dtype=np.uint8).reshape(1, 39, 39, 1)
    network = build_any(landmark_script, "--preset=poster")
    (pixels,) = (layer for layer in network.layers if isinstance(layer, keras.layers.Rescaling))
    np.testing.assert_allclose(pixels(images), images / 255, atol=1e-6)
    kernel = network.get_layer("landmarks.fc_5").kernel.numpy()
    assert abs(kernel.std() / (2 / (2 * 2 * 80 + 120)) ** 0.5 - 1) < 0.03


def assert_same_layer(ours, other, shape, weights, tolerance):
    """Assert that two layers agree in outputs, gradients and statistics, in training and in prediction."""
    rng = np.random.default_rng(0)
    for layer in (ours, other):
        layer.build(shape)
        layer.set_weights(weights)
    for training in (True, True, False):
        x = tf.constant(rng.normal(1, 3, size=shape), tf.float32)
        results = []
        for layer in (ours, other):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=training)
                loss = tf.reduce_mean(y**3)
            gradients = tape.gradient(loss, [x, *(v.value for v in layer.trainable_variables)])
            results.append([y, *gradients, *layer.get_weights()])
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("shape", [(16, 6, 6, 5), (16, 9)])
def test_batch_norm_equals_that_of_keras(script, shape):
    weights = [np.linspace(low, 2, shape[-1]) for low in (0.5, -1, -2, 0.7)]
    ours, kerass = script.FusedBatchNormalization(momentum=0.9), keras.layers.BatchNormalization(momentum=0.9)
    assert_same_layer(ours, kerass, shape, weights, 1e-4)


def test_batch_norm_of_a_single_image(script):
    """The kernel's variance of one number is NaN, and the moving variance must not become so."""
    layer = script.FusedBatchNormalization()
    layer(np.ones((1, 4), np.float32), training=True)
    assert np.isfinite(layer.moving_variance).all()


def test_frozen_batch_norm_keeps_its_statistics(script):
    layer = script.FusedBatchNormalization()
    layer.build((8, 4))
    layer.trainable = False
    layer(np.full((8, 4), 5, np.float32), training=True)
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(4))
    np.testing.assert_array_equal(layer.moving_variance, np.ones(4))


def test_dropout_keeps_what_keep_prob_says(script):
    layer = build(script, "--keep_prob=0.8").get_layer("item.dropout")
    kept = layer(np.ones((100, 1024), np.float32), training=True).numpy()
    assert set(np.unique(kept)) == {0, np.float32(1 / 0.8)}
    assert abs((kept > 0).mean() - 0.8) < 0.01


@pytest.mark.parametrize("cores, columns, flags, expected", [
    (2, 2, "", 1),
    (4, 2, "", 2),
    (16, 2, "", 14),
    (16, 2, "--cross_stitch_unit=activation", 16),
    (16, 2, "--cross_stitch_unit=activation --cross_stitch_enabled=False", 14),
    (16, 1, "", 16),
    (16, 2, "--split_after=fc_3", 16),
    (16, 2, "--split_after=pool_2", 14),
])  # fmt: skip
def test_threads_for_the_columns(script, monkeypatch, cores, columns, flags, expected):
    monkeypatch.setattr(script, "available_cores", lambda: cores)
    args = parse(script, *flags.split())
    assert script.size_of_thread_pool(args, columns) == expected


@pytest.mark.parametrize("text, expected", [
    ("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("x", 8), (None, 8),
])  # fmt: skip
def test_the_quota_of_a_container_limits_the_cores(script, monkeypatch, text, expected):
    def read_text(path):
        if text is None or str(path) != "/sys/fs/cgroup/cpu.max":
            raise FileNotFoundError
        return text

    monkeypatch.setattr(script.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(script.pathlib.Path, "read_text", read_text)
    assert script.available_cores() == expected


def test_the_chief_is_who_stands_first(script, monkeypatch):
    """A job of that name if there is one, else the first worker; nobody is waited for, and no strategy is started."""
    monkeypatch.setattr(script.tf.distribute, "MultiWorkerMirroredStrategy", lambda: "strategy")
    monkeypatch.setattr(script, "wait_for_processes", lambda own, others: None)
    with_chief, workers = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}, {"worker": ["b:1", "c:1"]}
    for cluster, kind, index, expected in (
        (with_chief, "chief", 0, True),
        (with_chief, "worker", 0, False),
        (workers, "worker", 0, True),
        (workers, "worker", 1, False),
    ):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
        assert script.choose_strategy() == ("strategy", expected)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_processes_meet_over_ipv4_and_ipv6(script, host):
    """Two that wait for each other, in threads; both must return."""
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    with socket.socket(family) as one, socket.socket(family) as other:  # two ports that are free
        for listener in (one, other):
            listener.bind((host.strip("[]"), 0))
        addresses = [f"{host}:{listener.getsockname()[1]}" for listener in (one, other)]
    meeting = [
        threading.Thread(target=script.wait_for_processes, args=(own, [other]), daemon=True)
        for own, other in (addresses, addresses[::-1])
    ]
    for thread in meeting:
        thread.start()
    for thread in meeting:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in meeting)


def test_the_number_of_threads_is_set_before_tensorflow_starts():
    """In a process of its own: a running TensorFlow keeps what it has, and refuses another."""
    code = f"import {FASHION} as script; script.available_cores = lambda: 9; "
    code += "script.configure_tensorflow(script.make_parser().parse_args([]), 2); "
    code += "print(script.tf.config.threading.get_intra_op_parallelism_threads())"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout
    assert out == "7\n"


@pytest.fixture
def bfloat16():
    """Keras's policy for --precision bfloat16, which is put back."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


def test_what_stays_float32_in_bfloat16(any_script, bfloat16):
    """Weights, standardised pixels, dropout and outputs; all between is bfloat16, and batch norm over all devices."""
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        network = build_any(any_script)
    assert {v.dtype for v in network.trainable_variables} == {"float32"}
    assert {x.dtype for x in network.output.values()} == {"float32"}
    kinds = {layer.name: layer.compute_dtype for layer in network.layers}
    exact = [name for name, kind in kinds.items() if kind == "float32"]
    assert all(re.match("images|normalization|reshape|.*dropout|.*output", name) for name in exact), exact
    assert kinds["pool_1"] == kinds["pool_2"] == "bfloat16"
    assert {kind for name, kind in kinds.items() if ".conv" in name or ".fc" in name or ".bn" in name} == {"bfloat16"}
    norms = [layer for layer in network.layers if isinstance(layer, any_script.FusedBatchNormalization)]
    assert len(norms) >= 6 and all(layer.synchronized for layer in norms)


def test_related_columns_are_saved_with_their_relation(landmark_script, tmp_path):
    network = build_any(landmark_script, "--weight_reg=l2")
    network.scales.assign(np.arange(5.0))
    network.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.name == LANDMARKS
    np.testing.assert_array_equal(loaded.scales, np.arange(5.0))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)
    np.testing.assert_array_equal(network(images)["pose"], loaded(images)["pose"])
