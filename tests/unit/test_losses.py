"""Losses and a training step by hand, the batches of an epoch, the learning rates."""

import argparse
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import parse

TASKS = ["item", "group"]
MEAN, VARIANCE = np.full((28, 28, 1), 72.9), np.full((28, 28, 1), 90.0**2)


def build(script, *flags):
    keras.utils.set_random_seed(0)
    return script.build_network(parse(script, *flags), {t: script.TASKS[t] for t in TASKS}, MEAN, VARIANCE)


def signature(images, labels, *others):
    batch = (images, labels, *others)
    return tf.nest.map_structure(lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), batch)


class Spy:
    """Optimizers that keep the gradients and change nothing."""

    def __init__(self, network):
        self.kept = [tf.Variable(tf.zeros_like(v.value)) for v in network.trainable_variables]

    def minimize(self, tape, loss, network):
        gradients = tape.gradient(loss, [v.value for v in network.trainable_variables])
        for kept, gradient in zip(self.kept, gradients):
            kept.assign(tf.zeros_like(kept) if gradient is None else gradient)


def test_l2_touches_kernels_and_nothing_else(script):
    network = build(script, "--cross_stitch_init=0.9")
    kernels = [v for v in network.trainable_variables if v.name == "kernel"]
    assert sorted(v.path for v in kernels) == sorted(
        f"{task}.{name}/kernel" for task in TASKS for name in ("conv_1", "conv_2", "fc_3", "output")
    )
    expected = sum(0.5 * np.sum(np.float64(v.numpy()) ** 2) for v in kernels)
    with tf.GradientTape() as tape:
        penalty = script.l2_loss(network)
    np.testing.assert_allclose(penalty, expected, rtol=1e-5)
    values = [v.value for v in network.trainable_variables]
    for v, gradient in zip(network.trainable_variables, tape.gradient(penalty, values)):
        if v.name == "kernel":
            np.testing.assert_allclose(gradient, v.value, rtol=1e-6)
        else:
            assert gradient is None


def test_one_step_of_training_by_hand(script, garments):
    """Loss, gradients and Adam's first step, against an eager tape and the formula of the optimizer's paper."""
    lr, scale, weights, reg_lambda = 0.01, 10, [0.5, 2.0], 1e-3
    images = garments[0][::300, ..., None]
    labels = {"item": garments[1][::300].astype(np.int64), "group": (garments[1][::300] % 3).astype(np.int64)}
    network, twin = (build(script, "--cross_stitch_init=0.9", "--keep_prob=1") for _ in range(2))
    before = [v.numpy() for v in twin.trainable_variables]
    with tf.GradientTape() as tape:
        logits = twin(images, training=True)
        loss, losses = 0, {}
        for weight, task in zip(weights, TASKS):
            log_softmax = logits[task] - tf.reduce_logsumexp(logits[task], axis=1, keepdims=True)
            losses[task] = -tf.reduce_mean(tf.gather(log_softmax, labels[task], batch_dims=1))
            loss += weight * losses[task]
        for v in twin.trainable_variables:
            if "kernel" in v.path:
                loss += reg_lambda * 0.5 * tf.reduce_sum(v.value**2)
    gradients = tape.gradient(loss, [v.value for v in twin.trainable_variables])

    optimizers = script.Optimizers()
    optimizers.create_moments(network)
    optimizers.set_learning_rates(lr, lr * scale)
    args = argparse.Namespace(task_weights=weights, reg_lambda=reg_lambda)
    strategy = tf.distribute.get_strategy()
    step = script.make_train_step(strategy, network, optimizers, args, script.TASKS, signature(images, labels))
    values = {tag: float(value) for tag, value in step((images, labels), 2.0).items()}
    hits = [np.argmax(logits[task], axis=1) == labels[task] for task in TASKS]
    assert values == pytest.approx(
        {
            "summary/loss_total": float(loss),
            "item/loss": float(losses["item"]),  # unweighted
            "group/loss": float(losses["group"]),
            "summary/accuracy_train": np.mean(hits),
            "num_stop_signals": 2,
        },
        rel=1e-5,
    )
    for v, w, g in zip(network.trainable_variables, before, gradients):
        rate = lr * scale if v.name == "alpha" else lr
        expected = -rate * g / (np.abs(g) + 1e-8 / np.sqrt(1 - 0.999))  # Kingma and Ba, the first step
        solid = np.abs(g) > 1e-5  # below, rounding decides the sign
        np.testing.assert_allclose((v.numpy() - w)[solid], expected[solid], rtol=0.02)
    assert step.experimental_get_tracing_count() == 1  # a second trace takes as long as the first


