"""The network against hand-computed counts, a NumPy forward pass, and Keras's own layers."""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

TASKS = ["item", "group"]
MEAN, DEVIATION = np.full((28, 28, 1), 72.9), np.full((28, 28, 1), 90.0)


def build(script, *flags, tasks=TASKS, unit="channel", init=1.0, seed=0, keep_prob=0.8, size=28):
    keras.utils.set_random_seed(seed)
    args, _ = script.parse_arguments([f"--cross_stitch_enabled={unit is not None}", *flags])
    args.cross_stitch_unit, args.cross_stitch_init, args.keep_prob = unit, init, keep_prob
    classes = {task: script.TASKS[task][0] for task in tasks}
    return script.build_network(args, classes, MEAN[:size, :size], DEVIATION[:size, :size])


def garment_batch(garments, n=8):
    return garments[0][:n, ..., None]


def test_parameter_count(script):
    conv = 3 * 3 * 1 * 32 + 2 * 32 + 3 * 3 * 32 * 64 + 2 * 64  # kernels; gamma and beta
    dense = 7 * 7 * 64 * 1024 + 2 * 1024
    baseline = 2 * (conv + dense) + (1024 * 10 + 10) + (1024 * 3 + 3)
    units = 2 * 2 * (32 + 64 + 1024)
    assert (baseline, baseline + units) == (6_477_773, 6_482_253)

    def count(network):
        return sum(int(np.prod(v.shape)) for v in network.trainable_variables)

    assert count(build(script, unit=None)) == baseline
    assert count(build(script, unit="channel")) == baseline + units
    assert count(build(script, unit="layer")) == baseline + 3 * 4
    assert count(build(script, tasks=["item"])) == conv + dense + 1024 * 10 + 10


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["channel", "layer"])
def test_identity_units_are_exactly_the_baseline(script, garments, kind, training):
    images = garment_batch(garments)
    stitched, baseline = (build(script, unit=unit)(images, training=training) for unit in (kind, None))
    for task in TASKS:
        np.testing.assert_array_equal(stitched[task], baseline[task])


def test_units_follow_pools_and_dense_layers(script):
    network = build(script)
    shapes = {layer.name: layer.alpha.shape for layer in network.layers if isinstance(layer, script.CrossStitch)}
    assert shapes == {"pool_1": (2, 2, 32), "pool_2": (2, 2, 64), "fc_3": (2, 2, 1024)}
    network = build(script, "--cross_stitch_at", "fc_3", "pool_1")
    assert [x.name for x in network.layers if isinstance(x, script.CrossStitch)] == ["pool_1", "fc_3"]


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

    columns = [(images - MEAN) / DEVIATION for _ in tasks]
    for level in (1, 2):
        for t, task in enumerate(tasks):
            x, kernel = columns[t], weights[f"{task}_conv_{level}/kernel"]
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
            x = np.maximum(batch_norm(np.einsum("nyxcij,ijcd->nyxd", windows, kernel), f"{task}_bn_{level}"), 0)
            n, height, width, channels = x.shape
            columns[t] = x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
        columns = stitch(columns, f"pool_{level}")
    for t, task in enumerate(tasks):
        x = columns[t].reshape(len(images), -1) @ weights[f"{task}_fc_3/kernel"]
        columns[t] = np.maximum(batch_norm(x, f"{task}_bn_3"), 0)
    columns = stitch(columns, "fc_3")
    return {task: x @ weights[f"{task}/kernel"] + weights[f"{task}/bias"] for task, x in zip(tasks, columns)}


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


def test_l2_touches_kernels_and_nothing_else(script):
    network = build(script, unit="channel", init=0.9)
    kernels = [v for v in network.trainable_variables if v.name == "kernel"]
    assert sorted(v.path for v in kernels) == sorted(
        f"{name}/kernel" for t in TASKS for name in (f"{t}_conv_1", f"{t}_conv_2", f"{t}_fc_3", t)
    )
    expected = sum(0.5 * np.sum(np.float64(v.numpy()) ** 2) for v in kernels)
    with tf.GradientTape() as tape:
        penalty = script.l2_regularisation(network)
    np.testing.assert_allclose(penalty, expected, rtol=1e-5)
    values = [v.value for v in network.trainable_variables]
    for v, gradient in zip(network.trainable_variables, tape.gradient(penalty, values)):
        if v.name == "kernel":
            np.testing.assert_allclose(gradient, v.value, rtol=1e-6)
        else:
            assert gradient is None


def test_initialisation_is_he(script):
    for name, fan_in in (("item_conv_2", 9 * 32), ("group_fc_3", 3136)):
        kernel = build(script).get_layer(name).kernel.numpy()
        assert abs(kernel.std() / np.sqrt(2 / fan_in) - 1) < 0.03


