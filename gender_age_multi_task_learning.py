"""Trains gender and age (and ethnicity) from faces side by side, joined by cross-stitch units.

Each task has a column of its own: a small convolutional network. After each pooling layer and each fully connected
layer a cross-stitch unit mixes the columns' activations with learned weights, so that the network itself finds how
much the tasks should share. These tasks have less to do with each other than those on Fashion-MNIST.

    python gender_age_multi_task_learning.py --data_dir UTKFace --cross_stitch_enabled True     # or False
    python -m tensorboard.main --logdir tf_logs                                 # the curves, side by side
    python gender_age_multi_task_learning.py --predict PHOTO ... --model LOG_DIR/model.keras

--data_dir holds UTKFace (the aligned and cropped faces) or VGGFace2 (its folders meta and test; only the 2,000
images of which it tells that a person is young or mature are taken).
A stopped run goes on where it was:      ... --resume LOG_DIR
Several GPUs of one machine are used without being asked. On several machines, start the same command
on each of them with TF_CONFIG set, and with a --log_dir on storage that all of them see.

To read the method, read down to `train`. What stands below it keeps a run safe, shows it, and reads its arguments.
Papers: Misra, Shrivastava, Gupta, Hebert, "Cross-stitch Networks for Multi-task Learning", CVPR 2016,
arXiv:1604.03539. Zhang, Song, Qi, "Age Progression/Regression by Conditional Adversarial Autoencoder", CVPR 2017,
arXiv:1702.08423 (UTKFace). Cao, Shen, Xie, Parkhi, Zisserman, "VGGFace2", FG 2018, arXiv:1710.08092.
"""

# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["tensorflow==2.21.0", "numpy==2.4.6", "tensorboard==2.21.0"]
# ///

import argparse
import collections
import contextlib
import csv
import difflib
import fcntl
import functools
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
from PIL import Image  # TensorBoard brings it along
from tensorboard.plugins.hparams import api as hparams

# What is called shared below is the same text in other scripts: tests/test_copies.py has the list, and mends copies.
NAME = "gender_age_multi_task_learning"
TASKS = {  # task: names of its classes; those of age come from --age_bins
    "gender": ["male", "female"],
    "age": None,
    "ethnicity": ["White", "Black", "Asian", "Indian", "Others"],
}
FILTERS = (32, 64, 128)  # of a column's convolutions, each followed by a pooling layer
WIDTH = 256  # of its fully connected layer
UNITS = (*(f"pool_{k}" for k, _ in enumerate(FILTERS, 1)), f"fc_{len(FILTERS) + 1}")  # the layers that a unit follows
EVALUATION_PIXELS = 2**19  # predicted at once, 128 images of 64x64
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # of this machine, in bytes
BYTES_OF_A_WEIGHT = 16  # in float32: its value, its gradient and Adam's two moments
VERSIONS = {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__}


class Failure(Exception):
    """Ends the program with one line and the given exit status; above 128 a signal stopped it, its state saved."""

    def __init__(self, message, status=2):
        super().__init__(" ".join(str(message).split()))
        self.status = status


# --------------------------------------------- data (orientation to pixel_statistics, hold_out: shared)

UTKFACE_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d+\.jpg\.chip\.jpg")
LAYOUTS = (
    "UTKFace (https://susanqq.github.io/UTKFace, the aligned and cropped faces, named [age]_[gender]_[race]_"
    "[date].jpg.chip.jpg) or VGGFace2 (https://www.robots.ox.ac.uk/~vgg/data/vgg_face2, its folders meta and test)"
)
MATURE = 30  # years; VGGFace2 says no more than young and mature


