"""Find landmarks in faces, with the help of attributes: networks side by side, joined by cross-stitch units.

One column finds five landmarks, the other classifies gender, smile, glasses and pose. A cross-stitch unit after each
pooling layer and after the fully connected layer mixes the activations of the columns with learned weights. A further
loss can relate the weights of the two columns (--weight_reg), as a poster from CMU proposed. `--network single` trains
the column of the landmarks alone, and `--network split` one trunk with an output layer for each task.

Train with cross-stitch units, then without, and compare the curves of the two runs:

    python facial_landmark_multi_task_learning.py --data_dir MTFL --cross_stitch_enabled True
    python facial_landmark_multi_task_learning.py --data_dir MTFL --cross_stitch_enabled False
    python -m tensorboard.main --logdir tf_logs

By default a unit has a 2 x 2 matrix of weights for each channel, and starts as the identity. With `--preset paper` it
starts from 0.9 for a column's own activations and 0.1 for the other's, and has 100 times the learning rate. With
--pretrain_epoch the columns train alone first, as Misra et al. did. `--preset poster` trains the poster's network.

--data_dir is the folder of MTFL (mmlab.ie.cuhk.edu.hk/projects/TCDCN.html): training.txt, testing.txt, and the photos.
Boxes of the faces should be there, too (mmlab.ie.cuhk.edu.hk/archive/CNN_FacePoint.htm): trainImageList.txt,
testImageList.txt and its photos. If a list of boxes is missing, boxes are made from the landmarks. (For testing.txt
there is none.) On test faces with such boxes, the measured error is too optimistic. `read_boxes` describes the lists.

To resume a run, or to find the landmarks in photos with a trained network (LOG_DIR is the folder that the run prints):

    python facial_landmark_multi_task_learning.py --resume LOG_DIR
    python facial_landmark_multi_task_learning.py --predict PHOTO ... --model LOG_DIR/model.keras

Each script of this repository can be copied alone. What they have in common, such as the unit, the training loop and
the checkpoints, is repeated in each of them. So some of this code is more general than one script needs.

All GPUs of the machine are used. To train on several machines, start the same command on each of them, with TF_CONFIG
set and with a --log_dir that all of them can see. (The script runs on Linux and macOS, and on Windows in WSL.)

Contents:
    The method: tasks, cross-stitch units, network, related weights, losses and training step, errors, training loop.
    The data: lists, crops, augmentation.
    Speed, and runs that can be resumed: kernels and devices, several machines, checkpoints, event files, results.
    Prediction, command line.

References:
    Misra, Shrivastava, Gupta, Hebert: Cross-stitch Networks for Multi-task Learning. CVPR 2016, arXiv:1604.03539.
    Bhuin, Chadha, Tan: Related Weights in Cross-stitch Network for Multi-task Learning. Poster, CMU. There is a copy of
    its code at github.com/ManushGupta/682-project.
    The TensorFlow implementation of 2018: github.com/helloyide/Cross-stitch-Networks-for-Multi-task-Learning.
    Zhang, Luo, Loy, Tang: Facial Landmark Detection by Deep Multi-task Learning. ECCV 2014 (MTFL).
    Sun, Wang, Tang: Deep Convolutional Network Cascade for Facial Point Detection. CVPR 2013 (boxes, and a test set).
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
import copy
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
import warnings
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

NAME = "facial_landmark_multi_task_learning"

LANDMARKS = ["left eye", "right eye", "nose", "left mouth corner", "right mouth corner"]  # left as seen in the picture
ATTRIBUTES = {  # the tasks of the second column, and their classes in the order of MTFL's numbers 1, 2, ...
    "gender": ["male", "female"],
    "smile": ["smiling", "not smiling"],
    "glasses": ["glasses", "no glasses"],
    "pose": ["left profile", "left", "frontal", "right", "right profile"],
}


class Block(NamedTuple):
    """The shape of a convolution block."""

    filters: int
    kernel_size: int
    pooling: bool


BLOCKS = [Block(32, 3, True), Block(48, 3, True), Block(64, 3, True), Block(80, 3, False)]
DENSE_SIZE = 256  # the size of the fully connected layer
# Where there can be a unit, and where a trunk can end. At "pool_4" there is no pooling, and a unit only on request.
UNIT_PLACES = ("pool_1", "pool_2", "pool_3", "pool_4", "fc_5")


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
    """Build the columns, the units between them, and the output layers.

    With --split_after there is at first only one column, the trunk, and both columns go on from it. (For
    --network split `check_arguments` sets --split_after to fc_5.) With --network single `classes` is empty, and there
    is only the column of the landmarks. With --preset poster the network is that of the poster.

    Args:
        args: The parsed command line.
        classes: {attribute: the names of its classes}, empty for --network single.
        mean, variance: Arrays (height, width, 1) that standardise each pixel. They become part of the network, so that
            a saved network takes raw pixels.

    Returns:
        A `keras.Model` from uint8 faces (batch, height, width, 1) to {task: output}. The output `landmarks` has the
        points (batch, 5, 2), x and y, in coordinates of the face's box, where (0, 0) is its upper left and (1, 1) its
        lower right corner. Those of the attributes are logits (batch, classes).
    """
    if args.preset == "poster":
        return build_poster_network(args, classes, mean.shape)

    images = keras.Input(mean.shape, dtype="uint8", name="images")
    pixels = layers.Normalization(axis=(1, 2, 3), mean=mean, variance=variance, dtype="float32")(images)
    names = ["trunk"] if args.split_after else column_names(classes)
    columns = {name: pixels for name in names}  # the activations that each column has computed so far

    for level, block in enumerate(BLOCKS, start=1):
        columns = {name: convolution_block(args, x, block, name, level) for name, x in columns.items()}
        columns = stitch(args, columns, f"pool_{level}")
        columns = end_trunk(args, columns, f"pool_{level}", column_names(classes))

    level = len(BLOCKS) + 1
    columns = {name: dense_block(args, x, name, level) for name, x in columns.items()}
    columns = stitch(args, columns, f"fc_{level}")
    columns = {name: dropout(args, x, name) for name, x in columns.items()}
    columns = end_trunk(args, columns, f"fc_{level}", column_names(classes))

    outputs = {"landmarks": landmarks_output(columns["landmarks"])}
    for task in classes:
        outputs[task] = output_layer(columns["attributes"], task, len(classes[task]))
    return model_of(args, images, outputs)


def convolution_block(args, x, block, column, level):
    """Convolution, batch norm, max-pool (in some blocks) and ReLU: (batch, h, w, c) to (batch, h', w', filters).

    ReLU and max-pooling commute, so ReLU comes last. After a max-pool it does a quarter of the work.
    """
    filters = max(1, round(args.width * block.filters))
    convolution = layers.Conv2D(
        filters,
        block.kernel_size,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{column}.conv_{level}",
    )
    x = convolution(x)
    x = batch_norm(args, x, f"{column}.bn_{level}")
    if block.pooling:
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


def dropout(args, x, column):
    """Dropout before the output layers: (batch, features) to the same in float32.

    Keras gives all replicas one seed, so the masks repeat from replica to replica. Within a replica each face has its
    own mask, so this does no harm.
    """
    return layers.Dropout(1 - args.keep_prob, name=f"{column}.dropout", dtype="float32")(x)


def landmarks_output(x):
    """Fully connected layer: (batch, features) to float32 points (batch, 5, 2). They start in the middle of the box."""
    middle = keras.initializers.Constant(0.5)
    points = layers.Dense(
        2 * len(LANDMARKS),
        kernel_initializer="zeros",
        bias_initializer=middle,
        name="landmarks.output",
        dtype="float32",
    )
    return layers.Reshape((len(LANDMARKS), 2), dtype="float32")(points(x))


def output_layer(x, task, num_classes):
    """Fully connected layer of an attribute: (batch, features) to float32 logits (batch, classes)."""
    return layers.Dense(num_classes, kernel_initializer="he_normal", name=f"{task}.output", dtype="float32")(x)


POSTER_BLOCKS = [Block(20, 4, True), Block(40, 3, True), Block(60, 3, True), Block(80, 2, False)]
POSTER_DENSE_SIZE = 120


def build_poster_network(args, classes, shape):
    """Build the network of the poster's code (see References), with the same inputs and outputs as `build_network`.

    It divides the pixels by 255. It has no batch norm and no padding, and a single number as the output of an attribute
    with two classes. The unit after its fully connected layer has one alpha_ij for the whole layer.
    """
    images = keras.Input(shape, dtype="uint8", name="images")
    pixels = layers.Rescaling(1 / 255, dtype="float32")(images)
    names = ["trunk"] if args.split_after else column_names(classes)
    columns = {name: pixels for name in names}

    for level, block in enumerate(POSTER_BLOCKS, start=1):
        columns = {name: poster_convolution_block(args, x, block, name, level) for name, x in columns.items()}
        columns = stitch(args, columns, f"pool_{level}")
        columns = end_trunk(args, columns, f"pool_{level}", column_names(classes))

    columns = {name: poster_dense_block(args, x, name) for name, x in columns.items()}
    args_of_last_unit = copy.copy(args)  # only the kind of unit differs, whatever --cross_stitch_unit says
    args_of_last_unit.cross_stitch_unit = "layer"
    columns = stitch(args_of_last_unit, columns, "fc_5")
    columns = {name: dropout(args, x, name) for name, x in columns.items()}
    columns = end_trunk(args, columns, "fc_5", column_names(classes))

    points = layers.Dense(2 * len(LANDMARKS), name="landmarks.output", dtype="float32")(columns["landmarks"])
    outputs = {"landmarks": layers.Reshape((len(LANDMARKS), 2), dtype="float32")(points)}
    for task in classes:
        outputs[task] = poster_output_layer(columns["attributes"], task, len(classes[task]))
    return model_of(args, images, outputs)


def poster_convolution_block(args, x, block, column, level):
    """Convolution with a bias and without padding, max-pool (in some blocks) and ReLU."""
    filters = max(1, round(args.width * block.filters))
    x = layers.Conv2D(filters, block.kernel_size, name=f"{column}.conv_{level}")(x)
    if block.pooling:
        x = layers.MaxPooling2D(2)(x)
    return layers.ReLU()(x)


def poster_dense_block(args, x, column):
    """Fully connected layer with a bias, and ReLU: (batch, ...) to (batch, args.width * POSTER_DENSE_SIZE)."""
    size = max(1, round(args.width * POSTER_DENSE_SIZE))
    x = layers.Dense(size, name=f"{column}.fc_5")(layers.Flatten()(x))
    return layers.ReLU()(x)


def poster_output_layer(x, task, num_classes):
    """Fully connected layer of an attribute: (batch, features) to float32 logits (batch, classes).

    For two classes there is one output z. The logits are 0 and z, since a softmax over these is the sigmoid of z.
    """
    if num_classes == 2:
        z = layers.Dense(1, name=f"{task}.output", dtype="float32")(x)
        return keras.ops.pad(z, ((0, 0), (1, 0)))
    return layers.Dense(num_classes, name=f"{task}.output", dtype="float32")(x)


def model_of(args, images, outputs):
    """Return the model. With --weight_reg it is a `RelatedColumns`, which also has the scalars of `related_weights`."""
    kind = keras.Model if args.weight_reg == "none" else RelatedColumns
    return kind(images, outputs, name=NAME)


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
    """Return the names of the columns: one for the landmarks and, if there are any, one for all attributes."""
    return ["landmarks", "attributes"] if classes else ["landmarks"]


def units_of(network):
    """Return the cross-stitch units of a network."""
    return [layer for layer in network.layers if isinstance(layer, CrossStitch)]


# ------------------------------------------------------------------------------------------------------ related weights


@keras.saving.register_keras_serializable("cross_stitch")
class RelatedColumns(keras.Model):
    """A network that also has the scalars a_j and b_j of `related_weights`, for each layer j that both columns have.

    Keras saves a subclass of a functional model by its layers, and loads it as this class again, since the arguments of
    its constructor are those of `keras.Model`. So it needs no `get_config`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        num_layers = len(kernel_pairs(self))
        self.scales = self.add_weight(name="scales", shape=(num_layers,), initializer="ones")
        self.offsets = self.add_weight(name="offsets", shape=(num_layers,), initializer="zeros")


