"""Boxes, crops, augmentation and the measures of landmarks: where things are, by hand and in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image


def test_the_box_and_back_is_the_identity(landmark_script):
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 3000, (200, 5, 2))
    boxes = np.concatenate([rng.uniform(-100, 3000, (200, 2)), rng.uniform(20, 2000, (200, 1))], axis=1)
    assert np.abs(landmark_script.from_box(landmark_script.to_box(points, boxes), boxes) - points).max() < 1e-9


def test_boxes_around_landmarks(landmark_script):
    points = np.array([[[10, 20], [30, 20], [20, 25], [12, 60], [28, 60]]], float)
    left, top, side = landmark_script.boxes_around(points)[0]
    assert side == pytest.approx(1.78 * 40) and (left + side / 2, top + side / 2) == pytest.approx((20, 40))


def test_jitter_reaches_its_bounds(landmark_script):
    """8 % of the side to each side, and exp(0.15) times it, each drawn for itself and by the seed."""
    boxes = np.array([[10.0, 20, 100]]).repeat(2000, axis=0)
    found = landmark_script.jitter(boxes, 0)
    np.testing.assert_array_equal(found, landmark_script.jitter(boxes, 0))
    assert np.abs(found - landmark_script.jitter(boxes, 1)).max() > 1
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
        face = landmark_script.crop(Image.fromarray(photo), box, 40)[..., 0].astype(float)
        y, x = np.mgrid[:40, :40]
        found = np.array([(face * x).sum(), (face * y).sum()]) / face.sum()
        inside = landmark_script.to_box(point[None, None], box[None])[0, 0]
        assert np.abs(found - (inside * 40 - 0.5)).max() < 0.12


def test_a_crop_is_black_beyond_the_photo_and_grey_inside(landmark_script):
    photo = Image.fromarray(np.full((50, 50, 3), (250, 100, 20), np.uint8))
    face = landmark_script.crop(photo, (-25.5, -0.5, 50), 40)
    assert (face[:, :19] == 0).all()
    assert (np.abs(face[1:-1, 21:-1].astype(float) - (0.299 * 250 + 0.587 * 100 + 0.114 * 20)) <= 1).all()


def test_a_crop_looks_at_as_much_of_the_photo_as_it_needs(landmark_script):
    """Triangles about the place of each pixel of the face, spelled out in NumPy; outside the photo it is an error.

    They are two pixels wide, of the photo or of the face, whichever is larger.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400), np.uint8)
    photo = Image.fromarray(pixels).convert("RGB")
    for left, top, side in ((100.3, 60.7, 31), (100.3, 60.7, 150), (100.3, 60.7, 8)):
        found = landmark_script.crop(photo, (left, top, side), 40)[..., 0]
        weights = []
        for start, length in ((top, 300), (left, 400)):
            places = start + (np.arange(40) + 0.5) * side / 40
            of_axis = np.maximum(0, 1 - np.abs(np.arange(length) - places[:, None]) / max(1, side / 40))
            weights.append(of_axis / of_axis.sum(axis=1, keepdims=True))
        expected = weights[0] @ pixels @ weights[1].T
        assert np.abs(found - expected).max() < 1.1  # Pillow rounds twice, to whole grey levels
    for left, top in ((500, 60), (-300, 60), (60, 400), (60, -300)):
        with pytest.raises(ValueError, match="outside the photo"):
            landmark_script.crop(photo, (left, top, 50), 40)
    with pytest.raises(ValueError, match="20 times"):
        landmark_script.crop(photo, (-1e9, -1e9, 2e9), 40)


def test_the_middle_of_a_face_with_its_margin_is_the_box(landmark_script, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 100, 3), np.uint8))
    image.save(tmp_path / "photo.png")
    box = np.array([20.5, 15.2, 48.0])
    with_margin = landmark_script.read_face(tmp_path / "photo.png", box, image_size=32, window=48)
    alone = landmark_script.read_face(tmp_path / "photo.png", box, image_size=32, window=32)
    middle = landmark_script.crop_middle(with_margin[None], 32)[0]
    assert with_margin.shape == (48, 48, 1) and np.abs(alone.astype(int) - middle).max() <= 2


