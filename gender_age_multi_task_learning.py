"""Trains gender and age (and ethnicity) from faces side by side, joined by cross-stitch units.

Each task has a column of its own: a small convolutional network. After each pooling layer and each fully connected
layer a cross-stitch unit mixes the columns' activations with learned weights, so that the network itself finds how
much the tasks should share. These tasks have less to do with each other than those on Fashion-MNIST.

    python gender_age_multi_task_learning.py --data_dir UTKFace --cross_stitch_enabled True     # or False
    tensorboard --logdir tf_logs                                                # the curves, side by side
    python gender_age_multi_task_learning.py --predict PHOTO ... --model LOG_DIR/model.keras

--data_dir holds UTKFace (the aligned and cropped faces) or VGGFace2 (its folders meta and test).
A stopped run goes on where it was:      ... --resume LOG_DIR
Several GPUs of one machine are used without being asked. On several machines, start the same command
on each of them with TF_CONFIG set, and with a --log_dir on storage that all of them see.

Papers: Misra, Shrivastava, Gupta, Hebert, "Cross-stitch Networks for Multi-task Learning", CVPR 2016,
arXiv:1604.03539. Zhang, Song, Qi, "Age Progression/Regression by Conditional Adversarial Autoencoder", CVPR 2017,
arXiv:1702.08423 (UTKFace). Cao, Shen, Xie, Parkhi, Zisserman, "VGGFace2", FG 2018, arXiv:1710.08092.
"""

# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["tensorflow==2.21.0", "numpy==2.4.6", "tensorboard==2.21.0"]
# ///

import argparse
import contextlib
import csv
import datetime
import functools
import glob
import hashlib
import json
import math
import os
import re
import shutil
import signal
import statistics
import sys
import threading
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # fewer of TensorFlow's start-up notes, which bury our own lines

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tensorboard.plugins.hparams import api as hparams

NAME = "gender_age_multi_task_learning"
TASKS = {  # task: names of its classes; those of age come from --age_bins
    "gender": ["male", "female"],
    "age": None,
    "ethnicity": ["White", "Black", "Asian", "Indian", "Others"],
}
UNITS = ("pool_1", "pool_2", "pool_3", "fc_4")  # the layers that a cross-stitch unit can follow
EVALUATION_BATCH = 500  # images
VERSIONS = {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__}


class Failure(Exception):
    """Ends the program with one line `error: <message>` and the given exit status."""

    def __init__(self, message, status=2):
        super().__init__(" ".join(str(message).split()))
        self.status = status


# ---------------------------------------------------------------------------------------------- data

UTKFACE_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+\.jpg\.chip\.jpg")
LAYOUTS = (
    "UTKFace (https://susanqq.github.io/UTKFace, the aligned and cropped faces, named [age]_[gender]_[race]_"
    "[date].jpg.chip.jpg) or VGGFace2 (https://www.robots.ox.ac.uk/~vgg/data/vgg_face2, its folders meta and test)"
)
MATURE = 30  # years; VGGFace2 says no more than young and mature


def find_dataset(data_dir):
    """Returns "vggface2" or "utkface", what the folder holds; raises Failure if it holds neither."""
    if os.path.exists(os.path.join(data_dir, "meta", "identity_meta.csv")):
        return "vggface2"
    if any(UTKFACE_NAME.fullmatch(name) for _, _, names in os.walk(data_dir) for name in names):
        return "utkface"
    raise Failure(f"--data_dir {data_dir}: expected {LAYOUTS}")


def list_utkface(data_dir):
    """Returns paths, and genders, ages in years, ethnicities and None for identities, of the faces of UTKFace."""
    files = sorted(os.path.join(folder, name) for folder, _, names in os.walk(data_dir) for name in names)
    files = [path for path in files if path.endswith(".jpg")]
    found = [(path, UTKFACE_NAME.fullmatch(os.path.basename(path))) for path in files]
    broken = [os.path.basename(path) for path, match in found if not match]
    if broken:
        print(f"skipped {len(broken)} of {len(files)} files for their names, such as {broken[0]!r}")
    fields = np.array([match.groups() for _, match in found if match], np.int64).reshape(-1, 3)
    return [path for path, match in found if match], fields[:, 1], fields[:, 0], fields[:, 2], None


def list_vggface2(data_dir):
    """Returns paths, and genders, ages, None for ethnicities, and identities, of the 2,000 age templates of VGGFace2.

    The ten first images of an identity are young (age 0 here), the others mature (MATURE).
    """
    meta, index = (os.path.join(data_dir, "meta", n) for n in ("identity_meta.csv", "test_agetemp_imglist.txt"))
    try:
        with open(meta, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
        with open(index, encoding="utf-8") as file:
            names = file.read().split()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Failure(f"--data_dir {data_dir}: expected VGGFace2's {meta} and {index} ({error})") from None
    rows = [{str(key).strip(): str(value).strip() for key, value in row.items()} for row in rows]
    if not rows or not {"Class_ID", "Gender"} <= rows[0].keys():
        raise Failure(f"{meta}: expected the columns Class_ID, Name, Sample_Num, Flag, Gender")
    gender_of = {row["Class_ID"]: row["Gender"] for row in rows}
    paths, genders, ages, identities, seen = [], [], [], [], {}
    for name in names:
        identity = name.split("/")[-2] if "/" in name else ""
        if gender_of.get(identity) not in ("m", "f"):
            raise Failure(f"{index}: expected an image of an identity with a gender in {meta}, found {name}")
        places = [os.path.join(data_dir, part, name) for part in ("test", "", "train")]
        paths.append(next((path for path in places if os.path.exists(path)), places[0]))
        genders.append(int(gender_of[identity] == "f"))
        seen[identity] = seen.get(identity, 0) + 1
        ages.append(0 if seen[identity] <= 10 else MATURE)
        identities.append(identity)
    if not paths:
        raise Failure(f"{index}: expected one image path a line, found none")
    return paths, np.array(genders), np.array(ages), None, np.array(identities)


def decode(path, size):
    """Returns the image file as a uint8 tensor (size, size, 3): its middle square, scaled with antialiasing."""
    image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    side = tf.minimum(height, width)
    image = tf.image.resize_with_crop_or_pad(image, side, side)
    image = tf.image.resize(image, (size, size), antialias=True)
    return tf.ensure_shape(tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8), (size, size, 3))


def decode_all(decode, shape, paths, *columns):
    """Returns the images that decode(path, ...) can give, uint8 (n, *shape), and their indices into `paths`.

    `columns` hold what else `decode` takes for each path. Images that cannot be decoded are named and counted; raises
    Failure if they are more than 1 %.
    """
    rows = tf.data.Dataset.from_tensor_slices((np.arange(len(paths)), paths, *columns))
    decoded = rows.map(lambda k, *row: (k, decode(*row)), num_parallel_calls=tf.data.AUTOTUNE)
    progress = keras.utils.Progbar(len(paths), verbose=sys.stdout.isatty(), unit_name="image")
    images, kept = np.empty((len(paths), *shape), np.uint8), []
    for k, image in decoded.ignore_errors().as_numpy_iterator():
        images[len(kept)] = image
        kept.append(int(k))
        progress.update(len(kept))
    bad = sorted(set(range(len(paths))) - set(kept))
    if bad:
        print(f"skipped {len(bad)} of {len(paths)} images, missing or damaged: {', '.join(paths[k] for k in bad[:5])}")
    if len(bad) > 0.01 * len(paths):
        raise Failure(
            f"{paths[bad[0]]}: missing or damaged, as {len(bad)} of {len(paths)} images, expected 1 % at most"
        )
    return images[: len(kept)], np.array(kept)


