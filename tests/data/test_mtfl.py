"""Facial landmarks: the lists as they lie on disk, the geometry, the losses and measures, and runs on drawn faces."""

import contextlib
import functools
import json
import re
import shutil
import signal
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import (
    assert_goes_on,
    assert_nearly_same_run,
    assert_refused,
    checkpoint_arrays,
    last_checkpoint,
    load,
    read_events,
    run_main,
    run_on_devices,
    unchanged_weights,
)
from PIL import Image

SCRIPT = "facial_landmark_multi_task_learning.py"
LISTS = ("training.txt", "trainImageList.txt", "testImageList.txt", "testing.txt")
draw = load("tests/draw_faces.py")


@pytest.fixture(scope="module")
def mtfl(tmp_path_factory):
    """300 + 60 + 40 drawn photos in the layout of MTFL."""
    folder = tmp_path_factory.mktemp("mtfl")
    draw.draw_mtfl(str(folder), 300, 60, 40, size=48)
    return folder


@pytest.fixture
def run(landmark_script, mtfl, tmp_path, capfd):
    """A function that runs the script's main on the drawn photos, in this process, and returns its Result."""
    return functools.partial(run_main, landmark_script, capfd, tmp_path / "run", data_dir=mtfl, image_size=32)


def parse(script, *flags):
    return script.parse_arguments(["--image_size=32", "--n_batch_size=16", *flags])[0]


def build(script, *flags):
    keras.utils.set_random_seed(0)
    args = parse(script, *flags)
    shape = (args.image_size, args.image_size, 1)
    return script.build_network(args, np.full(shape, 120.0), np.full(shape, 60.0))


# ---- data


def test_both_lists_tell_the_same_faces(landmark_script, mtfl):
    """One counts from 0, the other from 1; one has a blank in front, both CRLF and back-slashes."""
    for name in LISTS[:2]:
        text = (mtfl / name).read_bytes()
        assert text.count(b"\r\n") == 300 and b"lfw_5590\\Face_00001.jpg" in text
    assert (mtfl / "training.txt").read_text().splitlines()[1].startswith(" ")
    paths, points, classes = landmark_script.read_attributes(str(mtfl / "training.txt"))
    others, boxes, same = landmark_script.read_boxes(str(mtfl / "trainImageList.txt"))
    assert paths == others and all((mtfl / path).exists() for path in paths)
    np.testing.assert_allclose(points, same, atol=1e-9)
    assert classes.min(axis=0).tolist() == [0, 0, 0, 0] and classes.max(axis=0).tolist() == [1, 1, 1, 4]
    assert ((landmark_script.to_box(points, boxes) > 0) & (landmark_script.to_box(points, boxes) < 1)).all()


def test_numbers_of_a_line_by_hand(landmark_script, tmp_path):
    (tmp_path / "training.txt").write_bytes(b"a\\b.jpg 1 2 3 4 5 6 7 8 9 10 2 1 2 5\r\n")
    paths, points, classes = landmark_script.read_attributes(str(tmp_path / "training.txt"))
    assert paths == [str(tmp_path / "a/b.jpg")] and classes.tolist() == [[1, 0, 1, 4]]
    assert points.tolist() == [[[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]]]
    (tmp_path / "boxes.txt").write_bytes(b"a\\b.jpg 10 30 40 61 1 2 3 4 5 6 7 8 9 10\r\n")
    _, boxes, points = landmark_script.read_boxes(str(tmp_path / "boxes.txt"))
    assert boxes.tolist() == [[10, 40.5, 20]] and points.tolist() == [[[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]]


def test_the_box_and_back_is_the_identity(landmark_script):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 3000, (200, 5, 2))
    boxes = np.concatenate([rng.uniform(-100, 3000, (200, 2)), rng.uniform(20, 2000, (200, 1))], axis=1)
    assert np.abs(landmark_script.from_box(landmark_script.to_box(points, boxes), boxes) - points).max() < 1e-9
    photo = rng.uniform(0, 250, (200, 5, 2))  # and in float32, which the network computes with
    boxes = np.concatenate([rng.uniform(0, 100, (200, 2)), rng.uniform(40, 250, (200, 1))], axis=1)
    inside = landmark_script.to_box(photo, boxes).astype(np.float32)
    assert np.abs(landmark_script.from_box(inside, boxes) - photo).max() < 1e-4