def marked_faces(n, size, window):
    """Dark faces with a disc of another brightness at each landmark, their labels, and the brightnesses."""
    rng = np.random.default_rng(0)
    points = np.array([[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.35, 0.7], [0.65, 0.7]])
    points = points + rng.uniform(-0.04, 0.04, (n, 5, 2))
    bright = np.array([60, 100, 140, 180, 220])
    y, x = np.mgrid[:window, :window]
    faces = np.zeros((n, window, window, 1), np.uint8)
    for face, of_face in zip(faces, points):
        for (across, down), value in zip(((of_face - 0.5) * size + window / 2 - 0.5), bright):
            face[(x - across) ** 2 + (y - down) ** 2 <= 9] = value
    labels = {"landmarks": points.astype(np.float32), "smile": rng.integers(0, 2, n), "pose": rng.integers(0, 5, n)}
    return faces, labels, bright


def test_augmentation_moves_the_points_with_the_picture(landmark_script):
    """In every crop each disc lies at the landmark that has its name; mirrored, names and poses change sides."""
    size, window = 64, 96
    faces, labels, bright = marked_faces(64, size, window)
    random_numbers = np.random.default_rng(1).uniform(-1, 1, (64, 5)).astype(np.float32)
    tensors = {task: tf.constant(values) for task, values in labels.items()}
    crops, moved = landmark_script.augment(faces, tensors, random_numbers, size)
    crops, points = crops.numpy()[..., 0].astype(float), moved["landmarks"].numpy()
    y, x = np.mgrid[:size, :size]
    mirrored = random_numbers[:, 0] > 0
    assert 20 < mirrored.sum() < 44
    np.testing.assert_array_equal(moved["smile"], labels["smile"])
    np.testing.assert_array_equal(moved["pose"], np.where(mirrored, 4 - labels["pose"], labels["pose"]))
    assert (points[:, 0, 0] < points[:, 1, 0]).all() and (points[:, 3, 0] < points[:, 4, 0]).all()
    for crop, of_face, mirror in zip(crops, points, mirrored):
        expected = bright[[1, 0, 2, 4, 3]] if mirror else bright
        for (across, down), value in zip(of_face * size - 0.5, expected):
            near = (x - across) ** 2 + (y - down) ** 2 <= 25
            assert np.abs(crop[near & (crop > 0)].max() - value) <= 2
            mass = crop * near
            centre = np.array([(mass * x).sum(), (mass * y).sum()]) / mass.sum()
            assert np.abs(centre - [across, down]).max() < 0.35


def test_augmentation_by_hand(landmark_script):
    """Draws of 0 change nothing; each of the others is turned by 10 degrees, grows by e^0.1, moves by 0.05."""
    faces, labels, _ = marked_faces(5, 40, 60)
    random_numbers = np.zeros((5, 5), np.float32)
    random_numbers[1, 1] = random_numbers[2, 2] = random_numbers[3, 3] = random_numbers[4, 4] = 1
    crops, moved = landmark_script.augment(faces, labels, random_numbers, 40)
    points, before = moved["landmarks"], labels["landmarks"]
    np.testing.assert_array_equal(crops[0], landmark_script.crop_middle(faces, 40)[0])
    np.testing.assert_allclose(points[0], before[0], atol=1e-6)
    sine, cosine = 0.17364818, 0.98480775
    turned = (before[1] - 0.5) @ np.array([[cosine, sine], [-sine, cosine]]) + 0.5
    np.testing.assert_allclose(points[1], turned, atol=1e-5)
    np.testing.assert_allclose(points[2], (before[2] - 0.5) * 1.1051709 + 0.5, atol=1e-5)
    np.testing.assert_allclose(points[3], before[3] + [0.05, 0], atol=1e-5)
    np.testing.assert_allclose(points[4], before[4] + [0, 0.05], atol=1e-5)


