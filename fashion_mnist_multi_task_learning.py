"""Trains two tasks on Fashion-MNIST side by side, joined by cross-stitch units.

Task `item` tells the ten kinds of garment apart, task `group` their three groups (shoes, for women, other). Each task
has a column of its own: a small convolutional network. After each pooling layer and each fully connected layer a
cross-stitch unit mixes the columns' activations with learned weights, so that the network itself finds how much the
tasks should share.

    python fashion_mnist_multi_task_learning.py --cross_stitch_enabled True     # or False: the baseline
    python -m tensorboard.main --logdir tf_logs                                 # the curves, side by side

Data of your own: --data_dir FOLDER with train.npz and test.npz, each with `images`, uint8 (n, height, width) or
(n, height, width, channels), and for every task an array of whole numbers from 0, named after the task.
A stopped run goes on where it was:      ... --resume LOG_DIR
Several GPUs of one machine are used without being asked. On several machines, start the same command on each of them
with TF_CONFIG set, and with a --log_dir on storage that all of them see.

To read the method, read down to `train`. What stands below it keeps a run safe, shows it, and reads its arguments.
Papers: Misra, Shrivastava, Gupta, Hebert, "Cross-stitch Networks for Multi-task Learning", CVPR 2016,
arXiv:1604.03539. Xiao, Rasul, Vollgraf, "Fashion-MNIST", 2017, arXiv:1708.07747.
"""

# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["tensorflow==2.21.0", "numpy==2.4.6", "tensorboard==2.21.0"]
# ///

import argparse
import contextlib
import difflib
import fcntl
import gzip
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import statistics
import sys
import threading
import time
import zlib

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save, Ctrl-C ends it without a traceback
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # fewer of TensorFlow's start-up notes, which bury our own lines
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # of a GPU's memory no more than is needed
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")  # memory is kept for the next step, not handed back
os.environ.setdefault("TF_CPU_BFC_MEM_LIMIT_IN_MB", str(2**24))  # by default that would hold 64 GB at most

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tensorboard.plugins.hparams import api as hparams

# What is called shared below is the same text in other scripts: tests/test_copies.py has the list, and mends copies.
NAME = "fashion_mnist_multi_task_learning"
ITEMS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
TASKS = {  # task: (names of its classes, its class for each of the ten labels of the data set)
    "item": (ITEMS, range(10)),
    "group": (["Shoes", "For Women", "Other"], (2, 2, 2, 1, 2, 0, 1, 0, 1, 0)),
}
FILTERS = (32, 64)  # of a column's convolutions, each followed by a pooling layer
WIDTH = 1024  # of its fully connected layer
UNITS = (*(f"pool_{k}" for k, _ in enumerate(FILTERS, 1)), f"fc_{len(FILTERS) + 1}")  # the layers that a unit follows
PRESETS = {  # of the code of 2018: dense units, slow averages; its logits are batch-normalised too
    "ours": {},
    "2018": {"cross_stitch_unit": "activation", "bn_momentum": 0.999},
}
EVALUATION_PIXELS = 2**19  # predicted at once, 668 images of 28x28
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # of this machine, in bytes
BYTES_OF_A_WEIGHT = 16  # in float32: its value, its gradient and Adam's two moments
VERSIONS = {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__}


class Failure(Exception):
    """Ends the program with one line and the given exit status; above 128 a signal stopped it, its state saved."""

    def __init__(self, message, status=2):
        super().__init__(" ".join(str(message).split()))
        self.status = status


# ---------------------------------------------------------- data (hold_out to pixel_statistics: shared)

FILES = {"train": ("train-images-idx3", "train-labels-idx1"), "test": ("t10k-images-idx3", "t10k-labels-idx1")}
DEBIAN = "/usr/share/datasets/fashion-mnist"  # of the package dataset-fashion-mnist
DOWNLOAD = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"  # as keras.datasets.fashion_mnist
SAMPLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "fashion_mnist_sample")


def read_idx(path, dimensions):
    """Returns the uint8 array in the gzipped IDX file `path`; raises Failure if it is not whole and sound."""
    try:
        with gzip.open(path) as file:
            _, *shape = np.frombuffer(file.read(4 + 4 * dimensions), ">u4").tolist()  # after the magic number
            content = file.read(min(math.prod(shape), 2**31) + 1)  # no more: a small file can unpack to gigabytes
        return np.frombuffer(content, np.uint8).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        expected = "expected one of Fashion-MNIST's four .gz files, or train.npz and test.npz instead, whole and sound"
        raise Failure(f"{path}: {expected} ({error}); if a download was cut off, remove it") from None


def read_fashion_mnist(folder, part):
    """Returns the arrays of a part, as `read_npz` does, of Fashion-MNIST's four files or others of their form."""
    images, labels = (read_idx(f"{folder}/{name}-ubyte.gz", int(name[-1])) for name in FILES[part])
    if labels.max(initial=0) > 9:
        raise Failure(f"{folder}, {part}: expected labels 0..9, found {labels.max()}")
    arrays = {"images": images}
    for task, (classes, class_of) in TASKS.items():
        arrays |= {task: np.array(class_of)[labels], f"{task}_names": np.array(classes)}
    return arrays