def test_boxes_around_landmarks(landmark_script):
    points = np.array([[[10, 20], [30, 20], [20, 25], [12, 60], [28, 60]]], float)
    left, top, side = landmark_script.boxes_around(points)[0]
    assert side == pytest.approx(1.78 * 40) and (left + side / 2, top + side / 2) == pytest.approx((20, 40))
    boxes = landmark_script.boxes_around(points.repeat(500, axis=0))
    one, same, other = (landmark_script.jitter(boxes, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1 and len(np.unique(one, axis=0)) == 500


def test_numbers_of_mtfl_and_their_names(landmark_script):
    """As the data set's readme has them: gender 1 male, smile 1 yes, glasses 1 yes, pose 1 to 5 from the left."""
    assert list(landmark_script.TASKS.values()) == [
        ["male", "female"],
        ["smiling", "not smiling"],
        ["glasses", "no glasses"],
        ["left profile", "left", "frontal", "right", "right profile"],
    ]
    assert landmark_script.LANDMARKS == ["left eye", "right eye", "nose", "left mouth corner", "right mouth corner"]


def test_jitter_reaches_its_bounds(landmark_script):
    """8 % of the side to each side, and exp(0.15) times it, each drawn for itself."""
    boxes = np.array([[10.0, 20, 100]]).repeat(2000, axis=0)
    found = landmark_script.jitter(boxes, 0)
    scale = np.log(found[:, 2] / 100) / 0.15
    move = (found[:, :2] + found[:, 2:] / 2 - [60, 70]) / 8
    draws = np.concatenate([scale[:, None], move], axis=1)
    np.testing.assert_allclose(draws.min(axis=0), -1, atol=0.01)
    np.testing.assert_allclose(draws.max(axis=0), 1, atol=0.01)
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.1


def test_a_crop_shows_each_landmark_where_it_is_said_to_be(landmark_script):
    """A disc drawn about a pixel of the photo has its centre of mass at that point of the crop."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        photo = np.zeros((200, 160, 3), np.uint8)
        point, box = rng.uniform(70, 110, 2), np.array([*rng.uniform(40, 60, 2), rng.uniform(60, 90)])
        landmark_script.mark(photo, [point], (255, 255, 255), 6)
        face = landmark_script.crop(photo, box.astype(np.float32), 40, 1.2).numpy()[..., 0].astype(float)
        y, x = np.mgrid[:40, :40]
        found = np.array([(face * x).sum(), (face * y).sum()]) / face.sum()
        inside = (landmark_script.to_box(point[None, None], box[None])[0, 0] - 0.5) / 1.2 + 0.5
        assert np.abs(found - (inside * 40 - 0.5)).max() < 0.1


def test_a_crop_is_black_beyond_the_photo_and_grey_inside(landmark_script):
    photo = np.full((50, 50, 3), (250, 100, 20), np.uint8)
    face = landmark_script.crop(photo, np.array([-25.5, -0.5, 50], np.float32), 40, 1.0).numpy()
    assert (face[:, :19] == 0).all()
    assert (np.abs(face[:, 21:].astype(float) - (0.2989 * 250 + 0.587 * 100 + 0.114 * 20)) <= 1).all()


def test_a_crop_looks_at_as_much_of_the_photo_as_it_needs(landmark_script):
    """Triangles about the place of each pixel of the face, spelled out in NumPy; beside the photo it is an error.

    They are two pixels wide, of the photo or of the face, whichever is larger.
    """
    photo = np.random.default_rng(0).integers(0, 256, (300, 400, 1), np.uint8).repeat(3, axis=2)
    for left, top, side in ((100.3, 60.7, 31), (100.3, 60.7, 150), (100.3, 60.7, 8)):
        found = landmark_script.crop(photo, np.array([left, top, side], np.float32), 40, 1.0).numpy()[..., 0]
        weights = []
        for start, length in ((top, 300), (left, 400)):
            places = start + (np.arange(40) + 0.5) * side / 40
            of_axis = np.maximum(0, 1 - np.abs(np.arange(length) - places[:, None]) / max(1, side / 40))
            weights.append(of_axis / of_axis.sum(axis=1, keepdims=True))
        expected = 0.9999 * weights[0] @ photo[..., 0] @ weights[1].T  # 0.2989 + 0.587 + 0.114, of red, green and blue
        assert np.abs(found - expected).max() < 0.52
    for left, top in ((500, 60), (-300, 60), (60, 400), (60, -300)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="the box lies beside the photo"):
            landmark_script.crop(photo, np.array([left, top, 50], np.float32), 40, 1.0)


@pytest.mark.parametrize("crop_scale", [1.0, 1.5])
def test_margin_and_centre(landmark_script, mtfl, crop_scale):
    """The middle of a face held with its margin is what a crop without margin shows."""
    paths, boxes, _ = landmark_script.read_boxes(str(mtfl / "testImageList.txt"))
    args = parse(landmark_script, f"--data_dir={mtfl}", f"--crop_scale={crop_scale}")
    parts, *_ = landmark_script.prepare_data(args)
    assert {part: len(x[0]) for part, x in parts.items()} == {"train": 239, "validation": 61, "test": 60, "aflw": 40}
    assert parts["test"][0].shape[1:] == (48, 48, 1)
    for k in (0, 30):
        direct = landmark_script.decode(paths[k], 1, boxes[k].astype(np.float32), 32, crop_scale).numpy()
        middle = landmark_script.centre(parts["test"][0], 32)[k]
        assert np.abs(direct.astype(int) - middle.astype(int)).max() <= 2


def marked_faces(n, size, window, scale):
    """Dark faces with a disc of another brightness at each landmark, and the landmarks, attributes and brightnesses."""
    rng = np.random.default_rng(0)
    points = np.array([[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.35, 0.7], [0.65, 0.7]]) + rng.uniform(
        -0.04, 0.04, (n, 5, 2)
    )
    bright = np.array([60, 100, 140, 180, 220])
    y, x = np.mgrid[:window, :window]
    faces = np.zeros((n, window, window, 1), np.uint8)
    for face, of_face in zip(faces, points):
        for (across, down), value in zip(((of_face - 0.5) / scale * size + window / 2 - 0.5), bright):
            face[(x - across) ** 2 + (y - down) ** 2 <= 9] = value
    attributes = rng.integers(0, [2, 2, 2, 5], (n, 4))
    return faces, points.astype(np.float32), attributes, bright


def test_augmentation_moves_the_points_with_the_picture(landmark_script):
    """In every crop each disc lies at the landmark that has its name; mirrored, names and poses change sides."""
    size, window, scale = 64, 96, 1.2
    faces, points, attributes, bright = marked_faces(64, size, window, scale)
    draws = np.random.default_rng(1).uniform(-1, 1, (64, 5)).astype(np.float32)
    crops, moved, poses = landmark_script.augment(faces, points, tf.constant(attributes), draws, size, scale)
    crops, moved, poses = crops.numpy()[..., 0].astype(float), moved.numpy(), poses.numpy()
    y, x = np.mgrid[:size, :size]
    mirrored = draws[:, 0] > 0
    assert 20 < mirrored.sum() < 44
    np.testing.assert_array_equal(poses[:, :3], attributes[:, :3])
    np.testing.assert_array_equal(poses[:, 3], np.where(mirrored, 4 - attributes[:, 3], attributes[:, 3]))
    assert (moved[:, 0, 0] < moved[:, 1, 0]).all() and (moved[:, 3, 0] < moved[:, 4, 0]).all()
    for crop, of_face, mirror in zip(crops, moved, mirrored):
        expected = bright[[1, 0, 2, 4, 3]] if mirror else bright
        for (across, down), value in zip(((of_face - 0.5) / scale + 0.5) * size - 0.5, expected):
            near = (x - across) ** 2 + (y - down) ** 2 <= 25
            assert np.abs(crop[near & (crop > 0)].max() - value) <= 2
            mass = crop * near
            centre = np.array([(mass * x).sum(), (mass * y).sum()]) / mass.sum()
            assert np.abs(centre - [across, down]).max() < 0.35


def test_augmentation_by_hand(landmark_script):
    """Draws of 0 change nothing; each of the others is turned by 10 degrees, grows by e^0.1, moves by 0.05."""
    faces, points, attributes, _ = marked_faces(64, 40, 60, 1.2)
    draws = np.zeros((64, 5), np.float32)
    draws[1, 1] = draws[2, 2] = draws[3, 3] = draws[4, 4] = 1
    _, moved, _ = landmark_script.augment(faces, points, tf.constant(attributes), draws, 40, 1.2)
    sine, cosine = 0.17364818, 0.98480775
    turned = (points[1] - 0.5) @ np.array([[cosine, sine], [-sine, cosine]]) + 0.5
    np.testing.assert_allclose(moved[1], turned, atol=1e-5)
    np.testing.assert_allclose(moved[2], (points[2] - 0.5) * 1.1051709 + 0.5, atol=1e-5)
    np.testing.assert_allclose(moved[3], points[3] + [0.05, 0], atol=1e-5)
    np.testing.assert_allclose(moved[4], points[4] + [0, 0.05], atol=1e-5)
    still = np.zeros((64, 5), np.float32)
    crops, same, poses = landmark_script.augment(faces, points, tf.constant(attributes), still, 40, 1.2)
    np.testing.assert_array_equal(crops, landmark_script.centre(faces, 40))
    np.testing.assert_allclose(same, points, atol=1e-6)
    np.testing.assert_array_equal(poses, attributes)


def test_boxes_from_landmarks_where_there_are_no_lists(landmark_script, mtfl, tmp_path, capsys):
    shutil.copytree(mtfl, tmp_path / "bare")
    (tmp_path / "bare" / "trainImageList.txt").unlink()
    (tmp_path / "bare" / "testImageList.txt").unlink()
    *_, record = landmark_script.prepare_data(parse(landmark_script, f"--data_dir={tmp_path / 'bare'}"))
    assert record["boxes_from_landmarks"] == ["train", "aflw"] and "test" not in record["sizes"]
    assert "train: boxes made from the landmarks, 1.78 times their extent, and varied" in capsys.readouterr().out


def test_boxes_from_landmarks_vary_as_detected_ones_do(landmark_script, mtfl, tmp_path):
    """Those of the training faces, with the seed; the faces to test on stay where their landmarks put them."""
    shutil.copytree(mtfl, tmp_path / "bare")
    (tmp_path / "bare" / "trainImageList.txt").unlink()
    flags = [f"--data_dir={tmp_path / 'bare'}", "--augment=no"]
    one, other = (landmark_script.prepare_data(parse(landmark_script, *flags, f"--seed={k}"))[0] for k in (0, 1))
    for part, same in (("train", False), ("validation", False), ("aflw", True)):
        assert np.array_equal(one[part][1], other[part][1]) == same, part
    middle = (one["train"][1].min(axis=1) + one["train"][1].max(axis=1)) / 2
    assert 0.03 < np.abs(middle - 0.5).mean() < 0.06  # uniform up to 0.08 of the box


def test_every_face_keeps_its_points_and_attributes(landmark_script, mtfl, tmp_path):
    """Behind a photo that was skipped and in every part: of each face as it is read by itself."""
    shutil.copytree(mtfl, tmp_path / "gap")
    paths, boxes, points = landmark_script.read_boxes(str(tmp_path / "gap" / "trainImageList.txt"))
    Path(paths[1]).write_bytes(b"")
    attributes = landmark_script.read_attributes(str(tmp_path / "gap" / "training.txt"))[2]
    args = parse(landmark_script, f"--data_dir={tmp_path / 'gap'}", "--train_fraction=0.5")
    parts, mean, deviation, record = landmark_script.prepare_data(args)
    truth = {}
    for k in [k for k in range(len(paths)) if k != 1]:
        face = landmark_script.decode(paths[k], 1, boxes[k].astype(np.float32), 48, 1.5).numpy()
        truth[face.tobytes()] = landmark_script.to_box(points[k : k + 1], boxes[k : k + 1])[0], attributes[k]
    for part in ("train", "validation"):
        for face, of_face, classes in zip(*parts[part]):
            expected = truth[face.tobytes()]
            np.testing.assert_allclose(of_face, expected[0], atol=1e-6)
            assert classes.tolist() == expected[1].tolist()
    train = landmark_script.centre(parts["train"][0], 32)
    assert record["sizes"]["train"] == len(train) == pytest.approx(0.5 * 239, abs=4)
    np.testing.assert_allclose(mean, train.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(deviation, np.maximum(train.std(axis=0), 1), rtol=1e-6)


def test_a_photo_is_in_one_part(landmark_script, mtfl, tmp_path, capsys):
    """Four training photos are among those of the two parts to test on."""
    shutil.copytree(mtfl, tmp_path / "same")
    paths, boxes, _ = landmark_script.read_boxes(str(tmp_path / "same" / "trainImageList.txt"))
    tested = landmark_script.read_boxes(str(tmp_path / "same" / "testImageList.txt"))[0]
    for k in range(3):
        shutil.copy(tested[k], paths[k])
    upper_left = 50 + boxes[50:100, :2].sum(axis=1).argmin()  # the photos of AFLW are smaller
    shutil.copy(landmark_script.read_attributes(str(tmp_path / "same" / "testing.txt"))[0][0], paths[upper_left])
    *_, record = landmark_script.prepare_data(parse(landmark_script, f"--data_dir={tmp_path / 'same'}"))
    assert record["left_out"] == 4 and record["sizes"]["train"] + record["sizes"]["validation"] == 296
    assert "4 training faces are left out" in capsys.readouterr().out


def test_copies_of_a_photo_are_held_out_together(landmark_script, mtfl, tmp_path, monkeypatch):
    shutil.copytree(mtfl, tmp_path / "same")
    paths = landmark_script.read_boxes(str(tmp_path / "same" / "trainImageList.txt"))[0]
    for k in range(6):
        shutil.copy(paths[100 + k], paths[200 + k])
    people, hold_out = [], landmark_script.hold_out
    monkeypatch.setattr(landmark_script, "hold_out", lambda s, p, f: people.append(p) or hold_out(s, p, f))
    landmark_script.prepare_data(parse(landmark_script, f"--data_dir={tmp_path / 'same'}"))
    assert people[0][200:206].tolist() == people[0][100:106].tolist() == list(range(100, 106))


def test_digest_and_majority(landmark_script, mtfl, tmp_path):
    """An attribute that changed is other data; the majority is that of the faces to train on."""
    parts, _, _, record = landmark_script.prepare_data(parse(landmark_script, f"--data_dir={mtfl}"))
    for t, task in enumerate(landmark_script.TASKS):
        frequent = np.bincount(parts["train"][2][:, t]).argmax()
        shares = {part: np.mean(parts[part][2][:, t] == frequent) for part in ("aflw", "validation")}
        assert record["majority"][task] == pytest.approx(shares)
    shutil.copytree(mtfl, tmp_path / "other")
    path = tmp_path / "other" / "testing.txt"
    path.write_text(path.read_text()[:-2] + ("1" if path.read_text()[-2] != "1" else "2") + "\n")  # a pose
    digests = [record["sha256"]]
    for change in ("an attribute", "a face", "a landmark"):
        if change == "a face":
            photo = landmark_script.read_boxes(str(tmp_path / "other" / "testImageList.txt"))[0][3]
            Image.fromarray(np.zeros_like(Image.open(photo))).save(photo)
        elif change == "a landmark":
            path = tmp_path / "other" / "testImageList.txt"
            row, *others = path.read_text().splitlines()
            *numbers, last = row.split()
            path.write_text("\n".join([" ".join([*numbers, str(float(last) + 1)]), *others]))
        args = parse(landmark_script, f"--data_dir={tmp_path / 'other'}")
        digests.append(landmark_script.prepare_data(args)[-1]["sha256"])
    assert len(set(digests)) == 4


def test_nothing_left(run, mtfl, tmp_path):
    result = run(validation_fraction=0.9999)
    assert_refused(result, f"--data_dir {mtfl}, --validation_fraction 0.9999: nothing left to train on")
    shutil.copytree(mtfl, tmp_path / "same")
    shutil.copy(tmp_path / "same" / "trainImageList.txt", tmp_path / "same" / "testImageList.txt")
    expected = f"--data_dir {tmp_path}/same, --validation_fraction 0.2: nothing left to train on or to validate by"
    assert_refused(run(data_dir=tmp_path / "same"), expected)


BAD_LISTS = {
    "training.txt": [
        (b"", "expected faces, a path and 14 numbers a line"),
        (b"a.jpg 1 2 3\n", "expected faces, a path and 14 numbers a line (the numbers are 3 a line, or not finite)"),
        (b"a.jpg 1 2 3 4 5 6 7 8 9 nan 1 1 1 1\n", "expected faces, a path and 14 numbers a line"),
        (b"a.jpg 1 2 3 4 5 6 7 8 9 ten 1 1 1 1\n", "could not convert string to float"),
        (b"a.jpg 7 9 7 7 7 9 9 9 9 9 1 1 1 1\nb.jpg 1\n", "the number of columns changed from 15 to 2 at row 2"),
        (b"a.jpg 1 2 3 4 5 6 7 8 9 10 1 3 1 1\n", "face 1: expected smile in 1 to 2, found 3"),
        (b"a.jpg 7 7 7 7 7 9 9 9 9 9 1 1 1 1\n", "face 1: expected five landmarks, found them all in one place"),
        (b"\xff\xfe\x00", "expected faces, a path and 14 numbers a line"),
    ],
    "trainImageList.txt": [
        (b"a.jpg 30 10 1 20 1 2 3 4 5 6 7 8 9 10\n", "face 1: expected left < right and top < bottom"),
        (b"a.jpg 10 30 1 20 1 2 3 4 5 6 7 8 9 10\n", "expected one box for each face of training.txt"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name, content, message", [(n, *row) for n, rows in BAD_LISTS.items() for row in rows])
def test_damaged_lists(run, mtfl, tmp_path, name, content, message):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for other in LISTS:
        shutil.copy(mtfl / other, folder)
    (folder / name).write_bytes(content)
    result = run(data_dir=folder)
    assert result.status == 2 and message in result.err.splitlines()[-1] and name in result.err.splitlines()[-1]
    assert not result.log_dir.exists()


def test_boxes_of_larger_photos(run, mtfl, tmp_path):
    """Which lie beside the photos that are there: not the photos are damaged, the list is of others."""
    folder = tmp_path / "resized"
    shutil.copytree(mtfl, folder)
    path = folder / "trainImageList.txt"
    rows = [line.split() for line in path.read_text().splitlines()]
    path.write_text("".join(f"{name} {' '.join(str(10 * float(x)) for x in numbers)}\n" for name, *numbers in rows))
    result = run(data_dir=folder)
    assert result.status == 2 and "or its box lies beside it, as " in result.err.splitlines()[-1], result


@pytest.mark.parametrize("twice", [("trainImageList.txt",), ("training.txt",), ("training.txt", "trainImageList.txt")])
def test_two_faces_of_one_photo_need_lists_without_boxes(run, mtfl, tmp_path, twice):
    """Since a face's box is found by its path, both would get the same."""
    shutil.copytree(mtfl, tmp_path / "twice")
    for name in twice:
        path = tmp_path / "twice" / name
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + path.read_bytes())
    faces, boxes = (2 if name in twice else 1 for name in ("training.txt", "trainImageList.txt"))
    result = run(data_dir=tmp_path / "twice")
    assert_refused(result, f"{tmp_path}/twice/trainImageList.txt: expected one box for each face of training.txt")
    assert f"Face_00000.jpg has {faces} faces and {boxes} boxes" in result.err


@pytest.mark.slow
def test_missing_photos_are_counted_and_too_many_are_an_error(run, mtfl, tmp_path):
    shutil.copytree(mtfl, tmp_path / "gaps")
    photos = sorted((tmp_path / "gaps" / "lfw_5590").iterdir())
    photos[0].unlink()
    photos[1].write_bytes(photos[1].read_bytes()[:300])
    result = run(data_dir=tmp_path / "gaps", n_epoch=1)
    assert result.status == 0 and "skipped 2 of 300 images" in result.out
    for photo in photos[2:5]:
        photo.unlink()
    result = run(data_dir=tmp_path / "gaps", log_dir=tmp_path / "other")
    assert result.status == 2 and "as 5 of 300 images" in result.err.splitlines()[-1]


# ---- network


def test_parameter_count(landmark_script):
    conv = 9 * 32 + 9 * 32 * 48 + 9 * 48 * 64 + 9 * 64 * 80 + 2 * (32 + 48 + 64 + 80)
    column = conv + 4 * 4 * 80 * 256 + 2 * 256
    landmarks, attributes = 257 * 10, 257 * (2 + 2 + 2 + 5)
    units = 4 * (32 + 48 + 64 + 256)
    wide = 2 * 9 * 32 + 4 * (conv - 9 * 32) - 4 * (32 + 48 + 64 + 80) + 4 * 4 * 4 * 80 * 256 + 4 * 256 + 513 * 10
    poster = 16 * 20 + 9 * 20 * 40 + 9 * 40 * 60 + 4 * 60 * 80 + 200 + 2 * 2 * 80 * 120 + 120
    expected = {
        "--network=single": column + landmarks,
        "--network=split": column + landmarks + attributes,
        "--cross_stitch_enabled=False": 2 * column + landmarks + attributes,
        "--cross_stitch_enabled=True": 2 * column + landmarks + attributes + units,
        "--preset=wide --network=single": wide,
        "--preset=poster --image_size=39": 2 * poster + 121 * (10 + 8) + 4 * (20 + 40 + 60 + 80) + 4,
    }
    for flags, count in expected.items():
        network = build(landmark_script, *flags.split())
        assert sum(int(np.prod(v.shape)) for v in network.trainable_variables) == count, flags
        units = [layer.name for layer in network.layers if isinstance(layer, landmark_script.CrossStitch)]
        if "poster" in flags:
            assert units == ["pool_1", "pool_2", "pool_3", "pool_4", "fc_5"]
        else:
            assert units == (["pool_1", "pool_2", "pool_3", "fc_5"] if "True" in flags else [])


def test_identity_units_are_exactly_the_two_columns(landmark_script):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), np.uint8)
    stitched, apart = (build(landmark_script, f"--cross_stitch_enabled={on}") for on in (True, False))
    for network in (stitched, apart):  # the output's kernel starts at zero, and would hide everything before it
        kernel = network.get_layer("landmarks_points").kernel
        kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))
    stitched, apart = stitched(images), apart(images)
    assert np.ptp(stitched["landmarks"][:, 0, 0]) > 0.1
    for task in ("landmarks", "gender", "smile", "glasses", "pose"):
        np.testing.assert_array_equal(stitched[task], apart[task])