def assert_same_layer(ours, other, shape, weights, tolerance):
    """Outputs, all gradients and, after each of three calls, all weights: two in training and one out of it."""
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
    assert_same_layer(script.BatchNormalization(), keras.layers.BatchNormalization(), shape, weights, 1e-4)


def test_frozen_batch_norm_keeps_its_statistics(script):
    layer = script.BatchNormalization()
    layer.build((8, 4))
    layer.trainable = False
    layer(np.full((8, 4), 5, np.float32), training=True)
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(4))
    np.testing.assert_array_equal(layer.moving_variance, np.ones(4))


def test_dropout_keeps_what_keep_prob_says(script, garments):
    layer = build(script, keep_prob=0.8).get_layer("item_dropout")
    kept = layer(np.ones((100, 1024), np.float32), training=True).numpy()
    assert set(np.unique(kept)) == {0, np.float32(1 / 0.8)}
    assert abs((kept > 0).mean() - 0.8) < 0.01


def test_preset_of_2018(script, garments):
    """Dense units, slow averages, and logits without a bias, normalised over the batch."""
    args, _ = script.parse_arguments(["--preset", "2018"])
    assert (args.cross_stitch_unit, args.bn_momentum) == ("activation", 0.999)
    args, _ = script.parse_arguments(["--preset", "2018", "--cross_stitch_unit", "channel"])
    assert (args.preset, args.cross_stitch_unit, args.bn_momentum) == ("2018", "channel", 0.999)
    network = build(script, "--preset", "2018")
    assert all(network.get_layer(f"{task}_logits").bias is None for task in TASKS)
    norms = [layer for layer in network.layers if isinstance(layer, script.BatchNormalization)]
    assert [norm.momentum for norm in norms] == [0.999] * 8 and {"item", "group"} < {norm.name for norm in norms}
    for logits in network(garment_batch(garments, 64), training=True).values():
        np.testing.assert_allclose(np.mean(logits, axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(np.std(logits, axis=0), 1, atol=0.01)


def test_one_step_of_training_by_hand(script, garments):
    """Loss, gradients and Adam's first step, against an eager tape and the formula of the optimizer's paper."""
    lr, scale, weights, reg_lambda = 0.01, 10, [0.5, 2.0], 1e-3
    images, labels = garments[0][..., None], np.stack([garments[1], garments[1] % 3], axis=1).astype(np.int64)
    batch = np.arange(0, 6000, 300)
    network, twin = build(script, init=0.9, keep_prob=1.0), build(script, init=0.9, keep_prob=1.0)
    before = [v.numpy() for v in twin.trainable_variables]
    with tf.GradientTape() as tape:
        logits = twin(images[batch], training=True)
        loss, of_tasks = 0, []
        for t, task in enumerate(TASKS):
            log_softmax = logits[task] - tf.reduce_logsumexp(logits[task], axis=1, keepdims=True)
            of_tasks.append(-weights[t] * tf.reduce_mean(tf.gather(log_softmax, labels[batch, t], batch_dims=1)))
            loss += of_tasks[-1]
        for v in twin.trainable_variables:
            if "kernel" in v.path:
                loss += reg_lambda * 0.5 * tf.reduce_sum(v.value**2)
    gradients = tape.gradient(loss, [v.value for v in twin.trainable_variables])

    adams = [tf.compat.v1.train.AdamOptimizer(lr * factor) for factor in (1, scale)]
    args = argparse.Namespace(task_weights=weights, reg_lambda=reg_lambda)
    step = script.make_train_step(tf.distribute.get_strategy(), network, adams, args)
    numbers = step(tf.constant(images[batch]), tf.constant(labels[batch]), tf.constant(2.0)).numpy()
    assert numbers[-1] == 2  # what this machine says of being stopped, summed over all
    np.testing.assert_allclose(numbers[:3], [loss, *of_tasks], rtol=1e-5)
    hits = [np.argmax(logits[task], axis=1) == labels[batch, t] for t, task in enumerate(TASKS)]
    np.testing.assert_allclose(numbers[3], np.mean(hits), atol=1e-6)
    for v, w, g in zip(network.trainable_variables, before, gradients):
        rate = lr * scale if v.name == "alpha" else lr
        expected = -rate * g / (np.abs(g) + 1e-8 / np.sqrt(1 - 0.999))  # Kingma and Ba, the first step
        solid = np.abs(g) > 1e-5  # below, rounding decides the sign
        np.testing.assert_allclose((v.numpy() - w)[solid], expected[solid], rtol=0.02)


def test_what_makes_the_training_fast(script):
    """The fused batch norm and Adam, L2 by the kernel made for it, a single trace, memory kept from step to step."""
    network = build(script)
    adams = [tf.compat.v1.train.AdamOptimizer(0.01) for _ in range(2)]
    args = argparse.Namespace(task_weights=None, reg_lambda=1e-5)
    step = script.make_train_step(tf.distribute.get_strategy(), network, adams, args)
    specs = [tf.TensorSpec((None, 28, 28, 1), tf.uint8), tf.TensorSpec((None, 2), tf.int64), tf.TensorSpec([])]
    concrete = step.get_concrete_function(*specs)
    kinds = [op.type for op in concrete.graph.get_operations()]
    assert kinds.count("ResourceApplyAdam") == len(network.trainable_variables)
    assert kinds.count("FusedBatchNormV3") == 6
    assert kinds.count("L2Loss") == 8
    assert step.experimental_get_tracing_count() == 1  # a second one takes as long as the first
    faults = []
    for _ in range(6):
        concrete(tf.zeros((128, 28, 28, 1), tf.uint8), tf.zeros((128, 2), tf.int64), tf.zeros([]))
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    assert faults[5] - faults[2] < 10_000, faults  # 30,000 where each step asks for its memory anew


def test_tensorflow_may_use_all_of_the_memory(script):
    """The allocator that keeps memory would by default hold 64 GB at most."""
    assert int(os.environ["TF_CPU_BFC_MEM_LIMIT_IN_MB"]) * 2**20 > max(script.MEMORY, 2**40)


def test_batches_hold_every_image_once_an_epoch(script):
    """The last one is smaller; a run that goes on meets the same ones; each of five replicas finds an image."""
    args = argparse.Namespace(n_batch_size=4, seed=3)
    found = list(itertools.islice(script.batches(args, 10, 0, 1), 9))  # three epochs of three steps
    assert [len(batch) for batch in found] == [4, 4, 2] * 3
    epochs = [np.concatenate(found[k : k + 3]).tolist() for k in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    for step in (1, 3, 5):
        for one, other in zip(found[step:], script.batches(args, 10, step, 1)):
            np.testing.assert_array_equal(one, other)
    *_, last = itertools.islice(script.batches(args, 10, 0, 5), 3)
    np.testing.assert_array_equal(last, np.tile(found[2], 3))
    orders = []
    for seed in (3, 4, 5):
        args = argparse.Namespace(n_batch_size=128, seed=seed)  # more than there are images
        orders += [batch.tolist() for batch in itertools.islice(script.batches(args, 10, 0, 1), 3)]
    assert orders[:3] == epochs and len(set(map(tuple, orders))) == 9  # another one for each seed and epoch


def test_learning_rates_by_hand(script):
    args = argparse.Namespace(lr=0.8, lr_half_life=2.0, cross_stitch_lr_scale=10.0, pretrain_epoch=2)
    rates = [script.learning_rates(args, epoch) for epoch in (0, 1, 2, 4)]
    np.testing.assert_allclose(rates, [(0.8, 0), (0.8 / 2**0.5, 0), (0.4, 4), (0.2, 2)])
    args.lr_half_life = 0.0
    assert script.learning_rates(args, 9) == (0.8, 8)


@pytest.mark.parametrize("unit, enabled, expected", [("channel", 1, 4), ("activation", 1, 9), ("activation", 0, 4)])
def test_columns_share_the_cores_and_dense_units_do_not(script, monkeypatch, unit, enabled, expected):
    asked = []
    monkeypatch.setattr(script, "CORES", 9)
    monkeypatch.setattr(script.tf.config.threading, "set_intra_op_parallelism_threads", asked.append)
    args, _ = script.parse_arguments([f"--cross_stitch_unit={unit}", f"--cross_stitch_enabled={enabled}"])
    script.choose_strategy(args, 2)
    assert asked == [expected]


def test_the_chief_is_who_stands_first(script, monkeypatch):
    """A job of that name if there is one, else the first worker; the strategy itself is not started."""
    monkeypatch.setattr(script.tf.distribute, "MultiWorkerMirroredStrategy", lambda: "strategy")
    with_chief, workers = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}, {"worker": ["b:1", "c:1"]}
    for cluster, kind, index, expected in (
        (with_chief, "chief", 0, True),
        (with_chief, "worker", 0, False),
        (workers, "worker", 0, True),
        (workers, "worker", 1, False),
    ):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
        assert script.choose_strategy(script.parse_arguments(["--log_dir=x"])[0], 2) == ("strategy", expected)


def test_the_number_of_threads_is_set_before_tensorflow_starts():
    """In a process of its own: a running TensorFlow keeps what it has, and refuses another."""
    code = "import fashion_mnist_multi_task_learning as script; script.CORES = 9; "
    code += "script.choose_strategy(script.parse_arguments([])[0], 2); "
    code += "print(script.tf.config.threading.get_intra_op_parallelism_threads())"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout
    assert out == "4\n"