def kernel_pairs(network):
    """Return the kernels [(theta_j^1, theta_j^2), ...] of the layers that both columns have, in the network's order.

    The first of each pair is that of the landmarks' column, the second that of the attributes'.
    """
    # `kernel.value` is the TensorFlow variable inside a Keras variable, see `l2_loss`.
    kernels = {layer.name: layer.kernel.value for layer in network.layers if hasattr(layer, "kernel")}
    pairs = []
    for name, kernel in kernels.items():
        twin = name.replace("landmarks.", "attributes.")
        if twin != name and twin in kernels:
            pairs.append((kernel, kernels[twin]))
    return pairs


def related_weights(pairs, scales, offsets, kind):
    """Return the sum over the layers j of r_w(theta_j^1, theta_j^2), a scalar.

    With d_j = a_j theta_j^1 + b_j - theta_j^2,

        "l2":  r_w = half the sum of the squares of d_j
        "exp": r_w = exp(m) - 1, where m is the mean of the squares of d_j; above m = 10 its tangent

    The poster refers to Rozantsev, Salzmann and Fua (Beyond Sharing Weights for Deep Domain Adaptation,
    arXiv:1603.06432). With d the difference over all parameters of a layer, their losses are ||d||^2 and
    exp(||d||^2) - 1. The poster's code has half of ||d||^2, over the kernels alone, and here it is the same. The
    poster's code has no exponential loss. The one here takes the mean of the squares, since the exponential of their
    sum over a hundred thousand weights would overflow at the first step.

    Args:
        pairs: What `kernel_pairs` returns.
        scales, offsets: The scalars a_j and b_j, both (layers,).
        kind: "l2" or "exp".
    """
    losses = []
    for j, (first, second) in enumerate(pairs):
        d = scales[j] * first + offsets[j] - second
        if kind == "l2":
            losses.append(tf.nn.l2_loss(d))
        else:
            m = tf.reduce_mean(d**2)
            losses.append(tf.math.expm1(tf.minimum(m, 10.0)) + math.exp(10) * tf.maximum(m - 10.0, 0.0))
    return tf.add_n(losses)


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