def test_the_poster_has_eight_sigmoids(landmark_script):
    """A softmax over (0, z) is the sigmoid of z; the poses have five sigmoids; the loss of all is a sum over eight."""
    images = np.random.default_rng(0).integers(0, 256, (6, 39, 39, 1), np.uint8)
    outputs = build(landmark_script, "--preset=poster", "--image_size=39")(images)
    labels = np.random.default_rng(1).integers(0, [2, 2, 2, 5], (6, 4))
    points = np.random.default_rng(2).uniform(size=(6, 5, 2)).astype(np.float32)
    losses = landmark_script.task_losses(outputs, points, tf.constant(labels), sigmoid_pose=True)
    expected = []
    for k, task in enumerate(("gender", "smile", "glasses", "pose")):
        logits = np.float64(outputs[task])
        if task == "pose":
            z, y = logits, np.eye(5)[labels[:, k]]
        else:
            assert (logits[:, 0] == 0).all()
            z, y = logits[:, 1:], labels[:, k : k + 1]
        p = 1 / (1 + np.exp(-z))
        expected.append(-(y * np.log(p) + (1 - y) * np.log(1 - p)).sum())
    np.testing.assert_allclose(losses[1:], expected, rtol=1e-4)
    np.testing.assert_allclose(losses[0], 0.5 * ((points - np.float64(outputs["landmarks"])) ** 2).sum(), rtol=1e-4)


