"""Train two networks side by side on faces, joined by cross-stitch units: one classifies gender, the other age.

Each task has its own column, a small convolutional network. A cross-stitch unit after each convolution block and after
the fully connected layer mixes the activations of the columns with learned weights. So the columns together learn how
much the tasks should share. A third task, ethnicity, can be added by --tasks.

Train with cross-stitch units, then without, and compare the curves of the two runs:

    python gender_age_multi_task_learning.py --data_dir UTKFace --cross_stitch_enabled True
    python gender_age_multi_task_learning.py --data_dir UTKFace --cross_stitch_enabled False
    python -m tensorboard.main --logdir tf_logs

For T tasks a unit has, by default, a T x T matrix of weights for each channel, and starts as the identity. With
`--preset paper` a unit starts from 0.9 for a task's own activations, divides the other 0.1 among the other tasks, and
learns with 100 times the learning rate of the columns. Together with --pretrain_epoch this is the recipe of Misra et
al., but with Adam, where so high a rate makes alpha jump (see PRESETS). `--help` lists all arguments.

--data_dir is the folder of UTKFace (the aligned and cropped faces), or of VGGFace2 (with its folders meta and test).
From VGGFace2 only the 2,000 images that are labelled as young or mature are used. To train on your own faces, name the
files as UTKFace does: AGE_GENDER_RACE_DATE.jpg.chip.jpg, for example 34_1_2_20170109.jpg.chip.jpg. Gender is 0 for male
and 1 for female. Race, here called ethnicity, is 0 for White, 1 for Black, 2 for Asian, 3 for Indian and 4 for others.

Each run writes to a folder of its own, called LOG_DIR here: a new one in tf_logs, or the one that --log_dir names. To
go on with a run that was stopped, or to classify photos with a network that was trained (the middle square of a photo
is used, and should be filled by the face):

    python gender_age_multi_task_learning.py --resume LOG_DIR
    python gender_age_multi_task_learning.py --predict PHOTO ... --model LOG_DIR/model.keras

Each script of this repository can be copied alone. What they have in common, such as the unit, the training loop and
the checkpoints, is repeated in each of them. So some of this code is more general than one script needs.

All GPUs of the machine are used. To train on several machines, start the same command on each of them, with TF_CONFIG
set and with a --log_dir that all of them can see. (The script runs on Linux and macOS, and on Windows in WSL.)

Contents:
    The method: tasks, cross-stitch units, network, losses and training step, errors, training loop.
    The data.
    Speed, and runs that can be resumed: kernels and devices, several machines, checkpoints, event files, results.
    Prediction, command line.

References:
    Misra, Shrivastava, Gupta, Hebert: Cross-stitch Networks for Multi-task Learning. CVPR 2016, arXiv:1604.03539.
    Zhang, Song, Qi: Age Progression/Regression by Conditional Adversarial Autoencoder. CVPR 2017, arXiv:1702.08423
    (UTKFace).
    Cao, Shen, Xie, Parkhi, Zisserman: VGGFace2. FG 2018, arXiv:1710.08092.
    The implementation of 2018: github.com/helloyide/Cross-stitch-Networks-for-Multi-task-Learning.
"""

# For `uv run`, which installs these versions by itself.
# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["tensorflow==2.21.0", "numpy==2.4.6", "tensorboard==2.21.0"]
#
# [tool.uv]
# constraint-dependencies = [
#     "absl-py==2.5.1", "astunparse==1.6.3", "certifi==2026.10.19.post1", "charset-normalizer==3.5.3",
#     "flatbuffers==25.12.19", "gast==0.7.0", "google-pasta==0.2.0", "grpcio==1.85.3", "h5py==3.14.0", "idna==3.20",
#     "keras==3.15.1", "libclang==18.1.1", "markdown-it-py==4.3.0", "Markdown==3.11.3", "MarkupSafe==3.0.4",
#     "mdurl==0.1.2", "ml_dtypes==0.6.0", "namex==0.1.0", "optree==0.20.0", "opt_einsum==3.4.0", "packaging==26.4",
#     "pillow==13.0.0", "protobuf==7.36.2", "Pygments==2.21.0", "requests==2.34.2", "rich==15.0.0",
#     "setuptools==80.9.0", "six==1.17.0", "tensorboard-data-server==0.7.2", "termcolor==3.3.0",
#     "typing_extensions==4.16.0", "urllib3==2.8.0", "Werkzeug==3.1.9", "wheel==0.48.0", "wrapt==2.5.2",
# ]
# ///

import argparse
import builtins
import collections
import concurrent.futures
import contextlib
import csv
import difflib
import functools
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import shlex
import signal
import socket
import socketserver
import statistics
import sys
import threading
import time
import zlib
from typing import NamedTuple

if __name__ == "__main__":
    # Until the training begins (see `collected_stop_signals`), Ctrl-C and SIGTERM end the program at once, without a
    # traceback. (`sys.exit` would raise an exception, which libraries catch.) In a notebook this would end the kernel,
    # so there the signals keep their usual meaning.
    if not hasattr(builtins, "get_ipython"):
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signal_number, lambda number, frame: os._exit(128 + number))
    # TensorFlow and Keras read these when they are imported.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["TF_USE_LEGACY_KERAS"] = "0"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hide most of TensorFlow's notes
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # allocate GPU memory only as it is needed
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")  # reuse freed memory, which makes a step faster
    os.environ.setdefault("TF_CPU_BFC_MEM_LIMIT_IN_MB", str(2**24))  # 16 TB, so no limit; the default is 64 GB

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(f"{__name__} needs Keras with TensorFlow; set KERAS_BACKEND=tensorflow before importing Keras.")

import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image, ImageOps  # TensorBoard brings Pillow along
from tensorboard.plugins.hparams import api as hparams

# ------------------------------------------------------------------------------------------------ tasks and layer sizes

NAME = "gender_age_multi_task_learning"

MATURE = 30  # the age in years from which a face counts as mature; VGGFace2 itself only says young or mature
TASKS = {  # the names of each task's classes; --age_bins replaces those of age
    "gender": ["male", "female"],
    "age": ["young", "mature"],
    "ethnicity": ["White", "Black", "Asian", "Indian", "Others"],
}

FILTERS = (32, 64, 128)  # the number of filters in each convolution block
DENSE_SIZE = 256  # the number of outputs of the fully connected layer
# The places where there can be a cross-stitch unit: after each convolution block (pool_1, pool_2, pool_3), and after
# the fully connected block (fc_4). A unit has the name of its place. With --split_after all tasks share the blocks up
# to one of these places.
UNIT_PLACES = [*(f"pool_{level}" for level in range(1, len(FILTERS) + 1)), f"fc_{len(FILTERS) + 1}"]


# --------------------------------------------------------------------------------------------------- cross-stitch units


@keras.saving.register_keras_serializable("cross_stitch")
class CrossStitch(layers.Layer):
    """Mix the activations of all columns with learned weights.

    The unit takes a list of T tensors x_1 ... x_T, one for each column, all of shape (batch, ..., channels). It returns
    a list of T tensors of the same shape (Misra et al., equation 1, for T columns):

        x̃_i = sum over j of alpha_ij x_j

    Every channel has its own alpha_ij: the weight `alpha` has shape (T, T, channels). `LayerCrossStitch` has one
    alpha_ij for the whole layer, and `ActivationCrossStitch` a weight for every pair of activations.

    Args:
        init: The initial alpha_ii, above 0 and at most 1. All other alpha_ij start at (1 - init) / (T - 1), so that
            for each i the alpha_ij sum to one. With 1.0 the unit starts as the identity.

    Raises:
        ValueError: `init` is out of range, or the unit is called with fewer than two tensors.
    """

    # The class needs no `get_config`, since Keras 3 records the simple arguments of a constructor by itself.
    def __init__(self, init=1.0, **kwargs):
        super().__init__(**kwargs)
        if not 0 < init <= 1:
            raise ValueError(f"init is {init}, and should be above 0 and at most 1.")
        self.init = init

    def build(self, input_shapes):
        self.num_columns = len(input_shapes)
        if self.num_columns < 2:
            raise ValueError("A cross-stitch unit joins two columns or more.")
        self.feature_shape = tuple(input_shapes[0][1:])  # without the batch
        self.alpha = self.add_weight(
            name="alpha",
            shape=self.alpha_shape(),
            # Keras passes a shape and a dtype here. The array has them already.
            initializer=lambda shape, dtype: self.alpha_from_init(self.init),
        )

    def call(self, xs):
        columns = range(self.num_columns)
        return [tf.add_n([self.alpha[i, j] * xs[j] for j in columns]) for i in columns]

    def alpha_from_init(self, init):
        """Return the array from which `alpha` starts, for a given `init`."""
        others = (1 - init) / (self.num_columns - 1)
        mixing = np.full((self.num_columns, self.num_columns), others, np.float32)
        np.fill_diagonal(mixing, init)
        alpha = self.alpha_from_mixing(mixing)
        if alpha.shape != self.alpha_shape():  # a mistake that a new kind of unit can make
            raise ValueError(f"{type(self).__name__}.alpha_from_mixing returns {alpha.shape}, not {self.alpha_shape()}")
        return alpha

    # Another kind of unit overrides these three methods, and `call` if it computes something else.

    def alpha_shape(self):
        """Return the shape of `alpha`."""
        return (self.num_columns, self.num_columns, self.feature_shape[-1])

    def alpha_from_mixing(self, mixing):
        """Return the `alpha` that mixes every channel by one matrix, `mixing` (T, T)."""
        return np.broadcast_to(mixing[:, :, np.newaxis], self.alpha_shape())

    def mean_alpha(self):
        """Return the mean of alpha_ij over the channels, an array (T, T)."""
        return np.mean(self.alpha.numpy(), axis=2)


@keras.saving.register_keras_serializable("cross_stitch")
class LayerCrossStitch(CrossStitch):
    """A cross-stitch unit with one alpha_ij for all channels. Its weight `alpha` has shape (T, T)."""

    def alpha_shape(self):
        return (self.num_columns, self.num_columns)

    def alpha_from_mixing(self, mixing):
        return mixing

    def mean_alpha(self):
        return self.alpha.numpy()


@keras.saving.register_keras_serializable("cross_stitch")
class ActivationCrossStitch(CrossStitch):
    """A cross-stitch unit with one weight for every pair of activations, as in the implementation of 2018.

    Each column has D activations for an image. The weight `alpha` has shape (T * D, T * D) and consists of T x T
    blocks. x̃_i is the sum over j of block (i, j), a (D, D) matrix, times x_j. Initially block (i, j) is the identity
    times the initial alpha_ij of `CrossStitch`.

    `alpha` grows with the fourth power of the images' side. After a first block with 32 filters, images of 28 x 28
    pixels give a D of 6,272. For two columns `alpha` then has 157 million entries. With its gradient and Adam's moments
    it takes 2.5 GB. With 40 x 40 pixels it takes 10 GB, with 64 x 64 pixels 69 GB. With such images, name only later
    places in --cross_stitch_at.
    """

    def call(self, xs):
        flat = tf.concat([tf.reshape(x, (-1, self.num_features())) for x in xs], axis=1)
        # The product is computed transposed, since alpha · flatᵀ is much faster than flat · alphaᵀ on some processors.
        mixed = tf.matmul(self.alpha, flat, transpose_b=True)  # (T * D, batch)
        parts = [tf.transpose(x) for x in tf.split(mixed, self.num_columns, axis=0)]
        return [tf.reshape(x, (-1, *self.feature_shape)) for x in parts]

    def num_features(self):
        """Return D."""
        return math.prod(self.feature_shape)

    def alpha_shape(self):
        size = self.num_columns * self.num_features()
        return (size, size)

    def alpha_from_mixing(self, mixing):
        # The Kronecker product replaces each entry of `mixing` by a block: that entry times the identity.
        return np.kron(mixing, np.eye(self.num_features(), dtype=np.float32))

    def mean_alpha(self):
        """Return the mean of each block's diagonal, an array (T, T). The rest of the block is not counted."""
        T, D = self.num_columns, self.num_features()
        blocks = self.alpha.numpy().reshape(T, D, T, D)
        diagonals = np.einsum("idjd->ijd", blocks)
        return diagonals.mean(axis=2, dtype=np.float64)


