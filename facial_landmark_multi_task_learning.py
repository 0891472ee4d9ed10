"""Trains facial landmarks with auxiliary attributes, side by side in columns joined by cross-stitch units.

One column finds five landmarks (eyes, nose, corners of the mouth), the other tells gender, smile, glasses and pose.
After each pooling layer and each fully connected layer a cross-stitch unit mixes the columns' activations with learned
weights. A further loss can relate the weights of the two columns. One network alone (--network single) and one trunk
with a head for each task (--network split) are there to compare.

    python facial_landmark_multi_task_learning.py --data_dir MTFL --cross_stitch_enabled True     # or False
    python -m tensorboard.main --logdir tf_logs                                 # the curves, side by side
    python facial_landmark_multi_task_learning.py --predict PHOTO ... --model LOG_DIR/model.keras

--data_dir holds MTFL (training.txt, testing.txt and their photos) and, if you have them, the lists of boxes
trainImageList.txt and testImageList.txt of the set that it is built on.
A stopped run goes on where it was:      ... --resume LOG_DIR
Several GPUs of one machine are used without being asked. On several machines, start the same command
on each of them with TF_CONFIG set, and with a --log_dir on storage that all of them see.

To read the method, read down to `train`. What stands below it keeps a run safe, shows it, and reads its arguments.
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
import collections
import contextlib
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
import warnings
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
NAME = "facial_landmark_multi_task_learning"
LANDMARKS = ["left eye", "right eye", "nose", "left mouth corner", "right mouth corner"]  # left in the picture
TASKS = {  # attribute: names of its classes, in the order of the numbers 1, 2, ... of MTFL
    "gender": ["male", "female"],
    "smile": ["smiling", "not smiling"],
    "glasses": ["glasses", "no glasses"],
    "pose": ["left profile", "left", "frontal", "right", "right profile"],
}
UNITS = ("pool_1", "pool_2", "pool_3", "pool_4", "fc_5")  # what a unit can follow: pool_4 is conv_4, which has no pool
BLOCKS = {  # preset: (filters, side of the kernel, pooling) of the convolutions, and the width of the dense layer
    "ours": (((32, 3, True), (48, 3, True), (64, 3, True), (80, 3, False)), 256),
    "wide": (((64, 3, True), (96, 3, True), (128, 3, True), (160, 3, False)), 512),
    "poster": (((20, 4, True), (40, 3, True), (60, 3, True), (80, 2, False)), 120),
}
PRESETS = {
    "ours": {},
    "wide": {},  # one network as wide as two columns, with --network single: what does width alone give?
    "poster": {  # the setting of the poster's code, where it differs from the defaults
        "lr": 0.01,
        "lr_half_life": 0.0,
        "n_epoch": 100,
        "n_batch_size": 128,
        "reg_lambda": 0.0,
        "keep_prob": 1.0,
        "image_size": 39,
        "augment": False,
        "landmark_lambda": 200.0,  # 1000 times the mean of ten squares is 200 times half their sum
        "aux_lambda": [0.125],  # the mean over eight outputs
        "cross_stitch_at": list(UNITS),
        "cross_stitch_init": 0.9,
        "weight_reg": "l2",
        "weight_reg_lambda": 1.0,
    },
}
EVALUATION_PIXELS = 2**19  # predicted at once, 327 faces of 40x40
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # of this machine, in bytes
BYTES_OF_A_WEIGHT = 16  # in float32: its value, its gradient and Adam's two moments
VERSIONS = {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__}


class Failure(Exception):
    """Ends the program with one line and the given exit status; above 128 a signal stopped it, its state saved."""

    def __init__(self, message, status=2):
        super().__init__(" ".join(str(message).split()))
        self.status = status


# ------------------------------------------------------- data (orientation to pixel_statistics: shared)

LAYOUT = (
    "MTFL (http://mmlab.ie.cuhk.edu.hk/projects/TCDCN.html: training.txt, testing.txt and their photos), with the "
    "boxes trainImageList.txt and testImageList.txt of http://mmlab.ie.cuhk.edu.hk/archive/CNN_FacePoint.htm if at hand"
)
BOX_FACTOR = 1.78  # side of a box over the larger extent of its landmarks: the median over the 10,000 training faces
MARGIN = 4  # a face is held with a margin of one MARGIN-th of its crop on each side, for the augmentation


def read_rows(path):
    """Returns the photos' paths and an array (n, 14) of the numbers of a list; raises Failure if it holds others."""
    try:
        with warnings.catch_warnings(action="ignore"):  # NumPy's of lines that hold nothing, as the last of MTFL
            rows = np.loadtxt(path, dtype=str, comments=None, ndmin=2, encoding="utf-8")
        numbers = rows[:, 1:].astype(float)
        if numbers.shape[1] != 14 or not np.isfinite(numbers).all():
            raise ValueError(f"the numbers are {numbers.shape[1]} a line, or not finite")
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: expected faces, a path and 14 numbers a line ({error})") from None
    return [os.path.join(os.path.dirname(path), name.replace("\\", "/")) for name in rows[:, 0]], numbers


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
    wrong = (side <= 0) | (bottom <= top)
    if wrong.any():
        raise Failure(f"{path}, face {wrong.argmax() + 1}: expected left < right and top < bottom")
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


