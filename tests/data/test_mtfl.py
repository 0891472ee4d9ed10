"""MTFL: the lists as they lie on disk, boxes, what is skipped, and the splits."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_refused, draw, parse, run_main
from PIL import Image

LISTS = ("training.txt", "trainImageList.txt", "testImageList.txt", "testing.txt")
ATTRIBUTES = ("gender", "smile", "glasses", "pose")


@pytest.fixture
def run(landmark_script, mtfl, tmp_path, capfd):
    """A function that runs the script's main on the drawn photos, in this process, and returns its Result."""
    return functools.partial(run_main, landmark_script, capfd, tmp_path / "run", data_dir=mtfl, image_size=32)


def prepare(script, folder, *flags):
    return script.prepare_data(parse(script, f"--data_dir={folder}", "--image_size=32", *flags))


def test_both_lists_tell_the_same_faces(landmark_script, mtfl):
    """One counts from 0, the other from 1; one has a blank in front, both CRLF and back-slashes."""
    for name in LISTS[:2]:
        text = (mtfl / name).read_bytes()
        assert text.count(b"\r\n") == 300 and b"lfw_5590\\Face_00001.jpg" in text
    assert (mtfl / "training.txt").read_text().splitlines()[1].startswith(" ")
    faces = landmark_script.read_attributes(str(mtfl / "training.txt"))
    others = landmark_script.read_boxes(str(mtfl / "trainImageList.txt"))
    assert faces.paths == others.paths and all(Path(path).exists() for path in faces.paths)
    np.testing.assert_allclose(faces.points, others.points, atol=1e-9)
    assert {task: (int(x.min()), int(x.max())) for task, x in faces.attributes.items()} == {
        "gender": (0, 1),
        "smile": (0, 1),
        "glasses": (0, 1),
        "pose": (0, 4),
    }
    inside = landmark_script.to_box(faces.points, others.boxes)
    assert ((inside > 0) & (inside < 1)).all()