UNITS = {"channel": CrossStitch, "layer": LayerCrossStitch, "activation": ActivationCrossStitch}


# -------------------------------------------------------------------------------------------------------------- network


def build_network(args, classes, mean, variance):
    """Build the columns, the units between them, and one output layer for each task.

    With --split_after there is only one column up to that place, the trunk, which all tasks share. From there on each
    task has its own column. A unit takes two columns or more, so there are none in the trunk.

    Args:
        args: The parsed command line.
        classes: {task: the names of its classes}. There is one column for each task.
        mean, variance: Arrays (height, width, channels) that standardise each pixel. They become part of the network,
            so that a saved network takes raw pixels.

    Returns:
        A `keras.Model` from uint8 images (batch, height, width, channels) to {task: logits (batch, classes)}.
    """
    images = keras.Input(mean.shape, dtype="uint8", name="images")
    pixels = layers.Normalization(axis=(1, 2, 3), mean=mean, variance=variance, dtype="float32")(images)
    names = ["trunk"] if args.split_after else column_names(classes)
    columns = {name: pixels for name in names}  # the activations that each column has computed so far

    for level, filters in enumerate(FILTERS, start=1):
        columns = {name: convolution_block(args, x, filters, name, level) for name, x in columns.items()}
        columns = stitch(args, columns, f"pool_{level}")
        columns = end_trunk(args, columns, f"pool_{level}", column_names(classes))

    level = len(FILTERS) + 1
    columns = {name: dense_block(args, x, name, level) for name, x in columns.items()}
    columns = stitch(args, columns, f"fc_{level}")
    columns = end_trunk(args, columns, f"fc_{level}", column_names(classes))

    logits = {task: output_layer(args, columns[task], task, len(classes[task])) for task in classes}
    return keras.Model(images, logits, name=NAME)


def convolution_block(args, x, filters, column, level):
    """Convolution, batch norm, max-pool and ReLU: (batch, h, w, c) to (batch, h // 2, w // 2, filters).

    The number of filters is multiplied by --width. ReLU and max-pooling commute, so ReLU comes last and does a quarter
    of the work.
    """
    filters = max(1, round(args.width * filters))
    convolution = layers.Conv2D(
        filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{column}.conv_{level}"
    )
    x = convolution(x)
    x = batch_norm(args, x, f"{column}.bn_{level}")
    x = layers.MaxPooling2D(2)(x)
    return layers.ReLU()(x)


def dense_block(args, x, column, level):
    """Fully connected layer, batch norm and ReLU: (batch, ...) to (batch, outputs), DENSE_SIZE times --width."""
    size = max(1, round(args.width * DENSE_SIZE))
    x = layers.Flatten()(x)
    x = layers.Dense(size, use_bias=False, kernel_initializer="he_normal", name=f"{column}.fc_{level}")(x)
    x = batch_norm(args, x, f"{column}.bn_{level}")
    return layers.ReLU()(x)


def batch_norm(args, x, name):
    """Batch norm. `FusedBatchNormalization` computes what Keras's layer computes, but faster on one device.

    With several replicas its statistics are those of the global batch, so the network learns the same as on one device.
    """
    distributed = tf.distribute.has_strategy()  # false where one process trains on one device
    return FusedBatchNormalization(momentum=args.bn_momentum, synchronized=distributed, name=name)(x)


def output_layer(args, x, task, num_classes):
    """Dropout and a fully connected layer: (batch, features) to float32 logits (batch, classes).

    Keras gives all replicas one seed, so the masks of dropout repeat from replica to replica. Within a replica each
    image has its own mask, so this does no harm.
    """
    # From here on the activations are float32, even with --precision bfloat16.
    x = layers.Dropout(1 - args.keep_prob, name=f"{task}.dropout", dtype="float32")(x)
    return layers.Dense(num_classes, kernel_initializer="he_normal", name=f"{task}.output", dtype="float32")(x)


def stitch(args, columns, place):
    """Apply a cross-stitch unit to {column: activations} at one of UNIT_PLACES.

    Return the columns as they are if no unit is wanted there, or if there is only one column.
    """
    if not args.cross_stitch_enabled or place not in args.cross_stitch_at or len(columns) == 1:
        return columns
    if args.cross_stitch_unit == "activation":
        check_memory(columns, place)
    # With --pretrain_epoch the columns train alone at first: the units are the identity, and stay so, since the
    # function `learning_rates` gives them a rate of 0. Later `start_units` sets them to --cross_stitch_init.
    init = 1.0 if args.pretrain_epoch else args.cross_stitch_init
    unit = UNITS[args.cross_stitch_unit](init=init, name=place)
    mixed = unit(list(columns.values()))
    return dict(zip(columns, mixed))


def check_memory(columns, place):
    """Raise Failure if the machine has less memory than an `ActivationCrossStitch` at this place needs.

    Without this check the system would end the process and not say why. It is a rough check: it does not add up the
    places, and looks neither at the memory of a GPU nor at the limit of a container.

    Args:
        columns: {column: activations}, each (batch, ...).
        place: One of UNIT_PLACES.
    """
    size = sum(math.prod(x.shape[1:]) for x in columns.values())  # alpha is a matrix (size, size)
    needed = 4 * 4 * size**2  # bytes of alpha, its gradient and the two moments of Adam, all in float32
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        raise Failure(
            f"--cross_stitch_unit activation takes {needed / 1e9:.3g} GB at {place}, and this machine has "
            f"{available / 1e9:.3g} GB. Name only later places in --cross_stitch_at."
        )


def end_trunk(args, columns, place, names):
    """At the place of --split_after, replace the trunk by the columns `names`, which all start from its activations."""
    if place != args.split_after:
        return columns
    return {name: columns["trunk"] for name in names}


def column_names(classes):
    """Return the names of the columns. In this script each task has a column of its own, with its name."""
    return list(classes)


def units_of(network):
    """Return the cross-stitch units of a network."""
    return [layer for layer in network.layers if isinstance(layer, CrossStitch)]


# --------------------------------------------------------------------------------------------- losses and training step