def test_faces_are_mirrored_and_moved(faces_script):
    """Against SciPy: each image is a mirror or not, moved by what its random numbers say, at most 5 % of 32 pixels."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    images = ndimage.gaussian_filter(rng.uniform(0, 255, (24, 32, 32, 3)), (0, 3, 3, 0))
    images = np.uint8(np.clip((images - 127) * 8 + 127, 0, 255))
    random_numbers = rng.uniform(-1, 1, (24, 3)).astype(np.float32)
    random_numbers[0] = 0
    moved = faces_script.augment(images, random_numbers).numpy()
    assert moved.dtype == np.uint8
    np.testing.assert_array_equal(moved[0], images[0])
    for before, after, (mirror, right, down) in zip(images, moved, random_numbers):
        start = before[:, ::-1] if mirror > 0 else before
        move = (-1.6 * down, (1.6 if mirror > 0 else -1.6) * right, 0)
        expected = ndimage.shift(start.astype(float), move, order=1, mode="nearest")
        assert np.abs(expected - after).max() < 1


def test_measures_of_faces_by_hand(landmark_script):
    true = np.zeros((4, 5, 2), np.float32)
    true[:, 1] = [0.5, 0]  # the eyes are half a box apart
    predicted = true.copy()
    predicted[1, :, 0] += 0.03  # every landmark 3 % off: no failure by the box, 6 % of the eyes' distance
    predicted[2, 2] += [0.3, 0.4]  # the nose 50 % off: 10 % in the mean, 20 % of the eyes' distance
    predicted[3, 0] += [0.12, 0.16]  # the left eye 20 % off: 4 % in the mean, 8 % of the eyes' distance
    errors = [[0] * 5, [0.03] * 5, [0, 0, 0.5, 0, 0], [0.2, 0, 0, 0, 0]]
    np.testing.assert_allclose(landmark_script.landmark_errors(predicted, true), errors, atol=1e-6)
    found = landmark_script.landmark_measures(predicted, true)
    assert found.pop("landmarks") == pytest.approx(
        dict(zip(landmark_script.LANDMARKS, [0.0575, 0.0075, 0.1325, 0.0075, 0.0075])), abs=1e-6
    )
    assert found == pytest.approx(
        {
            "mean_error": 0.17 / 4,
            "failure_rate": 1 / 4,
            "mean_error_interocular": 0.34 / 4,
            "failure_rate_interocular": 1 / 4,
        },
        abs=1e-6,
    )


def test_thresholds_of_failures(landmark_script):
    """Eyes 0.4 apart, so that 10 % of their distance is 4 % of the box; nothing else is as far apart."""
    true = np.tile([[0.2, 0.3], [0.6, 0.3], [0.45, 0.5], [0.3, 0.8], [0.55, 0.75]], (4, 1, 1)).astype(np.float32)
    moves = np.array([0.039, 0.041, 0.049, 0.051], np.float32)
    predicted = true + np.stack([0.6 * moves, -0.8 * moves], axis=1)[:, None]
    measures = landmark_script.landmark_measures(predicted, true)
    names = ("mean_error", "failure_rate", "mean_error_interocular", "failure_rate_interocular")
    assert [measures[name] for name in names] == pytest.approx([0.045, 0.25, 0.1125, 0.75], rel=1e-4)


def test_the_sheet_of_faces(landmark_script):
    """True points green, predicted ones red, at their places of a crop four times as large."""
    true, guess = np.full((2, 5, 2), [0.2, 0.4]), np.full((2, 5, 2), [0.7, 0.9])
    split = landmark_script.Split(np.full((2, 32, 32, 1), 100, np.uint8), {"landmarks": true})
    picture = landmark_script.draw_sheet(split, guess)
    assert picture.shape == (512, 512, 3) and (picture[128:] == 0).all() and (picture[:128, 256:] == 0).all()
    for colour, place in (((0, 220, 0), (0.2, 0.4)), ((230, 0, 0), (0.7, 0.9))):
        y, x = np.nonzero((picture[:128, :128] == colour).all(axis=-1))
        np.testing.assert_allclose([x.mean(), y.mean()], np.array(place) * 128 - 0.5, atol=0.6)