def list_utkface(data_dir):
    """Returns paths, and genders, ages in years, ethnicities and None for identities, of the faces of UTKFace.

    Folders in it are read too, each once, links to folders followed. Files of one name are one face: some archives
    hold faces twice. Raises Failure if there are none.
    """
    files, seen = [], set()
    for folder, folders, names in os.walk(data_dir, followlinks=True):
        if os.path.realpath(folder) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        files += [os.path.join(folder, name) for name in names if name.endswith(".jpg")]
    path_of = {os.path.basename(path): path for path in sorted(files, reverse=True)}  # of two the first one stays
    if twice := len(files) - len(path_of):
        print(f"left out {twice} of {len(files)} files, whose names others have in other folders")
    found = [(path_of[name], UTKFACE_NAME.fullmatch(name)) for name in sorted(path_of)]
    broken = [os.path.basename(path) for path, match in found if not match]
    fields = np.array([match.groups() for _, match in found if match], np.int64).reshape(-1, 3)
    if not len(fields):
        raise Failure(f"--data_dir {data_dir}: expected {LAYOUTS}")
    if broken:
        print(f"skipped {len(broken)} of {len(path_of)} files for their names, such as {broken[0]!a}")
    return [path for path, match in found if match], fields[:, 1], fields[:, 0], fields[:, 2], None