def cross_entropy(logits, labels):
    """Return the cross-entropy of each image: logits (batch, classes) and integer labels (batch,) to (batch,)."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


def l2_loss(network):
    """Return half the sum of squares of all convolution and dense kernels.

    Cross-stitch units, biases and batch norm are not regularised.
    """
    # `v.value` is the TensorFlow variable inside a Keras variable. TensorFlow's own functions need that one.
    kernels = [v.value for v in network.trainable_variables if v.name == "kernel"]
    return tf.add_n([tf.nn.l2_loss(kernel) for kernel in kernels])


def weights_of_tasks(args, classes):
    """Return {task: the weight of its loss}. --task_weights has the weights in the order of `classes`."""
    weights = args.task_weights or [1.0] * len(classes)
    return dict(zip(classes, weights))


def make_train_step(strategy, network, optimizers, args, classes, signature):
    """Return the function that trains the network on one global batch.

    That function takes a batch, (images, {task: labels}, random numbers for `augment`), and the number of stop signals
    (Ctrl-C, SIGTERM) that this process has received. It returns {tag: value}: the values to be logged, and under
    "num_stop_signals" the sum of that number over all replicas. By this sum, processes that train together know that
    they have to stop together.

    Every replica gets the global batch and trains on its share of it. Gradients and values are summed over the
    replicas. Each replica therefore divides its losses by the size of the global batch, and the L2 loss by the number
    of replicas.

    Args:
        strategy: The distribution strategy.
        network: The network.
        optimizers: The `Optimizers` of the columns and of the units.
        args: The parsed command line.
        classes: {task: the names of its classes}.
        signature: The structure of a batch: a `tf.TensorSpec` for each array, with an unspecified batch size. So one
            graph serves all batches, including the last one of an epoch, which is smaller.
    """
    task_weights = weights_of_tasks(args, classes)

    def replica_step(batch, num_stop_signals):
        global_batch_size = tf.cast(tf.shape(batch[0])[0], tf.float32)
        images, labels, random_numbers = share_of_replica(batch)
        if args.augment:
            images = augment(images, random_numbers)

        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            losses = {
                task: tf.reduce_sum(cross_entropy(logits[task], labels[task])) / global_batch_size for task in logits
            }
            weighted = [task_weights[task] * losses[task] for task in losses]
            l2 = args.reg_lambda * l2_loss(network) / strategy.num_replicas_in_sync
            total = tf.add_n([*weighted, l2])
        optimizers.minimize(tape, total, network)  # TensorFlow's optimizers sum the gradients over the replicas

        # The accuracy on this batch, with dropout, averaged over the tasks.
        accuracy = count_correct(logits, labels) / (global_batch_size * len(logits))
        return {
            "summary/loss_total": total,
            "summary/accuracy_train": accuracy,
            **{f"{task}/loss": loss for task, loss in losses.items()},
            "num_stop_signals": num_stop_signals,
        }

    return compile_step(strategy, replica_step, signature)


NUM_RANDOM_NUMBERS = 3  # as many as `augment` needs for each image


def augment(images, random_numbers):
    """Mirror half of the images and move each by up to 5 % of its side, at random.

    The gap at the edge is filled with the pixels next to it. The random numbers are drawn with the batch, so that a
    resumed run gets the same ones.

    Args:
        images: uint8 (batch, size, size, channels).
        random_numbers: (batch, 3), uniform in [-1, 1): whether to mirror, and the two shifts.
    """
    size = images.shape[1]
    mirrored = random_numbers[:, 0] > 0
    move_x = 0.05 * size * random_numbers[:, 1]
    move_y = 0.05 * size * random_numbers[:, 2]

    # The pixel at (x, y) of the new image comes from (direction * x + start + move_x, y + move_y) of the old one.
    direction = tf.where(mirrored, -1.0, 1.0)
    start = tf.where(mirrored, size - 1.0, 0.0)
    zero, one = tf.zeros_like(direction), tf.ones_like(direction)
    moved = tf.raw_ops.ImageProjectiveTransformV3(  # Keras's layers would draw random numbers of their own
        images=tf.cast(images, tf.float32),
        transforms=tf.stack([direction, zero, start + move_x, zero, one, move_y, zero, zero], axis=1),
        output_shape=(size, size),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )
    return tf.cast(tf.round(moved), tf.uint8)


def count_correct(logits, labels):
    """Return the number of correct predictions, over all images and tasks."""
    hits = [tf.equal(tf.argmax(logits[task], axis=1), labels[task]) for task in logits]
    return tf.add_n([tf.reduce_sum(tf.cast(hits_of_task, tf.float32)) for hits_of_task in hits])


def compile_step(strategy, replica_step, signature):
    """Return `replica_step` as a `tf.function` that runs on all replicas and sums the values that it returns."""

    @tf.function(input_signature=[signature, tf.TensorSpec([])], autograph=False)  # no `if` depends on a tensor
    def train_step(batch, num_stop_signals):
        values = strategy.run(replica_step, (batch, num_stop_signals))
        # Machines exchange a message for each tensor that they sum. So each replica stacks its values into one vector.
        # A second call of `strategy.run` does this, so that `replica_step` can return its values by name. (A vector
        # holds floats only. Therefore the number of stop signals is a float, too.)
        tags = sorted(values)
        vectors = strategy.run(lambda values_of_replica: tf.stack([values_of_replica[tag] for tag in tags]), (values,))
        total = strategy.reduce("SUM", vectors, axis=None)
        return dict(zip(tags, tf.unstack(total)))

    return train_step


class Optimizers:
    """Adam for the weights of the columns, and a second Adam for the units, whose learning rate can differ.

    Scaling the gradients of the units instead would do nothing, since Adam divides by their size.

    TensorFlow 1's Adam has a fused kernel. It updates 6.5 million weights in 5 ms on 2 cores, where Keras's Adam takes
    15 ms.

    Create it in the scope of the strategy, since it creates variables.
    """

    def __init__(self):
        self.learning_rates = {"columns": tf.Variable(0.0), "units": tf.Variable(0.0)}  # set at the start of each epoch
        self.adams = {name: tf.compat.v1.train.AdamOptimizer(rate) for name, rate in self.learning_rates.items()}

    def set_learning_rates(self, columns, units):
        self.learning_rates["columns"].assign(columns)
        self.learning_rates["units"].assign(units)

    def variables_of(self, network):
        """Return {"columns": variables, "units": variables}, without "units" where there are none."""
        trainable = network.trainable_variables
        alphas = [v.value for v in trainable if v.name == "alpha"]
        others = [v.value for v in trainable if v.name != "alpha"]
        return {"columns": others, "units": alphas} if alphas else {"columns": others}

    def create_moments(self, network):
        """Create Adam's moments before the first step, which would create them otherwise.

        A checkpoint is restored into them, and the first step would have to be traced twice if it created them.
        """
        for name, variables in self.variables_of(network).items():
            self.adams[name]._create_slots(variables)  # TensorFlow has no public method for this

    def minimize(self, tape, loss, network):
        variables = self.variables_of(network)
        gradients = tape.gradient(loss, variables)
        for name in variables:
            self.adams[name].apply_gradients(zip(gradients[name], variables[name]))


# --------------------------------------------------------------------------------------------------------------- errors


FAILED, WRONG_INPUT, DIVERGED = 1, 2, 3  # exit statuses; those above 128 tell which signal stopped a run


class Failure(Exception):
    """An error, or a signal, that ends the program with one line on standard error and the given exit status."""

    def __init__(self, message, status=WRONG_INPUT):
        super().__init__(" ".join(line.strip() for line in str(message).splitlines()))  # on one line
        self.status = status


# -------------------------------------------------------------------------------------------------------- training loop


def train(args, resumed):
    """Train the network, and write its checkpoints, curves and results to `args.log_dir`.

    A run that was stopped or killed can be resumed. On the same machine it then ends with exactly the weights that it
    would have had without the interruption.

    Args:
        args: The parsed command line.
        resumed: What run.json says of the run that is to be resumed, or None for a new run.

    Raises:
        Failure: The data or the run's folder cannot be used (exit status 2), the loss is no longer finite (3), or a
            signal ended the run after its state had been saved (128 + signal).
    """
    data = prepare_data(args)
    # The number of columns decides how many threads there are (see `size_of_thread_pool`).
    configure_tensorflow(args, num_columns=len(column_names(data.classes)))
    strategy, is_chief = choose_strategy()
    record = describe_run(args, data, strategy)  # becomes run.json
    if resumed:
        check_unchanged(record, resumed)  # `parse_arguments` has already compared the arguments
    # Machines that train together must agree on what they do.
    check_agreement(strategy, facts_to_agree_on(record, resumed))

    keras.utils.set_random_seed(args.seed)
    with strategy.scope():
        network = build_network(args, data.classes, data.mean, data.variance)
        optimizers = Optimizers()
        optimizers.create_moments(network)
        checkpoints = Checkpoints(args.log_dir, network, optimizers)
    record["parameters"] = sum(math.prod(v.shape) for v in network.trainable_variables)

    training = data.splits["train"]
    steps_per_epoch = math.ceil(len(training.images) / args.n_batch_size)
    last_step = args.n_epoch * steps_per_epoch
    eval_every = args.eval_every or steps_per_epoch
    log_every = min(args.log_every, max(1, last_step // 10))  # so that a short run, too, logs about ten values
    speeds = []  # images per second, from each evaluation to the next
    evaluations = None  # those of the last evaluated step; None until this process has evaluated

    with collected_stop_signals() as stop_signals:
        if is_chief:  # a failure here ends the other processes, too: TensorFlow tells them that the chief is lost
            claim_folder(args, resumed)
            print_setting(args, record, network)
        signature = signature_of(args, training, strategy)
        train_step = make_train_step(strategy, network, optimizers, args, data.classes, signature)
        predict = make_predict(network)
        step = checkpoints.restore() if resumed else 0
        check_agreement(strategy, {"checkpoint": step})
        if is_chief:
            write_json(os.path.join(args.log_dir, "run.json"), record)
            checkpoints.start_manager(step)  # a new run writes its first checkpoint here

        events = open_event_file(args.log_dir, step) if is_chief else tf.summary.create_noop_writer()
        with events.as_default():
            if step == 0:
                log_setting(record, train_step.get_concrete_function().graph, metrics_of_interest(data))
                log_units(0, network, data.classes)
            meter = Meter(args, step, last_step, eval_every, is_chief)

            for epoch in range(step // steps_per_epoch, args.n_epoch):
                # Start the units when the pretraining is over. (A run that is resumed later in this epoch finds them
                # started in its checkpoint.)
                if args.pretrain_epoch > 0 and step == args.pretrain_epoch * steps_per_epoch:
                    start_units(network, args.cross_stitch_init)
                optimizers.set_learning_rates(*learning_rates(args, epoch))
                done = step % steps_per_epoch  # 0, except in an epoch that was interrupted
                for batch in batches_of_epoch(args, training, epoch, strategy, first_batch=done):
                    values = train_step(batch, float(len(stop_signals)))
                    values = {tag: float(value) for tag, value in values.items()}  # waits until the step is done
                    step += 1
                    stop = values.pop("num_stop_signals") > 0  # this process or another one has been asked to stop
                    if not np.isfinite(list(values.values())).all():
                        raise Failure(f"The loss is no longer finite after step {step}. Try a smaller --lr.", DIVERGED)
                    meter.count(len(batch[0]), values)

                    if step % log_every == 0 or step == last_step:
                        log_scalars(step, values | {"throughput/images_per_second": meter.images_per_second()})
                        log_units(step, network, data.classes)
                    evaluate_now = step % eval_every == 0 or step == last_step
                    if evaluate_now:  # in every process: the others would only wait for the chief
                        speeds.append(meter.images_per_second())
                        evaluations = evaluate_all(predict, data.splits)
                        log_evaluations(step, evaluations)
                        if step == last_step:
                            log_confusions(step, confusions_to_log(evaluations), data.classes)
                        meter.report(epoch, step, speeds[-1], evaluations)
                    if evaluate_now or stop:
                        # Write the events before the checkpoint. A process that dies in between logs these steps again
                        # when it is resumed. In the other order they would be missing.
                        events.flush()
                        checkpoints.save(step, is_chief)
                        meter.restart(step)
                    if stop and step < last_step:
                        raise Failure(f"stopped at step {step} of {last_step}", exit_status_of(stop_signals))

        if evaluations is None:  # the run was killed after its last checkpoint and before it wrote its results
            evaluations = evaluate_all(predict, data.splits)
        if is_chief:
            finish_run(record, network, evaluations, step, speeds)
            checkpoints.keep_last()


def batches_of_epoch(args, split, epoch, strategy, first_batch=0):
    """Yield the batches of an epoch: images (batch, ...), {task: labels (batch, ...)}, random numbers for `augment`.

    Begin with the batch `first_batch`, counted from 0: those before it were trained before an interruption.

    The order of the images and the random numbers, float32 (batch, NUM_RANDOM_NUMBERS), depend on the seed and the
    epoch alone. So a resumed run can go on within an epoch.

    Each replica needs an image, since an empty share of a batch would give NaN. So a batch with fewer images than there
    are replicas, as the last one can be, is repeated. That leaves its mean loss as it is.
    """
    size = len(split.images)
    random = np.random.default_rng([args.seed, epoch])
    order = random.permutation(size)
    random_numbers = random.uniform(-1, 1, (size, NUM_RANDOM_NUMBERS)).astype(np.float32)
    for start in range(first_batch * args.n_batch_size, size, args.n_batch_size):
        indices = order[start : start + args.n_batch_size]
        repetitions = math.ceil(strategy.num_replicas_in_sync / len(indices))  # almost always 1
        indices = np.tile(indices, repetitions)
        labels = {task: values[indices] for task, values in split.labels.items()}
        yield split.images[indices], labels, random_numbers[indices]


def signature_of(args, split, strategy):
    """Return the structure of a batch: a `tf.TensorSpec` for each array, which leaves the size of the batch open.

    It is taken from a real batch, so that it cannot differ from those of the training.
    """
    batch = next(batches_of_epoch(args, split, 0, strategy))
    return tf.nest.map_structure(lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), batch)


def learning_rates(args, epoch):
    """Return the learning rates of the columns and of the units in an epoch, counted from 0.

    The rate of the columns is constant, or decays exponentially and halves every --lr_half_life epochs. While the
    columns are pretrained, that of the units is 0. (One graph serves all epochs, so Adam collects moments of the units'
    gradients even then. After the start of the units these moments fade: the first by half in 7 steps, the second by
    half in 700.)
    """
    rate = args.lr
    if args.lr_half_life > 0:
        rate = args.lr * 0.5 ** (epoch / args.lr_half_life)
    if epoch < args.pretrain_epoch:
        return rate, 0.0
    return rate, rate * args.cross_stitch_lr_scale


def start_units(network, init):
    """Let the units, which were the identity while the columns trained alone, start from `init`."""
    for unit in units_of(network):
        unit.alpha.assign(unit.alpha_from_init(init))


EVALUATION_BATCH_SIZE = 500  # images


def make_predict(network):
    """Return a function from uint8 images (n, height, width, channels) to {task: the network's output (n, ...)}.

    Every process predicts by itself. (`network.predict` cannot run while several machines train together.) The images
    are predicted in batches, so that the network's activations take the same memory for any number of images.
    """
    signature = [tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8)]
    forward = tf.function(lambda images: network(images, training=False), signature, autograph=False)

    def predict(images):
        starts = range(0, len(images), EVALUATION_BATCH_SIZE)
        outputs = [forward(images[start : start + EVALUATION_BATCH_SIZE]) for start in starts]
        return {task: np.concatenate([output[task] for output in outputs]) for task in outputs[0]}

    return predict


def evaluate_all(predict, splits):
    """Return {name: `Evaluation`} of all splits except the training images."""
    return {name: evaluate(predict, split) for name, split in splits.items() if name != "train"}


# `train` is the same in all scripts. What it evaluates, logs and prints differs, and is defined by the functions below.


class Evaluation(NamedTuple):
    """What was measured on one split.

    `measures` is {task: accuracy}, and has the mean over the tasks as `accuracy`; no task may have that name.
    TensorBoard shows the mean as summary/accuracy_SPLIT, the tag that it had in 2018, and the console as "overall".
    `confusions` is {task: confusion matrix (classes, classes)}, which counts images; its rows are the true classes, its
    columns the predicted ones.
    """

    measures: dict
    confusions: dict


def evaluate(predict, split):
    """Return the `Evaluation` of a split: the accuracy of each task, and the mean over the tasks as `accuracy`."""
    confusions = {}
    for task, logits in predict(split.images).items():
        predicted = np.argmax(logits, axis=1)
        confusions[task] = tf.math.confusion_matrix(split.labels[task], predicted, logits.shape[1]).numpy()
    accuracies = {task: float(np.trace(matrix) / np.sum(matrix)) for task, matrix in confusions.items()}
    return Evaluation({**accuracies, "accuracy": statistics.fmean(accuracies.values())}, confusions)


def log_evaluations(step, evaluations):
    """Log the accuracies of each split under TASK/accuracy_SPLIT, and their mean under summary/accuracy_SPLIT."""
    for split, evaluation in evaluations.items():
        for name, value in evaluation.measures.items():
            task = "summary" if name == "accuracy" else name
            tf.summary.scalar(f"{task}/accuracy_{split}", value, step=step)


def confusions_to_log(evaluations):
    """Return the {task: confusion matrix} that TensorBoard shows: those of the test images."""
    return evaluations["test"].confusions


def metrics_of_interest(data):
    """Return the tags that TensorBoard's table of hyper-parameters shows."""
    return [f"{task}/accuracy_test" for task in ("summary", *data.classes)]


def summary_of_training(values):
    """Return loss and accuracy of the training images in a few words. `values` are means over steps, {tag: mean}."""
    return f"training loss {values['summary/loss_total']:.4f}, accuracy {values['summary/accuracy_train']:.4f}"


def summary_of_evaluations(evaluations):
    """Return the accuracies of each split in one line: that of each task, and their mean, "overall"."""
    parts = []
    for split, evaluation in evaluations.items():
        measures = dict(evaluation.measures)
        measures["overall"] = measures.pop("accuracy")
        parts.append(f"{split} accuracy: " + ", ".join(f"{name} {value:.4f}" for name, value in measures.items()))
    return "; ".join(parts)


def print_results(results):
    """Print the accuracies of a finished run as a table, with their mean as "overall".

    `results` is the content of its results.json.
    """
    splits = [split for split in ("test", "validation") if split in results]
    say(f"\n{'accuracy':12}" + "".join(f"{split:>12}" for split in splits))
    for name in results["test"]:
        label = "overall" if name == "accuracy" else name
        say(f"{label:12}" + "".join(f"{results[split][name]:12.4f}" for split in splits))
    if "warning" in results["data"]:
        say(results["data"]["warning"])


# ----------------------------------------------------------------------------------------------------------------- data


class Split(NamedTuple):
    """One split of the data: uint8 images (n, height, width, channels) and, for each task, int64 labels (n,)."""

    images: np.ndarray
    labels: dict


class Data(NamedTuple):
    """What a network is trained and tested on.

    `splits` has a `Split` for "train" and for each part that is evaluated, such as "test". `classes` is
    {task: names of classes}, in the order of the labels. `mean` and `variance` (height, width, channels) are those of
    each pixel of the training images. `description` goes into run.json and results.json.
    """

    splits: dict
    classes: dict
    mean: np.ndarray
    variance: np.ndarray
    description: dict


class Faces(NamedTuple):
    """The faces found in a folder: the path of each picture, and {attribute: int64 (n,)}.

    The attributes are `gender`, `age` (in years), and `ethnicity` or `identity`, whichever the data set knows.
    """

    paths: list
    attributes: dict


def prepare_data(args):
    """Read the faces, and divide them into training, test and validation images.

    About a tenth of the faces are the test images, the same for every --seed and --tasks. Identical pictures go into
    the same split. If any of their attributes differ, one must be wrong, and all these pictures are left out.

    Raises:
        Failure: The data are missing or damaged, or do not fit the arguments.
    """
    is_vggface2 = os.path.isdir(os.path.join(args.data_dir, "meta"))
    if is_vggface2:
        check_arguments_for_vggface2(args)
        faces = list_vggface2(args.data_dir)
    else:
        if args.split == "identity":
            raise Failure("--split identity: UTKFace does not say who is who. Use --split image.")
        faces = list_utkface(args.data_dir)
    split_by = args.split or ("identity" if is_vggface2 else "image")

    read = functools.partial(read_face, size=args.image_size)
    items = [(path,) for path in faces.paths]  # `decode_images` takes tuples, the arguments of `read`
    images, kept = decode_images(read, items, (args.image_size, args.image_size, 3))
    attributes = {name: values[kept] for name, values in faces.attributes.items()}

    # Identical pictures have the same number in `copy_groups`.
    copy_groups, contradictory = find_copies(images, attributes)
    check_copies(args, copy_groups, contradictory)
    images, copy_groups = images[~contradictory], copy_groups[~contradictory]
    attributes = {name: values[~contradictory] for name, values in attributes.items()}

    # `divide` puts all images of a group into one split, and gives each split the same share of every stratum.
    gender_and_decade = attributes["gender"] * 100 + attributes["age"] // 10  # a number for each gender and decade
    if split_by == "identity":
        # A group is a person. (Identical pictures stay together, too: if two people had the same picture, it was left
        # out above, since `identity` is one of the attributes.) Everybody has as many young as mature images, so only
        # the genders can get out of balance.
        strata, groups = attributes["gender"], attributes["identity"]
    else:
        # A group is a picture with its copies.
        strata, groups = gender_and_decade, copy_groups
    indices = divide(args, strata, groups, gender_and_decade)
    labels = labels_of_tasks(args, attributes)
    everything = Split(images, {task: labels[task] for task in args.tasks})
    splits = {name: select(everything, chosen) for name, chosen in indices.items()}
    classes = {task: classes_of(args, task) for task in args.tasks}
    majority = report_majority(splits, classes)

    description = {
        "name": "VGGFace2" if is_vggface2 else "UTKFace",
        "source": args.data_dir,
        "sha256": sha256_of([images, *attributes.values()]),
        "split": split_by,
        "sizes": {name: len(split.images) for name, split in splits.items()},
        "majority": majority,
        "identical": len(copy_groups) - len(set(copy_groups)),
        "left_out": int(contradictory.sum()),
    }
    if is_vggface2 and split_by == "image":
        description["warning"] = (
            "--split image leaks: the same people are in training and test images, so the network can recognise people "
            "instead of seeing gender and age. Use --split identity to measure how well it does with new people."
        )
    mean, variance = pixel_statistics(splits["train"].images)
    return Data(splits, classes, mean, variance, description)


def check_arguments_for_vggface2(args):
    """Raise Failure where the arguments ask for ethnicities, or for ages other than young and mature."""
    if "ethnicity" in args.tasks:
        raise Failure(f"--tasks {' '.join(args.tasks)}: VGGFace2 has no ethnicities, only gender and age.")
    if args.age_bins != [MATURE]:
        raise Failure(f"--age_bins: VGGFace2 only says young or mature, which is the default, {MATURE}.")


def divide(args, strata, groups, train_strata):
    """Return {name of a split: sorted indices of its images}.

    All images of a group are in one split. The test and validation images are stratified by `strata`, and the same for
    every --seed. With --train_fraction a random part of the others is kept, which depends on the seed and is stratified
    by `train_strata`.
    """
    test = hold_out(strata, groups, 0.1)
    rest = np.setdiff1d(np.arange(len(strata)), test)
    indices = {"test": test}
    if args.validation_fraction > 0 and len(rest) > 0:
        chosen = hold_out(strata[rest], groups[rest], args.validation_fraction)
        indices["validation"] = rest[chosen]
        rest = np.delete(rest, chosen)
    if len(rest) == 0:
        raise Failure(
            f"--data_dir {args.data_dir} has too few faces: at least one of each gender and decade is a test face, and "
            f"with --validation_fraction {args.validation_fraction} none is left to train on."
        )
    rest = rest[stratified(train_strata[rest], args.train_fraction, seed=args.seed)]
    return {"train": rest, **indices}


def labels_of_tasks(args, attributes):
    """Return {task: labels (n,)} of all tasks that the data set knows."""
    age = np.searchsorted(args.age_bins, attributes["age"], side="right")
    labels = {"gender": attributes["gender"], "age": age.astype(np.int64)}
    if "ethnicity" in attributes:
        labels["ethnicity"] = attributes["ethnicity"]
    return labels


def classes_of(args, task):
    """Return the names of a task's classes. Those of age follow --age_bins."""
    if task != "age" or args.age_bins == [MATURE]:
        return TASKS[task]
    bounds = [0, *args.age_bins]
    closed = [f"{low}-{high - 1}" for low, high in itertools.pairwise(bounds)]
    return [*closed, f"{bounds[-1]}+"]


def report_majority(splits, classes):
    """Print how frequent the classes are, and return {task: test accuracy of always answering the most frequent}."""
    majority = {}
    for task, names in classes.items():
        train_counts = np.bincount(splits["train"].labels[task], minlength=len(names))
        most_frequent = int(train_counts.argmax())
        majority[task] = float(np.mean(splits["test"].labels[task] == most_frequent))
        counts = ", ".join(f"{name} {count:,}" for name, count in zip(names, train_counts))
        say(
            f"{task}: {counts} to train on; always answering {names[most_frequent]} would be right for "
            f"{majority[task]:.4f} of the test images"
        )
    return majority


LAYOUTS = (
    "UTKFace (https://susanqq.github.io/UTKFace, the aligned and cropped faces, named [age]_[gender]_[race]_"
    "[date].jpg.chip.jpg) or VGGFace2 (https://www.robots.ox.ac.uk/~vgg/data/vgg_face2, its folders meta and test)"
)
UTKFACE_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+\.jpg\.chip\.jpg")  # age, gender, ethnicity


def list_utkface(data_dir):
    """Return the `Faces` of UTKFace, in the order of their names.

    Subfolders are read, too. Of several files with the same name one is used, since some archives hold faces
    twice. So no two faces of your own should have the same name.
    """
    path_of = {}
    files = find_jpegs(data_dir)
    for path in files:
        path_of.setdefault(os.path.basename(path), path)
    if len(path_of) < len(files):
        say(f"left out {len(files) - len(path_of)} of {len(files)} files: other folders have files with the same names")

    paths, fields, broken = [], [], []
    for name in sorted(path_of):
        match = UTKFACE_NAME.fullmatch(name)
        if match:
            paths.append(path_of[name])
            fields.append([int(field) for field in match.groups()])
        else:
            broken.append(name)
    if not paths:
        raise Failure(f"--data_dir {data_dir} holds no faces. It should be a folder with {LAYOUTS}.")
    if broken:
        say(f"skipped {len(broken)} of {len(path_of)} files for their names, such as {broken[0]!a}")
    age, gender, ethnicity = np.array(fields, np.int64).T
    return Faces(paths, {"gender": gender, "age": age, "ethnicity": ethnicity})


def find_jpegs(folder):
    """Return the sorted paths of all .jpg files below a folder. Links are followed, and each folder is read once."""
    paths, visited = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in visited:
            folders.clear()
            continue
        visited.add(os.path.realpath(place))
        paths += [os.path.join(place, name) for name in names if name.lower().endswith(".jpg")]
    return sorted(paths)


def list_vggface2(data_dir):
    """Return the `Faces` of VGGFace2's list of age templates.

    The first ten images of an identity are young (age 0 here), the other ten mature (age MATURE).
    """
    meta = os.path.join(data_dir, "meta", "identity_meta.csv")
    index = os.path.join(data_dir, "meta", "test_agetemp_imglist.txt")
    gender_of = read_genders(meta)
    names = read_text(index).split()
    if not names or len(set(names)) < len(names):
        raise Failure(f"{index} should hold the paths of images, one a line, and none of them twice.")

    paths, genders, ages, identities = [], [], [], []
    seen = collections.Counter()
    for name in names:
        identity = name.split("/")[-2] if "/" in name else ""
        if gender_of.get(identity) not in ("m", "f"):
            raise Failure(f"{index}: {meta} gives no gender for the person in {name}.")
        paths.append(os.path.join(data_dir, "test", name))
        genders.append(1 if gender_of[identity] == "f" else 0)
        ages.append(0 if seen[identity] < 10 else MATURE)
        identities.append(identity)
        seen[identity] += 1
    for identity, count in seen.items():
        if count != 20:
            raise Failure(f"{index} lists {count} images of {identity}; there should be 20 of each identity.")
    codes = np.unique(identities, return_inverse=True)[1]
    return Faces(paths, {"gender": np.array(genders), "age": np.array(ages), "identity": codes})


def read_genders(meta):
    """Return {identity: "m" or "f"} from VGGFace2's identity_meta.csv, which has a blank after each comma."""
    rows = csv.DictReader(read_text(meta).splitlines(), skipinitialspace=True)
    rows = [{str(key).strip(): str(value).strip() for key, value in row.items()} for row in rows]
    if not rows or not {"Class_ID", "Gender"} <= rows[0].keys():
        raise Failure(f"{meta} should have the columns Class_ID, Name, Sample_Num, Flag, Gender.")
    return {row["Class_ID"]: row["Gender"] for row in rows}


def read_text(path):
    """Return the text of a file in UTF-8, with or without the byte-order mark that Windows puts before it."""
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{path} cannot be read ({error}). It belongs in VGGFace2's folder meta.") from None


def read_face(path, size):
    """Return the face in a file, uint8 (size, size, 3): its middle square, scaled with antialiasing."""
    image = ImageOps.fit(read_image(path), (size, size), method=Image.Resampling.BILINEAR)
    return np.asarray(image)


def decode_images(read, items, shape):
    """Read images in parallel. Skip those that cannot be read, and name the first five of them.

    Args:
        read: A function that takes the entries of an item and returns a uint8 array of the given shape.
        items: A list of tuples; the first entry is the path of a file.
        shape: The shape of an image.

    Returns:
        The images (n, *shape), and the indices of their items (n,).

    Raises:
        Failure: More than 1 % of the images cannot be read.
    """

    def image_or_error(item):
        try:
            return read(*item)
        except Exception as error:  # Pillow raises many types for damaged files
            return error

    images = np.empty((len(items), *shape), np.uint8)
    kept, skipped = [], []
    bar = keras.utils.Progbar(len(items), verbose=int(sys.stdout.isatty()), unit_name="image")
    with concurrent.futures.ThreadPoolExecutor(available_cores()) as pool:
        for index, result in enumerate(pool.map(image_or_error, items)):
            if isinstance(result, Exception):
                skipped.append(f"{items[index][0]} ({reason_of(result)})")
            else:
                images[len(kept)] = result
                kept.append(index)
            bar.update(index + 1)
    if skipped:
        more = "; ..." if len(skipped) > 5 else ""
        say(f"skipped {len(skipped)} of {len(items)} images that cannot be read: {'; '.join(skipped[:5])}{more}")
    if len(skipped) > 0.01 * len(items):
        raise Failure(f"{len(skipped)} of {len(items)} images cannot be read, more than 1 %. The first: {skipped[0]}.")
    return images[: len(kept)], np.array(kept)


def find_copies(images, attributes):
    """Find identical pictures, and those among them that have different attributes.

    Returns:
        Two arrays (n,). The first has for each image the index of the first image that is identical with it. The second
        tells for each image whether an identical one has other attributes.
    """
    digests = [hashlib.sha256(image).digest() for image in images]
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    # A group has the number of its first image, not that of its digest: `hold_out` draws groups in the order of their
    # numbers, and with another --image_size all digests would change, and with them the split.
    copy_groups = first[inverse]
    facts = np.stack(list(attributes.values()), axis=1)
    differs = (facts != facts[copy_groups]).any(axis=1)
    return copy_groups, np.isin(copy_groups, copy_groups[differs])


def check_copies(args, copy_groups, contradictory):
    """Print how many pictures are copies, and raise Failure if all contradict their copies.

    The arguments are what `find_copies` returns.
    """
    if contradictory.any():
        say(f"{contradictory.sum()} images are left out: they have copies with other attributes")
    if contradictory.all():
        raise Failure(f"--data_dir {args.data_dir}: no face is left, since all contradict their copies.")
    kept = copy_groups[~contradictory]
    copies = len(kept) - len(set(kept))
    if copies:
        say(f"{copies} images are copies of others, and are in one split with them")


def hold_out(strata, groups, fraction):
    """Return the sorted indices of a part that is chosen at random, but in the same way for every --seed.

    The part is stratified by `strata` (n,). Images with the same number in `groups` (n,) are all in the part, or all
    outside.
    """
    numbers, first = np.unique(groups, return_index=True)
    chosen = numbers[stratified(strata[first], fraction, seed=0)]
    return np.flatnonzero(np.isin(groups, chosen))


def select(split, indices):
    """Return the images of a split at `indices`, with their labels."""
    return Split(split.images[indices], {task: labels[indices] for task, labels in split.labels.items()})


def stratified(strata, fraction, seed):
    """Return the sorted indices of a random part that holds `fraction` of every stratum, and at least one of each.

    `strata` (n,) has the stratum of each image. A stratum with a single image goes into the part, and not into the
    rest.
    """
    random = np.random.default_rng(seed)
    chosen = []
    for stratum in np.unique(strata):
        members = random.permutation(np.flatnonzero(strata == stratum))
        chosen.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(chosen))


