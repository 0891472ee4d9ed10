"""The cross-stitch units against NumPy, finite differences, and what the paper says of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

KINDS = ("channel", "layer", "activation")


def random_unit(script, kind, inputs):
    """Return a unit of the given kind with random alpha, built for `inputs`, and its alpha."""
    unit = script.UNITS[kind](init=0.9)
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
    unit = script.UNITS[kind](init=0.9)
    mixed = unit(inputs)
    others = 0.1 / (tasks - 1)
    expected = np.full((tasks, tasks), others) + (0.9 - others) * np.eye(tasks)
    np.testing.assert_allclose(unit.mean_alpha(), expected, atol=1e-7)
    for i in range(tasks):
        np.testing.assert_allclose(mixed[i], sum(expected[i, j] * inputs[j] for j in range(tasks)), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_is_exactly_the_identity(script, kind):
    inputs = random_inputs(3)
    for x, y in zip(inputs, script.UNITS[kind]()(inputs)):
        np.testing.assert_array_equal(x, y)


def test_mean_alpha_is_the_mean_of_what_alpha_holds(script):
    inputs = random_inputs(2, (3, 2, 2, 3))
    unit, alpha = random_unit(script, "channel", inputs)
    np.testing.assert_allclose(unit.mean_alpha(), alpha.mean(axis=2), atol=1e-6)
    unit, alpha = random_unit(script, "layer", inputs)
    np.testing.assert_array_equal(unit.mean_alpha(), alpha)
    unit, alpha = random_unit(script, "activation", inputs)
    assert alpha.shape == (24, 24)
    means = [[alpha[i : i + 12, j : j + 12].diagonal().mean() for j in (0, 12)] for i in (0, 12)]
    np.testing.assert_allclose(unit.mean_alpha(), means, atol=1e-6)


def test_what_cannot_be_a_unit_is_refused(script):
    for init in (0, -1, 1.1):
        with pytest.raises(ValueError, match="init"):
            script.CrossStitch(init=init)
    with pytest.raises(ValueError, match="two columns"):
        script.CrossStitch()(random_inputs(1))


def test_a_unit_of_ones_own_by_three_methods(script):
    """One alpha_ij for each place of a map. One that starts with a wrong shape is refused, not broadcast."""

    class PlaceCrossStitch(script.CrossStitch):
        def alpha_shape(self):
            return (self.num_columns, self.num_columns, *self.feature_shape[:2], 1)

        def alpha_from_mixing(self, mixing):
            return np.broadcast_to(mixing[:, :, None, None, None], self.alpha_shape())

        def mean_alpha(self):
            return np.mean(self.alpha, axis=(2, 3, 4))

    class WrongCrossStitch(PlaceCrossStitch):
        def alpha_from_mixing(self, mixing):
            return mixing

    inputs = random_inputs(2)
    unit = PlaceCrossStitch(init=0.5)
    for y in unit(inputs):
        np.testing.assert_allclose(y, (inputs[0] + inputs[1]) / 2, atol=1e-6)
    assert unit.alpha.shape == (2, 2, 4, 5, 1) and unit.mean_alpha().tolist() == [[0.5, 0.5], [0.5, 0.5]]
    with pytest.raises(ValueError, match="WrongCrossStitch"):
        WrongCrossStitch()(inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(script, kind, tmp_path):
    """Without a `get_config` of its own the unit comes back with its init and its alpha."""
    inputs = [keras.Input((4, 5, 6)) for _ in range(2)]
    unit = script.UNITS[kind](init=0.7, name="pool_1")
    model = keras.Model(inputs, unit(inputs))
    unit.alpha.assign(np.random.default_rng(1).normal(size=unit.alpha.shape))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").get_layer("pool_1")
    assert type(loaded).__name__ == type(unit).__name__ and loaded.init == 0.7
    np.testing.assert_array_equal(loaded.alpha, unit.alpha)