def test_the_poster_in_full(landmark_script):
    """The preset's values, its division by 255 and Glorot's weights."""
    expected = {"lr": 0.01, "lr_half_life": 0, "n_epoch": 100, "n_batch_size": 128, "reg_lambda": 0, "keep_prob": 1}
    expected |= {"image_size": 39, "augment": False, "landmark_lambda": 200, "aux_lambda": [0.125]}
    expected |= {"cross_stitch_init": 0.9, "weight_reg": "l2", "weight_reg_lambda": 1}
    args = vars(landmark_script.parse_arguments(["--preset", "poster"])[0])
    assert {name: args[name] for name in expected} == expected and args["landmark_lambda"] * 0.5 == 1000 / 10
    assert parse(landmark_script, "--preset", "poster", "--n_epoch", "7").n_epoch == 7
    ours = parse(landmark_script)
    assert ours.weight_reg == "none" and ours.augment and ours.n_epoch != 100
    images = np.arange(39 * 39, dtype=np.uint8).reshape(1, 39, 39, 1)
    network = build(landmark_script, "--preset=poster", "--image_size=39")
    np.testing.assert_allclose(network.get_layer("standardise")(images), images / 255, atol=1e-6)
    kernel = network.get_layer("landmarks_fc_5").kernel.numpy()
    assert abs(kernel.std() / (2 / (2 * 2 * 80 + 120)) ** 0.5 - 1) < 0.03


def test_the_network_does_what_its_flags_say(landmark_script):
    """Dropout and momentum; He's weights, and points that begin in the middle of the box."""
    network = build(landmark_script, "--keep_prob=0.7", "--bn_momentum=0.6")
    kernel = network.get_layer("landmarks_fc_5").kernel.numpy()
    assert abs(kernel.std() / (2 / (4 * 4 * 80)) ** 0.5 - 1) < 0.03
    for column in ("landmarks", "attributes"):
        assert network.get_layer(f"{column}_dropout").rate == pytest.approx(0.3)
        assert network.get_layer(f"{column}_bn_1").momentum == 0.6
    column = [layer.name for layer in network.layers if layer.name.startswith("landmarks_")]
    kinds = [("conv", "bn", "pool", "relu")] * 3 + [("conv", "bn", "relu"), ("flatten", "fc", "bn", "relu")]
    levels = [f"landmarks_{kind}_{level}" for level, of_level in enumerate(kinds, 1) for kind in of_level]
    assert sorted(column) == sorted([*levels, "landmarks_dropout", "landmarks_points"])
    start = network(np.zeros((1, 32, 32, 1), np.uint8))["landmarks"]
    np.testing.assert_array_equal(start, np.full((1, 5, 2), 0.5))


# ---- losses and measures