def pixel_statistics(images):
    """Return the mean and the variance of each pixel of uint8 images, two arrays (height, width, channels).

    Variances below 1 are raised to 1, since a pixel that is constant in the training images may vary in others.
    """
    mean = images.mean(axis=0, dtype=np.float64)
    squares = np.einsum("n...,n...->...", images, images, dtype=np.float64)  # needs no copy of the images in float64
    mean_square = squares / len(images)
    return mean, np.maximum(mean_square - mean**2, 1)


def sha256_of(arrays):
    """Return the SHA-256 of the shapes and the contents of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def read_image(path):
    """Return the picture in a file as a Pillow image, RGB, as a picture viewer shows it.

    It is rotated as its EXIF data say, and laid on white where it is transparent. Pillow would cut off the brighter
    values of 16-bit grey pictures, so these are scaled first.

    Raises:
        ValueError: The range of its values is unknown. Pillow raises further types of exceptions for damaged files.
    """
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, and their range is unknown")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.round(grey / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


# --------------------------------------------------------------------------------------- fast kernels and devices


@keras.saving.register_keras_serializable("cross_stitch")
class FusedBatchNormalization(layers.BatchNormalization):
    """Keras's batch normalisation over the last axis; on one device it trains with TensorFlow's fused kernel.

    For 128 images with 28 x 28 x 32 activations the kernel takes 3.5 ms on 2 cores, and Keras's own code 17.4 ms. Where
    several replicas share a batch (`synchronized`), Keras's own code computes the statistics of all of them.
    """

    def call(self, inputs, training=False):
        if not training or not self.trainable or self.synchronized:
            return super().call(inputs, training=training)

        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)  # always float32
        maps = inputs if inputs.shape.rank == 4 else inputs[:, None, None, :]  # the kernel takes four dimensions only
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            maps, gamma, beta, epsilon=self.epsilon, is_training=True
        )
        # Keras divides the sum of squared deviations by n, the kernel divides it by n - 1. For n = 1 the kernel returns
        # NaN, and multiply_no_nan takes the product of NaN and 0 to be 0.
        n = tf.cast(tf.size(maps) // maps.shape[-1], variance.dtype)
        variance = tf.math.multiply_no_nan(variance, (n - 1) / n)
        self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1 - self.momentum))
        self.moving_variance.assign(self.moving_variance * self.momentum + variance * (1 - self.momentum))
        return tf.reshape(outputs, tf.shape(inputs))


def available_cores():
    """Return the number of cores that this process may use. The quota of a container counts, too."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count()
    try:
        quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no quota is set, or the system is not Linux with version 2 of cgroups
    return cores