def crop(photo, box, size, scale):
    """Returns the face of a photo, uint8 (height, width, 3), grey, as a uint8 tensor (size, size, 1), antialiased.

    It is the square of `scale` times the side of `box` (left, top, side) about the same centre; what lies beyond the
    photo is black. Pixel k of the photo has its centre at k, as the lists count. A box beside the photo is an error.
    """
    zoom = size / (scale * box[2])
    start = box[1::-1] + box[2] / 2 * (1 - scale) + 0.5  # top and left, where pixel k reaches from k to k + 1
    reach = 1 + 1 / zoom  # how far a pixel of the face looks beyond its own place
    low, high = tf.math.floor(start - reach), tf.math.ceil(start + scale * box[2] + reach)
    low, high = (tf.clip_by_value(tf.cast(x, tf.int32), 0, tf.shape(photo)[:2]) for x in (low, high))
    tf.debugging.assert_less(low, high, "the box lies beside the photo")
    photo = photo[low[0] : high[0], low[1] : high[1]]  # before float32 makes it four times as large
    face = tf.raw_ops.ScaleAndTranslate(
        images=tf.image.rgb_to_grayscale(tf.cast(photo, tf.float32))[None],
        size=(size, size),
        scale=tf.stack([zoom, zoom]),
        translation=(tf.cast(low, tf.float32) - start) * zoom,
        kernel_type="triangle",
        antialias=True,
    )[0]
    return tf.ensure_shape(tf.cast(tf.clip_by_value(tf.round(face), 0, 255), tf.uint8), (size, size, 1))


def decode(path, orientation, box, size, scale):
    """Returns `crop` of the photo in a file, upright."""
    photo = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
    return crop(upright(photo, orientation), box, size, scale)


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
    """Returns the parts, the per-pixel mean and deviation of the training crops, and a record.

    A part (`train`, `validation`, and of `test` and `aflw` those that are there) is a triple of arrays: faces, uint8
    (n, window, window, 1), with their margin; points, float32 (n, 5, 2), in coordinates of the box; and attributes,
    int64 (n, 4), -1 where unknown. Training faces whose photo, the same file, is to be tested on are left out. The
    record says where the data come from, their sizes, the SHA-256 of all of it, and for each attribute the accuracy
    that the most frequent class alone would have.
    """
    if args.data_dir is None or not os.path.exists(os.path.join(args.data_dir, "training.txt")):
        raise Failure(f"--data_dir {args.data_dir or ''}: expected a folder with {LAYOUT}")
    lists = ("training.txt", "trainImageList.txt", "testImageList.txt", "testing.txt")
    training, boxes_of_training, test, aflw = (os.path.join(args.data_dir, name) for name in lists)
    paths, points, attributes = read_attributes(training)
    found, guessed = {}, []
    if os.path.exists(boxes_of_training):
        names, boxes, _ = read_boxes(boxes_of_training)
        box_of, faces, rows = dict(zip(names, boxes)), collections.Counter(paths), collections.Counter(names)
        if wrong := [path for path in paths if (faces[path], rows[path]) != (1, 1)]:  # its path tells a face's box
            what = f"one box for each face of training.txt, one face a photo; {wrong[0]} has"
            raise Failure(f"{boxes_of_training}: expected {what} {faces[wrong[0]]} faces and {rows[wrong[0]]} boxes")
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
    read = functools.partial(decode, size=window, scale=args.crop_scale * window / args.image_size)
    digest, parts, hashes = hashlib.sha256(), {}, {}
    for part, (paths, boxes, points, attributes) in found.items():
        if part == "train" and part in guessed:
            boxes = jitter(boxes, args.seed)
        images, kept = decode_all(read, (window, window, 1), paths, boxes.astype(np.float32))
        points = to_box(points, boxes)[kept].astype(np.float32)
        parts[part] = images, points, attributes[kept]
        hashes[part] = np.array([hashlib.sha256(pathlib.Path(paths[k]).read_bytes()).hexdigest() for k in kept])
        for array in parts[part]:
            digest.update(np.ascontiguousarray(array))

    pose = parts["train"][2][:, -1]
    of_train = hashes.pop("train")
    tested = np.flatnonzero(np.isin(of_train, np.concatenate(list(hashes.values()))))
    _, first, photo = np.unique(of_train, return_index=True, return_inverse=True)  # numbered as listed, by first
    if len(tested):
        print(f"{len(tested)} training faces are left out: their photos are among those to test on")
    held_out = np.setdiff1d(hold_out(pose, first[photo], args.validation_fraction), tested)
    rest = np.setdiff1d(np.arange(len(pose)), [*held_out, *tested])
    if not len(rest) or not len(held_out):
        what = f"--data_dir {args.data_dir}, --validation_fraction {args.validation_fraction}"
        raise Failure(f"{what}: nothing left to train on or to validate by")
    rest = rest[stratified(pose[rest], args.train_fraction, seed=args.seed)]
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
        what = "which flatters its figures" if part == "aflw" else "and varied as detected ones vary"
        print(f"{part}: boxes made from the landmarks, {BOX_FACTOR} times their extent, {what}")
    sizes = {part: len(parts[part][0]) for part in sorted(parts)}
    record = {"name": "MTFL", "source": args.data_dir, "sizes": sizes, "sha256": digest.hexdigest()}
    record |= {"majority": majority, "boxes_from_landmarks": guessed, "left_out": len(tested)}
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