def test_gradients_in_bfloat16_come_near_those_of_float32(script, garments):
    """Of every array of weights, alpha's too, whose gradient is a sum over all images and pixels.

    On processors without bfloat16, TensorFlow rounds on the way where it sums up the gradient of a convolution's
    kernel: there the first one's error is 0.35.
    """
    images = garments[0][:128, ..., None]
    labels = {"item": garments[1][:128].astype(int), "group": garments[1][:128].astype(int) % 3}
    found = {}
    for precision in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(precision)
        try:
            network = build(script, "--cross_stitch_init=0.9", "--keep_prob=1")
        finally:
            keras.config.set_dtype_policy("float32")
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            loss = tf.add_n([tf.reduce_mean(script.cross_entropy(logits[task], labels[task])) for task in TASKS])
        gradients = tape.gradient(loss, [v.value for v in network.trainable_variables])
        found[precision] = [loss, *gradients]
    for name, exact, rounded in zip(["loss", *(v.path for v in network.trainable_variables)], *found.values()):
        error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
        assert error < (0.5 if "conv" in name else 0.25), name


def test_batches_hold_every_image_once_an_epoch(any_script):
    """The last one is smaller; each of five replicas finds an image; another order for each seed and epoch."""
    labels = {"task": np.arange(10)}
    split = any_script.Split(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), labels)

    def orders(seed, epoch, size=4, replicas=1):
        strategy = argparse.Namespace(num_replicas_in_sync=replicas)
        args = argparse.Namespace(n_batch_size=size, seed=seed)
        batches = list(any_script.batches_of_epoch(args, split, epoch, strategy))
        for images, of_batch, *_ in batches:
            assert images.ravel().tolist() == of_batch["task"].tolist()
        return [batch[1]["task"].tolist() for batch in batches]

    found = orders(3, 0)
    assert [len(batch) for batch in found] == [4, 4, 2] and sorted(itertools.chain(*found)) == list(range(10))
    assert orders(3, 0) == found and orders(3, 0, replicas=5) == [*[batch * 2 for batch in found[:2]], found[2] * 3]
    assert orders(3, 0, size=128) == [list(itertools.chain(*found))]  # more than there are images
    every = [tuple(itertools.chain(*orders(seed, epoch))) for seed in (3, 4, 5) for epoch in range(3)]
    assert len(set(every)) == 9


@pytest.mark.parametrize("name", ["faces_script", "landmark_script"])
def test_random_numbers_of_an_epoch(name, request):
    module = request.getfixturevalue(name)
    split = module.Split(np.zeros((1000, 1, 1, 1), np.uint8), {})
    found = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        args = argparse.Namespace(n_batch_size=1000, seed=seed)
        ((_, _, numbers),) = module.batches_of_epoch(args, split, epoch, argparse.Namespace(num_replicas_in_sync=1))
        found.append(numbers)
        assert numbers.shape == (1000, module.NUM_RANDOM_NUMBERS) and numbers.dtype == np.float32
        assert (numbers.min(axis=0) < -0.98).all() and (numbers.max(axis=0) > 0.98).all()
        assert np.abs(numbers.mean(axis=0)).max() < 0.1
    assert all((one == other).mean() < 0.01 for one, other in itertools.combinations(found, 2))


def test_learning_rates_by_hand(script):
    args = argparse.Namespace(lr=0.8, lr_half_life=2.0, cross_stitch_lr_scale=10.0, pretrain_epoch=2)
    rates = [script.learning_rates(args, epoch) for epoch in (0, 1, 2, 4)]
    np.testing.assert_allclose(rates, [(0.8, 0), (0.8 / 2**0.5, 0), (0.4, 4), (0.2, 2)])
    args.lr_half_life = 0.0
    assert script.learning_rates(args, 9) == (0.8, 8)


# ---- landmarks