def size_of_thread_pool(args, num_columns):
    """Return the size of the pool of threads that TensorFlow's operations share.

    This pool, which TensorFlow calls intra-op, divides the work of one operation among its threads. The columns are
    computed at the same time, and each keeps a thread of another pool, called inter-op, busy. So the intra-op pool gets
    the remaining cores, and at least one: with two columns, 14 of 16. (The rule was found by counting busy threads on
    16 cores. It has only been timed on 2, where the pool has one thread.)

    Where one operation runs at a time, the pool gets all cores. This is so with a single column, with a trunk up to the
    last place, and with activation units, whose large matrix products take most of the time.
    """
    only_a_trunk = args.split_after == UNIT_PLACES[-1]
    activation_units = args.cross_stitch_enabled and args.cross_stitch_unit == "activation"
    if num_columns == 1 or only_a_trunk or activation_units:
        return available_cores()
    return max(1, available_cores() - num_columns)


CPU_INFO = "/proc/cpuinfo"  # where Linux tells which instructions the processor has


def lacks_bfloat16():
    """Return whether it is known that this machine has no instructions for bfloat16. A GPU is taken to have them."""
    if tf.config.list_physical_devices("GPU"):
        return False
    try:
        return "bf16" not in pathlib.Path(CPU_INFO).read_text()
    except OSError:  # the system is not Linux
        return False


def configure_tensorflow(args, num_columns):
    """Set the precision of the layers and the number of threads, and make all operations deterministic."""
    if args.precision == "bfloat16" and lacks_bfloat16():
        say("This processor has no instructions for bfloat16, so a step takes several times as long as in float32.")
    keras.config.set_dtype_policy("mixed_bfloat16" if args.precision == "bfloat16" else "float32")
    tf.config.experimental.enable_op_determinism()
    with contextlib.suppress(RuntimeError):  # raised if TensorFlow runs already, as in a notebook
        threads = size_of_thread_pool(args, num_columns)
        tf.config.threading.set_intra_op_parallelism_threads(threads)


def choose_strategy():
    """Return the distribution strategy, and whether this process is the chief, which writes the files of the run.

    Where TF_CONFIG is set, several machines train together. Otherwise this process uses all GPUs, or the CPU if there
    is none.
    """
    if "TF_CONFIG" in os.environ:
        return join_cluster()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy(devices), True
    return tf.distribute.get_strategy(), True


def share_of_replica(batch):
    """Return this replica's part of a global batch. A batch is a nested structure of tensors.

    The images are in memory, and slicing them by hand is simpler than a distributed dataset. Every replica has the same
    global batches.
    """
    context = tf.distribute.get_replica_context()
    replica, replicas = context.replica_id_in_sync_group, context.num_replicas_in_sync

    def share(tensor):
        size = tf.shape(tensor)[0]
        return tensor[size * replica // replicas : size * (replica + 1) // replicas]

    return tf.nest.map_structure(share, batch)


# ----------------------------------------------------------------------------------------------------- several machines


def join_cluster():
    """Wait for all processes of TF_CONFIG; return the strategy of them all, and whether this one is the chief.

    Raises:
        Failure: TF_CONFIG is not as it should be, or TensorFlow has already been used in this process.
    """
    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        cluster = resolver.cluster_spec()
        own_address = cluster.task_address(resolver.task_type, resolver.task_id)
        # The first address is that of the chief, if there is one: "chief" comes before "worker" in the alphabet.
        addresses = [address for job in sorted(cluster.jobs) for address in cluster.job_tasks(job)]
        counts = {job: cluster.num_tasks(job) for job in cluster.jobs}
        ports = [int(address.rpartition(":")[2]) for address in addresses]
        if not set(counts) <= {"chief", "worker"} or counts.get("chief", 0) > 1 or min(ports) < 1:
            raise ValueError(f"the jobs are {counts}, at {', '.join(addresses)}")
    except (ValueError, TypeError, AttributeError) as error:
        example = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
        raise Failure(f"TF_CONFIG should look like {example}, with at most one chief ({error}).") from None

    bypass_proxies(addresses)
    wait_for_processes(own_address, [address for address in addresses if address != own_address])
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise Failure(f"TF_CONFIG is set, but TensorFlow was used in this process before ({reason}).") from None
    return strategy, own_address == addresses[0]


def bypass_proxies(addresses):
    """Keep the traffic between the processes away from web proxies, through which gRPC would send even localhost."""
    hosts = [address.rpartition(":")[0] for address in addresses]
    for variable in ("no_proxy", "no_grpc_proxy"):
        known = [host for host in os.environ.get(variable, "").split(",") if host]
        os.environ[variable] = ",".join(dict.fromkeys(known + hosts))


GREETING = b"cross-stitch\n"  # the answer that shows that a process of this script listens, and no other program


class GreetingHandler(socketserver.BaseRequestHandler):
    """Answer the greeting of another process, which has sent its address."""

    def handle(self):
        self.request.settimeout(5)
        with contextlib.suppress(OSError):
            address = self.request.recv(1000).decode(errors="replace")
            self.request.sendall(GREETING)
            self.server.seen.add(address)


class GreetingServer(socketserver.ThreadingTCPServer):
    """A server that answers greetings at a port, over IPv6 and IPv4 where the machine has both."""

    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port):
        self.seen = set()  # the addresses of the processes that this one has greeted or been greeted by
        super().__init__(("", port), GreetingHandler)

    def server_bind(self):
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def wait_for_processes(own_address, others):
    """Return when all `others`, a list of "host:port", have answered; say who is missing until then.

    TensorFlow would wait, too, but without a message, and without reacting to signals. So the processes greet each
    other first, on the ports that TensorFlow is about to use. A process has been seen when it has answered a greeting,
    or sent one.
    """
    try:
        server = GreetingServer(int(own_address.rpartition(":")[2]))
    except OSError as error:
        raise Failure(f"TF_CONFIG: this process cannot listen at {own_address} ({error}).") from None
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    say(f"{own_address} waits for {', '.join(others) or 'nobody'}")

    began = time.monotonic()
    next_report = began + 5
    while missing := [address for address in others if address not in server.seen]:
        reasons = []
        for address in missing:
            reason = greet(address, own_address, server.seen)
            if reason:
                reasons.append(f"{address} ({reason})")
        if reasons and time.monotonic() > next_report:
            say("still waiting for " + ", ".join(reasons))
            next_report = time.monotonic() + 60
        time.sleep(0.2)
    server.shutdown()
    server.server_close()