def read_npz(folder, part):
    """Returns the arrays in train.npz or test.npz, {name: array}; the module's docstring describes them."""
    path = os.path.join(folder, f"{part}.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name], str if name.endswith("_names") else None) for name in file}
    except Exception as error:  # what NumPy makes of a damaged file is of many types
        raise Failure(f"{path}: expected a file of numpy.savez without Python objects ({error})") from None


def read_folder(folder):
    """Returns the training part, the test part and the classes, {task: their names}, of the data in a folder.

    A part is a pair of arrays: images, uint8 (n, height, width, C), and labels, int64 (n, tasks). Raises Failure,
    which names the file or the part, where the data are damaged or do not fit together.
    """
    read = read_npz if os.path.exists(os.path.join(folder, "train.npz")) else read_fashion_mnist
    contents = {part: read(folder, part) for part in FILES}
    train, smallest, parts, classes = contents["train"], 2 ** len(FILTERS), [], {}
    tasks = [name for name in train if name != "images" and name.removesuffix("_names") not in train.keys() - {name}]
    of_a_column = rf"({'|'.join(map(re.escape, tasks))})_((conv|bn|pool|relu|flatten|fc)_\d+|dropout|logits)"
    taken = re.compile(rf"summary|units|throughput|accuracy|standardise|{'|'.join(UNITS)}|{of_a_column}")
    if not tasks or not all(re.fullmatch(r"[A-Za-z]\w*", x, re.ASCII) and not taken.fullmatch(x) for x in tasks):
        what = "arrays of labels beside images, named after their tasks (letters, digits, _; not as layers are)"
        raise Failure(f"{folder}: expected {what}, found {tasks}")
    for part, arrays in contents.items():
        images, others = (content.get("images", np.empty(0)) for content in (arrays, train))
        fits = images.shape[1:] == others.shape[1:] and min(images.shape[1:3], default=0) >= smallest
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size or not fits:
            what = f"uint8 (n, height, width) or (n, height, width, C), all of one size, {smallest} or more per side"
            raise Failure(f"{folder}, {part}: expected images, {what}, found {images.dtype} {images.shape}")
        labels = [arrays.get(task, np.empty(0)) for task in tasks]
        for task, y in zip(tasks, labels):
            if y.dtype.kind not in "iu" or y.shape != images.shape[:1] or not 0 <= y.min() <= y.max() < 10_000:
                what = f"{len(images)} whole numbers from 0 to 9999, one per image"
                raise Failure(f"{folder}, {part}: expected {task}, {what}, found {y.dtype} {y.shape}")
        parts.append((images.reshape(*images.shape[:3], -1), np.stack([y.astype(np.int64) for y in labels], axis=1)))
    for task, *labels in zip(tasks, *(y.T for _, y in parts)):
        count = 1 + int(max(y.max() for y in labels))
        names = train.get(f"{task}_names", np.arange(count).astype(str))
        if not np.array_equal(names, contents["test"].get(f"{task}_names", names)):
            raise Failure(f"{folder}: expected the same {task}_names, in one order, in both parts, or in train alone")
        if names.ndim != 1 or len(names) < max(count, 2):
            raise Failure(f"{folder}: expected two classes or more of {task} and a name for each, found {names.shape}")
        classes[task] = names.tolist()
    return *parts, classes


def find_data():
    """Returns the folder of the first source that is there: Debian's package, Keras's cache or download, the sample."""
    if os.path.isdir(DEBIAN):
        return DEBIAN
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # seconds without an answer: some networks swallow requests silently
    try:
        for name in itertools.chain(*FILES.values()):
            path = keras.utils.get_file(origin=f"{DOWNLOAD}{name}-ubyte.gz", cache_subdir="datasets/fashion-mnist")
        return os.path.dirname(path)
    except Exception as error:  # what get_file raises when it cannot download, of no narrower type
        print(f"Fashion-MNIST cannot be downloaded: {error}; without --data_dir, the sample is taken", flush=True)
        return SAMPLE
    finally:
        socket.setdefaulttimeout(patience)


def hold_out(strata, people, fraction):
    """Returns the sorted indices of a random part, the same for every seed and every set of tasks.

    It is stratified by `strata`, and nobody of `people` (who or which picture each image shows) is on both sides.
    """
    names, first = np.unique(people, return_index=True)
    return np.flatnonzero(np.isin(people, names[stratified(strata[first], fraction, seed=0)]))


def stratified(labels, fraction, seed):
    """Returns the sorted indices of a random part that holds `fraction` of every class, at least one of each."""
    shuffle = np.random.default_rng(seed).permutation
    members = [shuffle(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return np.sort(np.concatenate([m[: max(1, round(fraction * len(m)))] for m in members]))


def pixel_statistics(images):
    """Returns the mean and the standard deviation of each pixel of uint8 images (n, height, width, C), float64.

    The deviation is at least one grey level: a pixel constant in a small training part may vary in a test image.
    """
    mean = images.mean(axis=0, dtype=np.float64)
    square = np.einsum("n...,n...->...", images, images, dtype=np.float64) / len(images)
    return mean, np.sqrt(np.maximum(square - mean**2, 1))


def prepare_data(args):
    """Returns the parts, the classes, the per-pixel mean and deviation of the training images, and a record.

    A part (`train`, `test` and, if asked for, `validation`) is a pair of arrays: images, uint8
    (n, height, width, C), and labels, int64 (n, tasks). The classes are {task: their names}. A fraction is one of each
    class of the file's first task, so that any --tasks get the same images; identical ones are held out together. The
    record says where the data come from, their sizes, the SHA-256 of all of them, and what to be warned of.
    """
    source = args.data_dir or find_data()
    (images, labels), test, classes = read_folder(source)
    record = {"name": os.path.basename(os.path.abspath(source)) if args.data_dir else "Fashion-MNIST", "source": source}
    if source == SAMPLE:
        record["warning"] = "!!! this run uses the embedded SAMPLE: its accuracies are not those of Fashion-MNIST !!!"
    digest = hashlib.sha256()
    for array in (images, labels, *test):
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array))
    rows = {"train": np.arange(len(images))}
    if args.validation_fraction:
        digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
        _, first, picture = np.unique(digests, return_index=True, return_inverse=True)
        rows["validation"] = hold_out(labels[:, 0], first[picture], args.validation_fraction)
        rows["train"] = np.delete(rows["train"], rows["validation"])
        if not len(rows["train"]):
            raise Failure(f"--validation_fraction {args.validation_fraction}: nothing left to train on")
    rows["train"] = rows["train"][stratified(labels[rows["train"], 0], args.train_fraction, seed=args.seed)]
    tasks = args.tasks or list(classes)
    if not set(tasks) <= classes.keys() or len(set(tasks)) < len(tasks):
        raise Failure(f"--tasks {' '.join(tasks)}: expected some of {' '.join(classes)}, each once")
    if args.task_weights and len(args.task_weights) != len(tasks):
        raise Failure(f"--task_weights: expected {len(tasks)} numbers, one each for {' '.join(tasks)}")
    parts = {part: (images[k] if len(k) < len(images) else images, labels[k]) for part, k in rows.items()}
    columns = [list(classes).index(task) for task in tasks]
    parts = {part: (x, y[:, columns]) for part, (x, y) in (parts | {"test": test}).items()}
    record |= {"sizes": {part: len(x) for part, (x, _) in parts.items()}, "sha256": digest.hexdigest()}
    return parts, {task: classes[task] for task in tasks}, *pixel_statistics(parts["train"][0]), record


# --------------------------------------------------------------------------- cross-stitch unit (shared)


@keras.saving.register_keras_serializable("cross_stitch")
class CrossStitch(layers.Layer):
    """The cross-stitch unit: every column's output is a learned linear combination of all columns' inputs.

    Takes x_1..x_T, one tensor per task, T > 1, all of one shape (batch, ..., C), and returns as many of that shape,
    x̃_i = Σ_j α_ij x_j (arXiv:1604.03539, equation 1, for T tasks). Raises KeyError if there is no such `unit`.

    Arguments:
        unit: what one α_ij is. "channel": one number per channel, α of shape (T, T, C), as in the paper.
            "layer": one number, α of shape (T, T). "activation": a matrix over the D flattened activations of
            a column, α of shape (T·D, T·D), whose block (i, j) takes x_j to its share of x̃_i.
        init: the initial α_ii; α_ij is (1 - init) / (T - 1), so that scales are kept. 1 is the identity.
    """

    def __init__(self, unit="channel", init=1.0, **kwargs):
        super().__init__(**kwargs)
        self.unit, self.init = unit, init

    def build(self, input_shapes):
        t, (_, *shape) = len(input_shapes), input_shapes[0]
        self.tasks, self.size = t, math.prod(shape)
        shapes = {"channel": (t, t, shape[-1]), "layer": (t, t), "activation": (t * self.size, t * self.size)}
        self.alpha = self.add_weight(name="alpha", shape=shapes[self.unit], initializer=self.initial_alpha)

    def initial_alpha(self, shape, dtype=None, init=None):
        """Returns α of the given shape as it is before training, or with another `init` than the unit's own."""
        init = self.init if init is None else init
        cross = (1 - init) / (self.tasks - 1)
        mix = tf.fill((self.tasks, self.tasks), cross) + (init - cross) * tf.eye(self.tasks)
        if self.unit == "activation":
            return tf.reshape(mix[:, None, :, None] * tf.eye(self.size)[None, :, None, :], shape)  # blocks α_ij · I
        return tf.broadcast_to(mix[..., None], shape) if self.unit == "channel" else mix

    def call(self, inputs):
        alpha = tf.convert_to_tensor(self.alpha)
        if self.unit != "activation":
            return [tf.add_n([alpha[i, j] * x for j, x in enumerate(inputs)]) for i in range(self.tasks)]
        flat = tf.concat([tf.reshape(x, (-1, self.size)) for x in inputs], axis=1)
        mixed = tf.split(tf.matmul(alpha, flat, transpose_b=True), self.tasks)  # flat · αᵀ is slow on some processors
        return [tf.reshape(tf.transpose(x), tf.shape(inputs[0])) for x in mixed]

    def mixing(self):
        """Returns the (T, T) NumPy array of the means of α_ij: over channels, or over the diagonal of a block."""
        alpha = tf.convert_to_tensor(self.alpha)
        if self.unit == "activation":
            blocks = tf.reshape(alpha, (self.tasks, self.size, self.tasks, self.size))
            alpha = tf.linalg.diag_part(tf.transpose(blocks, (0, 2, 1, 3)))
        return (tf.reduce_mean(alpha, axis=2) if alpha.shape.rank == 3 else alpha).numpy()


# ------------------------------------------------------ network (BatchNormalization to Dropout: shared)


@keras.saving.register_keras_serializable("cross_stitch")
class BatchNormalization(layers.BatchNormalization):
    """Keras's batch normalisation over the last axis, trained by TensorFlow's fused kernel, several times as fast.

    Takes and returns (batch, height, width, C) or (batch, C); has scale and centre. Where several replicas share a
    batch (`synchronized`), Keras's own code computes the same over all of them.
    """

    def call(self, inputs, training=False):
        if self.synchronized or not (training and self.trainable):
            return super().call(inputs, training=training)
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        x = inputs if inputs.shape.rank == 4 else inputs[:, None, None]  # the kernel takes images
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=self.epsilon)
        n = tf.cast(tf.size(x) // x.shape[-1], variance.dtype)
        biased = tf.math.multiply_no_nan(variance, (n - 1) / n)  # the kernel's is unbiased, NaN of one; Keras's is not
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, biased)):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return tf.reshape(outputs, tf.shape(inputs))