def build_network(args, mean, deviation):
    """Returns the network: uint8 crops (batch, height, width, 1) in, {task: output} out.

    `landmarks` are points (batch, 5, 2) in coordinates of the box; the attributes (not of --network single) are
    logits (batch, classes). `mean` and `deviation` (height, width, 1) standardise each pixel. The poster's network
    divides by 255 instead, has no batch norm, no padding and one sigmoid for each attribute of two classes; if it has a
    unit after fc_5, that is of kind "layer". Call it in the scope of the distribution strategy.
    """
    poster = args.preset == "poster"
    blocks, width = BLOCKS[args.preset]
    initial = {"kernel_initializer": "glorot_uniform" if poster else "he_normal"}
    hidden = {"use_bias": poster, **initial}  # ours have a batch norm after them, which has a bias of its own

    def convolution(column, level, filters, kernel, pool, x):
        padding = "valid" if poster else "same"
        x = layers.Conv2D(filters, kernel, padding=padding, name=f"{column}_conv_{level}", **hidden)(x)
        if not poster:
            x = BatchNormalization(name=f"{column}_bn_{level}", **norm)(x)
        if pool:
            x = layers.MaxPooling2D(2, name=f"{column}_pool_{level}")(x)
        return layers.ReLU(name=f"{column}_relu_{level}")(x)  # after the pool: the same, on a quarter of the numbers

    def dense(column, level, x):
        x = layers.Flatten(name=f"{column}_flatten_{level}")(x)
        x = layers.Dense(width, name=f"{column}_fc_{level}", **hidden)(x)
        if not poster:
            x = BatchNormalization(name=f"{column}_bn_{level}", **norm)(x)
        return layers.ReLU(name=f"{column}_relu_{level}")(x)

    def landmarks(x):
        start = initial if poster else {"kernel_initializer": "zeros", "bias_initializer": middle_of_the_box}
        x = layers.Dense(2 * len(LANDMARKS), name="landmarks_points", **start, **exact)(x)
        return layers.Reshape((len(LANDMARKS), 2), name="landmarks", **exact)(x)

    def attribute(task, x):
        if poster and len(TASKS[task]) == 2:  # one logit z; a softmax over 0 and z is the sigmoid of z
            x = layers.Dense(1, name=f"{task}_logit", **initial, **exact)(x)
            return layers.ZeroPadding1D((1, 0), name=f"{task}_pad", **exact)(x[..., None])[..., 0]
        return layers.Dense(len(TASKS[task]), name=task, **initial, **exact)(x)

    def stitch(name, columns):
        if not args.cross_stitch_enabled or len(columns) == 1 or name not in args.cross_stitch_at:
            return columns
        init = 1.0 if args.pretrain_epoch else args.cross_stitch_init
        unit = "layer" if poster and name == "fc_5" else args.cross_stitch_unit
        if unit == "activation":
            needed.append(BYTES_OF_A_WEIGHT * (len(columns) * math.prod(columns[0].shape[1:])) ** 2)
        if sum(needed) > MEMORY:
            what = f"{sum(needed) / 1e9:.1f} GB up to {name}, expected less than this machine's {MEMORY / 1e9:.1f} GB"
            raise Failure(f"--cross_stitch_unit activation: units take {what}")
        return CrossStitch(unit, init, name=name)(columns)

    norm = {"momentum": args.bn_momentum, "synchronized": tf.distribute.has_strategy()}
    exact = {"dtype": "float32"}  # of outputs, whatever --precision is
    middle_of_the_box = keras.initializers.Constant(0.5)
    names = ["landmarks", "attributes"] if args.network == "cross_stitch" else ["landmarks"]
    needed = []  # bytes of each dense unit
    images = keras.Input(mean.shape, dtype="uint8", name="images")
    if poster:
        mean, deviation = np.zeros_like(mean), np.full_like(deviation, 255)
    x = layers.Normalization((1, 2, 3), mean, deviation**2, name="standardise", **exact)(images)
    columns = [x for _ in names]
    for level, block in enumerate(blocks, 1):
        columns = stitch(f"pool_{level}", [convolution(name, level, *block, x) for name, x in zip(names, columns)])
    columns = stitch("fc_5", [dense(name, 5, x) for name, x in zip(names, columns)])
    columns = [Dropout(1 - args.keep_prob, name=f"{n}_dropout", **exact)(x) for n, x in zip(names, columns)]
    outputs = {"landmarks": landmarks(columns[0])}
    if args.network != "single":
        outputs |= {task: attribute(task, columns[-1]) for task in TASKS}
    return keras.Model(images, outputs, name=NAME)