def list_vggface2(data_dir):
    """Returns paths, and genders, ages, None for ethnicities, and identities, of VGGFace2's age templates.

    The ten first images of an identity are young (age 0 here), the ten others mature (MATURE). Raises Failure where
    the files in meta are not as VGGFace2 has them.
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
    if not names or len(set(names)) < len(names):
        raise Failure(f"{index}: expected the paths of images, one a line, none of them twice")
    paths, genders, ages, identities, seen = [], [], [], [], collections.Counter()
    for name in names:
        identity = name.split("/")[-2] if "/" in name else ""
        if gender_of.get(identity) not in ("m", "f"):
            raise Failure(f"{index}: expected an image of an identity with a gender in {meta}, found {name}")
        places = [os.path.join(data_dir, part, name) for part in ("test", "", "train")]
        paths.append(next((path for path in places if os.path.exists(path)), places[0]))
        genders.append(int(gender_of[identity] == "f"))
        ages.append(0 if seen[identity] < 10 else MATURE)
        seen[identity] += 1
        identities.append(identity)
    if wrong := [identity for identity, count in seen.items() if count != 20]:
        raise Failure(f"{index}: expected 20 images of each identity, found {seen[wrong[0]]} of {wrong[0]}")
    return paths, np.array(genders), np.array(ages), None, np.array(identities)


def decode(path, orientation, size):
    """Returns the image as a uint8 tensor (size, size, 3): upright, its middle square, scaled with antialiasing."""
    image = upright(tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False), orientation)
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    side = tf.minimum(height, width)
    image = tf.image.resize_with_crop_or_pad(image, side, side)
    image = tf.image.resize(image, (size, size), antialias=True)
    return tf.ensure_shape(tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8), (size, size, 3))


def orientation(path):
    """Returns the EXIF orientation of an image file, 1 to 8, or 1 where it has none or is no image."""
    try:
        with Image.open(path) as image:
            found = image.getexif().get(0x0112, 1)
    except Exception:  # whatever a damaged file makes of it; decoding will tell
        return 1
    return found if found in range(1, 9) else 1


def upright(image, orientation):
    """Returns an image (height, width, C) as its EXIF orientation says that it is to be seen."""
    image = tf.cond(orientation > 4, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    mirrored = tf.reduce_any(tf.equal(orientation, [2, 3, 6, 7]))
    upside_down = tf.reduce_any(tf.equal(orientation, [3, 4, 7, 8]))
    image = tf.cond(mirrored, lambda: image[:, ::-1], lambda: image)
    return tf.cond(upside_down, lambda: image[::-1], lambda: image)


def decode_all(decode, shape, paths, *columns):
    """Returns the images that decode(path, orientation, ...) can give, uint8 (n, *shape), and their indices in `paths`.

    `columns` hold what else `decode` takes for each path: boxes. Images that cannot be decoded are named and counted;
    raises Failure if they are more than 1 %.
    """
    rows = np.arange(len(paths)), [os.fsencode(path) for path in paths], [orientation(path) for path in paths], *columns
    data = tf.data.Dataset.from_tensor_slices(rows)
    decoded = data.map(lambda k, *row: (k, decode(*row)), num_parallel_calls=tf.data.AUTOTUNE)
    progress = keras.utils.Progbar(len(paths), verbose=sys.stdout.isatty(), unit_name="image")
    images, kept = np.empty((len(paths), *shape), np.uint8), []
    for k, image in decoded.ignore_errors().as_numpy_iterator():
        images[len(kept)] = image
        kept.append(int(k))
        progress.update(len(kept))
    what = "missing or damaged" + ", or its box lies beside it" * bool(columns)
    if bad := [paths[k] for k in sorted(set(range(len(paths))) - set(kept))]:
        progress.update(len(kept), finalize=True)  # ends its line
        print(f"skipped {len(bad)} of {len(paths)} images, each {what}: {', '.join(bad[:5])!a}")
    if len(bad) > 0.01 * len(paths):
        raise Failure(f"{bad[0]}: {what}, as {len(bad)} of {len(paths)} images, expected 1 % at most")
    return images[: len(kept)], np.array(kept)


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


def same_pictures(images, facts):
    """Returns the index of the first image identical to each, and whether identical ones disagree in their facts.

    Takes images (n, height, width, C) and `facts`, (n, any); both results are (n,).
    """
    digests = [hashlib.sha256(image).digest() for image in images]
    _, first, picture = np.unique(digests, return_index=True, return_inverse=True)
    picture = first[picture]  # which does not depend on the pixels, nor does the split that follows
    wrong = (facts != facts[picture]).any(axis=1)
    return picture, np.isin(picture, picture[wrong])


def hold_out(strata, people, fraction):
    """Returns the sorted indices of a random part, the same for every seed and every set of tasks.

    It is stratified by `strata`, and nobody of `people` (who or which picture each image shows) is on both sides.
    """
    names, first = np.unique(people, return_index=True)
    return np.flatnonzero(np.isin(people, names[stratified(strata[first], fraction, seed=0)]))


def prepare_data(args):
    """Returns the parts, the classes, the per-pixel mean and deviation of the training images, and a record.

    A part (`train`, `test` and, if asked for, `validation`) is a pair of arrays: images, uint8
    (n, height, width, 3), and labels, int64 (n, tasks). The classes are {task: their names}. Identical pictures
    stand in one part, and those that contradict each other in none.
    The record says where the data come from, their sizes, the SHA-256 of images, labels and split, and the accuracy
    that the most frequent class alone would have on the test part.
    """
    if args.data_dir is None or not os.path.isdir(args.data_dir):
        raise Failure(f"--data_dir {args.data_dir or ''}: expected a folder with {LAYOUTS}")
    vggface2 = os.path.isdir(os.path.join(args.data_dir, "meta"))
    paths, genders, ages, ethnicities, identities = (list_vggface2 if vggface2 else list_utkface)(args.data_dir)
    split = args.split or ("identity" if vggface2 else "image")
    if split == "identity" and not vggface2:
        raise Failure("--split identity: UTKFace does not say who is who, expected image")
    if vggface2 and "ethnicity" in args.tasks:
        raise Failure(f"--tasks {' '.join(args.tasks)}: VGGFace2 has no ethnicities, expected gender age")
    if vggface2 and args.age_bins != [MATURE]:
        raise Failure(f"--age_bins: VGGFace2 says young or mature, expected {MATURE}, the default")
    if args.age_bins != sorted(set(args.age_bins)):
        raise Failure(f"--age_bins {' '.join(map(str, args.age_bins))}: expected rising years such as 13 20 30 45 60")
    if len(set(args.tasks)) < len(args.tasks):
        raise Failure(f"--tasks {' '.join(args.tasks)}: expected each once")
    if args.task_weights and len(args.task_weights) != len(args.tasks):
        raise Failure(f"--task_weights: expected {len(args.tasks)} numbers, one each for {' '.join(args.tasks)}")
    shape = (args.image_size, args.image_size, 3)
    images, kept = decode_all(functools.partial(decode, size=args.image_size), shape, paths)
    others = np.unique(identities, return_inverse=True)[1] if vggface2 else ethnicities  # what else copies must share
    facts = np.stack([genders, ages, others], axis=1)[kept]
    picture, contradictory = same_pictures(images, facts)
    if left_out := int(contradictory.sum()):
        print(f"{left_out} images are left out: their copies differ in gender, age, ethnicity or identity")
    if left_out == len(images):
        raise Failure(f"--data_dir {args.data_dir}: nothing left, all images contradict each other")
    kept, facts, picture, images = (x[~contradictory] for x in (kept, facts, picture, images))
    if identical := len(picture) - len(set(picture)):
        print(f"{identical} images are copies of others and stand with them in one part")
    genders, ages = facts[:, 0], facts[:, 1]
    bounds = [0, *args.age_bins]
    names = [f"{low}-{high - 1}" for low, high in zip(bounds, args.age_bins)] + [f"{args.age_bins[-1]}+"]
    names = {**TASKS, "age": ["young", "mature"] if args.age_bins == [MATURE] else names}
    classes = {task: names[task] for task in args.tasks}
    columns = {"gender": genders, "age": np.searchsorted(args.age_bins, ages, side="right"), "ethnicity": facts[:, 2]}
    labels = np.stack([columns[task] for task in args.tasks], axis=1).astype(np.int64)
    cells = genders * 100 + ages // 10
    people, strata = (identities[kept], genders) if split == "identity" else (picture, cells)
    rows = {"test": hold_out(strata, people, 0.1)}
    digest = hashlib.sha256(images)
    digest.update(labels)
    digest.update(rows["test"])  # a run that went on with another split would be tested on what it has trained on
    rest = np.setdiff1d(np.arange(len(images)), rows["test"])
    if args.validation_fraction and len(rest):
        chosen = hold_out(strata[rest], people[rest], args.validation_fraction)
        rows["validation"], rest = rest[chosen], np.delete(rest, chosen)
    if not len(rest):
        what = f"--data_dir {args.data_dir}, --validation_fraction {args.validation_fraction}"
        raise Failure(f"{what}: nothing left to train on")
    rest = rest[stratified(cells[rest], args.train_fraction, seed=args.seed)]
    rows = {"train": rest, **rows}
    majority = {}
    for t, task in enumerate(args.tasks):
        counts = np.bincount(labels[:, t], minlength=len(classes[task]))
        frequent = np.bincount(labels[rest, t]).argmax()
        majority[task] = float(np.mean(labels[rows["test"], t] == frequent))
        shares = ", ".join(f"{name} {count:,}" for name, count in zip(classes[task], counts))
        print(f"{task}: {shares}; always {classes[task][frequent]}: {majority[task]:.4f} of the test images")
    parts = {part: (images[k], labels[k]) for part, k in rows.items()}
    record = {"name": "VGGFace2" if vggface2 else "UTKFace", "source": args.data_dir, "split": split}
    record |= {"sizes": {part: len(k) for part, k in rows.items()}, "sha256": digest.hexdigest(), "majority": majority}
    record |= {"identical": identical, "left_out": left_out}
    if split == "image" and vggface2:
        record["warning"] = (
            "--split image leaks: images of the same person stand in training and test, and a person's gender and age "
            "can be known again instead of seen. Use --split identity to judge."
        )
    return parts, classes, *pixel_statistics(parts["train"][0]), record


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


@keras.saving.register_keras_serializable("cross_stitch")
class MirrorAndShift(layers.Layer):
    """Mirrors each image (batch, size, size, C) or not and moves it by up to 5 % of its side, in training alone.

    What comes in at an edge repeats it. The random state is part of the network and of its checkpoints.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, images, training=False):
        if not training:
            return images
        size = images.shape[1]
        draws = tf.random.stateless_uniform((tf.shape(images)[0], 3), replica_seed(self.seed_generator), -1, 1)
        mirror, right, down = tf.unstack(draws * [1, 0.05 * size, 0.05 * size], axis=1)
        flip, start = tf.where(mirror > 0, -1.0, 1.0), tf.where(mirror > 0, size - 1.0, 0.0)
        zero, one = tf.zeros_like(flip), tf.ones_like(flip)
        # The pixel at (x, y) comes from (flip · x + start + right, y + down).
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=tf.stack([flip, zero, start + right, zero, one, down, zero, zero], axis=1),
            output_shape=(size, size),
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="NEAREST",
        )