@pytest.mark.parametrize("kind", ["l2", "exp"])
def test_related_weights_and_their_gradients(landmark_script, kind):
    """Against NumPy in float64: the value by the formula, the gradients by the chain rule written out."""
    rng = np.random.default_rng(0)
    pairs = [tuple(rng.normal(size=shape) for _ in range(2)) for shape in ((3, 3, 1, 4), (6, 5), (2, 2))]
    pairs[2] = (pairs[2][0] * 5, pairs[2][1])  # the mean square is above 10 there: the tangent
    a, b = np.array([0.9, 1.1, 2.0]), np.array([0.1, -0.2, 0.5])
    values, gradients, means = [], [], []
    for j, (first, second) in enumerate(pairs):
        d = a[j] * first + b[j] - second
        m = (d**2).mean()
        means.append(m)
        if kind == "l2":
            values.append(0.5 * (d**2).sum())
            slope = d
        else:
            values.append(np.exp(m) - 1 if m < 10 else np.exp(10) - 1 + np.exp(10) * (m - 10))
            slope = np.exp(min(m, 10)) * 2 * d / d.size
        gradients += [a[j] * slope, -slope, (slope * first).sum(), slope.sum()]
    assert means[0] < 10 < means[2]
    variables = [[tf.Variable(x, dtype=tf.float32) for x in pair] for pair in pairs]
    scales, offsets = tf.Variable(a, dtype=tf.float32), tf.Variable(b, dtype=tf.float32)
    with tf.GradientTape() as tape:
        found = landmark_script.related_weights(variables, scales, offsets, kind)
    np.testing.assert_allclose(found, sum(values), rtol=1e-4)
    *kernels, of_scales, of_offsets = tape.gradient(
        found, [*variables[0], *variables[1], *variables[2], scales, offsets]
    )
    for j in range(3):
        expected = gradients[4 * j : 4 * j + 4]
        for got, want in zip((kernels[2 * j], kernels[2 * j + 1], of_scales[j], of_offsets[j]), expected):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_related_weights_of_the_network_are_those_that_both_columns_have(landmark_script):
    network = build(landmark_script)
    pairs = landmark_script.kernel_pairs(network)
    layers = ["conv_1", "conv_2", "conv_3", "conv_4", "fc_5"]
    assert len(pairs) == 5
    for (first, second), name in zip(pairs, layers):
        np.testing.assert_array_equal(first, network.get_layer(f"landmarks_{name}").kernel)
        np.testing.assert_array_equal(second, network.get_layer(f"attributes_{name}").kernel)
    huge = [tuple(x * 1e6 for x in pair) for pair in pairs]
    assert np.isfinite(landmark_script.related_weights(huge, np.ones(5), np.zeros(5), "exp"))


def test_measures_of_faces_by_hand(landmark_script):
    true = np.zeros((4, 5, 2), np.float32)
    true[:, 1] = [0.5, 0]  # the eyes are half a box apart
    predicted = true.copy()
    predicted[1, :, 0] += 0.03  # every landmark 3 % off: no failure by the box, 6 % of the eyes' distance
    predicted[2, 2] += [0.3, 0.4]  # the nose 50 % off: 10 % in the mean, 20 % of the eyes' distance
    predicted[3, 0] += [0.12, 0.16]  # the left eye 20 % off, which fails, but not the face: 4 % in the mean
    measures = landmark_script.face_measures(predicted, true).numpy()
    np.testing.assert_allclose(measures[0], np.zeros(14), atol=1e-6)
    np.testing.assert_allclose(measures[1], [0.03] * 5 + [0] * 5 + [0.03, 0, 0.06, 0], atol=1e-6)
    np.testing.assert_allclose(measures[2], [0, 0, 0.5, 0, 0, 0, 0, 1, 0, 0, 0.1, 1, 0.2, 1], atol=1e-6)
    np.testing.assert_allclose(measures[3], [0.2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0.04, 0, 0.08, 0], atol=1e-6)
    found = landmark_script.metrics(measures.mean(axis=0), {"smile": np.array([[3, 1], [0, 2]])})
    assert found["mean_error"] == pytest.approx(0.17 / 4) and found["failure_rate"] == pytest.approx(1 / 4)
    assert found["mean_error_interocular"] == pytest.approx(0.34 / 4)
    assert found["landmarks"]["left eye"] == pytest.approx({"mean_error": 0.23 / 4, "failure_rate": 1 / 4})
    assert found["landmarks"]["right eye"] == pytest.approx({"mean_error": 0.03 / 4, "failure_rate": 0})
    assert found["landmarks"]["nose"] == pytest.approx({"mean_error": 0.53 / 4, "failure_rate": 1 / 4})
    assert found["smile"] == pytest.approx(5 / 6)


def test_thresholds_of_failures(landmark_script):
    """Eyes 0.4 apart, so that 10 % of their distance is 4 % of the box; nothing else is as far apart."""
    true = np.tile([[0.2, 0.3], [0.6, 0.3], [0.45, 0.5], [0.3, 0.8], [0.55, 0.75]], (4, 1, 1)).astype(np.float32)
    moves = np.array([0.039, 0.041, 0.049, 0.051], np.float32)
    predicted = true + np.stack([0.6 * moves, -0.8 * moves], axis=1)[:, None]
    found = landmark_script.face_measures(predicted, true).numpy()
    np.testing.assert_array_equal(found[:, 5:10], np.repeat([[0], [0], [0], [1]], 5, axis=1))
    np.testing.assert_array_equal(found[:, [11, 13]], [[0, 0], [0, 1], [0, 1], [1, 1]])
    measures = landmark_script.metrics(found.mean(axis=0), {})
    names = ("mean_error", "failure_rate", "mean_error_interocular", "failure_rate_interocular")
    assert [measures[name] for name in names] == pytest.approx([0.045, 0.25, 0.1125, 0.75], rel=1e-4)


def test_one_step_by_hand(landmark_script, mtfl):
    """All terms of the loss at once; a and b of the related weights get gradients as the weights do."""
    flags = ["--augment=no", "--keep_prob=1", "--reg_lambda=0.1", "--weight_reg=l2", "--weight_reg_lambda=0.01"]
    flags += ["--landmark_lambda=3", "--aux_lambda", "1", "2", "0.5", "4", f"--data_dir={mtfl}"]
    args = parse(landmark_script, *flags)
    parts, mean, deviation, _ = landmark_script.prepare_data(args)
    keras.utils.set_random_seed(0)
    network = landmark_script.build_network(args, mean, deviation)
    faces, points, attributes = (x[:16] for x in parts["train"])
    outputs = {k: np.float64(x) for k, x in network(landmark_script.centre(faces, 32), training=True).items()}
    errors = outputs["landmarks"] - points
    losses = [0.5 * np.sum(errors**2) / 16]
    for t, task in enumerate(landmark_script.TASKS):
        z = outputs[task]
        losses.append(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(16), attributes[:, t]]))
    kernels = {layer.name: np.float64(layer.kernel) for layer in network.layers if hasattr(layer, "kernel")}
    relation = sum(
        0.5 * np.sum((kernels[f"landmarks_{name}"] - kernels[f"attributes_{name}"]) ** 2)
        for name in ("conv_1", "conv_2", "conv_3", "conv_4", "fc_5")
    )
    l2 = sum(0.5 * np.sum(kernel**2) for kernel in kernels.values())
    spies = Spy(), Spy()
    relations = [tf.Variable(tf.ones(5)), tf.Variable(tf.zeros(5))]
    step = landmark_script.make_train_step(tf.distribute.get_strategy(), network, spies, args, relations)
    inputs = [tf.constant(x) for x in (faces, points, attributes, np.zeros((16, 5), np.float32))]
    numbers = step(*inputs, tf.constant(0.0)).numpy()
    total = np.dot([3, 1, 2, 0.5, 4], losses) + 0.1 * l2 + 0.01 * relation
    np.testing.assert_allclose(numbers[:-2], [total, *losses, relation], rtol=1e-4)
    assert numbers[-2] == pytest.approx(np.linalg.norm(errors, axis=-1).mean(), rel=1e-4)

    weights = [v for v in network.trainable_variables if v.name != "alpha"]
    with tf.GradientTape() as tape:  # the same with TensorFlow's functions, of which some are tried above
        outputs = network(landmark_script.centre(faces, 32), training=True)
        loss = 3 * 0.5 * tf.reduce_sum((outputs["landmarks"] - points) ** 2) / 16
        for t, (task, rate) in enumerate(zip(landmark_script.TASKS, (1, 2, 0.5, 4))):
            picked = tf.gather(tf.nn.log_softmax(outputs[task]), attributes[:, t], batch_dims=1)
            loss -= rate * tf.reduce_mean(picked)
        a, b = relations
        for j, name in enumerate(("conv_1", "conv_2", "conv_3", "conv_4", "fc_5")):
            one, other = (network.get_layer(f"{column}_{name}").kernel for column in ("landmarks", "attributes"))
            loss += 0.01 * 0.5 * tf.reduce_sum((a[j] * one + b[j] - other) ** 2)
        for v in weights:
            if v.name == "kernel":
                loss += 0.1 * 0.5 * tf.reduce_sum(v.value**2)
    np.testing.assert_allclose(loss, total, rtol=1e-4)
    alphas = [v.value for v in network.trainable_variables if v.name == "alpha"]
    expected = tape.gradient(loss, [[v.value for v in weights] + relations, alphas])
    for found, wanted in zip(spies, expected, strict=True):
        for one, other in zip(found.kept, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())