def replica_seed(generator):
    """Returns the next seed, (2,), of a Keras SeedGenerator: one for each replica, where Keras's own is one for all."""
    replica = tf.distribute.get_replica_context()  # None while the network is built
    return tf.cast(generator.next(), tf.int32) + (replica.replica_id_in_sync_group if replica else 0)


@keras.saving.register_keras_serializable("cross_stitch")
class Dropout(layers.Dropout):
    """Keras's dropout, with a mask of its own on each replica."""

    def call(self, inputs, training=False):
        if not training or not self.rate:
            return inputs
        return tf.nn.experimental.stateless_dropout(inputs, self.rate, replica_seed(self.seed_generator))


def build_network(args, classes, mean, deviation):
    """Returns the network: uint8 images (batch, height, width, C) in, {task: float32 logits (batch, classes)} out.

    `classes` is {task: names of its classes}; `mean` and `deviation` (height, width, C) standardise each pixel. Call
    it in the scope of the distribution strategy.
    """
    no_bias = {"use_bias": False, "kernel_initializer": "he_normal"}  # the batch norm after it has one
    norm = {"momentum": args.bn_momentum, "synchronized": tf.distribute.has_strategy()}
    needed = []  # bytes of each dense unit

    def convolution(task, level, filters, x):
        x = layers.Conv2D(filters, 3, padding="same", name=f"{task}_conv_{level}", **no_bias)(x)
        x = BatchNormalization(name=f"{task}_bn_{level}", **norm)(x)
        x = layers.MaxPooling2D(2, name=f"{task}_pool_{level}")(x)
        return layers.ReLU(name=f"{task}_relu_{level}")(x)  # after the pool: the same, on a quarter of the numbers

    def dense(task, level, x):
        x = layers.Flatten(name=f"{task}_flatten_{level}")(x)
        x = layers.Dense(WIDTH, name=f"{task}_fc_{level}", **no_bias)(x)
        x = BatchNormalization(name=f"{task}_bn_{level}", **norm)(x)
        return layers.ReLU(name=f"{task}_relu_{level}")(x)

    def output(task, x):
        x = Dropout(1 - args.keep_prob, name=f"{task}_dropout", dtype="float32")(x)
        if args.preset == "2018":
            x = layers.Dense(len(classes[task]), name=f"{task}_logits", dtype="float32", **no_bias)(x)
            return BatchNormalization(name=task, dtype="float32", **norm)(x)
        return layers.Dense(len(classes[task]), kernel_initializer="he_normal", name=task, dtype="float32")(x)

    def stitch(name, columns):
        if not args.cross_stitch_enabled or len(columns) == 1 or name not in args.cross_stitch_at:
            return columns
        init = 1.0 if args.pretrain_epoch else args.cross_stitch_init
        if args.cross_stitch_unit == "activation":
            needed.append(BYTES_OF_A_WEIGHT * (len(columns) * math.prod(columns[0].shape[1:])) ** 2)
        if sum(needed) > MEMORY:
            what = f"{sum(needed) / 1e9:.1f} GB up to {name}, expected less than this machine's {MEMORY / 1e9:.1f} GB"
            raise Failure(f"--cross_stitch_unit activation: units take {what}")
        return CrossStitch(args.cross_stitch_unit, init, name=name)(columns)

    images = keras.Input(mean.shape, dtype="uint8", name="images")
    x = layers.Normalization((1, 2, 3), mean, deviation**2, name="standardise", dtype="float32")(images)
    columns = [x for _ in classes]
    for level, filters in enumerate(FILTERS, 1):
        columns = [convolution(task, level, filters, x) for task, x in zip(classes, columns)]
        columns = stitch(f"pool_{level}", columns)
    columns = stitch(UNITS[-1], [dense(task, len(FILTERS) + 1, x) for task, x in zip(classes, columns)])
    return keras.Model(images, {task: output(task, x) for task, x in zip(classes, columns)}, name=NAME)