def build_network(args, classes, mean, deviation):
    """Returns the network: uint8 images (batch, height, width, 3) in, {task: float32 logits (batch, classes)} out.

    `classes` is {task: names of its classes}; `mean` and `deviation` (height, width, 3) standardise each pixel. Call
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
    if args.augment:
        x = MirrorAndShift(name="augment", dtype="float32")(x)
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


# -------------------------------------------------- checkpoints and summaries (but for predict: shared)


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


def load_run(model_path):
    """Returns the trained network in a run's model.keras and the content of results.json beside it, for --predict."""
    if model_path is None:
        raise Failure("--predict: expected --model with the model.keras of a run")
    results = read_json(os.path.join(os.path.dirname(model_path), "results.json"), "arguments", "classes")
    try:
        network = keras.models.load_model(model_path)
    except Exception as error:  # what Keras makes of a damaged file is of many types
        raise Failure(f"--model {model_path}: expected the model.keras of a run ({type(error).__name__})") from None
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
            images.append(decode(photo, orientation(photo), network.input_shape[1]))
        except tf.errors.OpError:
            raise Failure(f"--predict {photo}: expected an image, of JPEG, PNG, GIF, BMP or WebP") from None
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
    add("--n_epoch", type=number(int, "[1, inf)"), default=8, help="epochs (8)")
    add("--n_batch_size", type=number(int, "[1, inf)"), default=128, help="images per step, over all devices (128)")
    add("--reg_lambda", type=number(float, "[0, inf)"), default=1e-4, help="weight of the L2 term (1e-4)")
    add("--keep_prob", type=number(float, "[0.01, 1]"), default=0.5, help="share that dropout keeps (0.5)")
    add("--bn_momentum", type=number(float, "[0, 1)"), default=0.9, help="of batch norm's moving averages (0.9)")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="of activations and products (float32)")
    add("--tasks", nargs="+", choices=TASKS, default=["gender", "age"], help="a column each (gender age)")
    add("--task_weights", nargs="+", type=number(float, "[0, inf)"), help="of their losses, in this order (1 each)")
    add("--train_fraction", type=number(float, "(0, 1]"), default=1.0, help="part of the training set used (1)")
    add("--validation_fraction", type=number(float, "[0, 1)"), default=0.0, help="part of it held out (0)")
    add("--seed", type=number(int, "[0, 4294967295]"), default=0, help="of all that is drawn at random (0)")
    add("--data_dir", type=os.path.abspath, help="folder of UTKFace or VGGFace2")
    add("--split", choices=("identity", "image"), help="what test and training do not share (identity, if known)")
    year = number(int, "[1, 120]")
    add("--age_bins", nargs="+", type=year, default=[MATURE], help="years at which a further class begins (30)")
    add("--image_size", type=number(int, "[16, 512]"), default=64, help="side of the images in pixels (64)")
    add("--augment", type=boolean, choices=(True, False), default=True, help="mirror and shift training images (True)")
    add("--log_dir", help="folder of the run (tf_logs/gender_age/<stitched|baseline|single>-seed<k>-<time>-<pid>)")
    add("--log_every", type=number(int, "[1, inf)"), default=100, help="steps between summaries, at most (100)")
    add("--eval_every", type=number(int, "[0, inf)"), default=0, help="steps between evaluations (0: an epoch)")
    add("--resume", metavar="LOG_DIR", help="go on with this run; auto: with the one in --log_dir, if it holds one")
    add("--predict", nargs="+", metavar="PHOTO", help="train nothing: judge these photos by --model")
    add("--model", metavar="FILE", help="model.keras of a run, for --predict")
    return parser


def run(args, resumed):
    """Predicts if asked to; otherwise trains, or shows the results of the run to resume where it is finished."""
    if args.predict:
        return predict(args.predict, args.model)
    if args.model:
        raise Failure("--model: expected with --predict PHOTO")
    del args.predict, args.model
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