def task_losses(outputs, labels, sigmoid_poses):
    """Return {task: its loss, summed over the faces} for the outputs of a network.

    The loss of the landmarks is half the sum of the squares over the ten coordinates (Zhang et al., ECCV 2014). The
    loss of an attribute is the cross-entropy of its softmax. The poster's code gave each of the five poses a sigmoid of
    its own (`sigmoid_poses`): five yes-or-no questions.

    Args:
        outputs: What the network returns.
        labels: {"landmarks": points (batch, 5, 2), attribute: integer labels (batch,)}.
        sigmoid_poses: Whether the poses have sigmoids instead of a softmax.
    """
    losses = {"landmarks": tf.nn.l2_loss(labels["landmarks"] - outputs["landmarks"])}
    for task in outputs:
        if task == "pose" and sigmoid_poses:
            answers = tf.one_hot(labels["pose"], outputs["pose"].shape[1])
            pose_losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=answers, logits=outputs["pose"])
            losses["pose"] = tf.reduce_sum(pose_losses)
        elif task != "landmarks":
            losses[task] = tf.reduce_sum(cross_entropy(outputs[task], labels[task]))
    return losses


def weights_of_tasks(args, classes):
    """Return {task: the weight of its loss}, of the landmarks and of the attributes in `classes`.

    --aux_lambda has one weight for each attribute, or one for all.
    """
    attribute_weights = args.aux_lambda
    if len(attribute_weights) == 1:
        attribute_weights = attribute_weights * len(ATTRIBUTES)  # a list with the same weight for each
    weights = {"landmarks": args.landmark_lambda, **dict(zip(ATTRIBUTES, attribute_weights))}
    return {task: weights[task] for task in ("landmarks", *classes)}


def make_train_step(strategy, network, optimizers, args, classes, signature):
    """Return the function that trains the network on one global batch.

    The training faces have a margin, and a step crops them at random places. The function takes a batch, (faces, {task:
    labels}, random numbers), and the number of stop signals (Ctrl-C, SIGTERM) that this process has received. It
    returns {tag: value}: the values to be logged, and under "num_stop_signals" the sum of that number over all
    replicas. By this sum, processes that train together know that they have to stop together.

    Every replica gets the global batch and trains on its share of it. Gradients and values are summed over the
    replicas. Each replica therefore divides its losses by the size of the global batch. The L2 loss and that of related
    weights do not depend on the batch, so each replica divides these by the number of replicas.

    Args:
        strategy: The distribution strategy.
        network: The network.
        optimizers: The `Optimizers` of the columns and of the units.
        args: The parsed command line.
        classes: {attribute: the names of its classes}.
        signature: The structure of a batch: a `tf.TensorSpec` for each array, with an unspecified batch size. So one
            graph serves all batches, including the last one of an epoch, which is smaller.
    """
    task_weights = weights_of_tasks(args, classes)
    size = network.input_shape[1]
    sigmoid_poses = args.preset == "poster"

    def replica_step(batch, num_stop_signals):
        global_batch_size = tf.cast(tf.shape(batch[0])[0], tf.float32)
        faces, labels, random_numbers = share_of_replica(batch)
        if args.augment:
            faces, labels = augment(faces, labels, random_numbers, size)
        else:
            faces = crop_middle(faces, size)

        with tf.GradientTape() as tape:
            outputs = network(faces, training=True)
            losses = task_losses(outputs, labels, sigmoid_poses)
            losses = {task: loss / global_batch_size for task, loss in losses.items()}
            weighted = [task_weights[task] * losses[task] for task in losses]
            relation = tf.constant(0.0)
            if args.weight_reg != "none":
                scales, offsets = network.scales.value, network.offsets.value
                relation = related_weights(kernel_pairs(network), scales, offsets, args.weight_reg)
            # --weight_reg_lambda is the weight of the relation between the columns, --reg_lambda that of the L2 loss.
            weight_losses = args.weight_reg_lambda * relation + args.reg_lambda * l2_loss(network)
            total = tf.add_n(weighted) + weight_losses / strategy.num_replicas_in_sync
        optimizers.minimize(tape, total, network)  # TensorFlow's optimizers sum the gradients over the replicas

        # The mean error is measured on this batch, with dropout, and on augmented faces if --augment is True.
        distances = tf.norm(outputs["landmarks"] - labels["landmarks"], axis=-1)
        return {
            "summary/loss_total": total,
            "summary/related_weights": relation / strategy.num_replicas_in_sync,
            "landmarks/mean_error_train": tf.reduce_sum(distances) / (global_batch_size * len(LANDMARKS)),
            **{f"{task}/loss": loss for task, loss in losses.items()},
            "num_stop_signals": num_stop_signals,
        }

    return compile_step(strategy, replica_step, signature)


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

    `measures` is what results.json holds of the split: numbers by name, and the error of each landmark. `confusions` is
    {attribute: confusion matrix (classes, classes)}, which counts faces; its rows are the true classes, its columns the
    predicted ones. `sheet` is a picture, uint8 (height, width, 3), that shows the first faces with their true and
    predicted landmarks.
    """

    measures: dict
    confusions: dict
    sheet: np.ndarray


def evaluate(predict, split):
    """Return the `Evaluation` of a split. Attributes are measured where they are known."""
    outputs = predict(split.images)
    measures = landmark_measures(outputs["landmarks"], split.labels["landmarks"])
    confusions = {}
    for task in outputs:
        if task == "landmarks" or task not in split.labels:
            continue
        predicted = np.argmax(outputs[task], axis=1)
        matrix = tf.math.confusion_matrix(split.labels[task], predicted, outputs[task].shape[1]).numpy()
        confusions[task] = matrix
        measures[task] = float(np.trace(matrix) / np.sum(matrix))
    return Evaluation(measures, confusions, draw_sheet(split, outputs["landmarks"]))


def landmark_errors(predicted, points):
    """Return the distances between predicted and true landmarks, each (n, 5, 2), as an array (n, 5).

    Coordinates and distances are measured in widths of the box.
    """
    return np.linalg.norm(np.asarray(predicted, np.float64) - points, axis=-1)


def landmark_measures(predicted, points):
    """Return what results.json holds of the landmarks, from predicted and true ones (n, 5, 2).

    The error of a face is the mean of its five distances, in widths of its box. Above 0.05, the limit of Sun et al.
    (CVPR 2013), it counts as a failure. The interocular error divides by the distance between the true eyes instead,
    and counts as a failure above 0.1 (Zhang et al., ECCV 2014).
    """
    distances = landmark_errors(predicted, points)
    errors = distances.mean(axis=1)
    between_eyes = np.linalg.norm(np.asarray(points[:, 0], np.float64) - points[:, 1], axis=-1)
    interocular = errors / np.maximum(between_eyes, 1e-6)
    return {
        "mean_error": float(errors.mean()),
        "failure_rate": float(np.mean(errors > 0.05)),
        "mean_error_interocular": float(interocular.mean()),
        "failure_rate_interocular": float(np.mean(interocular > 0.1)),
        "landmarks": dict(zip(LANDMARKS, distances.mean(axis=0).tolist())),
    }


def draw_sheet(split, predicted):
    """Draw the first 16 faces of a split, true landmarks in green, and `predicted` ones (n, 5, 2) in red over them."""
    faces_per_side, zoom = 4, 4
    size = split.images.shape[1]
    sheet = np.zeros((faces_per_side, faces_per_side, zoom * size, zoom * size, 3), np.uint8)
    faces = split.images[: faces_per_side**2]
    for index, (face, true, guess) in enumerate(zip(faces, split.labels["landmarks"], predicted)):
        image = sheet[index // faces_per_side, index % faces_per_side]
        image[:] = np.kron(face, np.ones((zoom, zoom, 1), np.uint8))
        for points, colour in ((true, (0, 220, 0)), (guess, (230, 0, 0))):
            mark(image, points * zoom * size - 0.5, colour, radius=2.5)
    return np.concatenate(np.concatenate(sheet, axis=1), axis=1)  # (rows, columns, y, x, 3) to one picture (y, x, 3)


def mark(image, points, colour, radius):
    """Draw a disc about each of the points (n, 2), x and y in pixels, into a uint8 image (height, width, 3)."""
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    for point_x, point_y in points:
        image[(x - point_x) ** 2 + (y - point_y) ** 2 <= radius**2] = colour


def log_evaluations(step, evaluations):
    """Log the errors and accuracies of each split, for instance landmarks/mean_error_test, and a sheet of faces."""
    for split, evaluation in evaluations.items():
        for name in ("mean_error", "failure_rate"):
            tf.summary.scalar(f"landmarks/{name}_{split}", evaluation.measures[name], step=step)
        for task in evaluation.confusions:
            tf.summary.scalar(f"{task}/accuracy_{split}", evaluation.measures[task], step=step)
    shown = evaluations.get("test") or evaluations["aflw"]
    tf.summary.image("landmarks/faces", shown.sheet[np.newaxis], step=step)


def confusions_to_log(evaluations):
    """Return the {attribute: confusion matrix} that TensorBoard shows.

    They are those of `aflw`, the test set with attributes (see `read_lists`), or else those of the validation faces.
    """
    return evaluations.get("aflw", evaluations["validation"]).confusions


def metrics_of_interest(data):
    """Return the tags that TensorBoard's table of hyper-parameters shows."""
    return [f"landmarks/mean_error_{split}" for split in data.splits if split != "train"]