# -------------------------------------------------------------------------- losses and metrics (shared)


def cross_entropies(logits, labels):
    """Returns each task's cross-entropy, summed over the images, as a list of scalars.

    `logits` maps tasks to (batch, classes), in the order of the columns of `labels` (batch, tasks).
    """
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits
    return [tf.reduce_sum(loss(labels=labels[:, t], logits=x)) for t, x in enumerate(logits.values())]


def l2_regularisation(network):
    """Returns Σ ½‖W‖² over the kernels of convolutions and dense layers; units, biases and batch norm are free."""
    return tf.add_n([tf.nn.l2_loss(v.value) for v in network.trainable_variables if v.name == "kernel"])


# ------------------------------------------------------------------------------------ training (shared)


def replica_share(*batch):
    """Returns this replica's share of each tensor of the global batch."""
    context = tf.distribute.get_replica_context()
    replica, replicas, n = context.replica_id_in_sync_group, context.num_replicas_in_sync, tf.shape(batch[0])[0]
    return [x[n * replica // replicas : n * (replica + 1) // replicas] for x in batch]


def batches(args, n, step, replicas):
    """Yields the indices into n training images of each global batch after `step` steps, epoch after epoch.

    The order in an epoch depends on the seed and on the epoch alone. Each replica needs an image: a last batch with
    fewer holds its images several times, which leaves their mean as it is.
    """
    first, done = divmod(step, -(-n // args.n_batch_size))
    for epoch in itertools.count(first):
        order = np.random.default_rng([args.seed, epoch]).permutation(n)
        for start in range(done * args.n_batch_size, n, args.n_batch_size):
            batch = order[start : start + args.n_batch_size]
            yield np.tile(batch, -(-replicas // len(batch)))
        done = 0


def learning_rates(args, epoch):
    """Returns Adam's learning rate for the columns and that for the units in an epoch, counted from 0."""
    rate = args.lr * 0.5 ** (epoch / args.lr_half_life) if args.lr_half_life else args.lr
    return rate, rate * args.cross_stitch_lr_scale * (epoch >= args.pretrain_epoch)


def make_train_step(strategy, network, optimizers, args):
    """Returns the tf.function (images, labels, stop) -> numbers that trains one step on a global batch.

    The numbers are a vector: the total loss, each task's cross-entropy times its weight, the accuracy on the batch, and
    the sum of `stop` over the replicas, by which each machine tells the others that it was asked to. `optimizers` are
    those of the columns and of the units: TensorFlow 1's Adam, a fused kernel.
    """
    alphas = [v.value for v in network.trainable_variables if v.name == "alpha"]
    weights = [v.value for v in network.trainable_variables if v.name != "alpha"]
    trained = [pair for pair in zip(optimizers, (weights, alphas)) if pair[1]]  # a baseline has no α
    task_weights = args.task_weights or [1.0] * len(network.output)

    def replica_step(images, labels, stop):
        n = tf.cast(tf.shape(images)[0], tf.float32)
        x, y = replica_share(images, labels)
        with tf.GradientTape() as tape:
            logits = network(x, training=True)
            losses = [weight * total / n for weight, total in zip(task_weights, cross_entropies(logits, y))]
            loss = tf.add_n([*losses, args.reg_lambda * l2_regularisation(network) / strategy.num_replicas_in_sync])
        gradients = tape.gradient(loss, [variables for _, variables in trained])
        for (optimizer, variables), of_variables in zip(trained, gradients):
            optimizer.apply_gradients(zip(of_variables, variables))  # which sums them over the replicas
        hits = tf.equal(tf.stack([tf.argmax(x, axis=1) for x in logits.values()], axis=1), y)
        return tf.stack([loss, *losses, tf.reduce_sum(tf.cast(hits, tf.float32)) / (n * y.shape[1]), stop])

    with strategy.scope():  # slots that the step itself had to create would have it traced twice
        for optimizer, variables in trained:
            optimizer._create_slots(variables)

    @tf.function(autograph=False)  # nothing branches on a tensor, and a start takes a second less
    def train_step(*inputs):
        return strategy.reduce("SUM", strategy.run(replica_step, inputs), axis=None)

    return train_step


def evaluate(predict, part, classes):
    """Returns {task: confusion matrix, (classes, classes)} of a part; rows are true classes, columns predicted ones.

    Every process predicts for itself, so many images at once that the memory they take does not depend on their size.
    """
    images, labels = part
    size = max(1, EVALUATION_PIXELS // math.prod(images.shape[1:3]))
    outputs, matrices = [predict(images[k : k + size]) for k in range(0, len(images), size)], {}
    for t, (task, names) in enumerate(classes.items()):
        predicted = tf.concat([tf.argmax(logits[task], axis=1) for logits in outputs], axis=0)
        matrices[task] = tf.math.confusion_matrix(labels[:, t], predicted, len(names)).numpy()
    return matrices


def train(args, resumed):
    """Trains the network as `args` says and leaves the run in args.log_dir.

    `resumed` is the record (run.json) of the run to go on with, None for a new one. Raises Failure: with status 3 when
    the loss is no longer finite, with 130 or 143 when a signal ended the run, its state saved.
    """
    strategy, chief = choose_strategy(args, len(args.tasks or TASKS))
    parts, classes, mean, deviation, data = prepare_data(args)
    record = {"arguments": vars(args), "data": data, "classes": classes, "versions": VERSIONS}
    record |= {"cores": CORES, "devices": strategy.num_replicas_in_sync}
    refuse_difference(strategy, record, resumed)
    keras.utils.set_random_seed(args.seed)
    with strategy.scope():
        network = build_network(args, classes, mean, deviation)
        rates = [tf.Variable(0.0), tf.Variable(0.0)]  # of the columns, of the units
        optimizers = [tf.compat.v1.train.AdamOptimizer(rate) for rate in rates]
        tags = ["summary/loss_total", *(f"{task}/loss" for task in classes), "summary/accuracy_train"]
        tags += ["throughput/images_per_second"]
        shown = tf.Variable(tf.zeros(len(tags)))  # the last step's numbers, which are logged only after its checkpoint
        weights = [v.value for v in network.variables]
        checkpoint = tf.train.Checkpoint(network=weights, optimizers=optimizers, shown=shown)
    record["parameters"] = sum(math.prod(v.shape) for v in network.trainable_variables)
    (images, labels), held_out = parts["train"], sorted(parts.keys() - {"train"})
    replicas, steps_per_epoch = strategy.num_replicas_in_sync, -(-len(images) // args.n_batch_size)
    every, total = args.eval_every or steps_per_epoch, args.n_epoch * steps_per_epoch
    log_every = min(args.log_every, max(1, total // 10))

    stop, asked, speeds = [], 0, []  # stop: the signals that came; asked: how many came to any machine
    claimed = claim(args.log_dir, resumed) if chief else contextlib.nullcontext()
    with claimed, on_signals(lambda kind, _: stop.append(kind)):
        if chief:
            describe(args, record, network, replicas)
        specs = [tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in (images, labels)]
        train_step = make_train_step(strategy, network, optimizers, args)
        train_step = train_step.get_concrete_function(*specs, tf.TensorSpec([]))
        predict = tf.function(lambda x: network(x, training=False), specs[:1], autograph=False)
        first = restore_checkpoint(checkpoint, args.log_dir) if resumed else 0
        agree(strategy, checkpoint=first)
        if chief:
            write_json(os.path.join(args.log_dir, "run.json"), record)
        if first == 0:  # a new run, or one that was killed before it had trained
            write_checkpoint(checkpoint, args.log_dir, 0, chief)
        numbers, indices = shown.numpy().tolist(), batches(args, len(images), first, replicas)
        writer = open_events(args.log_dir, first) if chief else tf.summary.create_noop_writer()
        with writer.as_default():
            log_setting(args, data, [f"{tag}/accuracy_test" for tag in ("summary", *classes)])
            if first == 0:
                tf.summary.graph(train_step.graph)
            for step in range(first, total + 1):
                tf.summary.experimental.set_step(step)
                evaluating = step > 0 and (step % every == 0 or step == total)
                if step > first and (evaluating or asked):  # before anything is logged under this step
                    shown.assign(numbers)
                    write_checkpoint(checkpoint, args.log_dir, step, chief)
                if asked:  # this machine or another
                    raise Failure(f"stopped at step {step} of {total}", 128 + (stop[0] if stop else signal.SIGTERM))
                if step % log_every == 0 or step == total:
                    log_training(network, step, dict(zip(tags, numbers)))
                if evaluating:
                    found = {part: evaluate(predict, parts[part], classes) for part in held_out}
                    epoch = f"epoch {-(-step // steps_per_epoch)}/{args.n_epoch}  step {step}"
                    epoch += f"  {numbers[-1]:,.0f} images/s"
                    results = log_evaluation(found, epoch if chief else "")
                    speeds.append(numbers[-1])
                if step == total:
                    log_confusion(found["test"], classes)
                    break
                if step == first or evaluating:
                    began, seen, steps = time.perf_counter(), 0, min(every - step % every, total - step)
                    bar = keras.utils.Progbar(steps, verbose=chief and sys.stdout.isatty(), stateful_metrics=["loss"])
                if step == args.pretrain_epoch * steps_per_epoch > 0:
                    for unit in units_of(network):
                        unit.alpha.assign(unit.initial_alpha(unit.alpha.shape, init=args.cross_stitch_init))
                for variable, rate in zip(rates, learning_rates(args, step // steps_per_epoch)):
                    variable.assign(rate)
                batch = next(indices)
                *numbers, asked = train_step(images[batch], labels[batch], len(stop)).numpy().tolist()
                if not np.isfinite(numbers).all():
                    of_task = dict(zip(tags, numbers))
                    raise Failure(f"step {step + 1}: the loss is no longer finite: {of_task}; try a smaller --lr", 3)
                seen += len(batch)
                numbers.append(seen / (time.perf_counter() - began))
                bar.add(1, [("loss", numbers[0])])
        if chief:
            write_results({**record, **results, "steps": total}, network, speeds)


def log_evaluation(found, epoch):
    """Logs and returns the accuracies of {part: {task: confusion matrix}}, their means as `accuracy`.

    Prints those of `test` after `epoch`, unless that is empty.
    """
    measured = {}
    for part, matrices in found.items():
        tasks = {task: float(np.trace(matrix) / np.sum(matrix)) for task, matrix in matrices.items()}
        measured[part] = {**tasks, "accuracy": statistics.fmean(tasks.values())}
        for task, accuracy in measured[part].items():
            tf.summary.scalar(f"{'summary' if task == 'accuracy' else task}/accuracy_{part}", accuracy)
    if epoch:
        scores = [f"{'overall' if task == 'accuracy' else task} {v:.4f}" for task, v in measured["test"].items()]
        print(f"{epoch}  test accuracy  {'  '.join(scores)}", flush=True)
    return measured


def print_results(results):
    """Prints the accuracies of a finished run as a table."""
    parts = [part for part in ("test", "validation") if part in results]
    print(f"\n{'accuracy':12}" + "".join(f"{part:>12}" for part in parts))
    for task in results["test"]:
        name = "overall" if task == "accuracy" else task
        print(f"{name:12}" + "".join(f"{results[part][task]:12.4f}" for part in parts))
    if "warning" in results["data"]:
        print(results["data"]["warning"])


# ------------------------------------------------------------------- checkpoints and summaries (shared)


def choose_strategy(args, columns):
    """Returns the distribution strategy for the devices at hand, and whether this process writes the run.

    TF_CONFIG set: several machines. Several GPUs (or logical CPUs): all of them. Otherwise one device. Operations will
    be deterministic, and layers compute in --precision where they do not say otherwise.
    """
    keras.config.set_dtype_policy("mixed_bfloat16" if args.precision == "bfloat16" else "float32")
    tf.config.experimental.enable_op_determinism()
    dense = args.cross_stitch_enabled and args.cross_stitch_unit == "activation"  # else columns run side by side
    with contextlib.suppress(RuntimeError):  # TensorFlow is running already, as in a notebook
        tf.config.threading.set_intra_op_parallelism_threads(max(1, CORES // (1 if dense else columns)))
    if "TF_CONFIG" not in os.environ:
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy(), True
    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        cluster = resolver.cluster_spec()
        address = cluster.task_address(resolver.task_type, resolver.task_id)
        workers = [worker for job in sorted(cluster.jobs) for worker in cluster.job_tasks(job)]  # the chief first
        counts = {job: cluster.num_tasks(job) for job in cluster.jobs}
        if not {"chief", "worker"}.issuperset(counts) or counts.get("chief", 0) > 1:
            raise ValueError(f"found {counts}")
    except (ValueError, TypeError, AttributeError) as error:
        example = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
        raise Failure(f"TF_CONFIG: expected {example}, with one chief at most, and no other jobs ({error})") from None
    print(f"{address}: waiting until all of {', '.join(workers)} are there", flush=True)
    with on_signals(signal.SIG_DFL):  # TensorFlow waits without Python, whose handlers cannot run; it ignores SIGTERM
        return tf.distribute.MultiWorkerMirroredStrategy(), address == workers[0]


@contextlib.contextmanager
def on_signals(action):
    """A context in which Ctrl-C and SIGTERM do `action`. Threads but the main one, as those of Ray Train, get none."""
    kinds = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {kind: signal.signal(kind, action) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def agree(strategy, **facts):
    """Raises Failure unless all workers of TF_CONFIG come with the same facts, each something that JSON holds."""
    if "TF_CONFIG" in os.environ:
        codes = [zlib.crc32(json.dumps(fact, sort_keys=True).encode()) for fact in facts.values()]
        found = strategy.gather(strategy.run(tf.function(lambda: tf.constant([codes], tf.int64))), axis=0).numpy()
        if differing := [what for what, column in zip(facts, found.T) if len(set(column)) > 1]:
            raise Failure(f"TF_CONFIG: expected the same {', '.join(differing)} on all workers, found different ones")


@contextlib.contextmanager
def claim(log_dir, resumed):
    """A context in which no other process can write into the run's folder, which holds no run unless it is resumed."""
    try:
        os.makedirs(log_dir, exist_ok=True)
        of_a_run = r"run\.json|results\.json|model\.keras|checkpoints|.*tfevents.*"
        if not resumed and any(re.fullmatch(of_a_run, name) for name in os.listdir(log_dir)):
            raise Failure(f"--log_dir {log_dir}: already holds a run; go on with --resume, or name another folder")
        lock = open(os.path.join(log_dir, "lock"), "a")  # noqa: SIM115 (closed below, by with)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        what = "which no other process is writing" if isinstance(error, BlockingIOError) else "that can be written"
        raise Failure(f"--log_dir {log_dir}: expected a folder {what} ({error})") from None
    with lock:
        yield


def refuse_difference(strategy, record, resumed):
    """Raises Failure where data or libraries are others than those of the run to resume, or than another worker's."""
    data = record["data"]["sha256"]
    if resumed and resumed["data"].get("sha256") != data:
        raise Failure(f"--resume: expected the data that it was begun with, --data_dir {resumed['data'].get('source')}")
    if resumed and resumed["versions"] != VERSIONS:
        raise Failure(f"--resume: expected {resumed['versions']}, with which the run was begun, found {VERSIONS}")
    for what, differing in (("cores", "the last bits may differ"), ("devices", "other random numbers are drawn")):
        if resumed and resumed.get(what, record[what]) != record[what]:
            print(f"this run was last on {resumed[what]} {what}, here are {record[what]}: {differing}")
    own = ("data_dir", "log_dir")  # a machine can have them elsewhere
    arguments = {name: value for name, value in record["arguments"].items() if name not in own}
    agree(strategy, arguments=arguments, data=data, versions=VERSIONS, run=resumed is not None)


def write_checkpoint(checkpoint, log_dir, step, chief=True):
    """Writes the state after `step` steps into log_dir/checkpoints, the chief alone, and removes all but the last two.

    TensorFlow writes the index last, so a checkpoint that has one was written to its end. What a run did not write
    stays where it is. Raises Failure with status 3 if a weight is not finite.
    """
    if not all(np.isfinite(tf.convert_to_tensor(v)).all() for v in checkpoint.network):
        raise Failure(f"step {step}: the weights are no longer finite; try a smaller --lr", 3)
    tf.summary.flush()  # what was logged before this step is not logged again
    if not chief:
        return
    folder, name = pathlib.Path(log_dir, "checkpoints"), f"step-{step:010d}"
    checkpoint.write(str(folder / name))
    for path in folder.glob(f"{name}.*"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    kept = sorted(path.stem for path in folder.glob("step-??????????.index") if path.stem <= name)[-2:]
    for path in folder.iterdir():
        ours = re.fullmatch(r"(step-\d{10})(_temp|\.(index|data-\d{5}-of-\d{5})(\.tempstate\d+)?)", path.name)
        if ours and ours[1] not in kept:  # older ones, damaged ones, and what a dead process left half-written
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def restore_checkpoint(checkpoint, log_dir):
    """Reads the newest good checkpoint of the run into `checkpoint`; returns its step, 0 if none was begun.

    A damaged one, as its checksums tell, is passed over with a line that says so; raises Failure if none is good.
    """
    for path in sorted(pathlib.Path(log_dir, "checkpoints").glob("step-??????????.index"), reverse=True):
        prefix = str(path.with_suffix(""))
        try:
            checkpoint.read(prefix).assert_existing_objects_matched()
            return int(prefix[-10:])
        except (tf.errors.OpError, AssertionError, IndexError, ValueError) as error:
            print(f"{prefix} is damaged ({type(error).__name__}): trying the one before it", flush=True)
    if any(pathlib.Path(log_dir).glob("*tfevents*")):  # these come after the first checkpoint
        raise Failure(f"--resume {log_dir}: all checkpoints in its folder are damaged or gone, expected a whole one")
    return 0


def open_events(log_dir, step):
    """Returns the summary writer of the run; its event files lose what they hold of `step` and later, and the setting.

    That is logged again. Each file is replaced by a copy up to there, or up to a record torn when the process ended.
    What comes after such a record, or a damaged one, cannot be read: a line says so.
    """
    copy, setting = os.path.join(log_dir, "rewound"), re.compile("arguments$|data$|_hparams_/")  # of log_setting
    for path in pathlib.Path(log_dir).glob("events.out.tfevents.*"):
        with tf.io.TFRecordWriter(copy) as events:
            try:
                for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                    event = tf.compat.v1.Event.FromString(record)
                    again = event.step >= step or any(setting.match(value.tag) for value in event.summary.value)
                    if event.file_version or not again:
                        events.write(record)
            except tf.errors.DataLossError:
                print(f"{path} is torn or damaged: what it holds after that place is left out", flush=True)
        os.replace(copy, path)
    return tf.summary.create_file_writer(log_dir)


def write_json(path, content):
    """Writes `content` as JSON into the file `path`: the whole of it or, if anything fails, none."""
    with open(f"{path}.partial", "w") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.partial", path)


def read_json(path, *parts):
    """Returns the content of a JSON file that a run has written; raises Failure unless it has all `parts`."""
    try:
        content = json.loads(pathlib.Path(path).read_text())
        if not all(isinstance(content[part], dict) for part in parts):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError) as error:
        what = f"{', '.join(parts)} ({type(error).__name__} {error})"
        raise Failure(f"{path}: expected the JSON file that a run writes, with {what}") from None
    return content


def describe(args, record, network, replicas):
    """Prints the data, the network and where to look, before training starts."""
    data = record["data"]
    sizes = ", ".join(f"{size:,} {part}" for part, size in data["sizes"].items())
    print(f"{data['name']} from {data['source']}: {sizes}")
    if "warning" in data:
        print(data["warning"])
    devices = f"{replicas} device{'s' * (replicas > 1)}"
    memory = f"{BYTES_OF_A_WEIGHT * record['parameters'] / 1e6:,.0f} MB with gradients and Adam's moments"
    print(f"{record['parameters']:,} trainable weights, {memory}; {args.precision} on {devices}; seed {args.seed}")
    units = [f"{unit.name} {tuple(unit.alpha.shape)}" for unit in units_of(network)]
    print(f"cross-stitch units, with the shapes of alpha[to, from]: {', '.join(units) or 'none'}")
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    cpu = pathlib.Path("/proc/cpuinfo")
    slow = any(gpu.get("compute_capability", (8, 0)) < (8, 0) for gpu in gpus)
    if args.precision == "bfloat16" and (slow or (not gpus and cpu.exists() and "bf16" not in cpu.read_text())):
        print("nothing here computes in bfloat16 directly: float32 will be faster and more exact")
    watch = [sys.executable, "-m", "tensorboard.main", "--logdir", os.path.dirname(args.log_dir.rstrip("/")) or "."]
    print(f"writing to {args.log_dir}; to watch: {shlex.join(watch)}", flush=True)


def units_of(network):
    """Returns the network's cross-stitch units."""
    return [layer for layer in network.layers if isinstance(layer, CrossStitch)]


def log_setting(args, data, metrics):
    """Logs, at step 0, the arguments and the data as text, the hyper-parameters and `metrics`, tags."""
    for tag, values in (("arguments", vars(args)), ("data", data)):
        tf.summary.text(tag, [(name, str(value)) for name, value in values.items()], step=0)
    values = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in vars(args).items()}
    hparams.hparams_config([hparams.HParam(name) for name in values], [hparams.Metric(tag) for tag in metrics])
    hparams.hparams(values)


def log_training(network, step, numbers):
    """Logs α of every unit (its means, its histogram, the means (T, T) as a picture) and, from step 1 on, `numbers`."""
    for unit in units_of(network):
        mean, own = unit.mixing(), np.eye(unit.tasks, dtype=bool)
        tf.summary.scalar(f"units/{unit.name}/alpha_self", mean[own].mean())
        tf.summary.scalar(f"units/{unit.name}/alpha_cross", mean[~own].mean())
        value = np.kron(np.sign(mean) * np.sqrt(np.minimum(np.abs(mean), 1)), np.ones((64, 64)))
        picture = np.stack([1 - np.maximum(value, 0), 1 - np.abs(value), 1 + np.minimum(value, 0)], axis=-1)
        text = "Row i, column j: what task i takes from task j. Blue is positive, red negative; full colour from 1 on."
        tf.summary.image(f"units/{unit.name}/alpha_mean", picture[None], description=text)
        if unit.unit != "activation":  # hundreds of millions of zeros would hide everything
            tf.summary.histogram(f"units/{unit.name}/alpha", unit.alpha.value)
    for tag, value in numbers.items() if step else ():
        tf.summary.scalar(tag, value)


def log_confusion(matrices, classes):
    """Logs {task: confusion matrix} as tables: a row for each true class, a column for each predicted one."""
    for task, matrix in matrices.items():
        if len(matrix) <= 100:  # more nobody could read, and thousands would take gigabytes
            rows = [(name, *map(str, row)) for name, row in zip(classes[task], matrix)]
            tf.summary.text(f"{task}/confusion_matrix", [("true, predicted:", *classes[task]), *rows])


def write_results(results, network, speeds):
    """Adds to a run's results what its units learned and its speed, writes them and the model, and prints them."""
    args = results["arguments"]
    results |= {"epochs": args["n_epoch"], "seed": args["seed"]}
    results["images_per_second"] = round(statistics.median(speeds), 1)
    results["cross_stitch"] = {unit.name: unit.mixing().tolist() for unit in units_of(network)}
    network.save(os.path.join(args["log_dir"], "model.keras"))
    write_json(os.path.join(args["log_dir"], "results.json"), results)
    print_results(results)


# ------------------------------------------------------------------ command line (down to main: shared)


def boolean(text):
    """Returns the truth value that a word names, or the word; argparse's type=bool would read "False" as true."""
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(text.lower(), text)


def number(kind, interval):
    """Returns an argparse type: a `kind` (int or float) inside an interval, written as in "(0, 1]"."""
    low, high = map(float, interval[1:-1].split(","))

    def parse(text):
        with contextlib.suppress(ValueError):
            value, place = kind(text), float(text)  # which is infinite for what no float can hold
            if low < place < high or (place == low and interval[0] == "[") or (place == high and interval[-1] == "]"):
                return value
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"expected {what} in {interval}, got {text!r}")

    return parse


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ours: one line, without the usage, with the flag that may have been meant."""

    def error(self, message):
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if near := unknown and difflib.get_close_matches(unknown[1], self._option_string_actions, 1):
            message += f"; did you mean {near[0]}?"
        raise Failure(message.removeprefix("argument "))


def parse_arguments(argv):
    """Returns the arguments, and the record of the run to go on with or None; raises Failure if they are wrong.

    With --resume, what the command line leaves out is taken from the run; what would change it is refused.
    """
    if bad := [word for word in argv if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", word)]:
        raise Failure(f"{bad[0]!a}: expected an argument in UTF-8, without control characters")
    parser = make_parser()
    args, resumed = parser.parse_args(argv), None
    folder = args.log_dir if args.resume == "auto" else args.resume
    if args.resume not in (None, "auto") and args.log_dir not in (None, folder):
        raise Failure(f"--log_dir {args.log_dir}: expected none beside --resume {folder}, which names the folder")
    if folder is not None and (args.resume != "auto" or os.path.exists(os.path.join(folder, "run.json"))):
        resumed = read_json(os.path.join(folder, "run.json"), "arguments", "data", "versions")
        then = resumed["arguments"]
        if foreign := then.keys() - vars(args).keys():
            raise Failure(f"--resume {folder}: expected a run of {NAME}.py, found one with --{min(foreign)}")
        parser.set_defaults(**then)
        args = parser.parse_args(argv)
        args.log_dir = folder
        for name, value in vars(args).items():
            free = name in ("resume", "log_dir", "data_dir") or (name == "n_epoch" and value > then.get(name, value))
            if not free and value != then.get(name):
                raise Failure(f"--resume {folder}: the run has --{name} {then.get(name)}, got {value}")
    elif not args.log_dir:
        if "TF_CONFIG" in os.environ or args.resume:
            raise Failure("--log_dir: required with TF_CONFIG and with --resume auto, a folder that all workers see")
        stem = NAME.removesuffix("_multi_task_learning")  # TensorBoard cuts long names off
        args.log_dir = time.strftime(f"tf_logs/{stem}/{kind_of_run(args)}-seed{args.seed}-%Y%m%d-%H%M%S", time.gmtime())
        args.log_dir += f"-{os.getpid()}"  # runs may begin within a second
    if re.search(r"[][*?\\]|://", args.log_dir):
        raise Failure(f"--log_dir {args.log_dir}: expected a path of this machine, without [ ] * ? \\ and ://")
    if args.pretrain_epoch >= args.n_epoch:
        raise Failure(f"--pretrain_epoch {args.pretrain_epoch}: expected less than --n_epoch, {args.n_epoch}")
    del args.resume
    return args, resumed


def main(argv=None):
    """Runs the command line `argv` and returns the exit status: 0, or another one after one line that says why."""
    log_dir = ""
    try:
        args, resumed = parse_arguments(sys.argv[1:] if argv is None else argv)
        log_dir = args.log_dir
        run(args, resumed)
        return 0
    except Failure as failure:
        message, status = str(failure), failure.status
    except (OSError, MemoryError, tf.errors.OpError) as error:  # a full disk, a lost worker
        last = (str(error).strip() or type(error).__name__).split("\n\n")[-1]  # without TensorFlow's own stack
        message, status = last.split("\n")[0], 1
    if status not in (2, 3) and os.path.exists(os.path.join(log_dir, "run.json")):  # 2, 3: it would end so again
        message += f"; go on with: {shlex.join([sys.executable, __file__, '--resume', log_dir])}"
    print(f"\n{message}" if status > 128 else f"error: {message}", file=sys.stderr, flush=True)
    return status


class Preset(argparse.Action):
    """Sets the arguments of a preset; those that come after it on the command line change them."""

    def __call__(self, parser, namespace, value, option_string=None):
        if namespace.preset not in ("ours", value):
            parser.error(f"--preset {value}: expected one preset, found {namespace.preset} before it")
        vars(namespace).update(PRESETS[value], preset=value)


def make_parser():
    """Returns the parser of this script's arguments."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--cross_stitch_enabled", type=boolean, choices=(True, False), default=True, help="False: no units (True)")
    add("--cross_stitch_unit", choices=("channel", "layer", "activation"), default="channel", help="kind (channel)")
    add("--cross_stitch_at", nargs="+", choices=UNITS, default=list(UNITS), help="layers that a unit follows (all)")
    add("--cross_stitch_init", type=number(float, "(0, 1]"), default=1.0, help="initial alpha of a task itself (1.0)")
    add("--cross_stitch_lr_scale", type=number(float, "[0, inf)"), default=1.0, help="times --lr, for units (1)")
    add("--pretrain_epoch", type=number(int, "[0, inf)"), default=0, help="first epochs, units held at identity (0)")
    add("--lr", type=number(float, "(0, inf)"), default=0.001, help="Adam's learning rate (0.001)")
    add("--lr_half_life", type=number(float, "[0, inf)"), default=0.0, help="epochs that halve it (0: constant)")
    add("--n_epoch", type=number(int, "[1, inf)"), default=30, help="epochs (30)")
    add("--n_batch_size", type=number(int, "[1, inf)"), default=128, help="images per step, over all devices (128)")
    add("--reg_lambda", type=number(float, "[0, inf)"), default=1e-5, help="weight of the L2 term (1e-5)")
    add("--keep_prob", type=number(float, "[0.01, 1]"), default=0.8, help="share that dropout keeps (0.8)")
    add("--bn_momentum", type=number(float, "[0, 1)"), default=0.99, help="of batch norm's moving averages (0.99)")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="of activations and products (float32)")
    add("--preset", action=Preset, choices=PRESETS, default="ours", help="2018: its setting; later flags win")
    add("--tasks", nargs="+", help="one column each, as in item group (all)")
    add("--task_weights", nargs="+", type=number(float, "[0, inf)"), help="of their losses, in this order (1 each)")
    add("--train_fraction", type=number(float, "(0, 1]"), default=1.0, help="part of the training set used (1)")
    add("--validation_fraction", type=number(float, "[0, 1)"), default=0.0, help="part of it held out (0)")
    add("--seed", type=number(int, "[0, 4294967295]"), default=0, help="of all that is drawn at random (0)")
    add("--data_dir", type=os.path.abspath, help="the four .gz files, or train.npz and test.npz (else: looked for)")
    add("--log_dir", help="folder of the run (tf_logs/fashion_mnist/<stitched|baseline|single>-seed<k>-<time>-<pid>)")
    add("--log_every", type=number(int, "[1, inf)"), default=100, help="steps between summaries, at most (100)")
    add("--eval_every", type=number(int, "[0, inf)"), default=0, help="steps between evaluations (0: an epoch)")
    add("--resume", metavar="LOG_DIR", help="go on with this run; auto: with the one in --log_dir, if it holds one")
    return parser


def run(args, resumed):
    """Trains as `args` say, or shows the results of the run to resume where it is finished."""
    if setting := ", ".join(f"{name} {vars(args)[name]}" for name in PRESETS[args.preset]):
        print(f"--preset {args.preset}: {setting}")
    path = os.path.join(args.log_dir, "results.json")
    results = read_json(path, "test", "classes", "data") if resumed and os.path.exists(path) else {}
    if results.get("epochs", 0) >= args.n_epoch:
        print(f"this run is finished; it was trained on {results['data'].get('source')}")
        print_results(results)
    else:
        train(args, resumed)


def kind_of_run(args):
    """Returns the word that stands in the name of the run's folder."""
    return "single" if len(args.tasks or "ab") == 1 else "stitched" if args.cross_stitch_enabled else "baseline"


if __name__ == "__main__":
    sys.exit(main())