def greet(address, own_address, seen):
    """Greet the process at `address`. If it answers, add it to `seen` and return None; otherwise return the reason."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2) as connection:
            connection.sendall(own_address.encode())
            if connection.recv(len(GREETING)) != GREETING:
                return "something else answers there"
        seen.add(address)
        return None
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__


def check_agreement(strategy, facts):
    """Raise Failure unless the facts, {name: a value for JSON}, are the same in all processes of TF_CONFIG."""
    if "TF_CONFIG" not in os.environ:
        return
    checksums = [zlib.crc32(json.dumps(fact, sort_keys=True).encode()) for fact in facts.values()]
    # `gather` exchanges only what `strategy.run` has returned. So each replica returns a constant, its checksums.
    row_of_checksums = tf.function(lambda: tf.constant([checksums], tf.int64))  # (1, facts)
    row_of_replica = strategy.run(row_of_checksums)
    gathered = strategy.gather(row_of_replica, axis=0).numpy()  # (replicas, facts)
    differing = [name for name, gathered_fact in zip(facts, gathered.T) if len(set(gathered_fact)) > 1]
    if differing:
        raise Failure(f"TF_CONFIG: the processes differ in {', '.join(differing)}; these must be the same in all.")


@contextlib.contextmanager
def collected_stop_signals():
    """A context in which Ctrl-C and SIGTERM do not end the program, but are added to the list that it yields.

    `train` looks at the list after each step, and ends the run when its state has been saved.

    Only the main thread can set signal handlers. A program that calls `main` from another thread, as Ray Train does,
    has its own ways to end a run.
    """
    received = []
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda received_number, frame: received.append(received_number))
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_status_of(stop_signals):
    """Return the exit status of a run that a signal ended. If another process got it, count it as SIGTERM."""
    return 128 + (stop_signals[0] if stop_signals else signal.SIGTERM)


# --------------------------------------------------------------------------------- the run's folder and its checkpoints


def claim_folder(args, resumed):
    """Make the folder of a new run, and refuse one that holds a run.

    A run first makes the folder `checkpoints`. A folder can only be made once, so of two new runs that begin in one
    place at the same time the second fails. With --resume auto the folder may be there (see `check_holds_no_run`). So
    this is no protection against two processes that use --resume auto, or that resume one run.
    """
    if resumed:
        return
    try:
        os.makedirs(args.log_dir, exist_ok=True)
        check_holds_no_run(args)  # again: another run may have begun there while the data were read
        os.makedirs(os.path.join(args.log_dir, "checkpoints"), exist_ok=args.resume == "auto")
    except OSError as error:
        raise Failure(f"--log_dir {args.log_dir} cannot be made or written ({error}).") from None


def check_holds_no_run(args):
    """Raise Failure if the folder of a new run already holds a run.

    With --resume auto, a folder `checkpoints` alone is accepted: an earlier process was killed before it wrote
    run.json, and this one starts the run from the beginning.
    """
    if not os.path.isdir(args.log_dir):
        return
    of_a_run = re.compile(r"run\.json|results\.json|model\.keras|.*tfevents.*|checkpoints")
    found = [name for name in os.listdir(args.log_dir) if of_a_run.fullmatch(name)]
    if not found or (args.resume == "auto" and found == ["checkpoints"]):
        return
    can_be_resumed = "run.json" in found or found == ["checkpoints"]
    advice = "Add --resume auto to go on with it, or name" if can_be_resumed else "Name"
    raise Failure(f"{args.log_dir} already holds a run ({found[0]}). {advice} another --log_dir.")


def describe_run(args, data, strategy):
    """Return what run.json says of a run. `train` adds the number of parameters."""
    return {
        "arguments": {name: value for name, value in vars(args).items() if name not in NOT_RECORDED},
        "data": data.description,
        "classes": data.classes,
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__},
        "devices": strategy.num_replicas_in_sync,
    }


def check_unchanged(record, resumed):
    """Raise Failure where data, classes or versions are no longer those of the run to resume."""
    if record["data"]["sha256"] != resumed["data"].get("sha256"):
        raise Failure(
            f"--resume: {record['data']['source']} does not hold the data with which the run was started, from "
            f"{resumed['data'].get('source')}."
        )
    for what in ("classes", "versions"):
        if record[what] != resumed[what]:
            raise Failure(f"--resume: the run was started with {what} {resumed[what]}; they are {record[what]} now.")


def facts_to_agree_on(record, resumed):
    """Return {name: fact} of what has to be the same in all processes that train together."""
    may_differ = ("data_dir", "log_dir")  # each machine may see its folders under other paths
    return {
        "arguments": {name: value for name, value in record["arguments"].items() if name not in may_differ},
        "data": record["data"]["sha256"],
        "classes": record["classes"],
        "versions": record["versions"],
        "run to resume": resumed is not None,
    }


class Checkpoints:
    """The last two checkpoints of a run, with all that it needs to go on as if it had not been interrupted.

    Create it in the scope of the strategy.
    """

    def __init__(self, log_dir, network, optimizers):
        self.log_dir = log_dir
        self.folder = os.path.join(log_dir, "checkpoints")
        self.variables = network.variables
        self.step = tf.Variable(0, dtype=tf.int64)
        # A list of variables, since `Checkpoint(model=network)` would leave out the state of dropout's random numbers.
        weights = [v.value for v in network.variables]
        self.checkpoint = tf.train.Checkpoint(step=self.step, weights=weights, optimizers=optimizers.adams)
        self.manager = None

    def paths(self):
        """Return the path of each checkpoint that was written to its end, the oldest first.

        TensorFlow writes the file that ends in .index last.
        """
        names = [path.stem for path in pathlib.Path(self.folder).glob("ckpt-*.index")]
        steps = [int(name.removeprefix("ckpt-")) for name in names if re.fullmatch(r"ckpt-\d+", name)]
        return [os.path.join(self.folder, f"ckpt-{step}") for step in sorted(steps)]

    def restore(self):
        """Load the newest checkpoint that is not damaged, and return its step. Return 0 if nothing was trained yet."""
        for path in reversed(self.paths()):
            try:
                self.check_shapes(path)
                status = self.checkpoint.read(path)
                status.assert_existing_objects_matched()
                # The checkpoint also holds a counter of its manager, and there is no manager yet. Do not warn about it.
                status.expect_partial()
                return int(self.step.numpy())
            # TensorFlow raises one or the other of these, depending on which part of the file is damaged.
            except (tf.errors.OpError, AssertionError, IndexError, ValueError) as error:
                say(f"{path} is damaged ({type(error).__name__}).")
        # A run writes its first checkpoint before its first event file (see `train`). So if there are events but no
        # checkpoint, checkpoints were lost.
        if any(pathlib.Path(self.log_dir).glob("*tfevents*")):
            raise Failure(f"{self.folder} has no checkpoint that can be read, so the run cannot be resumed.")
        return 0

    def check_shapes(self, path):
        """Raise Failure if a checkpoint that can be read does not hold the variables of this network."""
        shapes = tf.train.load_checkpoint(path).get_variable_to_shape_map()
        for index, variable in enumerate(self.variables):
            saved = shapes.get(f"weights/{index}/.ATTRIBUTES/VARIABLE_VALUE")
            if saved is None or list(saved) != list(variable.shape):
                found = "is missing" if saved is None else f"has shape {list(saved)}"
                raise Failure(
                    f"--resume: {variable.path} {found} in {path}; in the network it has shape {list(variable.shape)}. "
                    "The script has changed since the run was started."
                )

    def start_manager(self, step):
        """Prepare to write checkpoints. A new run writes its first one now.

        The manager reads the list of checkpoints from the file `checkpoint`, which may have been lost or emptied when
        the machine died. So this file is written anew, from the checkpoints that are there.
        """
        if paths := self.paths():
            state = tf.compat.v1.train.generate_checkpoint_state_proto(self.folder, paths[-1], paths)
            pathlib.Path(self.folder, "checkpoint").write_text(str(state))
        self.manager = tf.train.CheckpointManager(self.checkpoint, self.folder, max_to_keep=2)
        if step == 0:
            self.save(0)

    def save(self, step, is_chief=True):
        """Write a checkpoint, if this is the chief, and remove all but the last two.

        Raise Failure if a weight is no longer finite. (The loss of a step does not show this, since it is computed
        before the update.)
        """
        if not all(np.isfinite(v.numpy()).all() for v in self.variables):
            raise Failure(f"The weights are no longer finite after step {step}. Try a smaller --lr.", DIVERGED)
        if is_chief:  # it can write alone, since all processes have the same weights and moments
            self.step.assign(step)
            self.manager.save(checkpoint_number=step)

    def keep_last(self):
        """Remove all checkpoints but the last, when the run is finished."""
        for path in self.paths()[:-1]:
            for file in pathlib.Path(self.folder).glob(f"{os.path.basename(path)}.*"):
                file.unlink()


def write_json(path, content):
    """Write `content` as JSON to the file `path`, atomically."""
    with open(f"{path}.partial", "w") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.partial", path)


def read_json(path, *keys):
    """Return the content of a JSON file that a run has written; raise Failure unless it has a dict for each key."""
    try:
        content = json.loads(pathlib.Path(path).read_text())
        if not all(isinstance(content[key], dict) for key in keys):
            raise ValueError("a part of it is missing")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Failure(f"{path} is not the file that a run writes ({type(error).__name__}: {error}).") from None
    return content


# ---------------------------------------------------------------------------------------------- event files and results


def open_event_file(log_dir, step):
    """Open a new event file in the run's folder, for a process that goes on after `step` steps.

    The file begins with a START event, which carries the first step that this process will log. It makes TensorBoard
    drop that step and later ones, which an interrupted process may have logged after its last checkpoint. So each step
    is shown once.

    One of TensorBoard's loaders ignores the first START event in a folder. So a new run writes one, too. It is there to
    be the first, so that none of a resumed run is ignored.
    """
    writer = tf.summary.create_file_writer(log_dir)
    first_step = 0 if step == 0 else step + 1  # at step 0 the setting is logged
    session_log = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    event = tf.compat.v1.Event(step=first_step, wall_time=time.time(), session_log=session_log)
    # There is no public function that writes an event of this kind.
    tf.raw_ops.ImportEvent(writer=writer._resource, event=event.SerializeToString())
    return writer


def log_setting(record, graph, metrics):
    """Log the arguments and the data as texts, the graph of a training step, and the hyper-parameters.

    `metrics` are the tags of the scalars that TensorBoard shows beside the hyper-parameters.
    """
    tf.summary.graph(graph)
    for tag in ("arguments", "data"):
        tf.summary.text(tag, [(name, str(value)) for name, value in record[tag].items()], step=0)
    simple = (bool, int, float, str)
    values = {name: x if isinstance(x, simple) else str(x) for name, x in record["arguments"].items()}
    tf.summary.experimental.set_step(0)  # the next two calls take the step from here
    hparams.hparams_config([hparams.HParam(name) for name in values], [hparams.Metric(tag) for tag in metrics])
    hparams.hparams(values)


def log_scalars(step, values):
    """Log {tag: value}."""
    for tag, value in values.items():
        tf.summary.scalar(tag, value, step=step)


def log_units(step, network, classes):
    """Log the mean alpha of every unit for every pair of columns, under the tags units/UNIT/COLUMN_from_COLUMN.

    With more than four columns these would be too many. Then log the mean of alpha_ii, `own`, and of all others.
    """
    names = column_names(classes)
    for unit in units_of(network):
        mean = unit.mean_alpha()
        if len(names) <= 4:
            for i, j in itertools.product(range(len(names)), repeat=2):
                tf.summary.scalar(f"units/{unit.name}/{names[i]}_from_{names[j]}", mean[i, j], step=step)
        else:
            own = np.eye(len(names), dtype=bool)
            tf.summary.scalar(f"units/{unit.name}/own", mean[own].mean(), step=step)
            tf.summary.scalar(f"units/{unit.name}/others", mean[~own].mean(), step=step)
        if not isinstance(unit, ActivationCrossStitch):  # of its many millions of alphas, almost all stay close to 0
            tf.summary.histogram(f"units/{unit.name}/alpha", unit.alpha.value, step=step)


def log_confusions(step, confusions, classes):
    """Log {task: confusion matrix} as tables: a row for each true class, a column for each predicted one.

    A matrix with more than 100 classes is left out, since nobody could read it.
    """
    for task, matrix in confusions.items():
        if len(matrix) <= 100:
            header = ["true, predicted:", *classes[task]]
            rows = [[name, *(str(count) for count in row)] for name, row in zip(classes[task], matrix)]
            tf.summary.text(f"{task}/confusion_matrix", [header, *rows], step=step)


class Meter:
    """Measure the speed, and show the progress, from each evaluation to the next."""

    def __init__(self, args, step, last_step, eval_every, is_chief):
        self.n_epoch = args.n_epoch
        self.last_step = last_step
        self.eval_every = eval_every
        self.is_chief = is_chief
        self.restart(step)

    def restart(self, step):
        """Begin anew after `step` steps."""
        self.began = time.perf_counter()
        self.images = 0
        self.values = []  # what the training step returned, for each step
        steps = min(self.eval_every - step % self.eval_every, self.last_step - step)
        show = self.is_chief and sys.stdout.isatty()
        self.bar = keras.utils.Progbar(steps, verbose=int(show), stateful_metrics=["loss"])

    def count(self, num_images, values):
        """Count the images of a step, and show its loss. `values` are what the training step returned."""
        self.images += num_images
        self.values.append(values)
        self.bar.add(1, [("loss", values["summary/loss_total"])])

    def images_per_second(self):
        return self.images / (time.perf_counter() - self.began)

    def report(self, epoch, step, speed, evaluations):
        """Print the speed (images per second), means since the last evaluation, and the evaluations."""
        means = {tag: np.mean([values[tag] for values in self.values]) for tag in self.values[0]}
        if self.is_chief:
            say(
                f"epoch {epoch + 1}/{self.n_epoch}, step {step}: {speed:,.0f} images/s; "
                f"{summary_of_training(means)}; {summary_of_evaluations(evaluations)}"
            )


def print_setting(args, record, network):
    """Print what is about to be trained: the data, the network, and the command that starts TensorBoard."""
    data = record["data"]
    sizes = ", ".join(f"{size:,} {name}" for name, size in data["sizes"].items())
    say(f"{data['name']} from {data['source']}: {sizes}")
    for task, names in record["classes"].items():
        say(f"{task}: {describe_classes(names)}")
    if "warning" in data:
        say(data["warning"])
    megabytes = 16 * record["parameters"] / 1e6  # four float32 for each: value, gradient, Adam's two moments
    devices = "1 device" if record["devices"] == 1 else f"{record['devices']} devices"
    threads = tf.config.threading.get_intra_op_parallelism_threads() or "as many as TensorFlow chose"
    say(
        f"{record['parameters']:,} trainable weights, {megabytes:,.0f} MB with gradients and Adam's moments; "
        f"{args.precision} on {devices}, threads in the pool: {threads}; seed {args.seed}"
    )
    units = [f"{unit.name} {tuple(unit.alpha.shape)}" for unit in units_of(network)]
    say(f"cross-stitch units with the shape of their alpha: {', '.join(units) or 'none'}")
    parent = os.path.dirname(args.log_dir) or "."  # so that TensorBoard shows this run and those beside it
    watch = [sys.executable, "-m", "tensorboard.main", "--logdir", parent]
    say(f"writing to {args.log_dir}; to watch: {shlex.join(watch)}")


def describe_classes(names):
    """Return the number and the names of classes in a few words."""
    if names == [str(number) for number in range(len(names))]:
        return f"{len(names)} classes (0..{len(names) - 1})"
    some = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{len(names)} classes ({some})"


def finish_run(record, network, evaluations, step, speeds):
    """Write the trained network and results.json, and print the results."""
    arguments = record["arguments"]
    results = {
        **record,
        **{split: evaluation.measures for split, evaluation in evaluations.items()},
        "epochs": arguments["n_epoch"],
        "steps": step,
        "seed": arguments["seed"],
        "images_per_second": round(statistics.median(speeds), 1) if speeds else None,
        "cross_stitch": {unit.name: unit.mean_alpha().tolist() for unit in units_of(network)},
    }
    network.save(os.path.join(arguments["log_dir"], "model.keras"))
    # Write this last: it tells `show_or_train` that the run is finished, and for how many epochs it was trained.
    write_json(os.path.join(arguments["log_dir"], "results.json"), results)
    print_results(results)


def say(text):
    """Print and flush a line. Characters that the terminal does not know are printed as escapes.

    The run goes on in silence when nobody reads its output any more.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ----------------------------------------------------------------------------------------------------------- prediction