def summary_of_training(values):
    """Return loss and mean error of the training faces in a few words. `values` are means of what a step returns."""
    loss, error = values["summary/loss_total"], values["landmarks/mean_error_train"]
    return f"training loss {loss:.4f}, training mean error {error:.4f}"


def summary_of_evaluations(evaluations):
    """Return the mean errors in one line."""
    errors = [f"{split} {evaluation.measures['mean_error']:.4f}" for split, evaluation in evaluations.items()]
    return "mean error: " + ", ".join(errors)


def print_results(results):
    """Print the measures of a finished run as a table. `results` is the content of its results.json."""
    splits = [split for split in ("test", "aflw", "validation") if split in results]
    majority = results["data"]["majority"]  # what `report_majority` returned
    rows = {
        "mean_error": {split: results[split]["mean_error"] for split in splits},
        "failure_rate": {split: results[split]["failure_rate"] for split in splits},
        "mean_error_interocular": {split: results[split]["mean_error_interocular"] for split in splits},
        "failure_rate_interocular": {split: results[split]["failure_rate_interocular"] for split in splits},
    }
    for task in results["classes"]:
        rows[f"accuracy of {task}"] = {split: results[split][task] for split in splits if task in results[split]}
        rows[f"  always the most frequent {task}"] = majority[task]
    for name in LANDMARKS:
        rows[f"mean_error of {name}"] = {split: results[split]["landmarks"][name] for split in splits}

    say(f"\n{'':34}" + "".join(f"{split:>12}" for split in splits))
    for label, values in rows.items():
        cells = [f"{values[split]:12.4f}" if split in values else f"{'':12}" for split in splits]
        say(f"{label:34}" + "".join(cells))


# ----------------------------------------------------------------------------------------------------------------- data


class Split(NamedTuple):
    """One split of the data: uint8 faces (n, height, width, 1), and their labels by task.

    The labels `landmarks` are float32 points (n, 5, 2), x and y, in coordinates of the face's box. Those of an
    attribute are int64 (n,). A split without them has only `landmarks`.
    """

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
    """The faces that a list names.

    `paths` are the files of the photos. `boxes` (n, 3) are left, top and side, and `points` (n, 5, 2) the landmarks, x
    and y, all in pixels of the photo; the centre of its first pixel is at (0, 0). `missing` (n,) says for which faces a
    landmark is marked as missing. `attributes` is {attribute: int64 (n,)}, empty where they are unknown. `guessed` says
    that the boxes were made from the landmarks.
    """

    paths: list
    boxes: np.ndarray
    points: np.ndarray
    missing: np.ndarray
    attributes: dict
    guessed: bool


BOX_FACTOR = 1.78  # the width of a box divided by the larger extent of its landmarks: the median of MTFL's boxes
MARGIN = 0.25  # how much is kept around the box of a training face, for the augmentation, as a part of the box's width
WHAT_DATA_DIR_HOLDS = (
    "MTFL (http://mmlab.ie.cuhk.edu.hk/projects/TCDCN.html: training.txt, testing.txt and their photos), with the "
    "boxes trainImageList.txt and testImageList.txt of http://mmlab.ie.cuhk.edu.hk/archive/CNN_FacePoint.htm if at hand"
)


