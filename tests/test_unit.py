"""The cross-stitch unit against NumPy, finite differences, and what the paper says of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import read_events

KINDS = ("channel", "layer", "activation")


def random_unit(script, kind, inputs):
    """Returns a unit of the given kind with random α, built for `inputs`, and its α."""
    unit = script.CrossStitch(kind, 0.9)
    unit(inputs)
    alpha = np.random.default_rng(1).normal(size=unit.alpha.shape).astype(np.float32)
    unit.alpha.assign(alpha)
    return unit, alpha


def random_inputs(tasks, shape=(3, 4, 5, 6)):
    return list(np.random.default_rng(0).normal(size=(tasks, *shape)).astype(np.float32))


def by_loops(kind, alpha, inputs):
    """Equation 1 of arXiv:1604.03539, spelled out in NumPy, one image and one task at a time."""
    outputs = [np.zeros_like(x) for x in inputs]
    for n in range(len(inputs[0])):
        flat = np.concatenate([x[n].reshape(-1) for x in inputs])
        size = inputs[0][n].size
        for i in range(len(inputs)):
            if kind == "activation":
                outputs[i][n] = (alpha @ flat)[i * size : (i + 1) * size].reshape(inputs[0][n].shape)
            else:
                for j in range(len(inputs)):
                    outputs[i][n] += alpha[i, j] * inputs[j][n]  # (C,) or a number against (..., C)
    return outputs


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 7)])
@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_numpy(script, kind, tasks, shape):
    inputs = random_inputs(tasks, shape)
    unit, alpha = random_unit(script, kind, inputs)
    for found, expected in zip(unit(inputs), by_loops(kind, alpha, inputs)):
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences(script, kind):
    inputs = random_inputs(2, (2, 2, 2, 3))
    unit, alpha = random_unit(script, kind, inputs)
    weights = np.random.default_rng(2).normal(size=(2, 2, 2, 2, 3))

    def loss(alpha, inputs):
        return sum(np.sum(w * y.astype(float) ** 2) for w, y in zip(weights, by_loops(kind, alpha, inputs)))

    variables = [tf.Variable(x) for x in inputs]
    with tf.GradientTape() as tape:
        value = tf.add_n([tf.reduce_sum(w * y**2) for w, y in zip(weights.astype(np.float32), unit(variables))])
    gradients = tape.gradient(value, [unit.alpha.value, *variables])
    arrays = [alpha.astype(float), *(x.astype(float) for x in inputs)]
    for k, gradient in enumerate(gradients):
        for place in np.random.default_rng(3).integers(0, arrays[k].size, 5):
            ends = []
            for sign in (1, -1):
                moved = [a.copy() for a in arrays]
                moved[k].flat[place] += sign * 1e-4
                ends.append(loss(moved[0], moved[1:]))
            np.testing.assert_allclose(gradient.numpy().flat[place], (ends[0] - ends[1]) / 2e-4, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_initial_values(script, kind, tasks):
    inputs = random_inputs(tasks)
    unit = script.CrossStitch(kind, 0.9)
    mixed = unit(inputs)
    cross = 0.1 / (tasks - 1)
    expected = np.full((tasks, tasks), cross) + (0.9 - cross) * np.eye(tasks)
    np.testing.assert_allclose(unit.mixing(), expected, atol=1e-7)
    for i in range(tasks):
        np.testing.assert_allclose(mixed[i], sum(expected[i, j] * inputs[j] for j in range(tasks)), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_identity_by_default(script, kind):
    inputs = random_inputs(3)
    for x, y in zip(inputs, script.CrossStitch(kind)(inputs)):
        np.testing.assert_array_equal(x, y)


def test_mixing_is_the_mean_of_what_alpha_holds(script):
    inputs = random_inputs(2, (3, 2, 2, 3))
    unit, alpha = random_unit(script, "channel", inputs)
    np.testing.assert_allclose(unit.mixing(), alpha.mean(axis=2), atol=1e-6)
    unit, alpha = random_unit(script, "layer", inputs)
    np.testing.assert_array_equal(unit.mixing(), alpha)
    unit, alpha = random_unit(script, "activation", inputs)
    assert alpha.shape == (24, 24)
    means = [[alpha[i : i + 12, j : j + 12].diagonal().mean() for j in (0, 12)] for i in (0, 12)]
    np.testing.assert_allclose(unit.mixing(), means, atol=1e-6)


def test_a_kind_that_does_not_exist_is_refused(script):
    """As "channels", which must not pass for another kind."""
    with pytest.raises(KeyError, match="channels"):
        script.CrossStitch("channels")(random_inputs(2))


def test_picture_of_what_was_learned(script, tmp_path):
    """From blue, 1 and more, by white, 0, to red, -1; a quarter is half as blue, as a square root is."""
    inputs = [keras.Input((4,)) for _ in range(2)]
    network = keras.Model(inputs, script.CrossStitch("layer", name="pool_1")(inputs))
    network.layers[-1].alpha.assign([[7.0, -1.0], [0.25, 0.0]])
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        tf.summary.experimental.set_step(0)
        script.log_training(network, 0, {})
    (_, (width, height, picture)), *_ = read_events(tmp_path)["units/pool_1/alpha_mean"]
    pixels = tf.io.decode_png(picture).numpy()
    assert pixels.shape == (int(height), int(width), 3) == (128, 128, 3)
    for i, j, colour in ((0, 0, (0, 0, 255)), (0, 1, (255, 0, 0)), (1, 0, (127, 127, 255)), (1, 1, (255, 255, 255))):
        square = pixels[64 * i : 64 * (i + 1), 64 * j : 64 * (j + 1)]
        assert np.abs(square - np.array(colour)).max() <= 1, (i, j, square[0, 0])