# ------------------------------------------------------- losses and metrics (l2_regularisation: shared)


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


def metrics(means, matrices):
    """Returns what results.json holds of a part, from the means of face_measures, (14,), over its faces.

    `matrices` is {attribute: confusion matrix}, rows true classes, of the attributes that are known.
    """
    means = means.tolist()
    found = {"mean_error": means[10], "failure_rate": means[11]}
    found |= {"mean_error_interocular": means[12], "failure_rate_interocular": means[13]}
    found |= {task: float(np.trace(matrix) / matrix.sum()) for task, matrix in matrices.items()}
    found["landmarks"] = {name: {"mean_error": e, "failure_rate": f} for name, e, f in zip(LANDMARKS, means, means[5:])}
    return found


# --------------------------------------------------- training (replica_share to learning_rates: shared)


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


def make_train_step(strategy, network, optimizers, args, relations):
    """Returns the tf.function (faces, points, attributes, draws, stop) -> numbers that trains one global step.

    The numbers are a vector: the total loss; unweighted, the loss of each output and related_weights; the mean error
    of the landmarks on the batch, and the sum of `stop` over the replicas, by which each machine tells the others that
    it was asked to. `optimizers` are those of the columns and of the units: TensorFlow 1's Adam, a fused kernel.
    `relations` are the a and b of related_weights, (pairs,) each, trained too; empty where it is not asked for.
    """
    alphas = [v.value for v in network.trainable_variables if v.name == "alpha"]
    weights = [v.value for v in network.trainable_variables if v.name != "alpha"]
    trained = [pair for pair in zip(optimizers, (weights + relations, alphas)) if pair[1]]  # a baseline has no α
    pairs, rates = kernel_pairs(network), [args.landmark_lambda, *np.broadcast_to(args.aux_lambda, len(TASKS)).tolist()]

    def replica_step(faces, points, attributes, draws, stop):
        n, replicas = tf.cast(tf.shape(faces)[0], tf.float32), strategy.num_replicas_in_sync
        x, y, a, d = replica_share(faces, points, attributes, draws)
        if args.augment:
            x, y, a = augment(x, y, a, d, args.image_size, args.crop_scale)
        else:
            x = centre(x, args.image_size)
        with tf.GradientTape() as tape:
            outputs = network(x, training=True)
            losses = [loss / n for loss in task_losses(outputs, y, a, args.preset == "poster")]
            relation = related_weights(pairs, *relations, args.weight_reg) if relations else tf.constant(0.0)
            regularisation = args.weight_reg_lambda * relation + args.reg_lambda * l2_regularisation(network)
            loss = tf.add_n([rate * loss for rate, loss in zip(rates, losses)]) + regularisation / replicas
        gradients = tape.gradient(loss, [variables for _, variables in trained])
        for (optimizer, variables), of_variables in zip(trained, gradients):
            optimizer.apply_gradients(zip(of_variables, variables))  # which sums them over the replicas
        error = tf.reduce_sum(tf.norm(outputs["landmarks"] - y, axis=-1)) / (n * len(LANDMARKS))
        return tf.stack([loss, *losses, relation / replicas, error, stop])

    with strategy.scope():  # slots that the step itself had to create would have it traced twice
        for optimizer, variables in trained:
            optimizer._create_slots(variables)

    @tf.function(autograph=False)  # nothing branches on a tensor, and a start takes a second less
    def train_step(*inputs):
        return strategy.reduce("SUM", strategy.run(replica_step, inputs), axis=None)

    return train_step