def prepare_data(args):
    """Read the lists and the faces, and hold out a part of the training faces for validation.

    The splits are `train`, `validation`, and whichever of `test` and `aflw` the folder has (see `read_lists`). Only the
    training faces have a margin around their box. Training faces whose photo is also a test photo are left out, and
    identical photos are held out together.

    Raises:
        Failure: The data are missing or damaged, or do not fit the arguments.
    """
    window = args.image_size + 2 * int(MARGIN * args.image_size)  # the side of a face with its margin
    lists = read_lists(args.data_dir)
    # From a box that was made from the landmarks, the network could infer the landmarks. So if the training faces (of
    # which some become validation faces) have such boxes, these are moved at random, in another way for each --seed.
    # Such boxes of test faces are not moved, so that test errors depend neither on the seed nor on a guess of how far a
    # face detector is off. So these errors are too optimistic. `print_guessed_boxes` says so.
    if lists["train"].guessed:
        lists["train"] = lists["train"]._replace(boxes=jitter(lists["train"].boxes, args.seed))
    splits, photo_hashes = {}, {}
    for name, faces in lists.items():
        if name == "train":
            splits[name], photo_hashes[name] = read_faces(faces, args.image_size, window)
        else:
            splits[name], photo_hashes[name] = read_faces(faces, args.image_size, args.image_size)
    digest = sha256_of([array for split in splits.values() for array in (split.images, *split.labels.values())])

    train, train_hashes = splits.pop("train"), photo_hashes.pop("train")
    left_out = np.flatnonzero(np.isin(train_hashes, np.concatenate(list(photo_hashes.values()))))
    if len(left_out) > 0:
        say(f"{len(left_out)} training faces are left out: their photos are among those to test on")
    to_train, to_validate = divide(args, train.labels["pose"], train_hashes, left_out)
    validation = select(train, to_validate)
    splits["validation"] = validation._replace(images=crop_middle(validation.images, args.image_size))
    splits = {"train": select(train, to_train), **splits}

    guessed = [name for name, faces in lists.items() if faces.guessed]
    print_guessed_boxes(guessed)
    description = {
        "name": "MTFL",
        "source": args.data_dir,
        "sha256": digest,
        "sizes": {name: len(split.images) for name, split in splits.items()},
        "majority": report_majority(splits),
        "boxes_from_landmarks": guessed,
        "left_out": len(left_out),
    }
    classes = {} if args.network == "single" else ATTRIBUTES
    mean, variance = pixel_statistics(crop_middle(splits["train"].images, args.image_size))
    return Data(splits, classes, mean, variance, description)


def read_lists(data_dir):
    """Return {split: `Faces`} of the lists in a folder.

    Besides `train` there are two test sets. `test` holds the 3,466 faces of testImageList.txt, on which the poster's
    code was tested. They have boxes and no attributes. `aflw` holds the faces of MTFL's own testing.txt, which come
    from the data set AFLW. They have attributes and no boxes. One of the two has to be there.
    """
    training = os.path.join(data_dir, "training.txt")
    boxes = os.path.join(data_dir, "trainImageList.txt")
    test = os.path.join(data_dir, "testImageList.txt")
    aflw = os.path.join(data_dir, "testing.txt")
    lists = {"train": read_attributes(training)}
    if os.path.exists(boxes):
        lists["train"] = with_boxes(lists["train"], boxes)
    if os.path.exists(test):
        lists["test"] = read_boxes(test)
    if os.path.exists(aflw):
        lists["aflw"] = read_attributes(aflw)
    if len(lists) == 1:
        raise Failure(
            f"--data_dir {data_dir} has neither testImageList.txt nor testing.txt, so there is nothing to test on."
        )
    return {name: without_impossible(name, faces) for name, faces in lists.items()}


def read_rows(path):
    """Return the paths of the photos in a list, and its numbers (n, 14). Each line has a path and 14 numbers."""
    try:
        with warnings.catch_warnings(action="ignore"):  # NumPy warns of empty lines; the last line of MTFL is empty
            rows = np.loadtxt(path, dtype=str, comments=None, ndmin=2, encoding="utf-8-sig")
        numbers = rows[:, 1:].astype(float)
        if numbers.shape[1] != 14 or not np.isfinite(numbers).all():
            raise ValueError(f"each line has {numbers.shape[1]} numbers, or one of them is not finite")
    except (OSError, ValueError) as error:
        raise Failure(f"{path} should list faces, a path and 14 numbers in each line ({error}).") from None
    folder = os.path.dirname(path)
    return [os.path.join(folder, name.replace("\\", "/")) for name in rows[:, 0]], numbers


def read_attributes(path):
    """Return the `Faces` of a list in the form of training.txt, with boxes about their landmarks.

    A line has the path of a photo, x1..x5 and y1..y5 of the landmarks in pixels, the first pixel being 1, then gender,
    smile, glasses and pose, whose classes are numbered from 1 in the order of ATTRIBUTES. (In MTFL each coordinate in
    training.txt is one more than in trainImageList.txt, so the two lists count from 1 and from 0.)
    """
    paths, numbers = read_rows(path)
    marks = numbers[:, :10].reshape(-1, 2, 5).transpose(0, 2, 1)
    points = marks - 1
    attributes = {}
    for column, (task, names) in enumerate(ATTRIBUTES.items(), start=10):
        wrong = ~np.isin(numbers[:, column], range(1, len(names) + 1))
        if wrong.any():
            first = int(wrong.argmax())
            raise Failure(
                f"{path}, face {first + 1}: {task} is {numbers[first, column]:g}, and should be from 1 to {len(names)}."
            )
        attributes[task] = numbers[:, column].astype(np.int64) - 1
    return Faces(paths, boxes_around(points), points, any_missing(marks), attributes, guessed=True)


def read_boxes(path):
    """Return the `Faces`, without attributes, of a list in the form of trainImageList.txt.

    A line has the path of a photo, left, right, top and bottom of the box, then x and y of each landmark, all in
    pixels, the first pixel being 0. The listed boxes are square to within a pixel. We keep the width and the centre,
    and make the height equal to the width.
    """
    paths, numbers = read_rows(path)
    left, right, top, bottom = numbers[:, :4].T
    wrong = (left >= right) | (top >= bottom)
    if wrong.any():
        first = int(wrong.argmax())
        raise Failure(
            f"{path}, face {first + 1}: its box is {left[first]:g} {right[first]:g} {top[first]:g} {bottom[first]:g}; "
            "left should be less than right, and top less than bottom."
        )
    side = right - left
    boxes = np.stack([left, (top + bottom - side) / 2, side], axis=1)
    points = numbers[:, 4:].reshape(-1, 5, 2)
    return Faces(paths, boxes, points, any_missing(points), {}, guessed=False)


def any_missing(marks):
    """Return for each face whether a landmark is missing, which lists mark as -1 -1 or 0 0.

    `marks` (n, 5, 2) are the landmarks as they are written in a list.
    """
    return ((marks == -1).all(axis=2) | (marks == 0).all(axis=2)).any(axis=1)


def with_boxes(faces, path):
    """Return `faces` with the boxes that a list in the form of trainImageList.txt has for their photos."""
    listed = read_boxes(path)
    box_of = dict(zip(listed.paths, listed.boxes))
    num_faces = collections.Counter(faces.paths)
    num_boxes = collections.Counter(listed.paths)
    for photo in faces.paths:  # boxes are found by the path of the photo, so it must occur exactly once in each list
        if num_faces[photo] != 1 or num_boxes[photo] != 1:
            raise Failure(
                f"{path} should have one box for each face of training.txt, and each photo one face; {photo} has "
                f"{num_faces[photo]} faces and {num_boxes[photo]} boxes."
            )
    return faces._replace(boxes=np.array([box_of[photo] for photo in faces.paths]), guessed=False)