def test_draws_of_an_epoch(landmark_script):
    keys = ((0, 0), (0, 1), (1, 0))
    found = [landmark_script.draws_of(*key, 1000) for key in keys]
    assert all((one == other).mean() < 0.01 for one, other in zip(found, found[1:] + found[:1]))
    for draws in found:
        assert draws.shape == (1000, 5) and draws.dtype == np.float32
        assert (draws.min(axis=0) < -0.98).all() and (draws.max(axis=0) > 0.98).all()
        assert np.abs(draws.mean(axis=0)).max() < 0.1


def test_split_without_auxiliary_weight_gives_the_gradients_of_single(landmark_script, mtfl):
    gradients = {}
    for kind in ("single", "split"):
        args = parse(landmark_script, f"--network={kind}", "--aux_lambda=0", f"--data_dir={mtfl}", "--keep_prob=1")
        parts, mean, deviation, _ = landmark_script.prepare_data(args)
        keras.utils.set_random_seed(0)
        network = landmark_script.build_network(args, mean, deviation)
        output = network.get_layer("landmarks_points").kernel  # which starts at zero, and would hide all gradients
        output.assign(np.random.default_rng(0).normal(size=output.shape))
        spy = Spy()
        step = landmark_script.make_train_step(tf.distribute.get_strategy(), network, (spy, spy), args, [])
        draws = np.random.default_rng(0).uniform(-1, 1, (239, 5)).astype(np.float32)
        step(*(tf.constant(x[:16]) for x in (*parts["train"], draws)), tf.constant(0.0))
        names = [v.path for v in network.trainable_variables]
        gradients[kind] = dict(zip(names, (v.numpy() for v in spy.kept)))
    assert len(gradients["single"]) == 17 and gradients["single"].keys() < gradients["split"].keys()
    for name, gradient in gradients["split"].items():
        if name in gradients["single"]:
            scale = np.abs(gradients["single"][name]).max()
            assert scale > 1e-3
            np.testing.assert_allclose(gradient, gradients["single"][name], rtol=1e-5, atol=1e-6 * scale, err_msg=name)
        elif "kernel" not in name:
            np.testing.assert_array_equal(gradient, 0, err_msg=name)  # kernels have the L2 term alone


class Spy:
    """An optimizer that keeps the gradients and changes nothing."""

    def _create_slots(self, variables):
        self.kept = [tf.Variable(tf.zeros_like(v)) for v in variables]

    def apply_gradients(self, pairs):
        for kept, (gradient, _) in zip(self.kept, pairs):
            kept.assign(gradient)


# ---- the command line

