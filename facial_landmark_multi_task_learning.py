"""Trains facial landmarks with auxiliary attributes, side by side in columns joined by cross-stitch units.

One column finds five landmarks (eyes, nose, corners of the mouth), the other tells gender, smile, glasses and pose.
After each pooling layer and each fully connected layer a cross-stitch unit mixes the columns' activations with learned
weights. A further loss can relate the weights of the two columns. One network alone (--network single) and one trunk
with a head for each task (--network split) are there to compare.

    python facial_landmark_multi_task_learning.py --data_dir MTFL --cross_stitch_enabled True     # or False
    tensorboard --logdir tf_logs                                                # the curves, side by side
    python facial_landmark_multi_task_learning.py --predict PHOTO ... --model LOG_DIR/model.keras

--data_dir holds MTFL (training.txt, testing.txt and their photos) and, if you have them, the lists of boxes
trainImageList.txt and testImageList.txt of the set that it is built on.
A stopped run goes on where it was:      ... --resume LOG_DIR
Several GPUs of one machine are used without being asked. On several machines, start the same command
on each of them with TF_CONFIG set, and with a --log_dir on storage that all of them see.

Papers: Misra, Shrivastava, Gupta, Hebert, "Cross-stitch Networks for Multi-task Learning", CVPR 2016,
arXiv:1604.03539. Bhuin, Chadha, Tan, "Related Weights in Cross-stitch Network for Multi-task Learning", poster, CMU.
Rozantsev, Salzmann, Fua, "Beyond Sharing Weights for Deep Domain Adaptation", arXiv:1603.06432. Zhang, Luo, Loy, Tang,
"Facial Landmark Detection by Deep Multi-task Learning", ECCV 2014 (MTFL). Sun, Wang, Tang, "Deep Convolutional Network
Cascade for Facial Point Detection", CVPR 2013 (the boxes, and the test set of 3,466 faces).
"""

# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["tensorflow==2.21.0", "numpy==2.4.6", "tensorboard==2.21.0"]
# ///

import argparse
import contextlib
import datetime
import functools
import glob
import hashlib
import json
import math
import os
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

NAME = "facial_landmark_multi_task_learning"
LANDMARKS = ["left eye", "right eye", "nose", "left mouth corner", "right mouth corner"]  # left in the picture
TASKS = {  # attribute: names of its classes, in the order of the numbers 1, 2, ... of MTFL
    "gender": ["male", "female"],
    "smile": ["smiling", "not smiling"],
    "glasses": ["glasses", "no glasses"],
    "pose": ["left profile", "left", "frontal", "right", "right profile"],
}
UNITS = ("pool_1", "pool_2", "pool_3", "pool_4", "fc_5")  # the layers that a cross-stitch unit can follow
BLOCKS = {  # preset: (filters, side of the kernel, pooling) of the convolutions, and the width of the dense layer
    "ours": (((32, 3, True), (48, 3, True), (64, 3, True), (80, 3, False)), 256),
    "poster": (((20, 4, True), (40, 3, True), (60, 3, True), (80, 2, False)), 120),
}
POSTER = {  # the setting of the poster's code, where it differs from the defaults
    "lr": 0.01,
    "lr_half_life": 0.0,
    "n_epoch": 100,
    "n_batch_size": 128,
    "reg_lambda": 0.0,
    "keep_prob": 1.0,
    "image_size": 39,
    "augment": False,
    "landmark_lambda": 200.0,  # 1000 times the mean of ten squares is 200 times half their sum
    "aux_lambda": [f"{task}=0.125" for task in TASKS],  # the mean over eight outputs
    "cross_stitch_at": list(UNITS),
    "cross_stitch_init": 0.9,
    "weight_reg": "l2",
    "weight_reg_lambda": 1.0,
}
EVALUATION_BATCH = 500  # images
VERSIONS = {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__}


class Failure(Exception):
    """Ends the program with one line `error: <message>` and the given exit status."""

    def __init__(self, message, status=2):
        super().__init__(" ".join(str(message).split()))
        self.status = status


# ---------------------------------------------------------------------------------------------- data

LAYOUT = (
    "MTFL (http://mmlab.ie.cuhk.edu.hk/projects/TCDCN.html: training.txt, testing.txt and their photos), with the "
    "boxes trainImageList.txt and testImageList.txt of http://mmlab.ie.cuhk.edu.hk/archive/CNN_FacePoint.htm if at hand"
)
BOX_FACTOR = 1.78  # side of a box over the larger extent of its landmarks: the median over the 10,000 training faces
MARGIN = 4  # a face is held with a margin of one MARGIN-th of its crop on each side, for the augmentation