def without_impossible(name, faces):
    """Return `faces` without those whose landmarks cannot be right, and print how many were dropped.

    Otherwise the network would learn to predict the numbers that stand for a missing landmark. Real landmarks lie in
    their box or close to it. One that is farther outside than half of the box's width is a mistake.
    """
    in_one_place = (faces.points == faces.points[:, :1]).all(axis=(1, 2))
    in_box = to_box(faces.points, faces.boxes)
    far = ((in_box < -0.5) | (in_box > 1.5)).any(axis=(1, 2))
    impossible = faces.missing | in_one_place | far
    if not impossible.any():
        return faces
    first = int(impossible.argmax())
    if faces.missing[first]:
        what = f"a landmark of {faces.paths[first]} is missing"
    elif in_one_place[first]:
        what = f"all landmarks of {faces.paths[first]} are in one place"
    else:
        what = f"a landmark of {faces.paths[first]} lies far from its box"
    say(f"{name}: skipped {impossible.sum()} of {len(impossible)} faces; {what}")
    if impossible.all():
        raise Failure(f"{name}: no face is left; {what}.")
    kept = np.flatnonzero(~impossible)
    return Faces(
        [faces.paths[index] for index in kept],
        faces.boxes[kept],
        faces.points[kept],
        faces.missing[kept],
        {task: labels[kept] for task, labels in faces.attributes.items()},
        faces.guessed,
    )


def boxes_around(points):
    """Return the boxes (n, 3), left, top and side, around points (n, 5, 2): BOX_FACTOR times their larger extent.

    If all points are in one place, the side is 1 pixel.
    """
    low, high = points.min(axis=1), points.max(axis=1)
    side = BOX_FACTOR * (high - low).max(axis=1, keepdims=True)
    side = np.where(side > 0, side, 1)
    return np.concatenate([(low + high - side) / 2, side], axis=1)


def jitter(boxes, seed):
    """Return the boxes (n, 3) moved by up to 8 % of their side and scaled by up to 15 %, at random.

    From a box that was made from the landmarks, the network could infer the landmarks. We assume that the boxes of a
    face detector vary by about as much as these 8 % and 15 %.
    """
    draws = np.random.default_rng(seed).uniform(-1, 1, boxes.shape)
    side = boxes[:, 2:] * np.exp(0.15 * draws[:, 2:])
    centre = boxes[:, :2] + boxes[:, 2:] / 2 + 0.08 * boxes[:, 2:] * draws[:, :2]
    return np.concatenate([centre - side / 2, side], axis=1)


def to_box(points, boxes):
    """Convert points (n, 5, 2) from pixels of the photo to coordinates of their boxes (n, 3), 0 to 1 inside."""
    return (points - boxes[:, None, :2]) / boxes[:, None, 2:]


def from_box(points, boxes):
    """Convert points (n, 5, 2) from coordinates of their boxes (n, 3) to pixels of the photo."""
    return points * boxes[:, None, 2:] + boxes[:, None, :2]


def read_faces(faces, image_size, window):
    """Read the faces of a list.

    Returns:
        A `Split` with faces (n, window, window, 1), of which the middle (n, image_size, image_size, 1) shows the box,
        and the SHA-256 of each photo's file, an array (n,) of strings.
    """
    read = functools.partial(read_face, image_size=image_size, window=window)
    images, kept = decode_images(read, list(zip(faces.paths, faces.boxes)), (window, window, 1))
    points = to_box(faces.points, faces.boxes)[kept].astype(np.float32)
    labels = {"landmarks": points, **{task: classes[kept] for task, classes in faces.attributes.items()}}
    photos = [hashlib.sha256(pathlib.Path(faces.paths[index]).read_bytes()).hexdigest() for index in kept]
    return Split(images, labels), np.array(photos)


def read_face(path, box, image_size, window):
    """Return the face in a photo, grey, uint8 (window, window, 1). The box is its middle (image_size, image_size)."""
    left, top, side = box
    enlarged = side * window / image_size
    margin = (enlarged - side) / 2
    return crop(read_image(path), (left - margin, top - margin, enlarged), window)


def crop(photo, box, size):
    """Cut a square out of a photo, a Pillow image, and scale it to a grey face, uint8 (size, size, 1), antialiased.

    What lies beyond the photo is black. Raise ValueError if the whole square lies beyond it.
    """
    left, top, side = box
    # In the lists the centre of pixel k is at k. Pillow counts from the edges: there the pixel reaches from k to k + 1.
    left, top = left + 0.5, top + 0.5
    if left >= photo.width or top >= photo.height or left + side <= 0 or top + side <= 0:
        raise ValueError("its box lies outside the photo")
    if side > 20 * max(photo.size):
        raise ValueError("its box is more than 20 times as large as the photo")
    # The filter reaches beyond the square by one pixel of the result, which is side / size pixels of the photo, or by
    # one pixel of the photo, if that is larger. Their sum is enough for both.
    reach = 1 + side / size
    start_x, start_y = math.floor(left - reach), math.floor(top - reach)
    part = photo.crop((start_x, start_y, math.ceil(left + side + reach), math.ceil(top + side + reach)))
    square = (left - start_x, top - start_y, left - start_x + side, top - start_y + side)
    face = part.convert("L").resize((size, size), Image.Resampling.BILINEAR, box=square)
    return np.asarray(face)[:, :, np.newaxis]


def crop_middle(faces, size):
    """Return the middle (n, size, size, 1) of faces with their margin (n, window, window, 1)."""
    margin = (faces.shape[1] - size) // 2
    return faces[:, margin : margin + size, margin : margin + size]


def divide(args, poses, photo_hashes, left_out):
    """Return two arrays of sorted indices: of the faces to train on, and of those to validate on.

    The validation faces are stratified by `poses` (n,). Faces with equal `photo_hashes` (n,) stay together. Those at
    the indices `left_out` are neither trained nor validated on. --train_fraction of the others are trained on.
    """
    # The number of a group is the index of its first face.
    _, first, inverse = np.unique(photo_hashes, return_index=True, return_inverse=True)
    groups = first[inverse]
    held_out = hold_out(poses, groups, args.validation_fraction)
    to_validate = np.setdiff1d(held_out, left_out)
    others = np.setdiff1d(np.arange(len(poses)), [*held_out, *left_out])
    if len(others) == 0 or len(to_validate) == 0:
        raise Failure(
            f"--data_dir {args.data_dir} with --validation_fraction {args.validation_fraction} leaves no face to train "
            "on, or none to validate on."
        )
    to_train = others[stratified(poses[others], args.train_fraction, seed=args.seed)]
    return to_train, to_validate


def print_guessed_boxes(guessed):
    """Print which splits have boxes that were made from the landmarks."""
    for name in guessed:
        what = "moved and scaled at random" if name == "train" else "so errors are smaller than with real boxes"
        say(f"{name}: the boxes were made from the landmarks, {BOX_FACTOR} times their larger extent; {what}")