def load_run(model_path):
    """Return the network in a run's model.keras, and the content of results.json beside it."""
    if model_path is None:
        raise Failure("--predict needs --model with the model.keras of a run.")
    results = read_json(os.path.join(os.path.dirname(model_path), "results.json"), "arguments", "classes")
    try:
        network = keras.models.load_model(model_path)
    except Exception as error:  # Keras raises many types for damaged files
        versions = results.get("versions", {})
        raise Failure(
            f"--model {model_path} cannot be loaded ({type(error).__name__}). It was written with Keras "
            f"{versions.get('keras')}; this is Keras {keras.__version__}."
        ) from None
    if network.name != NAME:
        raise Failure(f"--model {model_path} was trained by {network.name}.py, not by {NAME}.py.")
    return network, results


def predict_pictures(args):
    """Print the most probable class of every task, with its probability, for each photo of --predict.

    If a photo cannot be read, the others are predicted all the same.
    """
    network, results = load_run(args.model)
    images, readable, failures = [], [], []
    for path in args.predict:
        try:
            images.append(read_face(path, network.input_shape[1]))
            readable.append(path)
        except Exception as error:  # Pillow raises many types for damaged files
            failures.append(f"{path} ({reason_of(error)})")
    if images:
        print_predictions(readable, network.predict(np.stack(images), verbose=0), results["classes"])
    report_failures(failures)


def print_predictions(paths, logits, classes):
    """Print a line for each picture: its path, and for each task the most probable class and its probability."""
    for index, path in enumerate(paths):
        answers = []
        for task, task_logits in logits.items():
            probabilities = tf.nn.softmax(task_logits[index]).numpy()
            best = int(np.argmax(probabilities))
            answers.append(f"{task} {classes[task][best]} {probabilities[best]:.3f}")
        say(f"{path}: {', '.join(answers)}")


def report_failures(failures):
    """Raise Failure if some pictures failed. The others have been predicted by then."""
    if failures:
        raise Failure(f"--predict failed for {'; '.join(failures)}.")


def reason_of(error):
    """Return the message of an exception or, if it has none, its type."""
    return str(error) or type(error).__name__


# --------------------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, with the flag that may have been meant."""

    def error(self, message):
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            known = [flag for action in self._actions for flag in action.option_strings]
            similar = difflib.get_close_matches(unknown[1], known, n=1)
            if similar:
                message += f"; did you mean {similar[0]}?"
        raise Failure(message.removeprefix("argument "))


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show the defaults of the arguments that have one, and the description as it is."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def boolean(text):
    """Argument type. (With `type=bool` argparse reads "False" as True.)"""
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return words[text.lower()]


def parse_number(kind, text, condition, wanted):
    """Return `text` as a number of the given kind, int or float, if it is finite and fulfils the condition."""
    try:
        value = kind(text)
        if math.isfinite(value) and condition(value):
            return value
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text[:50]!r} is not {wanted}")


def positive_int(text):
    return parse_number(int, text, lambda value: value >= 1, "an integer of at least 1")


def non_negative_int(text):
    return parse_number(int, text, lambda value: value >= 0, "an integer of at least 0")


def seed_number(text):
    return parse_number(int, text, lambda value: 0 <= value < 2**32, "an integer between 0 and 4294967295")


def positive_float(text):
    return parse_number(float, text, lambda value: value > 0, "a number above 0")


def non_negative_float(text):
    return parse_number(float, text, lambda value: value >= 0, "a number of at least 0")


def fraction(text):
    return parse_number(float, text, lambda value: 0 < value <= 1, "a number above 0 and at most 1")


def fraction_below_one(text):
    return parse_number(float, text, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


def keep_probability(text):  # dropout divides by it, so it should not be close to 0
    return parse_number(float, text, lambda value: 0.01 <= value <= 1, "a number between 0.01 and 1")


def absolute_path(text):
    return os.path.abspath(folder_path(text))


def folder_path(text):
    if not text:  # as of a variable of the shell that is not set
        raise argparse.ArgumentTypeError("the path is empty")
    return os.path.expanduser(text).rstrip("/") or "/"


def age_in_years(text):
    return parse_number(int, text, lambda value: 1 <= value <= 120, "an integer between 1 and 120")


def image_size(text):
    return parse_number(int, text, lambda value: 16 <= value <= 512, "an integer between 16 and 512")


PRESETS = {  # {preset: {argument: its default}}; arguments on the command line take precedence
    "default": {},
    # The units of Misra et al., for comparison, and not as a recommendation. They first trained the columns alone (by
    # --pretrain_epoch here), and used SGD. With Adam, an alpha can move by 100 times --lr in one step. At the default
    # --lr this is 0.1, as much as the other tasks share at the start.
    "paper": {"cross_stitch_init": 0.9, "cross_stitch_lr_scale": 100.0},
}


PREDICTION_ARGUMENTS = ("predict", "model")  # these go with --predict
NAMED_BY_KIND = ("cross_stitch_enabled", "split_after")  # `kind_of_run` puts these into the name of a folder
NOT_RECORDED = ("resume", *PREDICTION_ARGUMENTS)  # run.json does not hold these


def make_parser():
    """Return the parser of the command line."""
    parser = Parser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    add_network_arguments(parser)
    add_training_arguments(parser)
    add_run_arguments(parser)
    return parser


def add_network_arguments(parser):
    """Add the arguments of the units and of the network."""
    units = parser.add_argument_group("cross-stitch units")
    units.add_argument(
        "--cross_stitch_enabled", type=boolean, default=True, help="join the columns by units; False is the baseline"
    )
    units.add_argument(
        "--cross_stitch_unit",
        choices=UNITS,
        default="channel",
        help="one alpha per channel, per layer, or per pair of activations, which needs much memory",
    )
    units.add_argument(
        "--cross_stitch_at",
        nargs="+",
        choices=UNIT_PLACES,
        default=list(UNIT_PLACES),
        help="places of the units",
    )
    units.add_argument(
        "--cross_stitch_init", type=fraction, default=1.0, help="initial weight of a task's own activations"
    )
    units.add_argument(
        "--cross_stitch_lr_scale",
        type=non_negative_float,
        default=1.0,
        help="learning rate of units, as a multiple of --lr",
    )
    units.add_argument(
        "--pretrain_epoch",
        type=non_negative_int,
        default=0,
        help="number of epochs, at the beginning, in which the columns train alone",
    )

    network = parser.add_argument_group("network")
    network.add_argument("--split_after", choices=UNIT_PLACES, help="place at which a trunk ends that all tasks share")
    network.add_argument(
        "--width", type=positive_float, default=1.0, help="multiplies the numbers of filters and of neurons"
    )
    network.add_argument(
        "--keep_prob", type=keep_probability, default=0.5, help="share of the activations that dropout keeps"
    )
    network.add_argument(
        "--bn_momentum", type=fraction_below_one, default=0.9, help="momentum of batch norm's moving averages"
    )
    network.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="number format of activations"
    )


def add_training_arguments(parser):
    """Add the arguments of the losses and of the training."""
    training = parser.add_argument_group("training")
    training.add_argument("--lr", type=positive_float, default=0.001, help="learning rate of Adam")
    training.add_argument(
        "--lr_half_life",
        type=non_negative_float,
        default=0.0,
        help="half-life of --lr in epochs: it decays exponentially; 0: constant",
    )
    training.add_argument("--n_epoch", type=positive_int, default=8, help="epochs to train")
    training.add_argument("--n_batch_size", type=positive_int, default=128, help="images in a step, over all devices")
    training.add_argument("--reg_lambda", type=non_negative_float, default=1e-4, help="weight of the L2 loss")
    training.add_argument(
        "--task_weights", nargs="+", type=non_negative_float, help="weights of the tasks' losses; 1 each if left out"
    )
    training.add_argument("--preset", choices=PRESETS, default="default", help="paper: units as in Misra et al.")
    training.add_argument(
        "--seed",
        type=seed_number,
        default=0,
        help="seed of weights, dropout, and of the order, choice and augmentation of images",
    )