def landmark_batch(n=16, size=48):
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 256, (n, size, size, 1), np.uint8)
    labels = {"landmarks": rng.uniform(size=(n, 5, 2)).astype(np.float32)}
    for task, classes in (("gender", 2), ("smile", 2), ("glasses", 2), ("pose", 5)):
        labels[task] = rng.integers(0, classes, n)
    return faces, labels, rng.uniform(-1, 1, (n, 5)).astype(np.float32)


def build_landmarks(script, *flags):
    keras.utils.set_random_seed(0)
    args = parse(script, "--image_size=32", "--keep_prob=1", *flags)
    classes = {} if args.network == "single" else script.ATTRIBUTES
    network = script.build_network(args, classes, np.full((32, 32, 1), 120.0), np.full((32, 32, 1), 3600.0))
    kernel = network.get_layer("landmarks.output").kernel  # it starts at zero, and would hide all gradients
    kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))
    return args, network


def landmark_step(script, args, network):
    """Return the values and the gradients of a step on a batch, {tag: value} and {path: array}."""
    spy, batch = Spy(network), landmark_batch()
    classes = {} if args.network == "single" else script.ATTRIBUTES
    step = script.make_train_step(tf.distribute.get_strategy(), network, spy, args, classes, signature(*batch))
    values = {tag: float(value) for tag, value in step(batch, 0.0).items()}
    return values, dict(zip([v.path for v in network.trainable_variables], (v.numpy() for v in spy.kept)))


def test_one_step_on_landmarks_by_hand(landmark_script):
    """All terms of the loss at once; a and b of the related weights get gradients as the weights do."""
    flags = ["--augment=no", "--reg_lambda=0.1", "--weight_reg=l2", "--weight_reg_lambda=0.01", "--landmark_lambda=3"]
    args, network = build_landmarks(landmark_script, *flags, "--aux_lambda", "1", "2", "0.5", "4")
    faces, labels, _ = landmark_batch()
    with tf.GradientTape() as tape:
        outputs = network(faces[:, 8:40, 8:40], training=True)
        errors = outputs["landmarks"] - labels["landmarks"]
        losses = {"landmarks": 0.5 * tf.reduce_sum(errors**2) / 16}
        for task in landmark_script.ATTRIBUTES:
            log_softmax = tf.nn.log_softmax(outputs[task])
            losses[task] = -tf.reduce_mean(tf.gather(log_softmax, labels[task], batch_dims=1))
        relation = 0
        for j, name in enumerate(("conv_1", "conv_2", "conv_3", "conv_4", "fc_5")):
            one, other = (network.get_layer(f"{column}.{name}").kernel for column in ("landmarks", "attributes"))
            d = network.scales.value[j] * one + network.offsets.value[j] - other
            relation += 0.5 * tf.reduce_sum(d**2)
        l2 = sum(0.5 * tf.reduce_sum(v.value**2) for v in network.trainable_variables if v.name == "kernel")
        total = sum(w * loss for w, loss in zip((3, 1, 2, 0.5, 4), losses.values())) + 0.01 * relation + 0.1 * l2
    expected = tape.gradient(total, [v.value for v in network.trainable_variables])
    values, gradients = landmark_step(landmark_script, args, network)
    assert values == pytest.approx(
        {
            "summary/loss_total": float(total),
            "summary/related_weights": float(relation),
            "landmarks/mean_error_train": float(np.linalg.norm(errors, axis=-1).mean()),
            **{f"{task}/loss": float(loss) for task, loss in losses.items()},
            "num_stop_signals": 0,
        },
        rel=1e-4,
    )
    for (path, found), wanted in zip(gradients.items(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max(), err_msg=path)


def test_split_without_auxiliary_weight_gives_the_gradients_of_single(landmark_script):
    found = {}
    for kind in ("single", "split"):
        flags = [f"--network={kind}", "--aux_lambda=0", "--split_after=fc_5" if kind == "split" else "--augment=yes"]
        args, network = build_landmarks(landmark_script, *flags)
        gradients = landmark_step(landmark_script, args, network)[1]
        found[kind] = {path.replace("trunk", "landmarks"): gradient for path, gradient in gradients.items()}
    assert len(found["single"]) == 17 and found["single"].keys() < found["split"].keys()
    for path, gradient in found["split"].items():
        if path in found["single"]:
            scale = np.abs(found["single"][path]).max()
            assert scale > 1e-4
            np.testing.assert_allclose(gradient, found["single"][path], rtol=1e-5, atol=1e-6 * scale, err_msg=path)
        elif "kernel" not in path:
            np.testing.assert_array_equal(gradient, 0, err_msg=path)  # kernels have the L2 term alone


def test_the_poster_has_eight_sigmoids(landmark_script):
    """A softmax over (0, z) is the sigmoid of z; the poses have five sigmoids; the loss of all is a sum over eight."""
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (16, 39, 39, 1), np.uint8)
    args = parse(landmark_script, "--preset=poster")
    outputs = landmark_script.build_network(args, landmark_script.ATTRIBUTES, np.zeros((39, 39, 1)), None)(images)
    labels = landmark_batch()[1]
    losses = landmark_script.task_losses(outputs, labels, sigmoid_poses=True)
    for task in landmark_script.ATTRIBUTES:
        logits = np.float64(outputs[task])
        if task == "pose":
            z, y = logits, np.eye(5)[labels[task]]
        else:
            assert (logits[:, 0] == 0).all()
            z, y = logits[:, 1:], labels[task][:, None]
        p = 1 / (1 + np.exp(-z))
        expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum()
        np.testing.assert_allclose(losses[task], expected, rtol=1e-4)
    squares = (labels["landmarks"] - np.float64(outputs["landmarks"])) ** 2
    np.testing.assert_allclose(losses["landmarks"], 0.5 * squares.sum(), rtol=1e-4)


