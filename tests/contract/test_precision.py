"""bfloat16: what stays float32, how near it comes, and that runs resume, load and predict in it."""

import argparse
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import assert_goes_on, assert_refused, read_events

CPU = Path("/proc/cpuinfo")
HAS_BFLOAT16 = CPU.exists() and "bf16" in CPU.read_text()
MEAN, DEVIATION = np.full((28, 28, 1), 72.9), np.full((28, 28, 1), 90.0)


@pytest.fixture
def build(script):
    """A function (precision, unit) -> the first script's network of both tasks; the policy is put back afterwards."""

    def make(precision, unit="channel"):
        keras.config.set_dtype_policy(precision)
        keras.utils.set_random_seed(0)
        args, _ = script.parse_arguments(["--cross_stitch_init=0.9", "--keep_prob=1", f"--cross_stitch_unit={unit}"])
        return script.build_network(args, {"item": range(10), "group": range(3)}, MEAN, DEVIATION)

    yield make
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("unit", ["channel", "layer"])
def test_what_stays_float32_and_what_does_not(build, unit):
    network = build("mixed_bfloat16", unit)
    assert {v.dtype for v in network.trainable_variables} == {"float32"}
    kinds = {layer.name: layer.compute_dtype for layer in network.layers}
    exact = {"images", "standardise", "item_dropout", "group_dropout", "item", "group"}
    assert {name for name, kind in kinds.items() if kind == "float32"} <= exact
    assert {kinds[name] for name in ("item_conv_1", "item_bn_1", "pool_1", "fc_3", "group_fc_3")} == {"bfloat16"}
    assert {x.dtype for x in network.output.values()} == {"float32"}


@pytest.mark.parametrize(
    "name, channels, norms", [("script", 1, 6), ("faces_script", 3, 8), ("landmark_script", 1, 10)]
)
def test_what_all_three_networks_have(request, name, channels, norms):
    """Batch norm over all devices; standardised pixels, dropout and outputs in float32, all between in bfloat16."""
    script = request.getfixturevalue(name)
    mean, deviation = np.full((64, 64, channels), 120.0), np.full((64, 64, channels), 60.0)
    classes = [] if name == "landmark_script" else [{"one": range(3), "other": range(2)}]
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        with tf.distribute.OneDeviceStrategy("CPU:0").scope():
            network = script.build_network(script.parse_arguments([])[0], *classes, mean, deviation)
    finally:
        keras.config.set_dtype_policy("float32")
    pixels = network.get_layer("standardise")(np.full((1, 64, 64, channels), 180, np.uint8))
    np.testing.assert_allclose(pixels, np.ones((1, 64, 64, channels)), rtol=1e-6)
    found = [layer.synchronized for layer in network.layers if isinstance(layer, script.BatchNormalization)]
    assert found == [True] * norms
    exact = {layer.name for layer in network.layers if layer.compute_dtype == "float32"}
    assert {x.dtype for x in network.output.values()} == {"float32"}
    assert not any(re.search(r"_(conv|bn|pool|relu|fc)_|^pool|^fc", name) for name in exact)
    assert "standardise" in exact and sum("dropout" in name for name in exact) == 2
    assert {v.dtype for v in network.trainable_variables} == {"float32"}


def test_gradients_come_near_those_of_float32(script, build, garments):
    """Of every array of weights, α's too, whose gradient is a sum over all images and pixels.

    On processors without bfloat16, TensorFlow rounds on the way where it sums up the gradient of a convolution's
    kernel: there the first one's error is 0.35.
    """
    images, labels = (
        garments[0][:128, ..., None],
        np.stack([garments[1][:128], garments[1][:128] % 3], axis=1).astype(int),
    )
    found = {}
    for precision in ("float32", "mixed_bfloat16"):
        network = build(precision)
        with tf.GradientTape() as tape:
            loss = tf.add_n(script.cross_entropies(network(images, training=True), labels)) / 128
        gradients = tape.gradient(loss, [v.value for v in network.trainable_variables])
        found[precision] = [loss, *gradients]
    for name, exact, rounded in zip(["loss", *(v.path for v in network.trainable_variables)], *found.values()):
        error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
        assert error < (0.5 if "conv" in name and not HAS_BFLOAT16 else 0.25), name


@pytest.mark.slow
def test_a_run_in_bfloat16(script, run, tmp_path, small, capfd):
    """It learns, resumes with the same bits, tells its precision, and its model loads without being told."""
    flags = ["--precision=bfloat16", "--n_batch_size=100", "--cross_stitch_unit=activation", f"--data_dir={small}"]
    assert_goes_on(script, tmp_path, *flags)
    assert capfd.readouterr().out.count("; bfloat16 on 1 device") == 2
    whole = tmp_path / "whole"
    results = json.loads((whole / "results.json").read_text())
    assert results["arguments"]["precision"] == "bfloat16" and results["test"]["item"] > 0.2
    assert "bfloat16" in str(read_events(whole)["arguments"])
    network = keras.models.load_model(whole / "model.keras")
    images, labels = script.read_folder(small)[1]
    logits = network.predict(images, verbose=0)["item"]
    assert logits.dtype == np.float32 and np.mean(logits.argmax(axis=1) == labels[:, 0]) == results["test"]["item"]
    refused = run("--resume", whole, precision="float32", log_dir=None, data_dir=None)
    assert refused.status == 2 and "the run has --precision bfloat16, got float32" in refused.err.splitlines()[-1]


@pytest.mark.parametrize("flags, slow", [("flags : avx512_bf16", False), ("flags : avx2", True)])
def test_slow_bfloat16_is_told(script, build, monkeypatch, capsys, flags, slow):
    args = argparse.Namespace(precision="bfloat16", seed=0, log_dir="run")
    record = {"data": {"name": "none", "source": "nowhere", "sizes": {}}, "parameters": 1}
    network = build("float32")
    with monkeypatch.context() as patch:
        patch.setattr(script.pathlib.Path, "read_text", lambda _: flags)
        script.describe(args, record, network, 1)
    assert ("float32 will be faster" in capsys.readouterr().out) is slow


def test_memory_that_is_not_there_is_refused_before_it_is_taken(run, script, monkeypatch):
    """The first unit mixes 2 x 14 x 14 x 32 activations with 12,544² weights; the machine is said to have 1 GB.

    Of 8 x 8 pixels the first two have 1,024² and 512² weights, of 16 bytes with gradients and moments.
    """
    for memory, data, expected in (
        (1e9, {"data_dir": script.SAMPLE}, "2.5 GB up to pool_1, expected less than this machine's 1.0 GB"),
        (17e6, {}, "0.0 GB up to pool_2, expected less than this machine's 0.0 GB"),
    ):
        monkeypatch.setattr(script, "MEMORY", memory)
        result = run("--cross_stitch_unit", "activation", **data)
        assert_refused(result, f"--cross_stitch_unit activation: units take {expected}")