BAD = {
    "--preset paper": "--preset: invalid choice: 'paper'",
    "--network triple": "--network: invalid choice: 'triple'",
    "--aux_lambda x": "--aux_lambda: expected a number in [0, inf), got 'x'",
    "--aux_lambda -1": "--aux_lambda: expected a number in [0, inf), got '-1'",
    "--aux_lambda 1 2": "--aux_lambda: expected one number, or one each for gender smile glasses pose",
    "--weight_reg l1": "--weight_reg: invalid choice: 'l1'",
    "--weight_reg l2 --network split": "--weight_reg l2: expected --network cross_stitch (or --weight_reg none)",
    "--crop_scale 3": "--crop_scale: expected a number in [1, 2], got '3'",
    "--validation_fraction 0": "--validation_fraction: expected a number in (0, 1), got '0'",
    "--box 1 2 3": "--box: expected 4 arguments",
    "--box 1 2 3 x": "--box: invalid float value: 'x'",
    "--model m.keras": "--model, --box: expected with --predict PHOTO",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_flag(run, flags):
    assert_refused(run(*flags.split()), BAD[flags])


def test_bad_data_folder(run, tmp_path, mtfl):
    for folder in (None, tmp_path / "absent", tmp_path):
        last = run(data_dir=folder).err.splitlines()[-1]
        assert last.startswith("error: --data_dir") and "MTFL" in last and "trainImageList.txt" in last
    shutil.copy(mtfl / "training.txt", tmp_path)
    assert "expected testImageList.txt or testing.txt" in run(data_dir=tmp_path).err.splitlines()[-1]


def test_predict_by_hand(landmark_script, tmp_path, monkeypatch, capsys):
    """A photo taller than wide, stored lying, by a network that finds all points in the middle of the face."""
    faces = []

    def network(face, training):
        faces.append(np.array(face[0]))
        logits = {"gender": [0.0, 1], "smile": [2.0, 0], "glasses": [0.0, 1], "pose": [0.0, 0, 1, 0, 3]}
        points = tf.constant([[[0.5, 0.5], [0.6, 0.5], [0.5, 0.6], [0.4, 0.7], [0.6, 0.7]]])
        return {"landmarks": points, **{task: tf.constant([x]) for task, x in logits.items()}}

    settings = {"image_size": 32, "crop_scale": 1.5, "preset": "poster"}
    results = {"arguments": settings, "classes": landmark_script.TASKS}
    monkeypatch.setattr(landmark_script, "load_run", lambda _: (network, results))
    picture = np.random.default_rng(0).integers(0, 256, (100, 60, 3), np.uint8)
    stored = Image.fromarray(np.rot90(picture))
    exif = stored.getexif()
    exif[0x0112] = 6
    photo = str(tmp_path / "photo.png")
    stored.save(photo, exif=exif)
    for boxes, square in ((None, (-0.5, 19.5, 60)), ([[10, 40, 20, 90]], (10, 40, 30))):
        landmark_script.predict([photo], "model.keras", boxes)
        expected = landmark_script.crop(picture, np.array(square, np.float32), 32, 1.5)
        np.testing.assert_array_equal(faces[-1], expected)
        left, top, side = square
        lines = capsys.readouterr().out.splitlines()[1:]
        x, y = left + 0.4 * side, top + 0.7 * side
        assert lines[3].split() == ["left", "mouth", "corner", "x", f"{x:.1f}", "y", f"{y:.1f}"]
        assert [" ".join(line.split()) for line in lines[5:]] == [
            "gender female 0.731",
            "smile smiling 0.881",
            "glasses no glasses 0.731",
            "pose right profile 0.953",
        ]  # the poses by sigmoids
        assert Image.open(f"{photo}.landmarks.png").size == (240, 400)


def test_sheet_of_faces(landmark_script, tmp_path):
    """True points green, predicted ones red, at their places of a crop 1.25 times the box, four times as large."""
    true, guess = np.full((2, 5, 2), [0.2, 0.4]), np.full((2, 5, 2), [0.7, 0.9])
    part = np.full((2, 48, 48, 1), 100, np.uint8), true, None
    with tf.summary.create_file_writer(str(tmp_path)).as_default(step=1):
        landmark_script.log_faces(lambda x, training: {"landmarks": tf.constant(guess)}, part, 32, 1.25)
    picture = tf.io.decode_png(read_events(tmp_path)["landmarks/faces"][0][1][2]).numpy()
    assert picture.shape == (512, 512, 3) and (picture[128:] == 0).all() and (picture[:128, 256:] == 0).all()
    for colour, place in (((0, 220, 0), (0.2, 0.4)), ((230, 0, 0), (0.7, 0.9))):
        y, x = np.nonzero((picture[:128, :128] == colour).all(axis=-1))
        found = [x.mean(), y.mean()]
        np.testing.assert_allclose(found, ((np.array(place) - 0.5) / 1.25 + 0.5) * 128 - 0.5, atol=0.6)


def test_table_of_results(landmark_script, capsys):
    def part(k):
        names = ("mean_error", "failure_rate", "mean_error_interocular", "failure_rate_interocular")
        found = {name: k + n / 10 for n, name in enumerate(names)}
        return {**found, "landmarks": {name: {"mean_error": k + 0.9} for name in landmark_script.LANDMARKS}}

    results = {"test": part(1), "validation": {**part(2), "smile": 0.7}, "aflw": {**part(3), "smile": 0.6}}
    results |= {"classes": {"smile": []}, "data": {"majority": {"smile": {"aflw": 0.5, "validation": 0.4}}}}
    landmark_script.print_results(results)
    lines = capsys.readouterr().out.splitlines()[1:]
    column = {name: lines[0].index(name) + len(name) for name in ("test", "aflw", "validation")}

    def cells(line):
        return {name: line[end - 11 : end].strip() for name, end in column.items()}

    for k, name in enumerate(("mean_error", "failure_rate", "mean_error_interocular", "failure_rate_interocular")):
        assert lines[1 + k].startswith(name)
        assert cells(lines[1 + k]) == {"test": f"1.{k}000", "aflw": f"3.{k}000", "validation": f"2.{k}000"}
    assert cells(lines[5]) == {"test": "", "aflw": "0.6000", "validation": "0.7000"}
    assert cells(lines[6]) == {"test": "", "aflw": "0.5000", "validation": "0.4000"}


# ---- runs


def test_a_loss_that_is_not_finite_and_units_that_are_too_large(run, landmark_script, tmp_path, monkeypatch):
    result = run(lr=1e30, n_epoch=1)
    assert result.status == 3 and "the loss is no longer finite" in result.err.splitlines()[-1], result
    monkeypatch.setattr(landmark_script, "MEMORY", 1e6)
    result = run("--cross_stitch_unit=activation", log_dir=tmp_path / "large")
    assert_refused(result, "--cross_stitch_unit activation: units take")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single", "split"])
def test_other_networks(run, kind):
    result = run("--network", kind, n_epoch=1)
    assert result.status == 0, result
    results = json.loads((result.log_dir / "results.json").read_text())
    assert results["test"].keys() >= {"mean_error", "failure_rate", "mean_error_interocular"}
    assert ("smile" in results["aflw"]) == (kind == "split") and "smile" not in results["test"]
    assert results["cross_stitch"] == {}


@pytest.mark.slow
def test_what_a_run_logs(run, landmark_script, mtfl, tmp_path, monkeypatch):
    """On data without a list of test faces; the table of a finished run is shown again.

    With a half-life of a hundredth of an epoch the second one changes nothing that is trained. The clock is one on
    which a step takes a second and each evaluation a thousand.
    """
    shutil.copytree(mtfl, tmp_path / "bare")
    (tmp_path / "bare" / "testImageList.txt").unlink()
    asked, drawn, draws_of, evaluate, now = [], [], landmark_script.draws_of, landmark_script.evaluate, [0]
    facts, seeds, set_random_seed = [], [], keras.utils.set_random_seed

    class Draws:
        def __init__(self, *key):
            asked.append(key)

        def __getitem__(self, batch):
            drawn.append(batch)
            return draws_of(*asked[-1])[batch]

    def tick(seconds=1):
        now[0] += seconds
        return now[0]

    monkeypatch.setattr(landmark_script, "draws_of", Draws)
    monkeypatch.setattr(landmark_script, "time", types.SimpleNamespace(perf_counter=tick))
    monkeypatch.setattr(landmark_script, "evaluate", lambda *given: tick(1000) and evaluate(*given))
    monkeypatch.setattr(landmark_script, "agree", lambda _, **named: facts.append(named))
    monkeypatch.setattr(keras.utils, "set_random_seed", lambda seed: seeds.append(seed) or set_random_seed(seed))
    flags = {"n_epoch": 2, "n_batch_size": 60, "seed": 7, "eval_every": 3, "weight_reg": "l2", "lr_half_life": 0.01}
    result = run(**flags, data_dir=tmp_path / "bare")
    assert result.status == 0, result
    results, events = json.loads((result.log_dir / "results.json").read_text()), read_events(result.log_dir)
    n = results["data"]["sizes"]["train"]
    assert asked == [(7, 0, n)] * 4 + [(7, 1, n)] * 4
    assert all(sorted(np.concatenate(drawn[k : k + 4])) == list(range(n)) for k in (0, 4))
    assert seeds == [7] and [set(named) for named in facts] == [
        {"arguments", "data", "versions", "run"},
        {"checkpoint"},
    ]
    assert unchanged_weights(result.log_dir) == 2 * 15 + 10 + 4  # of steps 6 and 8, all but moving averages
    for part in ("aflw", "validation"):
        for tag in ("mean_error", "failure_rate"):
            steps, values = zip(*events[f"landmarks/{tag}_{part}"])
            assert steps == (3, 6, 8) and values[-1] == np.float32(results[part][tag])
    losses = [f"{task}/loss" for task in ("landmarks", *landmark_script.TASKS)]
    for tag in ("summary/loss_total", "summary/related_weights", "landmarks/mean_error_train", *losses):
        assert [step for step, _ in events[tag]] == list(range(1, 9)), tag  # ten times in a run, if there are as many
    total, related, error, of_landmarks, *of_attributes = (
        float(events[tag][0][1])
        for tag in ("summary/loss_total", "summary/related_weights", "landmarks/mean_error_train", *losses)
    )
    rest = total - of_landmarks - 0.003 * sum(of_attributes) - 1e-6 * related  # the L2 term
    assert 0 < rest < 0.01 and related > 10 and 0.01 < error < 1
    speeds = [float(value) for _, value in events["throughput/images_per_second"]]
    assert speeds == pytest.approx([60, 60, 60, n - 180, (n - 120) / 2, (n - 60) / 3, 60, (n - 180 + 60) / 2])
    assert results["images_per_second"] == round(sorted([60, (n - 60) / 3, (n - 120) / 2])[1], 1)
    state = checkpoint_arrays(last_checkpoint(result.log_dir))
    a, b = (state[f"relations/{k}/.ATTRIBUTES/VARIABLE_VALUE"] for k in (0, 1))
    assert np.abs(a - 1).min() > 0 and np.abs(a - 1).max() < 0.1 and np.abs(b).min() > 0 and np.abs(b).max() < 0.1
    again = run("--resume", result.log_dir, log_dir=None, data_dir=None, image_size=None)
    assert again.status == 0 and "this run is finished" in again.out and "mean_error" in again.out


@pytest.mark.slow
def test_pretraining_holds_the_units_and_then_stitches(run):
    flags = {"n_batch_size": 120, "log_every": 1, "n_epoch": 3, "pretrain_epoch": 1}  # 2 steps an epoch
    result = run(**flags, cross_stitch_init=0.9, lr=1e-4)
    alpha = dict(read_events(result.log_dir)["units/fc_5/alpha_self"])
    assert [alpha[step] for step in range(3)] == [1] * 3 and alpha[3] == pytest.approx(0.9, abs=1e-3)
    state = checkpoint_arrays(last_checkpoint(result.log_dir))
    (end,) = (x for name, x in state.items() if x.shape == (2, 2, 256) and "OPTIMIZER_SLOT" not in name)
    assert 2e-4 < np.abs(end - np.array([[0.9, 0.1], [0.1, 0.9]])[..., None]).max() < 6e-4  # four steps of Adam


@pytest.mark.slow
def test_the_preset_runs_and_resumes(run, mtfl, tmp_path):
    """On data without the faces of AFLW."""
    shutil.copytree(mtfl, tmp_path / "without")
    (tmp_path / "without" / "testing.txt").unlink()
    result = run("--preset", "poster", n_epoch=1, data_dir=tmp_path / "without")
    assert "--preset poster: lr 0.01, lr_half_life 0.0, n_epoch 1, " in result.out  # as it is with the flags after it
    assert result.status == 0 and "pool_4 (2, 2, 80)" in result.out, result
    again = run("--resume", result.log_dir, n_epoch=2, data_dir=None, image_size=None, log_dir=None)
    assert again.status == 0 and "epoch 2/2" in again.out and again.out.count("--preset poster") == 1, again
    arguments = json.loads((result.log_dir / "results.json").read_text())["arguments"]
    assert (arguments["preset"], arguments["lr"], arguments["image_size"]) == ("poster", 0.01, 32)


@pytest.mark.slow
def test_a_signal(run, landmark_script, mtfl, tmp_path, monkeypatch):
    """It is there before the first step, after which the run stops; with other faces it does not go on."""

    @contextlib.contextmanager
    def at_once(action):
        action(signal.SIGTERM, None)
        yield

    monkeypatch.setattr(landmark_script, "on_signals", at_once)
    stopped = run(n_epoch=1, n_batch_size=60)
    assert stopped.status == 143 and last_checkpoint(stopped.log_dir).name == "step-0000000001", stopped
    assert "stopped at step 1 of 4; go on with: " in stopped.err.splitlines()[-1]
    shutil.copytree(mtfl, tmp_path / "other")
    (tmp_path / "other" / "testing.txt").unlink()
    other = run("--resume", stopped.log_dir, log_dir=None, image_size=None, data_dir=tmp_path / "other")
    expected = f"error: --resume: expected the data that it was begun with, --data_dir {mtfl}"
    assert other.status == 2 and other.err.splitlines()[-1] == expected


@pytest.mark.slow
def test_resumed(landmark_script, mtfl, tmp_path):
    flags = ["--n_batch_size=50", "--image_size=32", "--log_every=1", f"--data_dir={mtfl}", "--lr_half_life=2"]
    flags += ["--weight_reg=exp"]
    assert_goes_on(landmark_script, tmp_path, *flags)
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed"))
    for key in ("test", "aflw", "validation", "cross_stitch"):
        assert one[key] == other[key], key


@pytest.mark.slow
def test_two_devices(landmark_script, mtfl, tmp_path):
    """Augmentation, related weights and measures are the same on one device and on two; the last batch has 5."""
    flags = ["--n_epoch=2", "--n_batch_size=78", "--image_size=32", "--lr=1e-5", "--keep_prob=1", "--weight_reg=l2"]
    flags += [f"--data_dir={mtfl}", "--cross_stitch_init=0.9", "--log_every=1"]
    assert landmark_script.main([*flags, f"--log_dir={tmp_path / 'one'}"]) == 0
    result = run_on_devices(2, SCRIPT, *flags, f"--log_dir={tmp_path / 'two'}")
    assert result.status == 0 and "on 2 devices" in result.out, result
    tags = ("landmarks/loss", "pose/loss", "summary/related_weights", "landmarks/mean_error_test")
    assert_nearly_same_run(tmp_path / "one", tmp_path / "two", tags, tolerance=1e-4)
    a, b = (json.loads((tmp_path / name / "results.json").read_text())["test"] for name in ("one", "two"))
    assert a["mean_error"] == pytest.approx(b["mean_error"], rel=1e-4)


@pytest.mark.slow
def test_learns_drawn_faces_and_predicts(landmark_script, tmp_path, capfd):
    """Drawn faces: an error below 4 % in six epochs; the predictions lie on the drawn landmarks."""
    draw.draw_mtfl(str(tmp_path / "drawn"), 1000, 150, 100)
    run = functools.partial(run_main, landmark_script, capfd, tmp_path / "run")
    result = run(data_dir=tmp_path / "drawn", n_epoch=6, lr_half_life=1.8, n_batch_size=16, image_size=32)
    assert result.status == 0, result
    results = json.loads((result.log_dir / "results.json").read_text())
    assert results["test"]["mean_error"] < 0.04 and results["aflw"]["mean_error"] < 0.04
    assert results["aflw"]["glasses"] > 0.9 and results["aflw"]["smile"] > 0.8 and results["aflw"]["pose"] > 0.7
    events = read_events(result.log_dir)
    assert {
        "landmarks/mean_error_test",
        "landmarks/failure_rate_test",
        "landmarks/mean_error_validation",
    } <= events.keys()
    assert {"landmarks/failure_rate_validation", "landmarks/faces", "smile/accuracy_aflw"} <= events.keys()
    assert len(events["smile/confusion_matrix"]) == 1 and "not smiling" in str(events["smile/confusion_matrix"][0][1])

    names, boxes, points = landmark_script.read_boxes(str(tmp_path / "drawn" / "testImageList.txt"))
    left, top, side = boxes[0]
    model = str(result.log_dir / "model.keras")
    box = ["--box", left, left + side, top, top + side]
    predicted = run("--predict", names[0], "--model", model, *box, log_dir=None)
    assert predicted.status == 0, predicted
    found = np.float64(re.findall(r"x +(-?[\d.]+)  y +(-?[\d.]+)", predicted.out))
    assert found.shape == (5, 2) and np.linalg.norm(found - points[0], axis=1).mean() < 0.06 * side
    copy, photo = (tf.io.decode_image(tf.io.read_file(names[0] + end)).numpy() for end in (".landmarks.png", ""))
    zoom = len(copy) // len(photo)
    assert zoom > 1 and min(copy.shape[:2]) > 200
    changed = (copy != np.kron(photo, np.ones((zoom, zoom, 1)))).any(axis=-1)
    assert 5 <= changed.sum() < 150 * zoom**2 and all(
        changed[round(zoom * (y + 0.5) - 0.5), round(zoom * (x + 0.5) - 0.5)] for x, y in found
    )
    for wrong in (["--box", 999, 1999, 0, 99], ["--box", 9, 2, 3, 4], [*box, *box, *box]):
        failed = run("--predict", names[0], names[1], "--model", model, *wrong, log_dir=None)
        assert failed.status == 2 and failed.err.splitlines()[-1].startswith("error: --box"), failed
    copy = tmp_path / "fine.jpg"
    shutil.copy(names[0], copy)
    boxes = [*box, "--box", 999, 1999, 0, 99]
    for other, words in (("absent.jpg", []), (names[0], boxes)):
        failed = run("--predict", copy, other, "--model", model, *words, log_dir=None)
        assert failed.status == 2 and not Path(f"{copy}.landmarks.png").exists()
    Path(f"{copy}.landmarks.png").mkdir()  # so that it cannot be written
    failed = run("--predict", copy, "--model", model, *box, log_dir=None)
    assert failed.status == 1 and failed.out.splitlines()[-9:] == predicted.out.splitlines()[-9:]  # points, attributes
    for words, named in (["absent.jpg", "--model", model], "absent.jpg"), ([names[0]], "expected --model"):
        failed = run("--predict", *words, log_dir=None)
        assert failed.status == 2 and named in failed.err.splitlines()[-1]