def report_majority(splits):
    """Print, and return as {attribute: {split: accuracy}}, how often the most frequent training class is right."""
    majority = {}
    for task, names in ATTRIBUTES.items():
        most_frequent = int(np.bincount(splits["train"].labels[task]).argmax())
        shares = {
            name: float(np.mean(split.labels[task] == most_frequent))
            for name, split in splits.items()
            if task in split.labels
        }
        right = ", ".join(f"{share:.4f} of {name}" for name, share in shares.items())
        say(f"{task}: always answering {names[most_frequent]} would be right for {right}")
        majority[task] = {name: share for name, share in shares.items() if name != "train"}
    return majority


NUM_RANDOM_NUMBERS = 5  # as many as `augment` needs for each face


def augment(faces, labels, random_numbers, size):
    """Return crops (n, size, size, 1) at random places, and the labels that go with them.

    Half of the faces are mirrored. Each is turned by up to 10 degrees, scaled by up to 10 % and moved by up to 5 % of
    its box. A mirrored face has the other eye on the left, and looks to the other side.

    Args:
        faces: uint8 faces with their margin (n, window, window, 1).
        labels: {"landmarks": points (n, 5, 2), attribute: labels (n,)}.
        random_numbers: (n, 5), uniform in [-1, 1): for mirroring, angle, scale, and the move to the right and down.
        size: The side of a crop.
    """
    mirrored = random_numbers[:, 0] > 0
    direction = tf.where(mirrored, -1.0, 1.0)
    angle = random_numbers[:, 1] * (math.pi / 18)
    zoom = tf.exp(0.1 * random_numbers[:, 2])
    move = 0.05 * random_numbers[:, 3:]

    cos, sin = tf.cos(angle), tf.sin(angle)
    first_row = tf.stack([cos * direction, -sin], axis=1)
    second_row = tf.stack([sin * direction, cos], axis=1)
    turn = tf.stack([first_row, second_row], axis=1)  # (n, 2, 2): mirrors, then turns
    points = labels["landmarks"] - 0.5
    points = tf.einsum("nij,nkj->nki", turn * zoom[:, None, None], points) + move[:, None] + 0.5
    other_side = tf.gather(points, [1, 0, 2, 4, 3], axis=1)
    points = tf.where(mirrored[:, None, None], other_side, points)
    last_pose = len(ATTRIBUTES["pose"]) - 1
    pose = tf.where(mirrored, last_pose - labels["pose"], labels["pose"])

    # The raw operation computes each pixel of the crop from a place in the face. It takes this map as eight numbers:
    # two rows of a matrix, each followed by an offset, and two zeros for "no perspective". With the origin in the
    # middle of both, the pixel u of the crop comes from the place inverse · (u - move · size) in the face, and the
    # first pixel of the crop is u = (1 - size) / 2.
    inverse = tf.transpose(turn, (0, 2, 1)) / zoom[:, None, None]  # the transpose of an orthogonal matrix inverts it
    first_pixel = tf.fill([2], (1 - size) / 2) - move * size
    offset = tf.einsum("nij,nj->ni", inverse, first_pixel) + (faces.shape[1] - 1) / 2
    zeros = tf.zeros_like(move)
    crops = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(faces, tf.float32),
        transforms=tf.concat([inverse[:, 0], offset[:, :1], inverse[:, 1], offset[:, 1:], zeros], axis=1),
        output_shape=(size, size),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.cast(tf.round(crops), tf.uint8), {**labels, "landmarks": points, "pose": pose}


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
    """Print landmarks and attributes of the face in each photo of --predict, and draw the landmarks into a copy.

    The copies, PHOTO.landmarks.png, go to the folder --out; small photos are drawn larger. The face is in --box, or in
    the middle square. If a photo cannot be read or drawn, the others are predicted all the same.
    """
    check_names(args.predict)
    if args.box and not (args.box[0] < args.box[1] and args.box[2] < args.box[3]):
        raise Failure(
            f"--box {' '.join(f'{x:g}' for x in args.box)}: left should be less than right, and top less than bottom."
        )
    network, results = load_run(args.model)
    failures = []
    for path in args.predict:
        try:
            photo = read_image(path)
            box = box_of_face(args, photo)
            face = crop(photo, box, network.input_shape[1])
        except Exception as error:  # Pillow raises many types for damaged files
            failures.append(f"{path} ({reason_of(error)})")
            continue
        outputs = {task: output[0] for task, output in network.predict(face[np.newaxis], verbose=0).items()}
        points = from_box(outputs["landmarks"][np.newaxis], box[np.newaxis])[0]
        print_face(path, points, outputs, results)
        try:
            say(f"  drawn into {draw_landmarks(path, photo, points, box, args.out)}")
        except OSError as error:
            failures.append(f"{path}, whose landmarks cannot be drawn ({error})")
    report_failures(failures)


def check_names(paths):
    """Raise Failure if two photos have the same file name, since one drawing would replace the other."""
    path_of = {}
    for path in paths:
        name = os.path.basename(path)
        if name in path_of:
            raise Failure(
                f"--predict: {path_of[name]} and {path} have the same name, and so would their drawings. Predict them "
                "one by one, with different folders as --out."
            )
        path_of[name] = path


def box_of_face(args, photo):
    """Return left, top and side of the square that holds the face of a photo, an array (3,)."""
    if args.box:
        left, right, top, bottom = args.box
        side = right - left
        return np.array([left, (top + bottom - side) / 2, side])
    side = min(photo.size)
    return np.array([(photo.width - side) / 2 - 0.5, (photo.height - side) / 2 - 0.5, side])


def print_face(path, points, outputs, results):
    """Print the landmarks, points (5, 2) in pixels, and the attributes of a face with their probabilities."""
    say(f"{path}:")
    for name, (x, y) in zip(LANDMARKS, points):
        say(f"  {name:20} x {x:7.1f}  y {y:7.1f}")
    for task in results["classes"]:
        sigmoids = task == "pose" and results["arguments"]["preset"] == "poster"
        probabilities = (tf.sigmoid if sigmoids else tf.nn.softmax)(outputs[task]).numpy()
        best = int(np.argmax(probabilities))
        say(f"  {task:20} {results['classes'][task][best]} {probabilities[best]:.3f}")