def read_rows(path):
    """Returns the photos' paths and an array (n, 14) of the numbers of a list; raises Failure naming a bad line."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().replace("\\", "/").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: expected a list of faces ({error})") from None
    names, numbers = [], []
    for k, line in enumerate(lines, 1):
        name, *words = line.split() or [None]
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if name and len(values) == 14 and np.isfinite(values).all():
            names.append(os.path.join(os.path.dirname(path), name))
            numbers.append(values)
        elif name:
            raise Failure(f"{path}, line {k}: expected a path and 14 numbers, found {line.strip()!r}")
    if not names:
        raise Failure(f"{path}: expected one face a line, found none")
    return names, np.array(numbers)


def read_attributes(path):
    """Returns paths, points (n, 5, 2) in pixels from 0, and classes (n, 4) of a list in the form of training.txt.

    A line of it holds x1..x5, y1..y5, counted from 1, then gender, smile, glasses and pose, whose classes count from 1.
    """
    names, numbers = read_rows(path)
    classes = numbers[:, 10:]
    for k, task in enumerate(TASKS):
        wrong = ~np.isin(classes[:, k], range(1, len(TASKS[task]) + 1))
        if wrong.any():
            first = wrong.argmax()
            what = f"{task} in 1 to {len(TASKS[task])}, found {classes[first, k]:g}"
            raise Failure(f"{path}, face {first + 1}: expected {what}")
    points = numbers[:, :10].reshape(-1, 2, 5).transpose(0, 2, 1) - 1
    equal = (points == points[:, :1]).all(axis=(1, 2))
    if equal.any():
        raise Failure(f"{path}, face {equal.argmax() + 1}: expected five landmarks, found them all in one place")
    return names, points, classes.astype(np.int64) - 1


def read_boxes(path):
    """Returns paths, boxes (n, 3) and points (n, 5, 2), in pixels from 0, of a list in the form of trainImageList.txt.

    A line of it holds left, right, top, bottom, then x and y of each point. A box here is left, top and side of the
    square of the same width and centre; the listed ones are square but for a pixel.
    """
    names, numbers = read_rows(path)
    left, right, top, bottom = numbers[:, :4].T
    side = right - left
    if (side <= 0).any() or (bottom <= top).any():
        face = ((side <= 0) | (bottom <= top)).argmax() + 1
        raise Failure(f"{path}, face {face}: expected left < right and top < bottom")
    return names, np.stack([left, (top + bottom - side) / 2, side], axis=1), numbers[:, 4:].reshape(-1, 5, 2)


def boxes_around(points):
    """Returns the boxes (n, 3), left, top and side, around points (n, 5, 2): BOX_FACTOR times their larger extent."""
    low, high = points.min(axis=1), points.max(axis=1)
    side = BOX_FACTOR * (high - low).max(axis=1, keepdims=True)
    return np.concatenate([(low + high - side) / 2, side], axis=1)


def jitter(boxes, seed):
    """Returns the boxes (n, 3) moved by up to 8 % of their side and scaled by up to 15 %, at random.

    A box made from the landmarks would give them away; detected ones vary by about as much.
    """
    draws = np.random.default_rng(seed).uniform(-1, 1, boxes.shape)
    side = boxes[:, 2:] * np.exp(0.15 * draws[:, 2:])
    centre = boxes[:, :2] + boxes[:, 2:] / 2 + 0.08 * boxes[:, 2:] * draws[:, :2]
    return np.concatenate([centre - side / 2, side], axis=1)


def to_box(points, boxes):
    """Returns points (n, 5, 2) in pixels of the photo in coordinates of their boxes (n, 3), 0 to 1 inside."""
    return (points - boxes[:, None, :2]) / boxes[:, None, 2:]


def from_box(points, boxes):
    """Returns points (n, 5, 2) in coordinates of their boxes (n, 3) in pixels of the photo: the inverse of to_box."""
    return points * boxes[:, None, 2:] + boxes[:, None, :2]


def crop(path, box, size, scale):
    """Returns the face of a photo, grey, as a uint8 tensor (size, size, 1), scaled with antialiasing.

    It is the square of `scale` times the side of `box` (left, top, side) about the same centre; what lies beyond the
    photo is black. Pixel k of the photo has its centre at k, as the lists count.
    """
    photo = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
    grey = tf.image.rgb_to_grayscale(tf.cast(photo, tf.float32))
    zoom = size / (scale * box[2])
    left, top = (box[k] + box[2] / 2 * (1 - scale) + 0.5 for k in (0, 1))  # where pixel k reaches from k to k + 1
    face = tf.raw_ops.ScaleAndTranslate(
        images=grey[None],
        size=(size, size),
        scale=tf.stack([zoom, zoom]),
        translation=tf.stack([-top * zoom, -left * zoom]),
        kernel_type="triangle",
        antialias=True,
    )[0]
    return tf.ensure_shape(tf.cast(tf.clip_by_value(tf.round(face), 0, 255), tf.uint8), (size, size, 1))


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
    """Returns the parts, the per-pixel mean and deviation of the training crops, and a record.

    A part (`train`, `validation`, and of `test` and `aflw` those that are there) is a triple of tensors: faces, uint8
    (n, window, window, 1), with their margin; points, float32 (n, 5, 2), in coordinates of the box; and attributes,
    int64 (n, 4), -1 where unknown. The record says where the data come from, their sizes, the SHA-256 of all of it,
    and for each attribute the accuracy that the most frequent class alone would have.
    """
    if args.data_dir is None or not os.path.exists(os.path.join(args.data_dir, "training.txt")):
        raise Failure(f"--data_dir {args.data_dir or ''}: expected a folder with {LAYOUT}")
    lists = ("training.txt", "trainImageList.txt", "testImageList.txt", "testing.txt")
    training, boxes_of_training, test, aflw = (os.path.join(args.data_dir, name) for name in lists)
    paths, points, attributes = read_attributes(training)
    found, guessed = {}, []
    if os.path.exists(boxes_of_training):
        names, boxes, _ = read_boxes(boxes_of_training)
        box_of = dict(zip(names, boxes))
        missing = [path for path in paths if path not in box_of]
        if missing:
            raise Failure(f"{boxes_of_training}: expected a box for each face of training.txt, {missing[0]} has none")
        found["train"] = paths, np.array([box_of[path] for path in paths]), points, attributes
    else:
        found["train"] = paths, boxes_around(points), points, attributes
        guessed.append("train")
    if os.path.exists(test):
        names, boxes, points = read_boxes(test)
        found["test"] = names, boxes, points, np.full((len(names), len(TASKS)), -1)
    if os.path.exists(aflw):
        paths, points, attributes = read_attributes(aflw)
        found["aflw"] = paths, boxes_around(points), points, attributes
        guessed.append("aflw")
    if len(found) == 1:
        raise Failure(f"--data_dir {args.data_dir}: expected testImageList.txt or testing.txt, to test on")

    window = args.image_size + 2 * (args.image_size // MARGIN)
    read = functools.partial(crop, size=window, scale=args.crop_scale * window / args.image_size)
    digest, parts = hashlib.sha256(), {}
    for part, (paths, boxes, points, attributes) in found.items():
        if part == "train" and part in guessed:
            boxes = jitter(boxes, args.seed)
        images, kept = decode_all(read, (window, window, 1), paths, boxes.astype(np.float32))
        points = to_box(points, boxes)[kept].astype(np.float32)
        parts[part] = images, points, attributes[kept]
        for array in parts[part]:
            digest.update(np.ascontiguousarray(array))

    pose = parts["train"][2][:, -1]
    held_out = stratified(pose, args.validation_fraction, seed=0)
    rest = np.setdiff1d(np.arange(len(pose)), held_out)
    if not len(rest):
        raise Failure(f"--validation_fraction {args.validation_fraction}: nothing left to train on")
    if args.train_fraction < 1:
        rest = rest[stratified(pose[rest], args.train_fraction, seed=args.seed)]
    if args.n_batch_size > len(rest):
        raise Failure(f"--n_batch_size {args.n_batch_size}: expected at most the {len(rest)} training images")
    parts["validation"] = [array[held_out] for array in parts["train"]]
    parts["train"] = [array[rest] for array in parts["train"]]
    mean, deviation = pixel_statistics(centre(parts["train"][0], args.image_size))

    majority = {}
    for t, task in enumerate(TASKS):
        frequent = np.bincount(parts["train"][2][:, t]).argmax()
        shares = {part: float(np.mean(parts[part][2][:, t] == frequent)) for part in parts if part != "test"}
        majority[task] = {part: share for part, share in shares.items() if part != "train"}
        print(f"{task}: always {TASKS[task][frequent]}: " + ", ".join(f"{v:.4f} of {k}" for k, v in shares.items()))
    for part in guessed:
        print(f"{part}: boxes made from the landmarks, {BOX_FACTOR} times their extent, which flatters its figures")
    sizes = {part: len(parts[part][0]) for part in sorted(parts)}
    record = {"name": "MTFL", "source": args.data_dir, "sizes": sizes, "sha256": digest.hexdigest()}
    record |= {"majority": majority, "boxes_from_landmarks": guessed}
    with tf.device("CPU:0"):
        parts = {part: tuple(map(tf.constant, arrays)) for part, arrays in parts.items()}
    return parts, mean, deviation, record


def centre(faces, size):
    """Returns the crops (n, size, size, 1) in the middle of faces with their margin (n, window, window, 1)."""
    margin = (faces.shape[1] - size) // 2
    return faces[:, margin : margin + size, margin : margin + size]


def augment(faces, points, attributes, draws, size, scale):
    """Returns crops (n, size, size, 1) at random places, and the points and attributes that go with them.

    Each face is mirrored or not, turned by up to 10 degrees, scaled by up to 10 % and moved by up to 5 % of its box.
    A mirrored face has the other eye on the left, and looks to the other side.

    Arguments:
        faces, points, attributes: as prepare_data gives them; `scale` is the side of a crop over that of its box.
        draws: (n, 5), uniform in [-1, 1): mirror, angle, size, and the move to the right and down.
    """
    window = faces.shape[1]
    mirror = draws[:, 0] > 0
    flip = tf.where(mirror, -1.0, 1.0)
    angle, zoom, move = draws[:, 1] * (math.pi / 18), tf.exp(0.1 * draws[:, 2]), 0.05 * draws[:, 3:]
    cos, sin = tf.cos(angle), tf.sin(angle)
    turn = tf.stack([tf.stack([cos * flip, -sin], 1), tf.stack([sin * flip, cos], 1)], 1)  # mirrors, then turns
    points = tf.einsum("nij,nkj->nki", turn * zoom[:, None, None], points - 0.5) + move[:, None] + 0.5
    other_side = tf.gather(points, [1, 0, 2, 4, 3], axis=1)
    points = tf.where(mirror[:, None, None], other_side, points)
    pose = tf.where(mirror, len(TASKS["pose"]) - 1 - attributes[:, -1], attributes[:, -1])
    attributes = tf.concat([attributes[:, :-1], pose[:, None]], axis=1)

    # The inverse tells where each pixel of a crop comes from; the middle of pixel k is at k.
    back = tf.transpose(turn, (0, 2, 1)) / zoom[:, None, None]  # of an orthogonal matrix the transpose is the inverse
    start = tf.fill([2], (1 - size) / 2) - move * (size / scale)  # the first pixel, from the crop's moved centre
    offset = tf.einsum("nij,nj->ni", back, start) + (window - 1) / 2
    rows = tf.concat([back[:, 0], offset[:, :1], back[:, 1], offset[:, 1:], tf.zeros_like(move)], axis=1)
    crops = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(faces, tf.float32),
        transforms=rows,
        output_shape=(size, size),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.cast(tf.round(crops), tf.uint8), points, attributes


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


def build_network(args, mean, deviation):
    """Returns the network: uint8 crops (batch, height, width, 1) in, {task: output} out.

    `landmarks` are points (batch, 5, 2) in coordinates of the box; the attributes (not of --network single) are
    logits (batch, classes). `mean` and `deviation` (height, width, 1) standardise each pixel. The poster's network has
    no batch norm, no padding, a division by 255 instead, and one sigmoid for each attribute of two classes. Call it in
    the scope of the distribution strategy.
    """
    poster = args.preset == "poster"
    blocks, width = BLOCKS[args.preset]
    initial = {"kernel_initializer": "glorot_uniform" if poster else "he_normal"}
    hidden = {"use_bias": poster, **initial}  # ours have a batch norm behind them, which has a bias of its own

    def convolution(column, level, filters, kernel, pool, x):
        padding = "valid" if poster else "same"
        if level == 1 and not poster:  # batch norm and pooling are part of it
            x = FirstConvolution(filters, kernel, args.bn_momentum, name=f"{column}_conv_{level}")(x)
        else:
            x = layers.Conv2D(filters, kernel, padding=padding, name=f"{column}_conv_{level}", **hidden)(x)
            if not poster:
                x = BatchNormalization(momentum=args.bn_momentum, synchronized=several, name=f"{column}_bn_{level}")(x)
            if pool:
                x = layers.MaxPooling2D(2, name=f"{column}_pool_{level}")(x)
        return layers.ReLU(name=f"{column}_relu_{level}")(x)  # after the pool: the same, on a quarter of the numbers

    def dense(column, level, x):
        x = layers.Flatten(name=f"{column}_flatten_{level}")(x)
        x = layers.Dense(width, name=f"{column}_fc_{level}", **hidden)(x)
        if not poster:
            x = BatchNormalization(momentum=args.bn_momentum, synchronized=several, name=f"{column}_bn_{level}")(x)
        return layers.ReLU(name=f"{column}_relu_{level}")(x)

    def landmarks(x):
        start = initial if poster else {"kernel_initializer": "zeros", "bias_initializer": middle_of_the_box}
        x = layers.Dense(2 * len(LANDMARKS), name="landmarks_points", **start)(x)
        return layers.Reshape((len(LANDMARKS), 2), name="landmarks")(x)

    def attribute(task, x):
        if poster and len(TASKS[task]) == 2:  # one logit z; a softmax over 0 and z is the sigmoid of z
            x = layers.Dense(1, name=f"{task}_logit", **initial)(x)
            return layers.ZeroPadding1D((1, 0), name=f"{task}_pad")(x[..., None])[..., 0]
        return layers.Dense(len(TASKS[task]), name=task, **initial)(x)

    def stitch(name, columns):
        if not args.cross_stitch_enabled or len(columns) == 1 or name not in args.cross_stitch_at:
            return columns
        init = 1.0 if args.pretrain_epoch else args.cross_stitch_init
        unit = "layer" if poster and name == "fc_5" else args.cross_stitch_unit
        return CrossStitch(unit, init, name=name)(columns)

    several = tf.distribute.has_strategy()
    middle_of_the_box = keras.initializers.Constant(0.5)
    names = ["landmarks", "attributes"] if args.network == "cross_stitch" else ["landmarks"]
    images = keras.Input(mean.shape, dtype="uint8", name="images")
    if poster:
        mean, deviation = np.zeros_like(mean), np.full_like(deviation, 255)
    x = layers.Normalization((1, 2, 3), mean, deviation**2, name="standardise")(images)
    columns = [x for _ in names]
    for level, block in enumerate(blocks, 1):
        columns = stitch(f"pool_{level}", [convolution(name, level, *block, x) for name, x in zip(names, columns)])
    columns = stitch("fc_5", [dense(name, 5, x) for name, x in zip(names, columns)])
    columns = [layers.Dropout(1 - args.keep_prob, name=f"{name}_dropout")(x) for name, x in zip(names, columns)]
    outputs = {"landmarks": landmarks(columns[0])}
    if args.network != "single":
        outputs |= {task: attribute(task, columns[-1]) for task in TASKS}
    return keras.Model(images, outputs, name=NAME)


# --------------------------------------------------------------------------------- losses and metrics


def task_losses(outputs, points, attributes, sigmoid_pose=False):
    """Returns the loss of each of the network's outputs, summed over the faces, as a list of scalars.

    `outputs` is what the network gives, `points` (batch, 5, 2) and `attributes` (batch, 4) what it should.
    For the landmarks it is ½‖y - f(x)‖² over the ten coordinates (Zhang et al., ECCV 2014), for an
    attribute the cross-entropy of its softmax. The poster's code gave each of the five poses a sigmoid of its own,
    `sigmoid_pose`: the cross-entropies of five yes-or-no questions.
    """
    losses = []
    for task, x in outputs.items():
        if task == "landmarks":
            losses.append(tf.nn.l2_loss(points - x))
            continue
        labels = attributes[:, list(TASKS).index(task)]
        if task == "pose" and sigmoid_pose:
            loss = tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.one_hot(labels, x.shape[1]), logits=x)
        else:
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=x)
        losses.append(tf.reduce_sum(loss))
    return losses


def kernel_pairs(network):
    """Returns the kernels (θ_j^1, θ_j^2) of the layers that the columns of landmarks and of attributes both have."""
    kernels = {layer.name: layer.kernel.value for layer in network.layers if hasattr(layer, "kernel")}
    twins = {name: name.replace("landmarks_", "attributes_", 1) for name in kernels}
    return [(kernels[name], kernels[twin]) for name, twin in twins.items() if name != twin and twin in kernels]


def related_weights(pairs, scales, offsets, kind):
    """Returns Σ_j r_w(θ_j^1, θ_j^2) over the layers j that both columns have.

    `pairs` are the kernels (θ_j^1, θ_j^2) of the column of the landmarks and that of the attributes; `scales` and
    `offsets` hold the scalars a_j and b_j, (layers,) each, with d_j = a_j θ_j^1 + b_j - θ_j^2.
        "l2": r_w = ½‖d‖²
        "exp": r_w = exp(m) - 1, m the mean of the squares of d; beyond m = 10 continued by its tangent
    The poster writes r_w(θ^1, θ^2) without saying more, after Rozantsev et al. (arXiv:1603.06432):
    ‖aθ^1 + b - θ^2‖² and exp(‖aθ^1 + b - θ^2‖²) - 1, where θ are all the parameters of a layer. This reading takes
    kernels alone, as the poster's code does; the half is that code's; and under the exponential it takes the mean
    instead of the sum, which over a hundred thousand weights would overflow at the first step.
    """
    total = []
    for j, (first, second) in enumerate(pairs):
        d = scales[j] * first + offsets[j] - second
        if kind == "l2":
            total.append(tf.nn.l2_loss(d))
        else:
            m = tf.reduce_mean(d**2)
            total.append(tf.math.expm1(tf.minimum(m, 10.0)) + math.exp(10) * tf.maximum(m - 10.0, 0.0))
    return tf.add_n(total)


def l2_regularisation(network):
    """Returns Σ ½‖W‖² over the kernels of convolutions and dense layers; units, biases and batch norm are free."""
    return tf.add_n([tf.nn.l2_loss(v.value) for v in network.trainable_variables if v.name == "kernel"])


def face_measures(predicted, points):
    """Returns the measures of each face, (n, 14), from points (n, 5, 2) in coordinates of the box.

    The five distances of the landmarks in widths of the box; whether each is above 5 %; their mean, and whether it is
    above 5 %, a failure; the mean over the distance between the eyes, and whether it is above 10 %.
    """
    distances = tf.norm(predicted - points, axis=-1)
    mean = tf.reduce_mean(distances, axis=-1, keepdims=True)
    by_eyes = mean / tf.maximum(tf.norm(points[:, 0] - points[:, 1], axis=-1, keepdims=True), 1e-6)
    failures = [tf.cast(x, tf.float32) for x in (distances > 0.05, mean > 0.05, by_eyes > 0.1)]
    return tf.concat([distances, failures[0], mean, failures[1], by_eyes, failures[2]], axis=-1)


def confusion_matrix(logits, labels):
    """Returns the confusion matrix, int64 (classes, classes): rows are true classes; labels of -1 are left out."""
    known, classes = tf.cast(labels >= 0, tf.int64), logits.shape[1]
    predicted = tf.argmax(logits, axis=1)
    return tf.math.confusion_matrix(tf.maximum(labels, 0), predicted, classes, weights=known, dtype=tf.int64)


def metrics(measures, matrices):
    """Returns what results.json holds of a part, from the sum of face_measures in front of the number of faces, (15,).

    `matrices` is {attribute: confusion matrix}; an attribute that is not known of any face is left out.
    """
    n, *rates = measures.tolist()
    rates = [rate / n for rate in rates]
    found = {"mean_error": rates[10], "failure_rate": rates[11]}
    found |= {"mean_error_interocular": rates[12], "failure_rate_interocular": rates[13]}
    for task, matrix in matrices.items():
        if matrix.sum():
            found[task] = float(np.trace(matrix) / matrix.sum())
    found["landmarks"] = {
        name: {"mean_error": rates[k], "failure_rate": rates[k + 5]} for k, name in enumerate(LANDMARKS)
    }
    return found


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


def make_train_step(strategy, network, optimizer, unit_optimizer, relations, aux_lambda, args):
    """Returns the tf.function (faces, points, attributes, draws, batch, stop) -> numbers that trains one global step.

    The numbers are a vector: the total loss, the loss of each output, the term of the related weights, the mean error
    of the landmarks on the batch, and the sum of `stop` over the replicas, by which each machine tells the others that
    it was asked to. Without a `unit_optimizer` the units stay as they are. `relations` are the
    variables a and b of related_weights, `aux_lambda` the variable λ^a of the attributes, (4,).
    """
    alphas = [v.value for v in network.trainable_variables if v.name == "alpha"]
    weights = [v.value for v in network.trainable_variables if v.name != "alpha"]
    pairs = kernel_pairs(network)

    def replica_step(faces, points, attributes, draws, batch, stop):
        n, replicas = tf.cast(tf.size(batch), tf.float32), strategy.num_replicas_in_sync
        x, y, a, d = replica_share(batch, faces, points, attributes, draws)
        if args.augment:
            x, y, a = augment(x, y, a, d, args.image_size, args.crop_scale)
        else:
            x = centre(x, args.image_size)
        with tf.GradientTape() as tape:
            outputs = network(x, training=True)
            losses = [loss / n for loss in task_losses(outputs, y, a, args.preset == "poster")]
            relation = related_weights(pairs, *relations, args.weight_reg) if relations else tf.constant(0.0)
            rates = [args.landmark_lambda, *tf.unstack(aux_lambda)]
            regularisation = args.weight_reg_lambda * relation + args.reg_lambda * l2_regularisation(network)
            loss = tf.add_n([rate * loss for rate, loss in zip(rates, losses)]) + regularisation / replicas
        gradients = tape.gradient(loss, weights + relations + alphas)  # summed over the replicas by the optimizers
        optimizer.apply_gradients(zip(gradients, weights + relations))
        if unit_optimizer is not None and alphas:
            unit_optimizer.apply_gradients(zip(gradients[-len(alphas) :], alphas))
        error = tf.reduce_sum(tf.norm(outputs["landmarks"] - y, axis=-1)) / (n * len(LANDMARKS))
        return tf.stack([loss, *losses, relation / replicas, error, stop])

    @tf.function(autograph=False)  # nothing branches on a tensor, and a start takes a second less
    def train_step(*inputs):
        return strategy.reduce("SUM", strategy.run(replica_step, inputs), axis=None)

    return train_step


def make_evaluate_step(strategy, network, size):
    """Returns the tf.function (faces, points, attributes, batch) -> sums over a global batch, for `metrics`.

    They are a list: the number of faces and the sum of their measures, (15,), then each attribute's confusion matrix.
    """

    def replica_step(faces, points, attributes, batch):
        x, y, a = replica_share(batch, faces, points, attributes)
        outputs = network(centre(x, size), training=False)
        measures = tf.concat([tf.ones((tf.shape(y)[0], 1)), face_measures(outputs["landmarks"], y)], axis=1)
        known = [task for task in TASKS if task in outputs]
        return [tf.reduce_sum(measures, axis=0), *(confusion_matrix(outputs[t], a[:, k]) for k, t in enumerate(known))]

    @tf.function(autograph=False)  # nothing branches on a tensor, and a start takes a second less
    def evaluate_step(*inputs):
        sums = strategy.run(replica_step, inputs)
        return [strategy.reduce("SUM", x, axis=None) for x in sums]

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
    parts, mean, deviation, data = prepare_data(args)
    record = {"arguments": vars(args), "data": data, "versions": VERSIONS}
    if resumed:
        refuse_difference(resumed, record)

    with strategy.scope():
        network = build_network(args, mean, deviation)
        variables = [v.value for v in network.variables]
        rate = tf.Variable(args.lr)
        optimizer = tf.compat.v1.train.AdamOptimizer(lambda: rate)
        unit_optimizer = tf.compat.v1.train.AdamOptimizer(lambda: rate * args.cross_stitch_lr_scale)
        relations = []
        if args.weight_reg != "none":
            layers_in_both = len(kernel_pairs(network))
            relations = [tf.Variable(tf.ones(layers_in_both)), tf.Variable(tf.zeros(layers_in_both))]
        aux_lambda = tf.Variable([float(text.split("=")[1]) for text in args.aux_lambda])
        stopped_at = tf.Variable([-1] * len(TASKS))  # the step from which an attribute is no longer trained
        best = [tf.Variable(v) for v in variables] if args.patience else []
        best_error, best_step, waited = tf.Variable(math.inf), tf.Variable(0), tf.Variable(0)  # waited: evaluations
        evaluated = tf.Variable(0)  # the last step whose evaluation is in the event file
    units = [layer for layer in network.layers if isinstance(layer, CrossStitch)]
    parameters = sum(math.prod(v.shape) for v in network.trainable_variables)
    tasks = list(network.output)
    if chief:
        describe(args, data, parameters, units, replicas)

    specs = [tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in parts["train"]]
    batches = tf.TensorSpec([None], tf.int64)
    inputs = [*specs, tf.TensorSpec((None, 5)), batches, tf.TensorSpec([])]
    terms = {"relations": relations, "aux_lambda": aux_lambda, "args": args}
    make_step = functools.partial(make_train_step, strategy, network, optimizer, **terms)
    with heeding_interrupts():
        train_step = make_step(unit_optimizer=unit_optimizer).get_concrete_function(*inputs)
        column_step = make_step(unit_optimizer=None).get_concrete_function(*inputs) if args.pretrain_epoch else None
        evaluate_step = make_evaluate_step(strategy, network, args.image_size).get_concrete_function(*specs, batches)

    faces = len(parts["train"][0])
    steps_per_epoch = -(-faces // args.n_batch_size)
    evaluate_every = args.eval_every or steps_per_epoch
    total, pretraining = args.n_epoch * steps_per_epoch, args.pretrain_epoch * steps_per_epoch
    progressed = {"aux_lambda": aux_lambda, "stopped_at": stopped_at, "best": best, "best_error": best_error}
    progressed |= {"best_step": best_step, "waited": waited, "evaluated": evaluated, "relations": relations}
    optimizers = {"optimizer": optimizer, "unit_optimizer": unit_optimizer}
    with strategy.scope():
        checkpoint = tf.train.Checkpoint(network=variables, **progressed, **optimizers)
        saved = restore_checkpoint(checkpoint, args.log_dir) if resumed else -1  # the step; -1: nothing is saved yet
    writer = open_run(args.log_dir, record, saved) if chief else tf.summary.create_noop_writer()
    new, step = saved < 0, max(saved, 0)
    stop, speeds, found = [], [], {}  # stop: the signals that asked for it
    many_machines, asked = "TF_CONFIG" in os.environ, False  # asked: by a signal to any of them, so all stop together

    def save():
        nonlocal saved
        if not all(np.isfinite(tf.convert_to_tensor(v)).all() for v in variables):
            raise Failure(f"step {step}: the weights are no longer finite; try a smaller --lr", 3)
        if chief:
            writer.flush()
            write_checkpoint(checkpoint, args.log_dir, step)
        saved = step

    def evaluate():
        """Returns {part: sums for `metrics`} of all parts but the training part."""
        found = {}
        for part in sorted(parts.keys() - {"train"}):
            sums = []
            for first in range(0, len(parts[part][0]), EVALUATION_BATCH):
                if stop and not many_machines:
                    raise Stopped
                batch = tf.range(first, min(first + EVALUATION_BATCH, len(parts[part][0])), dtype=tf.int64)
                sums.append([np.float64(x.numpy()) for x in evaluate_step(*parts[part], batch)])
            measures, *matrices = map(sum, zip(*sums))
            found[part] = measures, dict(zip(tasks[1:], matrices))
        return found

    def judge(found):
        """Logs what `evaluate` found; it can stop an attribute, and counts towards the end of the run.

        One that the end of the run alone brings about does neither, so that a longer run goes the same way.
        """
        measured = {part: metrics(*sums) for part, sums in found.items()}
        for part, of_part in measured.items():
            tf.summary.scalar(f"landmarks/mean_error_{part}", of_part["mean_error"])
            tf.summary.scalar(f"landmarks/failure_rate_{part}", of_part["failure_rate"])
            for task in [task for task in tasks[1:] if task in of_part]:
                tf.summary.scalar(f"{task}/accuracy_{part}", of_part[task])
        if chief:
            summarise_faces(network, parts["test" if "test" in parts else "aflw"], args.image_size, args.crop_scale)
        evaluated.assign(step)
        if step % evaluate_every:
            return
        for k, task in enumerate(tasks[1:]):
            error = 1 - measured["validation"][task]
            if error < args.aux_stop_error and aux_lambda[k] > 0:
                aux_lambda.assign(tf.tensor_scatter_nd_update(aux_lambda, [[k]], [0.0]))
                stopped_at.assign(tf.tensor_scatter_nd_update(stopped_at, [[k]], [step]))
                if chief:
                    print(f"\n{task}: validation error {error:.4f}, no longer trained from step {step} on", flush=True)
            tf.summary.scalar(f"{task}/lambda", aux_lambda[k])
        waited.assign_add(1)
        if measured["validation"]["mean_error"] < best_error:
            best_error.assign(measured["validation"]["mean_error"])
            best_step.assign(step)
            waited.assign(0)
            for kept, v in zip(best, variables):
                kept.assign(v)

    handlers = {}
    if threading.current_thread() is threading.main_thread():  # others, as those of Ray Train, get no signals
        for kind in (signal.SIGINT, signal.SIGTERM):
            handlers[kind] = signal.signal(kind, lambda kind, _: stop.append(kind))
    tf.summary.experimental.set_step(step)
    try:
        with writer.as_default():
            if new:
                tags = ["landmarks/mean_error_test", "landmarks/failure_rate_test", "landmarks/mean_error_validation"]
                summarise_setting(args, data, train_step.graph, tags)
                summarise_units(units)
                save()
            elif (step % evaluate_every == 0 or step == total) and evaluated < step:
                found = evaluate()  # the run was stopped in the midst of this step's evaluation
                judge(found)
                save()
            for epoch in range(step // steps_per_epoch, args.n_epoch):
                if args.patience and waited >= args.patience:
                    if chief:
                        print(f"no better validation error since step {int(best_step)}: the run ends here", flush=True)
                    break
                random = np.random.default_rng([args.seed, epoch])
                order, draws = random.permutation(faces), tf.constant(random.uniform(-1, 1, (faces, 5)), tf.float32)
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
                    inputs = [*parts["train"], draws, tf.constant(batch), tf.constant(float(len(stop)))]
                    *numbers, asked = one_step(*inputs).numpy().tolist()
                    seconds, seen, step = seconds + time.perf_counter() - began, seen + len(batch), step + 1
                    tf.summary.experimental.set_step(step)

                    of_task = dict(zip(tasks, numbers[1:]))
                    if not np.isfinite(numbers).all():
                        raise Failure(f"step {step}: the loss is no longer finite: {of_task}; try a smaller --lr", 3)
                    losses.append(numbers[0])
                    progress.update(position + 1, [("loss", losses[-1]), ("error", numbers[-1])])
                    if step % args.log_every == 0:
                        tf.summary.scalar("summary/loss_total", losses[-1])
                        tf.summary.scalar("landmarks/mean_error_train", numbers[-1])
                        for task, loss in of_task.items():
                            tf.summary.scalar(f"{task}/loss", loss)
                        if relations:
                            tf.summary.scalar("summary/related_weights", numbers[-2])
                        summarise_units(units)
                    if step % evaluate_every == 0 or step == total:
                        found = evaluate()
                        judge(found)
                    if step % steps_per_epoch and args.checkpoint_every and step % args.checkpoint_every == 0:
                        save()
                speeds.append(seen / seconds)
                tf.summary.scalar("throughput/images_per_second", speeds[-1])
                save()
                if chief:
                    line = f"epoch {epoch + 1}/{args.n_epoch}  step {step}  loss {statistics.fmean(losses):.5f}"
                    if len(losses) < steps_per_epoch:
                        line += f" over its last {len(losses)} steps"
                    if evaluated == step:
                        errors = {part: metrics(*sums)["mean_error"] for part, sums in found.items()}
                        line += "  mean error" + "".join(f"  {part} {error:.4f}" for part, error in errors.items())
                    print(f"{line}  ({seconds:.1f} s, {speeds[-1]:,.0f} images/s)", flush=True)
            keep_best = args.patience > 0 and best_step > 0
            if keep_best:
                for v, kept in zip(variables, best):
                    v.assign(kept)
            if keep_best or not found:  # found is of the last weights; {}: stopped between last step and results
                found = evaluate()
            if "aflw" in found:
                summarise_confusion({task: matrix.astype(int) for task, matrix in found["aflw"][1].items()}, TASKS)
            writer.flush()
    except Stopped:
        if saved < step:  # otherwise the weights may already be the best ones, which are not the run's state
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
        **{part: metrics(*sums) for part, sums in found.items()},
        "classes": {task: TASKS[task] for task in tasks[1:]},
        "cross_stitch": {unit.name: unit.mixing().tolist() for unit in units},
        "stopped_attributes": {task: int(k) for task, k in zip(TASKS, stopped_at.numpy()) if k >= 0},
        "epochs": args.n_epoch,
        "steps": step,
        "weights_of_step": int(best_step) if keep_best else step,
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


def mark(image, points, colour, radius):
    """Draws a disc about each of points (n, 2), x and y in pixels, into a uint8 image (height, width, 3), in place."""
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    for across, down in points:
        image[(x - across) ** 2 + (y - down) ** 2 <= radius**2] = colour


def summarise_faces(network, part, size, scale):
    """Logs a sheet of the first faces of a part, with true points in green and predicted points in red over them.

    `part` is one of prepare_data, `size` the side of a crop in pixels, `scale` that side over the side of the box.
    """
    rows = 4
    crops = centre(part[0][: rows**2], size)
    predicted = network(crops, training=False)["landmarks"].numpy()
    sheet = []
    for crop, true, guess in zip(crops.numpy(), part[1].numpy(), predicted):
        image = np.repeat(np.kron(crop, np.ones((4, 4, 1), np.uint8)), 3, axis=-1)
        for points, colour in ((true, (0, 220, 0)), (guess, (230, 0, 0))):
            mark(image, ((points - 0.5) / scale + 0.5) * 4 * size - 0.5, colour, 2.5)
        sheet.append(image)
    sheet += [np.zeros_like(sheet[0])] * (rows**2 - len(sheet))
    picture = np.concatenate([np.concatenate(sheet[k : k + rows], axis=1) for k in range(0, rows**2, rows)])
    tf.summary.image("landmarks/faces", picture[None])


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
    """Prints the measures of a finished run as a table, a row for each, a column for each part."""
    parts = [part for part in ("test", "aflw", "validation") if part in results]
    title = f"weights of step {results['weights_of_step']}"
    print(f"\n{title:26}" + "".join(f"{part:>12}" for part in parts))
    measures = ["mean_error", "failure_rate", "mean_error_interocular", "failure_rate_interocular"]
    for name in measures + list(results["classes"]):
        label = f"accuracy of {name}" if name in results["classes"] else name
        print(f"{label:26}" + "".join(f"{results[p][name]:12.4f}" if name in results[p] else f"{'':12}" for p in parts))
        if name in results["classes"]:
            majority = results["data"]["majority"][name]
            cells = (f"{majority[part]:12.4f}" if part in majority else f"{'':12}" for part in parts)
            print(f"{'  of its majority class':26}" + "".join(cells))
    print("mean_error of the landmarks")
    for name in LANDMARKS:
        print(f"  {name:24}" + "".join(f"{results[p]['landmarks'][name]['mean_error']:12.4f}" for p in parts))
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


def predict(photos, model_path, box):
    """Draws the landmarks into a copy of each photo, PHOTO.landmarks.png, and prints them and the attributes.

    The face is inside `box` (left, right, top, bottom, in pixels) of each photo, or with None in its middle square.
    Raises Failure for a photo or model that cannot be read.
    """
    network, results = load_run(model_path)
    args, images = results["arguments"], []
    for photo in photos:
        try:
            images.append(tf.io.decode_image(tf.io.read_file(photo), channels=3, expand_animations=False).numpy())
        except tf.errors.OpError as error:
            raise Failure(f"--predict {photo}: expected an image file ({error.message})") from None
    for photo, image in zip(photos, images):
        height, width = image.shape[:2]
        side = min(height, width)
        square = [(width - side) / 2 - 0.5, (height - side) / 2 - 0.5, side]
        if box:
            square = [box[0], (box[2] + box[3] - box[1] + box[0]) / 2, box[1] - box[0]]
        square = np.array(square, np.float32)
        outputs = network(crop(photo, square, args["image_size"], args["crop_scale"])[None], training=False)
        points = from_box(outputs["landmarks"].numpy(), square[None])[0]
        mark(image, points, (230, 0, 0), max(1.5, float(square[2]) / 60))
        copy = f"{photo}.landmarks.png"
        with open(copy, "wb") as file:
            file.write(tf.io.encode_png(image).numpy())
        print(f"{photo}: points drawn into {copy}")
        for name, (x, y) in zip(LANDMARKS, points):
            print(f"  {name:20} x {x:7.1f}  y {y:7.1f}")
        for task, logits in outputs.items():
            if task != "landmarks":
                sigmoids = args["preset"] == "poster" and task == "pose"
                probabilities = (tf.sigmoid if sigmoids else tf.nn.softmax)(logits[0]).numpy()
                best = probabilities.argmax()
                print(f"  {task:20} {results['classes'][task][best]} {probabilities[best]:.3f}")


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


def box(text):
    """Returns the four numbers left, right, top, bottom of a comma-separated `text`."""
    try:
        left, right, top, bottom = map(float, text.split(","))
        if left < right and top < bottom and np.isfinite([left, right, top, bottom]).all():
            return [left, right, top, bottom]
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected left,right,top,bottom in pixels, got {text!r}")


class Preset(argparse.Action):
    """Sets the arguments of the poster's setting; those that stand behind it on the command line change them."""

    def __call__(self, parser, namespace, value, option_string=None):
        setattr(namespace, self.dest, value)
        for name, setting in (POSTER if value == "poster" else {}).items():
            setattr(namespace, name, setting)