@pytest.mark.parametrize("kind", ["l2", "exp"])
def test_related_weights_and_their_gradients(landmark_script, kind):
    """Against NumPy in float64: the value by the formula, the gradients by the chain rule written out."""
    rng = np.random.default_rng(0)
    pairs = [tuple(rng.normal(size=shape) for _ in range(2)) for shape in ((3, 3, 1, 4), (6, 5), (2, 2))]
    pairs[2] = (pairs[2][0] * 5, pairs[2][1])  # the mean square is above 10 there: the tangent
    a, b = np.array([0.9, 1.1, 2.0]), np.array([0.1, -0.2, 0.5])
    values, gradients, means = [], [], []
    for j, (first, second) in enumerate(pairs):
        d = a[j] * first + b[j] - second
        m = (d**2).mean()
        means.append(m)
        if kind == "l2":
            values.append(0.5 * (d**2).sum())
            slope = d
        else:
            values.append(np.exp(m) - 1 if m < 10 else np.exp(10) - 1 + np.exp(10) * (m - 10))
            slope = np.exp(min(m, 10)) * 2 * d / d.size
        gradients += [a[j] * slope, -slope, (slope * first).sum(), slope.sum()]
    assert means[0] < 10 < means[2]
    variables = [[tf.Variable(x, dtype=tf.float32) for x in pair] for pair in pairs]
    scales, offsets = tf.Variable(a, dtype=tf.float32), tf.Variable(b, dtype=tf.float32)
    with tf.GradientTape() as tape:
        found = landmark_script.related_weights(variables, scales, offsets, kind)
    np.testing.assert_allclose(found, sum(values), rtol=1e-4)
    *kernels, of_scales, of_offsets = tape.gradient(
        found, [*variables[0], *variables[1], *variables[2], scales, offsets]
    )
    for j in range(3):
        expected = gradients[4 * j : 4 * j + 4]
        for got, want in zip((kernels[2 * j], kernels[2 * j + 1], of_scales[j], of_offsets[j]), expected):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_the_related_weights_are_those_that_both_columns_have(landmark_script):
    _, network = build_landmarks(landmark_script)
    pairs = landmark_script.kernel_pairs(network)
    names = ["conv_1", "conv_2", "conv_3", "conv_4", "fc_5"]
    assert len(pairs) == 5
    for (first, second), name in zip(pairs, names):
        np.testing.assert_array_equal(first, network.get_layer(f"landmarks.{name}").kernel)
        np.testing.assert_array_equal(second, network.get_layer(f"attributes.{name}").kernel)
    huge = [tuple(x * 1e6 for x in pair) for pair in pairs]
    assert np.isfinite(landmark_script.related_weights(huge, np.ones(5), np.zeros(5), "exp"))
    _, network = build_landmarks(landmark_script, "--split_after=pool_4", "--weight_reg=l2")
    assert network.scales.shape == (1,)  # only fc_5 is there twice