def draw_landmarks(path, photo, points, box, folder):
    """Draw points (5, 2), in pixels, into a copy of a photo in `folder`, and return the path of the copy."""
    zoom = max(1, 400 // max(photo.size))
    image = np.kron(np.asarray(photo), np.ones((zoom, zoom, 1), np.uint8))
    mark(image, (points + 0.5) * zoom - 0.5, (230, 0, 0), radius=max(1.5, zoom * float(box[2]) / 60))
    os.makedirs(folder, exist_ok=True)
    target = os.path.join(folder, f"{os.path.basename(path)}.landmarks.png")
    Image.fromarray(image).save(target)
    return target


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


def validation_fraction(text):
    return parse_number(float, text, lambda value: 0 < value < 1, "a number above 0 and below 1")


def image_size(text):
    return parse_number(int, text, lambda value: 32 <= value <= 256, "an integer between 32 and 256")


PRESETS = {  # {preset: {argument: its default}}; arguments on the command line take precedence
    "default": {},
    # The units of Misra et al., for comparison, and not as a recommendation. They first trained the columns alone (by
    # --pretrain_epoch here), and used SGD. With Adam, an alpha can move by 100 times --lr in one step. At the default
    # --lr this is 0.4, more than the 0.1 from which the alphas between the columns start.
    "paper": {"cross_stitch_init": 0.9, "cross_stitch_lr_scale": 100.0},
    "poster": {  # as the poster's code has them; the preset also selects its network and the form of its losses
        "lr": 0.01,
        "lr_half_life": 0.0,
        "n_epoch": 100,
        "n_batch_size": 128,
        "reg_lambda": 0.0,
        "keep_prob": 1.0,
        "image_size": 39,
        "augment": False,
        "landmark_lambda": 200.0,  # 1000 times the mean of ten squares is 200 times half their sum
        "aux_lambda": [0.125],  # the mean over eight outputs: one each for three attributes, five for the pose
        "cross_stitch_at": list(UNIT_PLACES),
        "cross_stitch_init": 0.9,
        "weight_reg": "l2",
        "weight_reg_lambda": 1.0,
    },
}


PREDICTION_ARGUMENTS = ("predict", "model", "box", "out")  # these go with --predict
NAMED_BY_KIND = ("network", "cross_stitch_enabled", "split_after")  # `kind_of_run` puts these into the name of a folder
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
    network = parser.add_argument_group("network")
    network.add_argument(
        "--network",
        choices=("cross_stitch", "single", "split"),
        default="cross_stitch",
        help="cross_stitch: two columns; single: the landmarks alone; split: one trunk, as by --split_after fc_5",
    )

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
        default=[place for place in UNIT_PLACES if place != "pool_4"],
        help="places of the units",
    )
    units.add_argument(
        "--cross_stitch_init", type=fraction, default=1.0, help="initial weight of a column's own activations"
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

    network.add_argument("--split_after", choices=UNIT_PLACES, help="place at which a trunk ends that all tasks share")
    network.add_argument(
        "--width", type=positive_float, default=1.0, help="multiplies the numbers of filters and of neurons"
    )
    network.add_argument(
        "--keep_prob", type=keep_probability, default=0.8, help="share of the activations that dropout keeps"
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
    training.add_argument("--lr", type=positive_float, default=0.004, help="learning rate of Adam")
    training.add_argument(
        "--lr_half_life",
        type=non_negative_float,
        default=6.0,
        help="half-life of --lr in epochs: it decays exponentially; 0: constant",
    )
    training.add_argument("--n_epoch", type=positive_int, default=20, help="epochs to train")
    training.add_argument("--n_batch_size", type=positive_int, default=64, help="images in a step, over all devices")
    training.add_argument("--reg_lambda", type=non_negative_float, default=1e-6, help="weight of the L2 loss")
    training.add_argument(
        "--landmark_lambda", type=non_negative_float, default=1.0, help="weight of the loss of the landmarks"
    )
    training.add_argument(
        "--aux_lambda",
        nargs="+",
        type=non_negative_float,
        default=[0.003],
        help="weights of the attributes' losses, one or four",
    )
    training.add_argument(
        "--weight_reg", choices=("none", "l2", "exp"), default="none", help="relate the weights of the columns"
    )
    training.add_argument(
        "--weight_reg_lambda",
        type=non_negative_float,
        default=1e-6,
        help="weight of the loss of --weight_reg; the default is meant for l2; for exp use 0.01",
    )
    training.add_argument(
        "--preset",
        choices=PRESETS,
        default="default",
        help="paper: units as in Misra et al.; poster: its arguments, network and losses",
    )
    training.add_argument(
        "--seed",
        type=seed_number,
        default=0,
        help="seed of weights, dropout, and of the order, choice, augmentation and guessed boxes of faces",
    )


def add_run_arguments(parser):
    """Add the arguments of the data, the output and the prediction."""
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", type=absolute_path, help="folder of MTFL")
    data.add_argument("--image_size", type=image_size, default=40, help="side of the faces in pixels")
    data.add_argument("--augment", type=boolean, default=True, help="mirror, turn, scale and move the training faces")
    data.add_argument(
        "--train_fraction",
        type=fraction,
        default=1.0,
        help="part of the training faces to use, after validation faces are held out",
    )
    data.add_argument(
        "--validation_fraction", type=validation_fraction, default=0.2, help="part of the training faces to hold out"
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
        "--predict", nargs="+", metavar="PHOTO", type=os.path.expanduser, help="do not train: find landmarks"
    )
    parser.add_argument("--model", metavar="FILE", type=os.path.expanduser, help="model.keras of a run, for --predict")
    edges = ("LEFT", "RIGHT", "TOP", "BOTTOM")
    parser.add_argument(
        "--box",
        nargs=4,
        type=float,
        metavar=edges,
        help="box of the face in pixels, about 1.8 times the larger extent of the landmarks; else the middle square",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", type=os.path.expanduser, default=".", help="where --predict draws landmarks"
    )


def kind_of_run(args):
    """Return the word that begins the name of a run's folder."""
    if args.network != "cross_stitch":
        return args.network
    if args.split_after == UNIT_PLACES[-1]:  # then there is no place for units
        return f"split_after_{args.split_after}"
    kind = "stitched" if args.cross_stitch_enabled else "baseline"
    return f"split_after_{args.split_after}-{kind}" if args.split_after else kind


def check_arguments(args):
    """Raise Failure where arguments do not fit together, before any data are read.

    --network split is another name for --split_after with the last place. For it this function sets `split_after`.
    """
    if args.data_dir is None or not os.path.exists(os.path.join(args.data_dir, "training.txt")):
        raise Failure(f"--data_dir {args.data_dir or ''} should be a folder with {WHAT_DATA_DIR_HOLDS}.")
    if args.pretrain_epoch >= args.n_epoch:
        raise Failure(f"--pretrain_epoch {args.pretrain_epoch} should be less than --n_epoch, {args.n_epoch}.")
    if args.network == "single" and args.split_after:
        raise Failure(f"--split_after {args.split_after} needs more than the landmarks, so not --network single.")
    if args.network == "split":
        if args.split_after not in (None, UNIT_PLACES[-1]):
            raise Failure(f"--network split splits after {UNIT_PLACES[-1]}, not after {args.split_after}.")
        args.split_after = UNIT_PLACES[-1]
    if len(args.aux_lambda) not in (1, len(ATTRIBUTES)):
        raise Failure(f"--aux_lambda needs one number, or one each for {' '.join(ATTRIBUTES)}.")
    if args.weight_reg != "none" and (args.network == "single" or args.split_after == UNIT_PLACES[-1]):
        raise Failure(
            f"--weight_reg {args.weight_reg} relates the weights of two columns, and there is only one. Add "
            "--weight_reg none."
        )
    check_units(args)


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