def evaluate(predict, part, size):
    """Returns the means of face_measures, (14,), over a part, and {attribute: confusion matrix} where they are known.

    Every process predicts for itself, so many faces at once that the memory they take does not depend on their size.
    """
    faces, points, attributes = part
    count = max(1, EVALUATION_PIXELS // size**2)
    outputs = [predict(centre(faces[k : k + count], size)) for k in range(0, len(faces), count)]
    outputs = {task: tf.concat([output[task] for output in outputs], axis=0) for task in outputs[0]}
    means = np.float64(face_measures(outputs.pop("landmarks"), points)).mean(axis=0)
    known, matrices = outputs if attributes.min() >= 0 else {}, {}
    for (task, logits), labels in zip(known.items(), attributes.T):
        predicted = tf.argmax(logits, axis=1)
        matrices[task] = tf.math.confusion_matrix(labels, predicted, logits.shape[1]).numpy()
    return means, matrices


def log_evaluation(found, epoch):
    """Logs and returns the measures of {part: what `evaluate` found}; prints errors after `epoch` if that is given."""
    measured = {part: metrics(*of_part) for part, of_part in found.items()}
    for part, of_part in measured.items():
        for tag in ("mean_error", "failure_rate"):
            tf.summary.scalar(f"landmarks/{tag}_{part}", of_part[tag])
        for task in [task for task in TASKS if task in of_part]:
            tf.summary.scalar(f"{task}/accuracy_{part}", of_part[task])
    if epoch:
        errors = "  ".join(f"{part} {of_part['mean_error']:.4f}" for part, of_part in measured.items())
        print(f"{epoch}  mean error  {errors}", flush=True)
    return measured


@functools.lru_cache(maxsize=1)
def draws_of(seed, epoch, n):
    """Returns the random numbers of an epoch's augmentation of n faces, float32 (n, 5) in [-1, 1)."""
    random = np.random.default_rng([seed, epoch])
    random.permutation(n)  # the order of the faces, as in `batches`
    return random.uniform(-1, 1, (n, 5)).astype(np.float32)


def train(args, resumed):
    """Trains the network as `args` says and leaves the run in args.log_dir.

    `resumed` is the record (run.json) of the run to go on with, None for a new one. Raises Failure: with status 3 when
    the loss is no longer finite, with 130 or 143 when a signal ended the run, its state saved.
    """
    strategy, chief = choose_strategy(args, 2 if args.network == "cross_stitch" else 1)
    parts, mean, deviation, data = prepare_data(args)
    record = {"arguments": vars(args), "data": data, "versions": VERSIONS}
    record |= {"cores": CORES, "devices": strategy.num_replicas_in_sync}
    refuse_difference(strategy, record, resumed)
    keras.utils.set_random_seed(args.seed)
    with strategy.scope():
        network = build_network(args, mean, deviation)
        rates = [tf.Variable(0.0), tf.Variable(0.0)]  # of the columns, of the units
        optimizers = [tf.compat.v1.train.AdamOptimizer(rate) for rate in rates]
        tags = ["summary/loss_total", *(f"{task}/loss" for task in network.output)]
        tags += ["summary/related_weights", "landmarks/mean_error_train", "throughput/images_per_second"]
        shown = tf.Variable(tf.zeros(len(tags)))  # the last step's numbers, which are logged only after its checkpoint
        pairs = kernel_pairs(network) if args.weight_reg != "none" else []
        relations = [tf.Variable(tf.fill((len(pairs),), start)) for start in (1.0, 0.0) if pairs]  # a and b
        weights = [v.value for v in network.variables]
        checkpoint = tf.train.Checkpoint(network=weights, optimizers=optimizers, shown=shown, relations=relations)
    record["classes"] = {task: TASKS[task] for task in list(network.output)[1:]}
    record["parameters"] = sum(math.prod(v.shape) for v in network.trainable_variables)
    faces, held_out = len(parts["train"][0]), sorted(parts.keys() - {"train"})
    replicas, steps_per_epoch = strategy.num_replicas_in_sync, -(-faces // args.n_batch_size)
    every, total = args.eval_every or steps_per_epoch, args.n_epoch * steps_per_epoch
    log_every = min(args.log_every, max(1, total // 10))
    stop, asked, speeds = [], 0, []  # stop: the signals that came; asked: how many came to any machine
    claimed = claim(args.log_dir, resumed) if chief else contextlib.nullcontext()
    with claimed, on_signals(lambda kind, _: stop.append(kind)):
        if chief:
            describe(args, record, network, replicas)
        specs = [tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in parts["train"]]
        train_step = make_train_step(strategy, network, optimizers, args, relations)
        train_step = train_step.get_concrete_function(*specs, tf.TensorSpec((None, 5)), tf.TensorSpec([]))
        crops = [tf.TensorSpec(network.input.shape, tf.uint8)]
        predict = tf.function(lambda x: network(x, training=False), crops, autograph=False)
        first = restore_checkpoint(checkpoint, args.log_dir) if resumed else 0
        agree(strategy, checkpoint=first)
        if chief:
            write_json(os.path.join(args.log_dir, "run.json"), record)
        if first == 0:  # a new run, or one that was killed before it had trained
            write_checkpoint(checkpoint, args.log_dir, 0, chief)
        numbers, indices = shown.numpy().tolist(), batches(args, faces, first, replicas)
        writer = open_events(args.log_dir, first) if chief else tf.summary.create_noop_writer()
        with writer.as_default():
            log_setting(args, data, [f"landmarks/mean_error_{part}" for part in held_out])
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
                    found = {part: evaluate(predict, parts[part], args.image_size) for part in held_out}
                    epoch = f"epoch {-(-step // steps_per_epoch)}/{args.n_epoch}  step {step}"
                    epoch += f"  {numbers[-1]:,.0f} images/s"
                    results = log_evaluation(found, epoch if chief else "")
                    log_faces(network, parts["test" if "test" in parts else "aflw"], args.image_size, args.crop_scale)
                    speeds.append(numbers[-1])
                if step == total:
                    log_confusion(found["aflw"][1] if "aflw" in found else {}, TASKS)
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
                draws = draws_of(args.seed, step // steps_per_epoch, faces)[batch]
                *numbers, asked = train_step(*(x[batch] for x in parts["train"]), draws, len(stop)).numpy().tolist()
                if not np.isfinite(numbers).all():
                    of_task = dict(zip(tags, numbers))
                    raise Failure(f"step {step + 1}: the loss is no longer finite: {of_task}; try a smaller --lr", 3)
                seen += len(batch)
                numbers.append(seen / (time.perf_counter() - began))
                bar.add(1, [("loss", numbers[0])])
        if chief:
            write_results({**record, **results, "steps": total}, network, speeds)


def mark(image, points, colour, radius):
    """Draws a disc about each of points (n, 2), x and y in pixels, into a uint8 image (height, width, 3), in place."""
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    for across, down in points:
        image[(x - across) ** 2 + (y - down) ** 2 <= radius**2] = colour


def log_faces(network, part, size, scale):
    """Logs a sheet of the first faces of a part, with true points in green and predicted points in red over them.

    `part` is one of prepare_data, `size` the side of a crop in pixels, `scale` that side over the side of the box.
    """
    rows = 4
    crops = centre(part[0][: rows**2], size)
    predicted = network(crops, training=False)["landmarks"].numpy()
    sheet = []
    for crop, true, guess in zip(crops, part[1], predicted):
        image = np.repeat(np.kron(crop, np.ones((4, 4, 1), np.uint8)), 3, axis=-1)
        for points, colour in ((true, (0, 220, 0)), (guess, (230, 0, 0))):
            mark(image, ((points - 0.5) / scale + 0.5) * 4 * size - 0.5, colour, 2.5)
        sheet.append(image)
    sheet += [np.zeros_like(sheet[0])] * (rows**2 - len(sheet))
    picture = np.concatenate([np.concatenate(sheet[k : k + rows], axis=1) for k in range(0, rows**2, rows)])
    tf.summary.image("landmarks/faces", picture[None])


def print_results(results):
    """Prints the measures of a finished run as a table, a row for each, a column for each part."""
    parts = [part for part in ("test", "aflw", "validation") if part in results]
    print(f"\n{'':26}" + "".join(f"{part:>12}" for part in parts))
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


def predict(photos, model_path, boxes):
    """Draws the landmarks into a copy of each photo, PHOTO.landmarks.png, and prints them and the attributes.

    `boxes` hold left, right, top and bottom of the face in pixels, for each photo or one for all; with None the face is
    in the middle square. Small photos are drawn larger. Raises Failure for a photo or model that cannot be read.
    """
    network, results = load_run(model_path)
    args, squares, faces = results["arguments"], [], []
    if boxes and len(boxes) not in (1, len(photos)):
        raise Failure(f"--box: expected one for all photos or one each, {len(photos)}, found {len(boxes)}")
    for left, right, top, bottom in boxes or []:
        if not (left < right and top < bottom and np.isfinite([left, right, top, bottom]).all()):
            raise Failure(f"--box {left:g} {right:g} {top:g} {bottom:g}: expected left < right and top < bottom")

    def read(photo):
        try:
            image = tf.io.decode_image(tf.io.read_file(photo), channels=3, expand_animations=False)
        except tf.errors.OpError:
            raise Failure(f"--predict {photo}: expected an image, of JPEG, PNG, GIF, BMP or WebP") from None
        return upright(image, orientation(photo)).numpy()

    for k, photo in enumerate(photos):  # all of them, before anything is written
        image = read(photo)
        height, width, _ = image.shape
        side = min(height, width)
        square = [(width - side) / 2 - 0.5, (height - side) / 2 - 0.5, side]
        if boxes:
            left, right, top, bottom = boxes[k % len(boxes)]
            square = [left, (top + bottom - right + left) / 2, right - left]
        squares.append(np.array(square, np.float32))
        try:
            faces.append(crop(image, squares[k], args["image_size"], args["crop_scale"]))
        except tf.errors.InvalidArgumentError:
            raise Failure(f"--box: expected a part of the photo, {photo} has {width} x {height} pixels") from None
    for photo, square, face in zip(photos, squares, faces):
        outputs, image = network(face[None], training=False), read(photo)
        points = from_box(outputs["landmarks"].numpy(), square[None])[0]
        zoom = max(1, 400 // max(image.shape[:2]))
        image = np.kron(image, np.ones((zoom, zoom, 1), np.uint8))
        mark(image, (points + 0.5) * zoom - 0.5, (230, 0, 0), max(1.5, zoom * float(square[2]) / 60))
        print(f"{photo}: points drawn into {photo}.landmarks.png")
        for name, (x, y) in zip(LANDMARKS, points):
            print(f"  {name:20} x {x:7.1f}  y {y:7.1f}")
        for task, logits in outputs.items():
            if task != "landmarks":
                sigmoids = args["preset"] == "poster" and task == "pose"
                probabilities = (tf.sigmoid if sigmoids else tf.nn.softmax)(logits[0]).numpy()
                best = probabilities.argmax()
                print(f"  {task:20} {results['classes'][task][best]} {probabilities[best]:.3f}")
        Image.fromarray(image).save(f"{photo}.landmarks.png")  # last: the folder may not be writable


# ---------------------------------------------------------------- command line (down to Preset: shared)


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
    add("--network", choices=("single", "split", "cross_stitch"), default="cross_stitch", help="kind (cross_stitch)")
    add("--cross_stitch_enabled", type=boolean, choices=(True, False), default=True, help="False: no units (True)")
    add("--cross_stitch_unit", choices=("channel", "layer", "activation"), default="channel", help="kind (channel)")
    at = [name for name in UNITS if name != "pool_4"]
    add("--cross_stitch_at", nargs="+", choices=UNITS, default=at, help=f"layers that a unit follows ({' '.join(at)})")
    add("--cross_stitch_init", type=number(float, "(0, 1]"), default=1.0, help="initial alpha of a task itself (1.0)")
    add("--cross_stitch_lr_scale", type=number(float, "[0, inf)"), default=1.0, help="times --lr, for units (1)")
    add("--pretrain_epoch", type=number(int, "[0, inf)"), default=0, help="first epochs, units held at identity (0)")
    add("--lr", type=number(float, "(0, inf)"), default=0.004, help="Adam's learning rate (0.004)")
    add("--lr_half_life", type=number(float, "[0, inf)"), default=6.0, help="epochs that halve it (6; 0: constant)")
    add("--n_epoch", type=number(int, "[1, inf)"), default=20, help="epochs (20)")
    add("--n_batch_size", type=number(int, "[1, inf)"), default=64, help="images per step, over all devices (64)")
    add("--reg_lambda", type=number(float, "[0, inf)"), default=1e-6, help="weight of the L2 term (1e-6)")
    add("--keep_prob", type=number(float, "[0.01, 1]"), default=0.8, help="share that dropout keeps (0.8)")
    add("--bn_momentum", type=number(float, "[0, 1)"), default=0.9, help="of batch norm's moving averages (0.9)")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="of activations and products (float32)")
    add("--preset", action=Preset, choices=PRESETS, default="ours", help="poster: its setting; wide: twice the filters")
    add("--landmark_lambda", type=number(float, "[0, inf)"), default=1.0, help="weight of the landmarks' loss (1)")
    rate = number(float, "[0, inf)")
    add("--aux_lambda", nargs="+", type=rate, default=[0.003], help="of attributes, all or each (0.003)")
    add("--weight_reg", choices=("none", "l2", "exp"), default="none", help="relates the columns' weights (none)")
    add("--weight_reg_lambda", type=number(float, "[0, inf)"), default=1e-6, help="weight of that term (1e-6)")
    add("--train_fraction", type=number(float, "(0, 1]"), default=1.0, help="part of the training set used (1)")
    add("--validation_fraction", type=number(float, "(0, 1)"), default=0.2, help="part of it held out (0.2)")
    add("--seed", type=number(int, "[0, 4294967295]"), default=0, help="of all that is drawn at random (0)")
    add("--data_dir", type=os.path.abspath, help="folder of MTFL")
    add("--image_size", type=number(int, "[32, 256]"), default=40, help="side of the faces in pixels (40)")
    add("--crop_scale", type=number(float, "[1, 2]"), default=1.0, help="side of the faces over that of the box (1)")
    add("--augment", type=boolean, choices=(True, False), default=True, help="mirror, turn, scale, move training faces")
    add("--log_dir", help="folder of the run (tf_logs/facial_landmark/<stitched|baseline|...>-seed<k>-<time>-<pid>)")
    add("--log_every", type=number(int, "[1, inf)"), default=100, help="steps between summaries, at most (100)")
    add("--eval_every", type=number(int, "[0, inf)"), default=0, help="steps between evaluations (0: an epoch)")
    add("--resume", metavar="LOG_DIR", help="go on with this run; auto: with the one in --log_dir, if it holds one")
    what = "train nothing: find the landmarks in these photos by --model, and draw them into PHOTO.landmarks.png"
    add("--predict", nargs="+", metavar="PHOTO", help=what)
    add("--model", metavar="FILE", help="model.keras of a run, for --predict")
    edges = ("LEFT", "RIGHT", "TOP", "BOTTOM")
    box = "of the face in pixels, once or for each photo; its width and centre count (the middle square)"
    add("--box", nargs=4, type=float, action="append", metavar=edges, help=box)
    return parser


def run(args, resumed):
    """Predicts if asked to; otherwise trains, or shows the results of the run to resume where it is finished."""
    if args.predict:
        return predict(args.predict, args.model, args.box)
    if args.model or args.box:
        raise Failure("--model, --box: expected with --predict PHOTO")
    del args.predict, args.model, args.box
    if len(args.aux_lambda) not in (1, len(TASKS)):
        raise Failure(f"--aux_lambda: expected one number, or one each for {' '.join(TASKS)}")
    if args.weight_reg != "none" and args.network != "cross_stitch":
        raise Failure(f"--weight_reg {args.weight_reg}: expected --network cross_stitch (or --weight_reg none)")
    if setting := ", ".join(f"{name} {vars(args)[name]}" for name in PRESETS[args.preset]):
        print(f"--preset {args.preset}: {setting}")
    path = os.path.join(args.log_dir, "results.json")
    results = read_json(path, "classes", "data") if resumed and os.path.exists(path) else {}
    if results.get("epochs", 0) >= args.n_epoch:
        print(f"this run is finished; it was trained on {results['data'].get('source')}")
        print_results(results)
    else:
        train(args, resumed)


def kind_of_run(args):
    """Returns the word that stands in the name of the run's folder."""
    return args.network if args.network != "cross_stitch" else "stitched" if args.cross_stitch_enabled else "baseline"


if __name__ == "__main__":
    sys.exit(main())