def hold_out(genders, ages, people, fraction):
    """Returns the sorted indices of a random part, the same for every seed and every set of tasks.

    With `people` (who is on each image) it is stratified by gender, and nobody is on both sides; with None, by gender
    and decade of age.
    """
    if people is None:
        return stratified(genders * 100 + ages // 10, fraction, seed=0)
    names, first = np.unique(people, return_index=True)
    return np.flatnonzero(np.isin(people, names[stratified(genders[first], fraction, seed=0)]))


def stratified(labels, fraction, seed):
    """Returns the sorted indices of a random part that holds `fraction` of every class, at least one of each."""
    shuffle = np.random.default_rng(seed).permutation
    members = [shuffle(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return np.sort(np.concatenate([m[: max(1, round(fraction * len(m)))] for m in members]))


def pixel_statistics(images):
    """Returns the mean and the standard deviation of each pixel of uint8 images (n, height, width, C), float64.

    The deviation is at least one grey level: in a small training part a corner pixel can be constant, and would blow
    up in a test image where it is not.
    """
    mean = images.mean(axis=0, dtype=np.float64)
    square = np.einsum("n...,n...->...", images, images, dtype=np.float64) / len(images)
    return mean, np.maximum(np.sqrt(np.maximum(square - mean**2, 0)), 1)


def prepare_data(args):
    """Returns the parts, the classes, the per-pixel mean and deviation of the training images, and a record.

    A part (`train`, `test` and, if asked for, `validation`) is a pair of tensors: images, uint8
    (n, height, width, 3), and labels, int64 (n, tasks). The classes are {task: their names}.
    The record says where the data come from, their sizes, the SHA-256 of all images and labels, and the accuracy
    that the most frequent class alone would have on the test part.
    """
    if args.data_dir is None or not os.path.isdir(args.data_dir):
        raise Failure(f"--data_dir {args.data_dir or ''}: expected a folder with {LAYOUTS}")
    dataset = args.dataset or find_dataset(args.data_dir)
    reader = {"utkface": list_utkface, "vggface2": list_vggface2}[dataset]
    paths, genders, ages, ethnicities, identities = reader(args.data_dir)
    if not paths:
        raise Failure(f"--data_dir {args.data_dir}: expected {LAYOUTS}")
    split = args.split or ("image" if identities is None else "identity")
    if split == "identity" and identities is None:
        raise Failure("--split identity: UTKFace does not say who is who, expected image")
    if ethnicities is None and "ethnicity" in args.tasks:
        raise Failure(f"--tasks {','.join(args.tasks)}: VGGFace2 has no ethnicities, expected gender,age")
    if identities is not None and args.age_bins != [MATURE]:
        raise Failure(f"--age_bins: VGGFace2 says young or mature, expected {MATURE}, the default")
    shape = (args.image_size, args.image_size, 3)
    images, kept = decode_all(functools.partial(decode, size=args.image_size), shape, paths)
    genders, ages = genders[kept], ages[kept]
    bounds = [0, *args.age_bins]
    names = [f"{low}-{high - 1}" for low, high in zip(bounds, args.age_bins)] + [f"{args.age_bins[-1]}+"]
    classes = {"gender": TASKS["gender"], "age": names if len(names) > 2 else ["young", "mature"]}
    columns = {"gender": genders, "age": np.searchsorted(args.age_bins, ages, side="right")}
    if ethnicities is not None:
        classes["ethnicity"], columns["ethnicity"] = TASKS["ethnicity"], ethnicities[kept]
    classes = {task: classes[task] for task in args.tasks}
    labels = np.stack([columns[task] for task in args.tasks], axis=1).astype(np.int64)
    digest = hashlib.sha256(images)
    digest.update(labels)

    people = identities[kept] if split == "identity" else None
    rows = {"test": hold_out(genders, ages, people, 0.1)}
    rest = np.setdiff1d(np.arange(len(images)), rows["test"])
    if args.validation_fraction:
        people = None if people is None else people[rest]
        chosen = hold_out(genders[rest], ages[rest], people, args.validation_fraction)
        rows["validation"], rest = rest[chosen], np.delete(rest, chosen)
    if not len(rest):
        raise Failure(f"--validation_fraction {args.validation_fraction}: nothing left to train on")
    if args.train_fraction < 1:
        rest = rest[stratified(genders[rest] * 100 + ages[rest] // 10, args.train_fraction, seed=args.seed)]
    rows = {"train": rest, **rows}
    if args.n_batch_size > len(rows["train"]):
        raise Failure(f"--n_batch_size {args.n_batch_size}: expected at most the {len(rows['train'])} training images")
    mean, deviation = pixel_statistics(images[rows["train"]])
    majority = {}
    for t, task in enumerate(args.tasks):
        counts = np.bincount(labels[:, t], minlength=len(classes[task]))
        frequent = np.bincount(labels[rows["train"], t]).argmax()
        majority[task] = float(np.mean(labels[rows["test"], t] == frequent))
        shares = ", ".join(f"{name} {count:,}" for name, count in zip(classes[task], counts))
        print(f"{task}: {shares}; always {classes[task][frequent]}: {majority[task]:.4f} of the test images")
    with tf.device("CPU:0"):
        parts = {name: (tf.constant(images[k]), tf.constant(labels[k])) for name, k in rows.items()}
    sizes = {name: len(k) for name, k in rows.items()}
    record = {"name": {"utkface": "UTKFace", "vggface2": "VGGFace2"}[dataset], "source": args.data_dir, "split": split}
    record |= {"sizes": sizes, "sha256": digest.hexdigest(), "majority": majority}
    if split == "image" and identities is not None:
        record["warning"] = (
            "--split image leaks: images of the same person stand in training and test, and a person's\n"
        )
        record["warning"] += "gender and age can be known again instead of seen. Use --split identity to judge."
    return parts, classes, mean, deviation, record


# ------------------------------------------------------------------------------------ cross-stitch unit


@keras.saving.register_keras_serializable("cross_stitch")
class CrossStitch(layers.Layer):
    """The cross-stitch unit: every column's output is a learned linear combination of all columns' inputs.

    Takes x_1..x_T, one tensor per task, all of one shape (batch, ..., C), and returns as many of that shape,
    x̃_i = Σ_j α_ij x_j (arXiv:1604.03539, equation 1, for T tasks).

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
        self.tasks, shape = len(input_shapes), input_shapes[0][1:]
        self.size = math.prod(shape)
        side = self.tasks * self.size if self.unit == "activation" else self.tasks
        shape = (side, side, shape[-1]) if self.unit == "channel" else (side, side)
        self.alpha = self.add_weight(name="alpha", shape=shape, initializer=self.initial_alpha)

    def initial_alpha(self, shape, dtype=None, init=None):
        """Returns α of the given shape as it is before training, or with another `init` than the unit's own."""
        init = self.init if init is None else init
        cross = (1 - init) / (self.tasks - 1)
        mix = tf.fill((self.tasks, self.tasks), cross) + (init - cross) * tf.eye(self.tasks)
        if self.unit == "channel":
            return tf.broadcast_to(mix[..., None], shape)
        if self.unit == "layer":
            return mix
        blocks = mix[:, None, :, None] * tf.eye(self.size)[None, :, None, :]  # α_ij · I in block (i, j)
        return tf.reshape(blocks, shape)

    def call(self, inputs):
        alpha = tf.convert_to_tensor(self.alpha)
        if self.unit != "activation":
            return [tf.add_n([alpha[i, j] * x for j, x in enumerate(inputs)]) for i in range(self.tasks)]
        flat = tf.concat([tf.reshape(x, (-1, self.size)) for x in inputs], axis=1)
        mixed = tf.split(tf.matmul(flat, alpha, transpose_b=True), self.tasks, axis=1)
        return [tf.reshape(x, tf.shape(inputs[0])) for x in mixed]

    def mixing(self):
        """Returns the (T, T) NumPy array of the means of α_ij: over channels, or over the diagonal of a block."""
        alpha = tf.convert_to_tensor(self.alpha)
        if self.unit == "activation":
            blocks = tf.reshape(alpha, (self.tasks, self.size, self.tasks, self.size))
            alpha = tf.linalg.diag_part(tf.transpose(blocks, (0, 2, 1, 3)))
        return (tf.reduce_mean(alpha, axis=2) if alpha.shape.rank == 3 else alpha).numpy()

    def get_config(self):
        return {**super().get_config(), "unit": self.unit, "init": self.init}


# --------------------------------------------------------------------------------------------- network


@keras.saving.register_keras_serializable("cross_stitch")
class BatchNormalization(layers.BatchNormalization):
    """Keras's batch normalisation over the last axis, by TensorFlow's fused kernel, several times as fast.

    Takes and returns (batch, height, width, C) or (batch, C); has scale and centre. Where several replicas share a
    batch (`synchronized`), Keras's own code computes the same over all of them.
    """

    def call(self, inputs, training=False):
        if self.synchronized:
            return super().call(inputs, training=training)
        training = bool(training and self.trainable)
        x = inputs if inputs.shape.rank == 4 else tf.reshape(inputs, (-1, 1, 1, inputs.shape[-1]))  # it takes images
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x,
            tf.convert_to_tensor(self.gamma),
            tf.convert_to_tensor(self.beta),
            mean=None if training else tf.convert_to_tensor(self.moving_mean),
            variance=None if training else tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            n = tf.cast(tf.size(x) // x.shape[-1], variance.dtype)
            biased = variance * (n - 1) / n  # the kernel's variance is unbiased, Keras's is not
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, biased)):
                moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return tf.reshape(outputs, tf.shape(inputs))


@keras.saving.register_keras_serializable("cross_stitch")
class FirstConvolution(layers.Layer):
    """A convolution, its batch normalisation and a 2×2 max-pooling in one: the same up to rounding, and faster.

    Takes (batch, height, width, C) and returns (batch, height // 2, width // 2, filters). Batch norm reads and writes
    the convolution's outputs, the largest tensors of the network, again and again. But they are linear in the inputs,
    Kᵀp for the kernel K and the k·k·C numbers p of a patch: their mean is Kᵀ·E[p], their variance the diagonal of
    Kᵀ·cov(p)·K, and with few channels C the statistics of the patches are small (TensorFlow's graph optimiser makes
    them once for all columns). The normalisation's scale goes into the kernel, its shift waits for the pooling, which
    leaves a quarter of the numbers. The inputs should be about standardised: cov(p) is E[ppᵀ] - E[p]·E[p]ᵀ.
    """

    def __init__(self, filters, kernel_size, momentum, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.kernel_size, self.momentum = filters, kernel_size, momentum

    def build(self, input_shape):
        shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer="he_normal")
        self.gamma = self.add_weight(name="gamma", shape=shape[3:], initializer="ones")
        self.beta = self.add_weight(name="beta", shape=shape[3:], initializer="zeros")
        self.moving_mean = self.add_weight(name="moving_mean", shape=shape[3:], initializer="zeros", trainable=False)
        self.moving_variance = self.add_weight(
            name="moving_variance", shape=shape[3:], initializer="ones", trainable=False
        )

    def call(self, inputs, training=False):
        kernel = tf.convert_to_tensor(self.kernel)
        if training and self.trainable:
            mean, variance = self.statistics(inputs, kernel)
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        else:
            mean, variance = (tf.convert_to_tensor(moving) for moving in (self.moving_mean, self.moving_variance))
        scale = self.gamma * tf.math.rsqrt(variance + 1e-3)  # Keras's epsilon, that of the other batch norms
        outputs = tf.nn.max_pool2d(tf.nn.conv2d(inputs, kernel * scale, 1, "SAME"), 2, 2, "VALID")
        return tf.nn.bias_add(outputs, self.beta - mean * scale)

    def statistics(self, inputs, kernel):
        """Returns the mean and the variance (filters,) of the convolution's outputs, over all replicas.

        `inputs` are this replica's (batch, height, width, C), `kernel` is (k, k, C, filters).
        """
        shape, size = kernel.shape[:3], math.prod(kernel.shape[:3])
        each = tf.reshape(tf.eye(size), (*shape, size))  # a convolution that returns the patches
        patches = tf.reshape(tf.nn.conv2d(inputs, each, 1, "SAME"), (-1, size))
        sums = [tf.cast(tf.shape(patches)[0], tf.float32)]
        sums += [tf.reduce_sum(patches, axis=0), tf.matmul(patches, patches, transpose_a=True)]
        replica = tf.distribute.get_replica_context()  # None while the network is built
        if replica and replica.num_replicas_in_sync > 1:
            sums = replica.all_reduce("SUM", sums)
        n, first, second = sums
        covariance = second / n - first[:, None] * first / n**2
        flat = tf.reshape(kernel, (size, -1))
        variance = tf.reduce_sum(flat * tf.matmul(covariance, flat), axis=0)
        return tf.linalg.matvec(flat, first / n, transpose_a=True), tf.nn.relu(variance)  # no -1e-9 by rounding

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        return batch, height // 2, width // 2, self.filters

    def get_config(self):
        own = {"filters": self.filters, "kernel_size": self.kernel_size, "momentum": self.momentum}
        return {**super().get_config(), **own}


def build_network(args, classes, mean, deviation):
    """Returns the network: uint8 images (batch, height, width, 3) in, {task: logits (batch, classes)} out.

    `classes` is {task: names of its classes}; `mean` and `deviation` (height, width, 3) standardise each pixel. Call
    it in the scope of the distribution strategy.
    """
    no_bias = {"use_bias": False, "kernel_initializer": "he_normal"}  # the batch norm behind it has one

    def convolution(task, level, filters, x):
        if level == 1:  # batch norm and pooling are part of it
            x = FirstConvolution(filters, 3, args.bn_momentum, name=f"{task}_conv_{level}")(x)
        else:
            x = layers.Conv2D(filters, 3, padding="same", name=f"{task}_conv_{level}", **no_bias)(x)
            x = BatchNormalization(momentum=args.bn_momentum, synchronized=several, name=f"{task}_bn_{level}")(x)
            x = layers.MaxPooling2D(2, name=f"{task}_pool_{level}")(x)
        return layers.ReLU(name=f"{task}_relu_{level}")(x)  # after the pool: the same, on a quarter of the numbers

    def dense(task, level, width, x):
        x = layers.Flatten(name=f"{task}_flatten_{level}")(x)
        x = layers.Dense(width, name=f"{task}_fc_{level}", **no_bias)(x)
        x = BatchNormalization(momentum=args.bn_momentum, synchronized=several, name=f"{task}_bn_{level}")(x)
        return layers.ReLU(name=f"{task}_relu_{level}")(x)

    def output(task, x):
        x = layers.Dropout(1 - args.keep_prob, name=f"{task}_dropout")(x)
        return layers.Dense(len(classes[task]), kernel_initializer="he_normal", name=task)(x)

    def stitch(name, columns):
        if not args.cross_stitch_enabled or len(columns) == 1 or name not in args.cross_stitch_at:
            return columns
        init = 1.0 if args.pretrain_epoch else args.cross_stitch_init
        return CrossStitch(args.cross_stitch_unit, init, name=name)(columns)

    several = tf.distribute.has_strategy()
    images = keras.Input(mean.shape, dtype="uint8", name="images")
    x = layers.Normalization((1, 2, 3), mean, deviation**2, name="standardise")(images)
    if args.augment:  # in training alone; the random state is part of the network and of its checkpoints
        x = layers.RandomFlip("horizontal", name="mirror")(x)
        x = layers.RandomTranslation(0.05, 0.05, fill_mode="nearest", name="shift")(x)
    columns = stitch("pool_1", [convolution(task, 1, 32, x) for task in classes])
    columns = stitch("pool_2", [convolution(task, 2, 64, x) for task, x in zip(classes, columns)])
    columns = stitch("pool_3", [convolution(task, 3, 128, x) for task, x in zip(classes, columns)])
    columns = stitch("fc_4", [dense(task, 4, 256, x) for task, x in zip(classes, columns)])
    return keras.Model(images, {task: output(task, x) for task, x in zip(classes, columns)}, name=NAME)


# --------------------------------------------------------------------------------- losses and metrics


def cross_entropies(logits, labels):
    """Returns each task's cross-entropy, summed over the images, as a list of scalars.

    `logits` maps tasks to (batch, classes), in the order of the columns of `labels` (batch, tasks).
    """
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits
    return [tf.reduce_sum(loss(labels=labels[:, t], logits=x)) for t, x in enumerate(logits.values())]


def l2_regularisation(network):
    """Returns Σ ½‖W‖² over the kernels of convolutions and dense layers; units, biases and batch norm are free."""
    return tf.add_n([tf.nn.l2_loss(v.value) for v in network.trainable_variables if v.name == "kernel"])


def confusion_matrices(logits, labels):
    """Returns each task's confusion matrix, int64 (classes, classes): rows are true classes, columns predictions."""
    return [
        tf.math.confusion_matrix(labels[:, t], tf.argmax(x, axis=1), x.shape[1], dtype=tf.int64)
        for t, x in enumerate(logits.values())
    ]


def accuracies(matrices):
    """Returns {task: accuracy} of {task: confusion matrix}, and their mean as `accuracy`, in front."""
    tasks = {task: float(np.trace(matrix) / np.sum(matrix)) for task, matrix in matrices.items()}
    return {"accuracy": statistics.fmean(tasks.values()), **tasks}


# -------------------------------------------------------------------------------------------- training


def choose_strategy():
    """Returns the distribution strategy for the devices at hand, and whether this process writes the run.

    TF_CONFIG set: several machines. Several GPUs (or logical CPUs): all of them. Otherwise one device.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    if "TF_CONFIG" in os.environ:
        try:
            config = json.loads(os.environ["TF_CONFIG"])
            first = "chief" if "chief" in config["cluster"] else "worker"
            task = config["task"]["type"], config["task"]["index"]
            config["cluster"][task[0]][task[1]]
        except (ValueError, KeyError, IndexError, TypeError):
            example = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
            raise Failure(f"TF_CONFIG: expected {example}, got {os.environ['TF_CONFIG']}") from None
        return tf.distribute.MultiWorkerMirroredStrategy(), task == (first, 0)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy(), True


def replica_share(batch, *columns):
    """Returns this replica's share of the global batch from each of the tensors; `batch` holds indices into them."""
    context = tf.distribute.get_replica_context()
    replica, replicas, n = context.replica_id_in_sync_group, context.num_replicas_in_sync, tf.size(batch)
    share = batch[n * replica // replicas : n * (replica + 1) // replicas]
    with tf.device("CPU:0"):  # the data set stays in the memory of the host
        return [tf.gather(column, share) for column in columns]


def make_train_step(strategy, network, optimizer, unit_optimizer, task_weights, reg_lambda):
    """Returns the tf.function (images, labels, batch, stop) -> numbers that trains one step on a global batch.

    The numbers are a vector: each task's cross-entropy times its weight, the L2 term, which together are the loss, each
    task's accuracy on the batch, and the sum of `stop` over the replicas, by which each machine tells the others that
    it was asked to. `task_weights` is a list of T numbers, in the order of the network's outputs.
    Without a `unit_optimizer` the units stay as they are. Adam is TensorFlow 1's: one fused kernel a weight.
    """
    alphas = [v.value for v in network.trainable_variables if v.name == "alpha"]
    weights = [v.value for v in network.trainable_variables if v.name != "alpha"]

    def replica_step(images, labels, batch, stop):
        n = tf.cast(tf.size(batch), tf.float32)
        x, y = replica_share(batch, images, labels)
        with tf.GradientTape() as tape:
            logits = network(x, training=True)
            losses = [weight * total / n for weight, total in zip(task_weights, cross_entropies(logits, y))]
            losses.append(reg_lambda * l2_regularisation(network) / strategy.num_replicas_in_sync)
            loss = tf.add_n(losses)
        gradients = tape.gradient(loss, weights + alphas)  # summed over the replicas by the optimizers
        optimizer.apply_gradients(zip(gradients, weights))
        if unit_optimizer is not None and alphas:
            unit_optimizer.apply_gradients(zip(gradients[len(weights) :], alphas))
        hits = [tf.argmax(x, axis=1) == y[:, t] for t, x in enumerate(logits.values())]
        return tf.stack(losses + [tf.reduce_sum(tf.cast(hit, tf.float32)) / n for hit in hits] + [stop])

    @tf.function(autograph=False)  # nothing branches on a tensor, and a start takes a second less
    def train_step(*inputs):
        return strategy.reduce("SUM", strategy.run(replica_step, inputs), axis=None)

    return train_step


def make_evaluate_step(strategy, network):
    """Returns the tf.function (images, labels, batch) -> the tasks' confusion matrices on a global batch."""

    def replica_step(images, labels, batch):
        x, y = replica_share(batch, images, labels)
        return confusion_matrices(network(x, training=False), y)

    @tf.function(autograph=False)  # nothing branches on a tensor, and a start takes a second less
    def evaluate_step(images, labels, batch):
        matrices = strategy.run(replica_step, (images, labels, batch))
        return [strategy.reduce("SUM", matrix, axis=None) for matrix in matrices]

    return evaluate_step


@contextlib.contextmanager
def heeding_interrupts():
    """A context in which no Ctrl-C gets lost: it ends in KeyboardInterrupt, also where code within ignored it.

    While TensorFlow traces, it has been seen to do so.
    """
    came = []

    def handler(kind, _):
        came.append(kind)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if came:
            raise KeyboardInterrupt


def train(args, resumed):
    """Trains the network as `args` says, leaves the run in args.log_dir and returns its results.

    `resumed` is the record (run.json) of the run to go on with, None for a new one. Raises Failure with status 3
    when the loss is no longer finite, and SystemExit (130, 143) when a signal stopped the run, its state saved.
    """
    strategy, chief = choose_strategy()
    replicas = strategy.num_replicas_in_sync
    if chief and not resumed:
        refuse_log_dir(args.log_dir)
    keras.utils.set_random_seed(args.seed)
    tf.config.experimental.enable_op_determinism()
    parts, classes, mean, deviation, data = prepare_data(args)
    record = {"arguments": vars(args), "data": data, "versions": VERSIONS}
    if resumed:
        refuse_difference(resumed, record)

    with strategy.scope():
        network = build_network(args, classes, mean, deviation)
        rate = tf.Variable(args.lr)
        optimizer = tf.compat.v1.train.AdamOptimizer(lambda: rate)
        unit_optimizer = tf.compat.v1.train.AdamOptimizer(lambda: rate * args.cross_stitch_lr_scale)
        evaluated = tf.Variable(0, dtype=tf.int64)  # the last step whose evaluation is in the event file
    units = [layer for layer in network.layers if isinstance(layer, CrossStitch)]
    parameters = sum(math.prod(v.shape) for v in network.trainable_variables)
    if chief:
        describe(args, data, parameters, units, replicas)

    images, labels = parts["train"]
    specs = [tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in (images, labels)] + [tf.TensorSpec([None], tf.int64)]
    weights = {task: float(weight) for task, weight in (word.split("=") for word in args.task_weights)}
    terms = {"task_weights": [weights[task] for task in classes], "reg_lambda": args.reg_lambda}
    make_step = functools.partial(make_train_step, strategy, network, optimizer, **terms)
    inputs = [*specs, tf.TensorSpec([])]
    with heeding_interrupts():
        train_step = make_step(unit_optimizer=unit_optimizer).get_concrete_function(*inputs)
        column_step = make_step(unit_optimizer=None).get_concrete_function(*inputs) if args.pretrain_epoch else None
        evaluate_step = make_evaluate_step(strategy, network).get_concrete_function(*specs)

    steps_per_epoch = -(-len(images) // args.n_batch_size)
    evaluate_every = args.eval_every or steps_per_epoch
    total, pretraining = args.n_epoch * steps_per_epoch, args.pretrain_epoch * steps_per_epoch
    variables = [v.value for v in network.variables]
    optimizers = {"optimizer": optimizer, "unit_optimizer": unit_optimizer}
    with strategy.scope():
        checkpoint = tf.train.Checkpoint(network=variables, evaluated=evaluated, **optimizers)
        step = restore_checkpoint(checkpoint, args.log_dir) if resumed else -1  # -1: nothing is saved yet
    writer = open_run(args.log_dir, record, step) if chief else tf.summary.create_noop_writer()
    new, step = step < 0, max(step, 0)
    stop, speeds, matrices = [], [], {}  # stop: the signals that asked for it
    many_machines, asked = "TF_CONFIG" in os.environ, False  # asked: by a signal to any of them, so all stop together

    def save():
        if not all(np.isfinite(tf.convert_to_tensor(v)).all() for v in variables):
            raise Failure(f"step {step}: the weights are no longer finite; try a smaller --lr", 3)
        if chief:
            writer.flush()
            write_checkpoint(checkpoint, args.log_dir, step)

    def evaluate():
        """Returns {part: {task: confusion matrix}} of the test and the validation part, and logs what is new."""
        found = {}
        for part in sorted(parts.keys() - {"train"}):
            batches = []
            for first in range(0, len(parts[part][0]), EVALUATION_BATCH):
                if stop and not many_machines:
                    raise Stopped
                batch = tf.range(first, min(first + EVALUATION_BATCH, len(parts[part][0])), dtype=tf.int64)
                batches.append([matrix.numpy() for matrix in evaluate_step(*parts[part], batch)])
            found[part] = dict(zip(classes, map(sum, zip(*batches))))
        if evaluated < step:
            for part, matrices in found.items():
                for task, accuracy in accuracies(matrices).items():
                    tf.summary.scalar(f"{'summary' if task == 'accuracy' else task}/accuracy_{part}", accuracy)
            if step == total:
                summarise_confusion(found["test"], classes)
            evaluated.assign(step)
        return found

    handlers = {}
    if threading.current_thread() is threading.main_thread():  # others, as those of Ray Train, get no signals
        for kind in (signal.SIGINT, signal.SIGTERM):
            handlers[kind] = signal.signal(kind, lambda kind, _: stop.append(kind))
    tf.summary.experimental.set_step(step)
    try:
        with writer.as_default():
            if new:
                metrics = ["summary/accuracy_test", *(f"{task}/accuracy_test" for task in classes)]
                summarise_setting(args, data, train_step.graph, metrics)
                summarise_units(units)
                save()
            elif (step % evaluate_every == 0 or step == total) and evaluated < step:
                matrices = evaluate()  # the run was stopped in the midst of this step's evaluation
                save()
            for epoch in range(step // steps_per_epoch, args.n_epoch):
                order = np.random.default_rng([args.seed, epoch]).permutation(len(images))
                if args.lr_half_life:
                    rate.assign(args.lr * 0.5 ** (epoch / args.lr_half_life))
                progress = keras.utils.Progbar(steps_per_epoch, verbose=chief and sys.stdout.isatty(), unit_name="step")
                seconds, seen, losses = 0.0, 0, []
                for position in range(step % steps_per_epoch, steps_per_epoch):
                    if asked:
                        raise Stopped
                    if step == pretraining > 0:
                        for unit in units:
                            unit.alpha.assign(unit.initial_alpha(unit.alpha.shape, init=args.cross_stitch_init))
                    began = time.perf_counter()
                    batch = order[position * args.n_batch_size : (position + 1) * args.n_batch_size]
                    # Each replica needs an image: what is too few for them is taken several times, the mean stays.
                    batch = np.tile(batch, -(-replicas // len(batch)))
                    one_step = column_step if step < pretraining else train_step
                    numbers = one_step(images, labels, tf.constant(batch), tf.constant(float(len(stop)))).numpy()
                    numbers, asked = numbers[:-1], numbers[-1] > 0
                    seconds, seen, step = seconds + time.perf_counter() - began, seen + len(batch), step + 1
                    tf.summary.experimental.set_step(step)

                    of_task = dict(zip(classes, numbers.tolist()))
                    if not np.isfinite(numbers).all():
                        raise Failure(f"step {step}: the loss is no longer finite: {of_task}; try a smaller --lr", 3)
                    losses.append(float(numbers[: len(classes) + 1].sum()))
                    progress.update(position + 1, [("loss", losses[-1])])
                    if step % args.log_every == 0:
                        tf.summary.scalar("summary/loss_total", losses[-1])
                        tf.summary.scalar("summary/accuracy_train", numbers[len(classes) + 1 :].mean())
                        for task, loss in of_task.items():
                            tf.summary.scalar(f"{task}/loss", loss)
                        summarise_units(units)
                    if step % evaluate_every == 0 or step == total:
                        matrices = evaluate()
                    if step % steps_per_epoch and args.checkpoint_every and step % args.checkpoint_every == 0:
                        save()
                speeds.append(seen / seconds)
                tf.summary.scalar("throughput/images_per_second", speeds[-1])
                save()
                if chief:
                    line = f"epoch {epoch + 1}/{args.n_epoch}  step {step}  loss {statistics.fmean(losses):.4f}"
                    if len(losses) < steps_per_epoch:
                        line += f" over its last {len(losses)} steps"
                    if evaluated == step:
                        test = accuracies(matrices["test"])
                        line += "  test " + "  ".join(f"{task} {value:.4f}" for task, value in test.items())
                    print(f"{line}  ({seconds:.1f} s, {speeds[-1]:,.0f} images/s)", flush=True)
            matrices = matrices or evaluate()  # the run was stopped between its last step and its results
            writer.flush()
    except Stopped:
        save()
        if chief:
            print(
                f"\nstopped at step {step} of {total}; go on with: python {NAME}.py --resume {args.log_dir}", flush=True
            )
        raise SystemExit(128 + (stop[0] if stop else signal.SIGTERM)) from None
    except (OSError, tf.errors.OpError) as error:  # a full disk, a lost worker
        reason = str(error).strip().split("\n\n")[-1].split("\n")[0]  # without TensorFlow's own stack
        raise Failure(f"step {step}: {reason}; go on with: python {NAME}.py --resume {args.log_dir}", 1) from None
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)

    results = {
        "arguments": vars(args),
        "data": data,
        **{part: accuracies(of_part) for part, of_part in matrices.items()},
        "classes": classes,
        "cross_stitch": {unit.name: unit.mixing().tolist() for unit in units},
        "epochs": args.n_epoch,
        "steps": step,
        "parameters": parameters,
        "images_per_second": round(statistics.median(speeds), 1) if speeds else None,
        "seed": args.seed,
        "versions": VERSIONS,
    }
    if chief:
        partial = os.path.join(args.log_dir, "partial.keras")
        network.save(partial)
        os.replace(partial, os.path.join(args.log_dir, "model.keras"))
        write_json(os.path.join(args.log_dir, "results.json"), results)
        print_results(results)
    return results


# --------------------------------------------------------------------------- checkpoints and summaries


class Stopped(Exception):
    """A signal asked the run to stop, here or on another machine."""


def write_checkpoint(checkpoint, log_dir, step):
    """Writes the state after `step` steps into log_dir/checkpoints, and removes all but the last two.

    TensorFlow writes the index last, so a checkpoint that has one was written to its end.
    """
    folder = os.path.join(log_dir, "checkpoints")
    os.makedirs(folder, exist_ok=True)
    prefix = f"step-{step:010d}"
    checkpoint.write(os.path.join(folder, prefix))
    written = sorted(name[:-6] for name in os.listdir(folder) if name.endswith(".index"))
    kept = [name for name in written if name <= prefix][-2:]
    for name in os.listdir(folder):
        if name.split(".")[0] not in kept:  # older ones, damaged ones, and what a dead process left half-written
            path = os.path.join(folder, name)
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


def restore_checkpoint(checkpoint, log_dir):
    """Reads the newest good checkpoint of the run into `checkpoint`; returns its step, or -1 if none was begun.

    A damaged one, as its checksums tell, is passed over with a line that says so; raises Failure if none is good.
    """
    paths = glob.glob(os.path.join(glob.escape(log_dir), "checkpoints", "step-*.index"))
    for path in sorted(paths, reverse=True):
        prefix = path.removesuffix(".index")
        try:
            checkpoint.read(prefix).assert_existing_objects_matched()
            return int(prefix[-10:])
        except (tf.errors.OpError, AssertionError, IndexError, ValueError) as error:
            print(f"{prefix} is damaged ({type(error).__name__}): trying the one before it", flush=True)
    if paths:
        raise Failure(f"--resume {log_dir}: all checkpoints in its folder are damaged, expected a whole one")
    return -1


def refuse_log_dir(log_dir):
    """Raises Failure if `log_dir` already holds a run, or cannot be made or written."""
    names = os.listdir(log_dir) if os.path.isdir(log_dir) else []
    if any(name == "run.json" or "tfevents" in name for name in names):
        raise Failure(f"--log_dir {log_dir}: already holds a run; go on with --resume, or name another folder")
    folder = os.path.abspath(log_dir)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise Failure(f"--log_dir {log_dir}: expected a folder that can be written, {folder} is none")


def open_run(log_dir, record, step):
    """Writes run.json into the run's folder and returns its summary writer.

    Event files that are there keep the records up to `step` alone, so that no step stands there twice: each is
    copied up to there, or up to a record torn by the end of the process, and then replaced by its copy.
    """
    os.makedirs(log_dir, exist_ok=True)
    write_json(os.path.join(log_dir, "run.json"), record)
    copy = os.path.join(log_dir, "rewound")
    for path in glob.glob(os.path.join(glob.escape(log_dir), "events.out.tfevents.*")):
        with tf.io.TFRecordWriter(copy) as events:
            try:
                for event in tf.data.TFRecordDataset(path).as_numpy_iterator():
                    if tf.compat.v1.Event.FromString(event).step <= step:
                        events.write(event)
            except tf.errors.DataLossError:
                pass
        os.replace(copy, path)
    return tf.summary.create_file_writer(log_dir)


def write_json(path, content):
    """Writes `content` as JSON into the file `path`: the whole of it or, if anything fails, none."""
    with open(f"{path}.partial", "w") as file:
        json.dump(content, file, indent=2)
    os.replace(f"{path}.partial", path)


def read_json(path):
    """Returns the content of a JSON file that a run has written; raises Failure if it is no such file."""
    try:
        with open(path) as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: expected the JSON file that a run writes ({error})") from None
    if not isinstance(content, dict) or not {"arguments", "data", "versions"} <= content.keys():
        raise Failure(f"{path}: expected the JSON file that a run writes, with arguments, data and versions")
    return content


def refuse_difference(resumed, record):
    """Raises Failure where the data or the libraries are others than those of the run to resume."""
    for what, keys in (("data", ("sizes", "sha256")), ("versions", VERSIONS)):
        for key in keys:
            then, now = resumed[what].get(key), record[what][key]
            if then != now:
                raise Failure(f"--resume: expected the {what} that the run was begun with, {key} {then}, found {now}")


def markdown(table):
    """Returns the dictionary `table` as a Markdown table of two columns."""
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in table.items())])


def summarise_setting(args, data, graph, metrics):
    """Logs the training step's graph, the arguments and the data as text, the hyper-parameters and `metrics`, tags."""
    tf.summary.graph(graph)
    tf.summary.text("arguments", markdown(vars(args)))
    tf.summary.text("data", markdown(data))
    values = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in vars(args).items()}
    hparams.hparams_config([hparams.HParam(name) for name in values], [hparams.Metric(tag) for tag in metrics])
    hparams.hparams(values)


def summarise_units(units):
    """Logs α of every cross-stitch unit: its means, its histogram, and the means (T, T) as a picture.

    In the picture +1 is blue, 0 white and -1 red; row i, column j is what task i takes from task j.
    """
    for unit in units:
        mean = unit.mixing()
        cross = ~np.eye(len(mean), dtype=bool)
        tf.summary.scalar(f"cross_stitch/{unit.name}/alpha_self", mean[~cross].mean())
        tf.summary.scalar(f"cross_stitch/{unit.name}/alpha_cross", mean[cross].mean())
        value = np.kron(np.clip(mean, -1, 1), np.ones((64, 64)))
        picture = np.stack([1 - np.maximum(value, 0), 1 - np.abs(value), 1 + np.minimum(value, 0)], axis=-1)
        tf.summary.image(f"cross_stitch/{unit.name}/alpha_mean", picture[None])
        if unit.unit != "activation":  # hundreds of millions of zeros would hide everything
            tf.summary.histogram(f"cross_stitch/{unit.name}/alpha", unit.alpha.value)


def summarise_confusion(matrices, classes):
    """Logs {task: confusion matrix} as tables: a row for each true class, a column for each predicted one."""
    for task, matrix in matrices.items():
        names = classes[task]
        rows = [f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(names, matrix)]
        head = [f"| true, predicted: | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        tf.summary.text(f"{task}/confusion_matrix", "\n".join(head + rows))


def describe(args, data, parameters, units, replicas):
    """Prints the data, the network and where to look, before training starts."""
    sizes = ", ".join(f"{size:,} {part}" for part, size in data["sizes"].items())
    print(f"{data['name']} from {data['source']}: {sizes}")
    warn(data)
    print(f"{parameters:,} trainable weights on {replicas} device{'s' * (replicas > 1)}; seed {args.seed}")
    for unit in units:
        print(f"  cross-stitch unit {unit.name}: alpha {tuple(unit.alpha.shape)}")
    if any(unit.unit == "activation" for unit in units):
        weights = sum(math.prod(unit.alpha.shape) for unit in units)
        memory = 4 * 4 * weights / 1e9  # float32: the weight, its gradient, Adam's two moments
        print(f"  the units hold {weights:,} weights, about {memory:.1f} GB with gradients and Adam's moments")
    print(f"writing to {args.log_dir}; to watch: tensorboard --logdir {args.log_dir}", flush=True)


def warn(data):
    """Prints the warning that comes with the data, if there is one, so that it cannot be overlooked."""
    if "warning" in data:
        line = "!" * 100
        print("\n".join([line, *(f"!! {text}" for text in data["warning"].split("\n")), line]))


def print_results(results):
    """Prints the accuracies of a finished run as a table."""
    parts = [part for part in ("test", "validation") if part in results]
    print(f"\n{'accuracy':12}" + "".join(f"{part:>12}" for part in parts))
    for task in (*results["classes"], "accuracy"):
        name = "overall" if task == "accuracy" else task
        print(f"{name:12}" + "".join(f"{results[part][task]:12.4f}" for part in parts))
    warn(results["data"])


def load_run(model_path):
    """Returns the trained network in a run's model.keras and the content of results.json beside it, for --predict."""
    if model_path is None:
        raise Failure("--predict: expected --model with the model.keras of a run")
    results = read_json(os.path.join(os.path.dirname(model_path), "results.json"))
    try:
        network = keras.models.load_model(model_path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Failure(f"--model {model_path}: expected the model.keras of a run ({error})") from None
    if network.name != NAME:
        raise Failure(f"--model {model_path}: expected a model of {NAME}.py, found one of {network.name}")
    return network, results


def predict(photos, model_path):
    """Prints each photo's most probable class of every task, with its probability, as a table.

    The classes are those of results.json beside the model; raises Failure for a photo or model that cannot be read.
    """
    network, results = load_run(model_path)
    images = []
    for photo in photos:
        try:
            images.append(decode(photo, network.input_shape[1]))
        except tf.errors.OpError as error:
            raise Failure(f"--predict {photo}: expected an image file ({error.message})") from None
    logits = network.predict(np.stack(images), verbose=0)
    width = max(len("photo"), *(len(photo) for photo in photos))
    print(f"{'photo':{width}}" + "".join(f"  {task:>20}" for task in logits))
    for k, photo in enumerate(photos):
        line = f"{photo:{width}}"
        for task, x in logits.items():
            probabilities = tf.nn.softmax(x[k]).numpy()
            best = probabilities.argmax()
            line += f"  {results['classes'][task][best]:>13} {probabilities[best]:6.3f}"
        print(line)


# ---------------------------------------------------------------------------------------- command line


def boolean(text):
    """Returns the truth value that a word names; argparse's type=bool would read "False" as true."""
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return words[text.lower()]


def number(kind, interval):
    """Returns an argparse type: a `kind` (int or float) inside an interval, written as in "(0, 1]"."""
    low, high = map(float, interval[1:-1].split(","))

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if low < value < high or (value == low and interval[0] == "[") or (value == high and interval[-1] == "]"):
            return value
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"expected {what} in {interval}, got {text!r}")

    return parse


def some_of(names):
    """Returns an argparse type: a list of some of `names`, each once, from a text with commas between them."""

    def parse(text):
        words = text.split(",")
        if set(words) - set(names) or len(set(words)) < len(words):
            raise argparse.ArgumentTypeError(f"expected some of {','.join(names)}, each once, got {text!r}")
        return words

    return parse


def weight_of_each(names, default):
    """Returns an argparse type: the weights of losses as a list of words `<name>=<number>`, all of `names` in order.

    The text is one number for all, or some of those words with commas between; who is not named has the default.
    """

    def parse(text):
        if "=" not in text:
            text = ",".join(f"{name}={text}" for name in names)
        pairs = [word.partition("=")[::2] for word in text.split(",")]
        some_of(names)(",".join(name for name, _ in pairs))
        values = dict.fromkeys(names, default) | {name: number(float, "[0, inf)")(value) for name, value in pairs}
        return [f"{name}={value}" for name, value in values.items()]

    return parse


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ours: one line, without the usage."""

    def error(self, message):
        raise Failure(message.removeprefix("argument "))


def age_bins(text):
    """Returns the list of years in a comma-separated `text`, rising, at which a further age class begins."""
    parse = number(int, "[1, 120]")
    years = [parse(word) for word in text.split(",")]
    if sorted(set(years)) != years:
        raise argparse.ArgumentTypeError(f"expected rising years such as 13,20,30,45,60, got {text!r}")
    return years


def make_parser():
    """Returns the parser of this script's arguments."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    add = parser.add_argument
    add("--lr", type=number(float, "(0, inf)"), default=0.001, help="Adam's learning rate (0.001)")
    add("--lr_half_life", type=number(float, "[0, inf)"), default=0.0, help="epochs that halve it (0: constant)")
    add("--n_epoch", type=number(int, "[1, inf)"), default=8, help="epochs (8)")
    add("--n_batch_size", type=number(int, "[1, inf)"), default=128, help="images a step, over all devices (128)")
    add("--reg_lambda", type=number(float, "[0, inf)"), default=1e-4, help="weight of the L2 term (1e-4)")
    add("--keep_prob", type=number(float, "(0, 1]"), default=0.5, help="share that dropout keeps (0.5)")
    add("--bn_momentum", type=number(float, "[0, 1)"), default=0.9, help="of batch norm's moving averages (0.9)")
    add("--cross_stitch_enabled", type=boolean, default=True, help="False: the baseline, no units (True)")
    add("--cross_stitch_unit", choices=("channel", "layer", "activation"), default="channel", help="kind (channel)")
    add("--cross_stitch_at", type=some_of(UNITS), default=",".join(UNITS), help=f"units ({','.join(UNITS)})")
    add("--cross_stitch_init", type=number(float, "(0, 1]"), default=1.0, help="initial alpha of a task itself (1.0)")
    add("--cross_stitch_lr_scale", type=number(float, "[0, inf)"), default=1.0, help="times --lr, for units (1)")
    add("--pretrain_epoch", type=number(int, "[0, inf)"), default=0, help="first epochs, units held at identity (0)")
    add("--tasks", type=some_of(TASKS), default="gender,age", help="of gender,age,ethnicity (gender,age)")
    add("--task_weights", type=weight_of_each(TASKS, 1.0), default="1", help="of the losses, or gender=1,age=0.5 (1)")
    add("--train_fraction", type=number(float, "(0, 1]"), default=1.0, help="part of the training set used (1)")
    add("--validation_fraction", type=number(float, "[0, 1)"), default=0.0, help="part of it held out (0)")
    add("--seed", type=number(int, "[0, 4294967295]"), default=0, help="of all that is drawn at random (0)")
    add("--data_dir", help="folder of UTKFace or VGGFace2")
    add("--dataset", choices=("vggface2", "utkface"), help="its layout (otherwise: recognised)")
    add("--split", choices=("identity", "image"), help="what test and training do not share (identity, if known)")
    add(
        "--age_bins",
        type=age_bins,
        default=str(MATURE),
        help=f"first years of the age classes but the first ({MATURE})",
    )
    add("--image_size", type=number(int, "[16, 512]"), default=64, help="side of the images in pixels (64)")
    add("--augment", type=boolean, default=True, help="mirror and shift the training images (True)")
    add("--log_dir", help=f"folder of the run (tf_logs/{NAME}/<time>-<stitched|baseline|single>-seed<k>)")
    add("--log_every", type=number(int, "[1, inf)"), default=100, help="steps between training summaries (100)")
    add("--eval_every", type=number(int, "[0, inf)"), default=0, help="steps between evaluations (0: an epoch)")
    add("--checkpoint_every", type=number(int, "[0, inf)"), default=0, help="steps between checkpoints (0: an epoch)")
    add("--resume", metavar="LOG_DIR", help="go on with this run; only --n_epoch (upwards) and --data_dir may change")
    add("--predict", nargs="+", metavar="PHOTO", help="train nothing: judge these photos by --model")
    add("--model", metavar="FILE", help="model.keras of a run, for --predict")
    return parser


def kind_of_run(args):
    """Returns the word that stands in the name of the run's folder."""
    return "single" if len(args.tasks) == 1 else "stitched" if args.cross_stitch_enabled else "baseline"


def parse_arguments(argv):
    """Returns the arguments, and the record of the run that --resume names or None; raises Failure if they are wrong.

    With --resume, what the command line leaves out is taken from the run, and what would change the run is refused.
    """
    parser = make_parser()
    args, resumed = parser.parse_args(argv), None
    if args.resume is not None:
        resumed = read_json(os.path.join(args.resume, "run.json"))
        settings = {**resumed["arguments"], "log_dir": args.resume, "resume": args.resume}
        begun = []
        for name, value in settings.items():
            if value is not None:
                begun.append(f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}")
        before, args = parser.parse_args(begun), parser.parse_args(begun + argv)
        for name, value in vars(args).items():
            then = getattr(before, name)
            if value != then and name != "data_dir" and not (name == "n_epoch" and value > then):
                raise Failure(f"--resume {args.resume}: the run was begun with --{name} {then}, got {value}")
    elif not args.log_dir:
        if "TF_CONFIG" in os.environ:
            raise Failure("--log_dir: required with TF_CONFIG, a folder that all workers see")
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        args.log_dir = os.path.join("tf_logs", NAME, f"{now}-{kind_of_run(args)}-seed{args.seed}")
    if args.pretrain_epoch >= args.n_epoch:
        raise Failure(f"--pretrain_epoch {args.pretrain_epoch}: expected less than --n_epoch, {args.n_epoch}")
    del args.resume
    return args, resumed


def main(argv=None):
    """Runs the command line `argv` and returns the exit status: 0, or 1, 2 or 3 after one `error:` line."""
    try:
        args, resumed = parse_arguments(sys.argv[1:] if argv is None else argv)
        if args.predict:
            predict(args.predict, args.model)
            return 0
        if args.model:
            raise Failure("--model: expected with --predict PHOTO")
        del args.predict, args.model
        results = os.path.join(args.log_dir, "results.json")
        if resumed and os.path.exists(results) and read_json(results)["epochs"] >= args.n_epoch:
            print_results(read_json(results))
        else:
            train(args, resumed)
        return 0
    except Failure as failure:
        message, status = failure, failure.status
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    except (OSError, tf.errors.OpError) as error:  # outside the training, which words its own
        message, status = Failure(error), 1
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