def make_parser():
    """Returns the parser of this script's arguments."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    add = parser.add_argument
    add("--preset", action=Preset, choices=tuple(BLOCKS), default="ours", help="poster: its setting; flags behind win")
    add("--network", choices=("single", "split", "cross_stitch"), default="cross_stitch", help="kind (cross_stitch)")
    add("--lr", type=number(float, "(0, inf)"), default=0.004, help="Adam's learning rate (0.004)")
    add("--lr_half_life", type=number(float, "[0, inf)"), default=6.0, help="epochs that halve it (6; 0: constant)")
    add("--n_epoch", type=number(int, "[1, inf)"), default=20, help="epochs (20)")
    add("--n_batch_size", type=number(int, "[1, inf)"), default=64, help="images a step, over all devices (64)")
    add("--reg_lambda", type=number(float, "[0, inf)"), default=1e-6, help="weight of the L2 term (1e-6)")
    add("--keep_prob", type=number(float, "(0, 1]"), default=0.8, help="share that dropout keeps (0.8)")
    add("--landmark_lambda", type=number(float, "(0, inf)"), default=1.0, help="weight of the landmarks' loss (1)")
    add("--aux_lambda", type=weight_of_each(TASKS, 0.0), default="0.003", help="of attributes, or gender=... (0.003)")
    add("--aux_stop_error", type=number(float, "[0, 1]"), default=0.0, help="validation error that ends an attribute's")
    add("--weight_reg", choices=("none", "l2", "exp"), default="none", help="relates the columns' weights (none)")
    add("--weight_reg_lambda", type=number(float, "[0, inf)"), default=1e-6, help="weight of that term (1e-6)")
    add("--patience", type=number(int, "[0, inf)"), default=0, help="evaluations without progress, then end (0: never)")
    add("--bn_momentum", type=number(float, "[0, 1)"), default=0.9, help="of batch norm's moving averages (0.9)")
    add("--cross_stitch_enabled", type=boolean, default=True, help="False: the baseline, no units (True)")
    add("--cross_stitch_unit", choices=("channel", "layer", "activation"), default="channel", help="kind (channel)")
    at = ",".join(name for name in UNITS if name != "pool_4")  # no pooling there
    add("--cross_stitch_at", type=some_of(UNITS), default=at, help=f"of {','.join(UNITS)} ({at})")
    add("--cross_stitch_init", type=number(float, "(0, 1]"), default=1.0, help="initial alpha of a task itself (1.0)")
    add("--cross_stitch_lr_scale", type=number(float, "[0, inf)"), default=1.0, help="times --lr, for units (1)")
    add("--pretrain_epoch", type=number(int, "[0, inf)"), default=0, help="first epochs, units held at identity (0)")
    add("--train_fraction", type=number(float, "(0, 1]"), default=1.0, help="part of the training set used (1)")
    add("--validation_fraction", type=number(float, "(0, 1)"), default=0.2, help="part of it held out (0.2)")
    add("--seed", type=number(int, "[0, 4294967295]"), default=0, help="of all that is drawn at random (0)")
    add("--data_dir", help="folder of MTFL")
    add("--image_size", type=number(int, "[32, 256]"), default=40, help="side of the faces in pixels (40)")
    add("--crop_scale", type=number(float, "[1, 2]"), default=1.0, help="side of the faces over that of the box (1)")
    add("--augment", type=boolean, default=True, help="mirror, turn, scale and move the training faces (True)")
    add("--log_dir", help=f"folder of the run (tf_logs/{NAME}/<time>-<stitched|baseline|single|split>-seed<k>)")
    add("--log_every", type=number(int, "[1, inf)"), default=100, help="steps between training summaries (100)")
    add("--eval_every", type=number(int, "[0, inf)"), default=0, help="steps between evaluations (0: an epoch)")
    add("--checkpoint_every", type=number(int, "[0, inf)"), default=0, help="steps between checkpoints (0: an epoch)")
    add("--resume", metavar="LOG_DIR", help="go on with this run; only --n_epoch (upwards) and --data_dir may change")
    add("--predict", nargs="+", metavar="PHOTO", help="train nothing: find the landmarks in these photos by --model")
    add("--model", metavar="FILE", help="model.keras of a run, for --predict")
    add("--box", type=box, help="left,right,top,bottom of the face in the photos (otherwise: their middle square)")
    return parser


def kind_of_run(args):
    """Returns the word that stands in the name of the run's folder."""
    return args.network if args.network != "cross_stitch" else "stitched" if args.cross_stitch_enabled else "baseline"


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
            predict(args.predict, args.model, args.box)
            return 0
        if args.model or args.box:
            raise Failure("--model, --box: expected with --predict PHOTO")
        del args.predict, args.model, args.box
        if args.weight_reg != "none" and args.network != "cross_stitch":
            raise Failure(f"--weight_reg {args.weight_reg}: expected --network cross_stitch (or --weight_reg none)")
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