def add_run_arguments(parser):
    """Add the arguments of the data, the output and the prediction."""
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", type=absolute_path, help="folder of UTKFace or VGGFace2")
    data.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=["gender", "age"], help="tasks to train, a column each"
    )
    data.add_argument(
        "--split",
        choices=("identity", "image"),
        help="identity: all pictures of a person go into one split, the default for VGGFace2; image: only identical "
        "pictures do, the default for UTKFace",
    )
    data.add_argument(
        "--age_bins",
        nargs="+",
        type=age_in_years,
        default=[MATURE],
        help="the ages at which classes begin, after the first: 13 20 gives 0-12, 13-19 and 20 or more",
    )
    data.add_argument("--image_size", type=image_size, default=64, help="side of the images in pixels")
    data.add_argument("--augment", type=boolean, default=True, help="mirror and move the training images at random")
    data.add_argument(
        "--train_fraction",
        type=fraction,
        default=1.0,
        help="part of the training images to use, after test and validation images are held out",
    )
    data.add_argument(
        "--validation_fraction",
        type=fraction_below_one,
        default=0.0,
        help="part of the faces to hold out; test faces are not counted",
    )

    output = parser.add_argument_group("output")
    output.add_argument("--log_dir", type=folder_path, help="folder of the run; a new one in tf_logs if left out")
    output.add_argument(
        "--log_every",
        type=positive_int,
        default=100,
        help="number of steps between two logged values; smaller in a short run",
    )
    output.add_argument(
        "--eval_every",
        type=non_negative_int,
        default=0,
        help="steps between evaluations, each of which also writes a checkpoint; 0: once an epoch",
    )
    output.add_argument(
        "--resume",
        metavar="LOG_DIR",
        type=folder_path,
        help="go on with the run in this folder; auto: with the run in --log_dir, or start it there",
    )

    parser.add_argument(
        "--predict", nargs="+", metavar="PHOTO", type=os.path.expanduser, help="do not train: classify photos"
    )
    parser.add_argument("--model", metavar="FILE", type=os.path.expanduser, help="model.keras of a run, for --predict")


def kind_of_run(args):
    """Return the part of a folder's name that tells which kind of network is trained there."""
    if len(args.tasks) == 1:
        return "single"
    if args.split_after == UNIT_PLACES[-1]:  # then there is no place for units
        return f"split_after_{args.split_after}"
    kind = "stitched" if args.cross_stitch_enabled else "baseline"
    return f"split_after_{args.split_after}-{kind}" if args.split_after else kind


def check_arguments(args):
    """Raise Failure where arguments do not fit together, before any data are read."""
    if args.data_dir is None or not os.path.isdir(args.data_dir):
        raise Failure(f"--data_dir {args.data_dir or ''} should be a folder with {LAYOUTS}.")
    if args.pretrain_epoch >= args.n_epoch:
        raise Failure(f"--pretrain_epoch {args.pretrain_epoch} should be less than --n_epoch, {args.n_epoch}.")
    if len(set(args.tasks)) < len(args.tasks):
        raise Failure(f"--tasks {' '.join(args.tasks)}: name each task once.")
    if args.split_after and len(args.tasks) == 1:
        raise Failure(f"--split_after {args.split_after} needs more than one task.")
    check_units(args)
    if args.task_weights and len(args.task_weights) != len(args.tasks):
        raise Failure(f"--task_weights needs {len(args.tasks)} numbers, one each for {' '.join(args.tasks)}.")
    if args.age_bins != sorted(set(args.age_bins)):
        raise Failure(f"--age_bins {' '.join(map(str, args.age_bins))} should increase, for example 13 20 30 45 60.")


def check_units(args):
    """Raise Failure if all places of --cross_stitch_at are in the trunk of --split_after, where there can be no unit.

    A trunk up to the last place leaves no place for units. That is no error: units are enabled by default, so the user
    may not have asked for them.
    """
    if args.split_after and args.cross_stitch_enabled:
        later = UNIT_PLACES[UNIT_PLACES.index(args.split_after) + 1 :]
        if later and not set(later) & set(args.cross_stitch_at):
            raise Failure(
                f"--cross_stitch_at {' '.join(args.cross_stitch_at)}: after --split_after {args.split_after} units can "
                f"only be at {' '.join(later)}. To train without units use --cross_stitch_enabled False."
            )


def parse_arguments(argv):
    """Return the arguments, and what run.json says of the run that is to be resumed, or None for a new run.

    With --resume, arguments that are left out are taken from the run, and those that are given must not change it.
    """
    for word in argv:
        if re.search("[\ud800-\udfff]", word):  # Python's stand-ins for bytes that are not UTF-8
            raise Failure(f"{word!a} is not in UTF-8.")
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.predict:
        return args, None
    for name in PREDICTION_ARGUMENTS:
        if vars(args)[name] != parser.get_default(name):
            raise Failure(f"--{name} goes with --predict.")

    folder = folder_to_resume(args)
    if folder is None:
        resumed = None
        parser.set_defaults(**PRESETS[args.preset])
        args = parser.parse_args(argv)  # again, since the command line takes precedence over the preset
        args.log_dir = args.log_dir or default_log_dir(args, parser)
    else:
        resumed = read_json(os.path.join(folder, "run.json"), "arguments", "data", "classes", "versions")
        args = arguments_of_resumed_run(parser, argv, folder, resumed["arguments"])
    check_log_dir(args.log_dir)
    check_arguments(args)
    if resumed is None:
        check_holds_no_run(args)
    return args, resumed


def folder_to_resume(args):
    """Return the folder of the run that --resume names, or None for a new run."""
    if args.resume == "auto":
        if not args.log_dir:
            raise Failure("--resume auto needs --log_dir.")
        begun = os.path.exists(os.path.join(args.log_dir, "run.json"))
        return args.log_dir if begun else None
    if args.resume is not None and args.log_dir not in (None, args.resume):
        raise Failure("--log_dir and --resume name different folders; give one of them.")
    return args.resume


def arguments_of_resumed_run(parser, argv, folder, recorded):
    """Return the arguments of the run in `folder`, with those that `argv` changes.

    --data_dir may be another one, and --n_epoch may be larger. Nothing else may change. `recorded` are the arguments in
    the run.json of the folder.
    """
    known = vars(parser.parse_args([]))
    if foreign := recorded.keys() - known.keys():
        raise Failure(f"--resume {folder}: the run has --{min(foreign)}, which {NAME}.py does not have.")
    parser.set_defaults(**recorded)
    args = parser.parse_args(argv)
    args.log_dir = folder
    may_change = ("log_dir", "data_dir", *NOT_RECORDED)
    for name, value in vars(args).items():
        if name in may_change or value == recorded.get(name):
            continue
        if name not in recorded:
            raise Failure(f"--resume {folder}: it was started by another version of {NAME}.py, without --{name}.")
        if not (name == "n_epoch" and value > recorded[name]):
            raise Failure(f"--resume {folder}: the run has --{name} {recorded[name]}, not {value}.")
    return args


def default_log_dir(args, parser):
    """Return a new folder for the run: tf_logs/EXPERIMENT/DATA-KIND-CHANGED-SEED-TIME-PROCESS.

    KIND is the kind of network, and CHANGED are the arguments that differ from their defaults.
    """
    if "TF_CONFIG" in os.environ:
        raise Failure("--log_dir is needed with TF_CONFIG: a folder that all processes see.")
    experiment = NAME.removesuffix("_multi_task_learning")
    data = os.path.basename(args.data_dir) if args.data_dir else experiment
    named_otherwise = (*NAMED_BY_KIND, "seed", "data_dir", "log_dir", *NOT_RECORDED)
    changed = []
    # --preset has changed the parser's defaults (see `parse_arguments`). So it is named, and not what it changes.
    for name, value in vars(args).items():
        if value != parser.get_default(name) and name not in named_otherwise:
            values = value if isinstance(value, list) else [value]
            changed.append(name.removeprefix("cross_stitch_") + "_".join(str(value) for value in values))
    words = re.sub(r"[^\w.-]+", "_", "-".join([data, kind_of_run(args), *changed]), flags=re.ASCII)
    when = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    # The number of the process: several runs may begin in one second.
    return f"tf_logs/{experiment}/{words[:80]}-seed{args.seed}-{when}-{os.getpid()}"


def check_log_dir(log_dir):
    """Raise Failure for a path that TensorFlow would understand differently from Python.

    TensorFlow takes some characters for a pattern, and :// for an address.
    """
    if re.search(r"[\[\]*?\\]|://", log_dir):
        raise Failure(f"--log_dir {log_dir} should be a path on this machine, without [ ] * ? \\ and ://.")
    # Python encodes paths as the locale says, TensorFlow in UTF-8.
    if os.fsencode(os.path.abspath(log_dir)) != os.path.abspath(log_dir).encode("utf-8", "surrogateescape"):
        raise Failure(f"--log_dir {log_dir!a}: TensorFlow cannot find it in this locale. Use one with UTF-8.")


def main(argv=None):
    """Do what the command line `argv` says. Return the exit status, which is not 0 after an error."""
    log_dir = None
    try:
        with default_keras_settings():
            args, resumed = parse_arguments(sys.argv[1:] if argv is None else argv)
            if args.predict:
                predict_pictures(args)
            else:
                log_dir = args.log_dir
                show_or_train(args, resumed)
        return 0
    except Failure as failure:
        message, status = str(failure), failure.status
    except (OSError, MemoryError, tf.errors.OpError) as error:  # for instance a full disk, or a lost worker
        # TensorFlow puts the traceback of its graph before the message, and an empty line between them.
        last = (str(error).strip() or type(error).__name__).split("\n\n")[-1]
        message, status = last.split("\n")[0], FAILED
    has_begun = log_dir is not None and os.path.exists(os.path.join(log_dir, "run.json"))
    if has_begun and status not in (WRONG_INPUT, DIVERGED):  # after these, a resumed run would fail again
        message += f"; go on with: {shlex.join([sys.executable, __file__, '--resume', log_dir])}"
    if status > 128:  # stopped by a signal; if it was Ctrl-C, the terminal shows ^C without a new line
        message = f"\n{message}"
    else:
        message = f"error: {message}"
    print(message, file=sys.stderr, flush=True)
    return status


def show_or_train(args, resumed):
    """Show the results of the run if it is already finished. Otherwise train."""
    if PRESETS[args.preset] and not resumed:
        defaults = []
        for name, value in PRESETS[args.preset].items():
            values = value if isinstance(value, list) else [value]
            defaults.append(" ".join([f"--{name}", *map(str, values)]))
        say(f"--preset {args.preset} changes these defaults: {', '.join(defaults)}")
    path = os.path.join(args.log_dir, "results.json")
    if resumed and os.path.exists(path):
        results = read_json(path, "classes", "data")
        if results.get("epochs", 0) >= args.n_epoch:
            say(f"This run is finished. It was trained on {results['data'].get('source')}.")
            print_results(results)
            return
    train(args, resumed)


@contextlib.contextmanager
def default_keras_settings():
    """A context in which Keras has its default settings. The user's settings would change what is trained."""
    config = keras.config
    previous = (config.image_data_format(), config.floatx(), config.epsilon(), config.dtype_policy())
    if previous[:3] != ("channels_last", "float32", 1e-7) or previous[3].name != "float32":
        say(
            f"Keras is configured for {previous[0]}, {previous[1]}, epsilon {previous[2]}, layers in "
            f"{previous[3].name}; this script sets its own."
        )
    config.set_image_data_format("channels_last")
    config.set_floatx("float32")
    config.set_epsilon(1e-7)
    config.set_dtype_policy("float32")
    try:
        yield
    finally:
        config.set_image_data_format(previous[0])
        config.set_floatx(previous[1])
        config.set_epsilon(previous[2])
        config.set_dtype_policy(previous[3])


if __name__ == "__main__":
    sys.exit(main())