def test_numbers_of_a_line_by_hand(landmark_script, tmp_path):
    (tmp_path / "training.txt").write_bytes(b"\xef\xbb\xbfa\\b.jpg 1 2 3 4 5 6 7 8 9 10 2 1 2 5\r\n")
    faces = landmark_script.read_attributes(str(tmp_path / "training.txt"))
    assert faces.paths == [str(tmp_path / "a/b.jpg")]
    assert {task: x.tolist() for task, x in faces.attributes.items()} == dict(zip(ATTRIBUTES, ([1], [0], [1], [4])))
    assert faces.points.tolist() == [[[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]]]
    (tmp_path / "boxes.txt").write_bytes(b"a\\b.jpg 10 30 40 61 1 2 3 4 5 6 7 8 9 10\r\n")
    faces = landmark_script.read_boxes(str(tmp_path / "boxes.txt"))
    assert faces.boxes.tolist() == [[10, 40.5, 20]]
    assert faces.points.tolist() == [[[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]]


def test_numbers_of_mtfl_and_their_names(landmark_script):
    """As the data set's readme has them: gender 1 male, smile 1 yes, glasses 1 yes, pose 1 to 5 from the left."""
    assert landmark_script.ATTRIBUTES == {
        "gender": ["male", "female"],
        "smile": ["smiling", "not smiling"],
        "glasses": ["glasses", "no glasses"],
        "pose": ["left profile", "left", "frontal", "right", "right profile"],
    }
    assert landmark_script.LANDMARKS == ["left eye", "right eye", "nose", "left mouth corner", "right mouth corner"]


def test_splits_and_their_sizes(landmark_script, mtfl):
    data = prepare(landmark_script, mtfl)
    assert data.description["sizes"] == {"train": 239, "test": 60, "aflw": 40, "validation": 61}
    assert data.splits["train"].images.shape[1:] == (48, 48, 1)  # with the margin for the augmentation
    for name in ("test", "aflw", "validation"):
        assert data.splits[name].images.shape[1:] == (32, 32, 1)
    assert list(data.splits["test"].labels) == ["landmarks"]
    assert list(data.splits["aflw"].labels) == ["landmarks", *ATTRIBUTES]
    assert data.classes == landmark_script.ATTRIBUTES
    assert prepare(landmark_script, mtfl, "--network=single").classes == {}


def test_boxes_from_landmarks_where_there_are_no_lists(landmark_script, mtfl, tmp_path, capsys):
    """They vary with the seed as detected ones do, on the training faces; those to test on stay where they are."""
    shutil.copytree(mtfl, tmp_path / "bare")
    (tmp_path / "bare" / "trainImageList.txt").unlink()
    (tmp_path / "bare" / "testImageList.txt").unlink()
    one, other = (prepare(landmark_script, tmp_path / "bare", f"--seed={k}") for k in (0, 1))
    assert one.description["boxes_from_landmarks"] == ["train", "aflw"] and "test" not in one.splits
    out = capsys.readouterr().out
    assert "train: the boxes were made from the landmarks" in out and "aflw: the boxes were made" in out
    for name, same in (("train", False), ("validation", False), ("aflw", True)):
        points = [data.splits[name].labels["landmarks"] for data in (one, other)]
        assert np.array_equal(*points) == same, name
    points = one.splits["train"].labels["landmarks"]
    middle = (points.min(axis=1) + points.max(axis=1)) / 2
    assert 0.03 < np.abs(middle - 0.5).mean() < 0.06  # uniform up to 0.08 of the box


def test_every_face_keeps_its_points_and_attributes(landmark_script, mtfl, tmp_path):
    """Behind a photo that was skipped and in every split: of each face as it is read by itself."""
    shutil.copytree(mtfl, tmp_path / "gap")
    faces = landmark_script.read_attributes(str(tmp_path / "gap" / "training.txt"))
    faces = landmark_script.with_boxes(faces, str(tmp_path / "gap" / "trainImageList.txt"))
    Path(faces.paths[1]).write_bytes(b"")
    data = prepare(landmark_script, tmp_path / "gap", "--train_fraction=0.5")
    truth = {}
    for k in [k for k in range(len(faces.paths)) if k != 1]:
        face = landmark_script.read_face(faces.paths[k], faces.boxes[k], 32, 48)
        points = landmark_script.to_box(faces.points[k : k + 1], faces.boxes[k : k + 1])[0]
        attributes = [faces.attributes[task][k] for task in ATTRIBUTES]
        truth[face.tobytes()] = truth[landmark_script.crop_middle(face[None], 32).tobytes()] = points, attributes
    for name in ("train", "validation"):
        split = data.splits[name]
        for index, face in enumerate(split.images):
            points, attributes = truth[face.tobytes()]
            np.testing.assert_allclose(split.labels["landmarks"][index], points, atol=1e-6)
            assert [split.labels[task][index] for task in ATTRIBUTES] == attributes
    train = landmark_script.crop_middle(data.splits["train"].images, 32)
    assert len(train) == pytest.approx(0.5 * 239, abs=4)
    np.testing.assert_allclose(data.mean, train.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(data.variance, np.maximum(train.var(axis=0), 1), rtol=1e-6)


def test_a_photo_is_in_one_split(landmark_script, mtfl, tmp_path, capsys):
    """Four training photos are among those of the two splits to test on."""
    shutil.copytree(mtfl, tmp_path / "same")
    faces = landmark_script.read_boxes(str(tmp_path / "same" / "trainImageList.txt"))
    tested = landmark_script.read_boxes(str(tmp_path / "same" / "testImageList.txt")).paths
    for k in range(3):
        shutil.copy(tested[k], faces.paths[k])
    upper_left = 50 + faces.boxes[50:100, :2].sum(axis=1).argmin()  # the photos of AFLW are smaller
    aflw = landmark_script.read_attributes(str(tmp_path / "same" / "testing.txt")).paths
    shutil.copy(aflw[0], faces.paths[upper_left])
    found = prepare(landmark_script, tmp_path / "same").description
    assert found["left_out"] == 4 and found["sizes"]["train"] + found["sizes"]["validation"] == 296
    assert "4 training faces are left out" in capsys.readouterr().out


def test_copies_of_a_photo_are_held_out_together(landmark_script, mtfl, tmp_path):
    shutil.copytree(mtfl, tmp_path / "same")
    paths = landmark_script.read_boxes(str(tmp_path / "same" / "trainImageList.txt")).paths
    for k in range(30):
        shutil.copy(paths[100 + k], paths[200 + k])
    photos = [Path(path).read_bytes() for path in paths]
    numbers = np.array([photos.index(photo) for photo in photos])
    args = parse(landmark_script, f"--data_dir={tmp_path / 'same'}")
    rest, held_out = landmark_script.divide(args, np.zeros(300, int), numbers, np.array([], int))
    assert len(rest) + len(held_out) == 300 and not set(numbers[rest]) & set(numbers[held_out])
    assert len(set(numbers[held_out])) < len(held_out)  # some copies are among them


def test_digest_and_majority(landmark_script, mtfl, tmp_path):
    """An attribute that changed is other data; the majority is that of the faces to train on."""
    data = prepare(landmark_script, mtfl)
    for task in ATTRIBUTES:
        most_frequent = np.bincount(data.splits["train"].labels[task]).argmax()
        shares = {name: np.mean(data.splits[name].labels[task] == most_frequent) for name in ("aflw", "validation")}
        assert data.description["majority"][task] == pytest.approx(shares)
    shutil.copytree(mtfl, tmp_path / "other")
    path = tmp_path / "other" / "testing.txt"
    path.write_text(path.read_text()[:-2] + ("1" if path.read_text()[-2] != "1" else "2") + "\n")  # a pose
    digests = [data.description["sha256"]]
    for change in ("an attribute", "a face", "a landmark"):
        if change == "a face":
            photo = landmark_script.read_boxes(str(tmp_path / "other" / "testImageList.txt")).paths[3]
            Image.fromarray(np.zeros_like(Image.open(photo))).save(photo)
        elif change == "a landmark":
            path = tmp_path / "other" / "testImageList.txt"
            row, *others = path.read_text().splitlines()
            *numbers, last = row.split()
            path.write_text("\n".join([" ".join([*numbers, str(float(last) + 1)]), *others]))
        digests.append(prepare(landmark_script, tmp_path / "other").description["sha256"])
    assert len(set(digests)) == 4


def test_nothing_left(run, mtfl, tmp_path):
    assert_refused(run(validation_fraction=0.9999), f"--data_dir {mtfl}", "--validation_fraction 0.9999")
    shutil.copytree(mtfl, tmp_path / "same")
    shutil.copy(tmp_path / "same" / "trainImageList.txt", tmp_path / "same" / "testImageList.txt")
    assert_refused(run(data_dir=tmp_path / "same"), f"--data_dir {tmp_path}/same", "to train on")


BAD_LISTS = {
    "training.txt": [
        (b"", ""),
        (b"a.jpg 1 2 3\n", "3 numbers"),
        (b"a.jpg 1 2 3 4 5 6 7 8 9 nan 1 1 1 1\n", "14 numbers"),
        (b"a.jpg 1 2 3 4 5 6 7 8 9 ten 1 1 1 1\n", "ten"),
        (b"a.jpg 7 9 7 7 7 9 9 9 9 9 1 1 1 1\nb.jpg 1\n", "row 2"),
        (b"a.jpg 1 2 3 4 5 6 7 8 9 10 1 3 1 1\n", "face 1: smile is 3"),
        (b"\xff\xfe\x00", ""),
    ],
    "trainImageList.txt": [
        (b"a.jpg 30 10 1 20 1 2 3 4 5 6 7 8 9 10\n", "face 1: its box is 30 10 1 20"),
        (b"a.jpg 10 30 1 20 1 2 3 4 5 6 7 8 9 10\n", "0 boxes"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name, content, words", [(n, *row) for n, rows in BAD_LISTS.items() for row in rows])
def test_damaged_lists(run, mtfl, tmp_path, name, content, words):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for other in LISTS:
        shutil.copy(mtfl / other, folder)
    (folder / name).write_bytes(content)
    assert_refused(run(data_dir=folder), name, words)


@pytest.mark.parametrize("mark", ["-1.0 -1.0", "0 0"])
def test_landmarks_that_are_missing_are_not_learned_as_a_place(landmark_script, mtfl, tmp_path, capsys, mark):
    """In both forms of lists, as they are written there; such a face is skipped by name, with a count."""
    shutil.copytree(mtfl, tmp_path / "gaps")
    training = tmp_path / "gaps" / "training.txt"
    rows = [line.split() for line in training.read_bytes().decode().splitlines() if line.strip()]
    rows[4][2], rows[4][7] = mark.split()  # x2 and y2
    rows[9][1:11] = 5 * mark.split()[:1] + 5 * mark.split()[1:]  # all of this face
    training.write_text("".join(f"{' '.join(row)}\n" for row in rows))
    tested = tmp_path / "gaps" / "testImageList.txt"
    rows = [line.split() for line in tested.read_text().splitlines()]
    rows[3][7:9] = mark.split()  # x2 y2
    tested.write_text("".join(f"{' '.join(row)}\n" for row in rows))
    sizes = prepare(landmark_script, tmp_path / "gaps").description["sizes"]
    assert sizes["train"] + sizes["validation"] == 298 and sizes["test"] == 59
    out = capsys.readouterr().out
    assert "train: skipped 2 of 300 faces" in out and "Face_00004.jpg" in out
    assert "test: skipped 1 of 60 faces" in out and "00003_1.jpg" in out


def test_landmarks_that_are_all_in_one_place_are_a_mistake(landmark_script, mtfl, tmp_path, capsys):
    """In a list without boxes, too, where a box around them would have no size."""
    shutil.copytree(mtfl, tmp_path / "one_place")
    tested = tmp_path / "one_place" / "testing.txt"
    rows = [line.split() for line in tested.read_text().splitlines() if line.strip()]
    rows[2][1:11] = 5 * ["7"] + 5 * ["9"]
    tested.write_text("".join(f"{' '.join(row)}\n" for row in rows))
    assert prepare(landmark_script, tmp_path / "one_place").description["sizes"]["aflw"] == 39
    assert "aflw: skipped 1 of 40 faces" in capsys.readouterr().out


def test_a_landmark_far_from_its_box_is_a_mistake(landmark_script, mtfl, tmp_path, capsys):
    shutil.copytree(mtfl, tmp_path / "far")
    tested = tmp_path / "far" / "testImageList.txt"
    rows = [line.split() for line in tested.read_text().splitlines()]
    rows[0][5] = str(float(rows[0][1]) - 0.6 * (float(rows[0][2]) - float(rows[0][1])))
    tested.write_text("".join(f"{' '.join(row)}\n" for row in rows))
    assert prepare(landmark_script, tmp_path / "far").description["sizes"]["test"] == 59
    assert "far from its box" in capsys.readouterr().out


def test_boxes_of_larger_photos(run, mtfl, tmp_path):
    """They lie outside the photos that are there: not the photos are damaged, the list is of others."""
    folder = tmp_path / "resized"
    shutil.copytree(mtfl, folder)
    for name in LISTS[:2]:
        path = folder / name
        rows = [line.split() for line in path.read_bytes().decode().splitlines() if line.strip()]
        text = ""
        for photo, *numbers in rows:
            scaled = [str(10 * float(x)) if k < (10 if name == LISTS[0] else 14) else x for k, x in enumerate(numbers)]
            text += f"{photo} {' '.join(scaled)}\n"
        path.write_text(text)
    assert_refused(run(data_dir=folder), "its box lies outside the photo", "of 300")


@pytest.mark.parametrize("twice", [("trainImageList.txt",), ("training.txt",), ("training.txt", "trainImageList.txt")])
def test_two_faces_of_one_photo_need_lists_without_boxes(run, mtfl, tmp_path, twice):
    """Since a face's box is found by its path, both would get the same."""
    shutil.copytree(mtfl, tmp_path / "twice")
    for name in twice:
        path = tmp_path / "twice" / name
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + path.read_bytes())
    faces, boxes = (2 if name in twice else 1 for name in ("training.txt", "trainImageList.txt"))
    result = run(data_dir=tmp_path / "twice")
    assert_refused(result, "trainImageList.txt", f"Face_00000.jpg has {faces} faces and {boxes} boxes")


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
    assert_refused(run(data_dir=tmp_path / "gaps", log_dir=tmp_path / "other"), "5 of 300")


def test_a_folder_without_lists_to_test_on(run, mtfl, tmp_path):
    shutil.copy(mtfl / "training.txt", tmp_path)
    assert_refused(run(data_dir=tmp_path), "testImageList.txt", "testing.txt")


@pytest.mark.slow
def test_learns_drawn_faces(landmark_script, tmp_path, capfd):
    """Drawn faces: an error below 5 % in six epochs."""
    draw.draw_mtfl(str(tmp_path / "drawn"), 600, 60, 60)
    run = functools.partial(run_main, landmark_script, capfd, tmp_path / "run")
    result = run(data_dir=tmp_path / "drawn", n_epoch=6, lr_half_life=1.8, n_batch_size=16, image_size=32)
    assert result.status == 0, result
    results = landmark_script.read_json(str(result.log_dir / "results.json"), "test", "aflw")
    assert results["test"]["mean_error"] < 0.05 and results["aflw"]["mean_error"] < 0.05
    assert results["aflw"]["glasses"] > 0.8 and results["aflw"]["smile"] > 0.7 and results["aflw"]["pose"] > 0.5
