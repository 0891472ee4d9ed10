"""UTKFace and VGGFace2: both layouts with the quirks of the real files, what is skipped, and the splits."""

import collections
import functools
import os
import re
import shutil

import numpy as np
import pytest
from conftest import FACES, assert_error, assert_refused, draw, experiment_of, parse, run_main
from PIL import Image


@pytest.fixture
def run(faces_script, utkface, tmp_path, capfd):
    """A function that runs the script's main on the drawn faces, in this process, and returns its Result."""
    return functools.partial(run_main, faces_script, capfd, tmp_path / "run", data_dir=utkface, image_size=32)


def prepare(script, folder, *flags):
    return script.prepare_data(parse(script, f"--data_dir={folder}", "--image_size=32", *flags))


def decode_all(script, paths):
    return script.decode_images(functools.partial(script.read_face, size=32), [(path,) for path in paths], (32, 32, 3))


def pictures(split):
    return [image.tobytes() for image in split.images]


def test_labels_of_utkface(faces_script, tmp_path, capsys):
    face, _ = draw.draw_face(np.random.default_rng(0), 0, 20, 0)
    names = ["1_0_0_20170109142408075", "29_1_4_20170109142408076", "30_0_2_20170109142408077", "116_1_3_2017"]
    broken = ["61_1_20170109142408075", "24_0_1_20170116220224657 ", "39_1_5_20170116174525125", "x_0_0_1"]
    for name in names + broken:
        draw.write_jpeg(str(tmp_path / f"{name}.jpg.chip.jpg"), face)
    shutil.copy(tmp_path / "1_0_0_20170109142408075.jpg.chip.jpg", tmp_path / "2_0_0_2017.jpg.chip.JPG")
    faces = faces_script.list_utkface(str(tmp_path))
    order = [names.index(path.split("/")[-1].split(".")[0]) for path in faces.paths]
    assert sorted(order) == [0, 1, 2, 3]
    assert [[0, 1, 0, 1][k] for k in order] == faces.attributes["gender"].tolist()
    assert [[1, 29, 30, 116][k] for k in order] == faces.attributes["age"].tolist()
    assert [[0, 4, 2, 3][k] for k in order] == faces.attributes["ethnicity"].tolist()
    assert "skipped 5 of 9 files" in capsys.readouterr().out


def test_labels_and_digest(faces_script, utkface, tmp_path):
    faces = faces_script.list_utkface(str(utkface))
    images, _ = decode_all(faces_script, faces.paths)
    truth = {}
    for image, gender, age, ethnicity in zip(images, *faces.attributes.values()):
        truth[image.tobytes()] = [gender, sum(age >= bound for bound in (13, 30, 60)), ethnicity]
    flags = ["--tasks", "gender", "age", "ethnicity", "--age_bins", "13", "30", "60", "--train_fraction=0.5"]
    data = prepare(faces_script, utkface, *flags)
    for split in data.splits.values():
        for image, *labels in zip(pictures(split), *(split.labels[task] for task in ("gender", "age", "ethnicity"))):
            assert truth[image] == labels
    assert data.classes["ethnicity"] == ["White", "Black", "Asian", "Indian", "Others"]
    assert data.classes["age"] == ["0-12", "13-29", "30-59", "60+"]
    digest = data.description["sha256"]
    assert prepare(faces_script, utkface, "--tasks=age", "--seed=3").description["sha256"] == digest
    shutil.copytree(utkface, tmp_path / "faces")
    path = tmp_path / "faces" / os.path.basename(faces.paths[7])
    content = path.read_bytes()
    draw.write_jpeg(str(path), np.zeros((48, 48, 3), np.uint8))
    assert prepare(faces_script, tmp_path / "faces").description["sha256"] != digest  # another picture
    age, *rest = path.name.split("_")
    path.unlink()
    path.with_name("_".join([str(int(age) + 1), *rest])).write_bytes(content)
    assert prepare(faces_script, tmp_path / "faces").description["sha256"] != digest  # another age


def test_one_bound_of_ages(faces_script, utkface):
    """Young and mature are those of VGGFace2, at 30; at another age the classes tell it."""
    for flags, expected in (([], ["young", "mature"]), (["--age_bins=13"], ["0-12", "13+"])):
        assert prepare(faces_script, utkface, "--tasks=age", *flags).classes["age"] == expected


def test_a_face_whose_file_is_there_twice(faces_script, utkface, tmp_path, capsys):
    """In another folder, as in an archive of UTKFace, cropped in another way: the first folder's is taken."""
    shutil.copytree(utkface, tmp_path / "faces" / "b")
    for path in sorted(utkface.iterdir())[:30]:
        (tmp_path / "faces" / "a").mkdir(exist_ok=True)
        draw.write_jpeg(str(tmp_path / "faces" / "a" / path.name), np.zeros((48, 48, 3), np.uint8))
    paths = faces_script.list_utkface(str(tmp_path / "faces")).paths
    assert "left out 30 of 630 files" in capsys.readouterr().out
    assert [os.path.basename(path) for path in paths] == sorted(path.name for path in utkface.iterdir())
    assert sum("/faces/a/" in path for path in paths) == 30


def test_linked_folders_are_read_once(faces_script, utkface, tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "part1").symlink_to(utkface)
    (tmp_path / "faces" / "part2").symlink_to(utkface)
    (utkface / "round").symlink_to(tmp_path / "faces")
    try:
        assert len(faces_script.list_utkface(str(tmp_path / "faces")).paths) == 600
    finally:
        (utkface / "round").unlink()


def test_a_folder_whose_name_is_not_utf_8(faces_script, utkface, tmp_path, capsys):
    (tmp_path / os.fsdecode(b"caf\xe9")).symlink_to(utkface)
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    (tmp_path / os.fsdecode(b"\xff") / "10_0_0_1.jpg.chip.jpg").write_bytes(b"")
    splits = prepare(faces_script, tmp_path).splits
    assert sum(len(split.images) for split in splits.values()) == 600
    assert "skipped 1 of 601 images" in capsys.readouterr().out


def test_the_split_does_not_depend_on_the_pixels(faces_script, utkface):
    """The same faces are held out at each size."""
    small, large = (prepare(faces_script, utkface, f"--image_size={size}").splits for size in (24, 48))
    for name in ("test", "train"):
        grey = [splits[name].images.mean(axis=(1, 2)) for splits in (small, large)]
        np.testing.assert_allclose(*grey, atol=3)  # the faces' mean colours differ by far more
        assert np.abs(grey[0] - np.roll(grey[1], 1, axis=0)).mean() > 10


def test_labels_of_vggface2(faces_script, vggface2):
    faces = faces_script.list_vggface2(str(vggface2))
    assert len(faces.paths) == 600 and "ethnicity" not in faces.attributes
    identities = {}
    for path, gender, age, identity in zip(faces.paths, *faces.attributes.values()):
        person, number = re.search(r"/test/n(\d+)/(\d+)_01\.jpg$", path).groups()
        assert identities.setdefault(person, identity) == identity
        assert gender == (int(person) - 1) % 2 and (age >= 30) == (int(number) > 10)
    assert len(set(identities.values())) == 30


def test_lists_that_went_through_windows(faces_script, vggface2, tmp_path):
    """With a byte-order mark and CRLF."""
    shutil.copytree(vggface2, tmp_path / "faces")
    for path in (tmp_path / "faces" / "meta").iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    faces, same = (faces_script.list_vggface2(str(folder)) for folder in (vggface2, tmp_path / "faces"))
    assert [path.split("/test/")[1] for path in faces.paths] == [path.split("/test/")[1] for path in same.paths]
    for name in faces.attributes:
        np.testing.assert_array_equal(faces.attributes[name], same.attributes[name])


def test_splits(faces_script, utkface, vggface2):
    for folder in (utkface, vggface2):
        flags = ["--validation_fraction=0.2"]
        one, other = (prepare(faces_script, folder, f"--seed={k}", *flags).splits for k in (0, 1))
        assert len(one["test"].images) == pytest.approx(70, abs=12)  # a tenth, rounded in every stratum
        for name in ("test", "validation"):
            assert pictures(one[name]) == pictures(other[name])
            assert not set(pictures(one[name])) & set(pictures(one["train"]))
    half = [
        set(pictures(prepare(faces_script, utkface, "--train_fraction=0.5", f"--seed={k}").splits["train"]))
        for k in (0, 1)
    ]
    assert half[0] != half[1]


def test_the_split_is_stratified_by_gender_and_decade(faces_script, utkface):
    names = [path.name.split("_") for path in utkface.iterdir()]
    cells = collections.Counter((int(gender), int(age) // 10) for age, gender, *_ in names)
    labels = prepare(faces_script, utkface, "--age_bins", *map(str, range(10, 120, 10))).splits["test"].labels
    tested = collections.Counter(zip(labels["gender"].tolist(), labels["age"].tolist()))
    assert tested == {cell: max(1, round(0.1 * n)) for cell, n in cells.items()}


def test_majority_is_that_of_the_training_images(faces_script, utkface, monkeypatch):
    """Tested on men alone, trained on women alone: always female is never right."""
    monkeypatch.setattr(faces_script, "hold_out", lambda strata, *rest: np.flatnonzero(strata < 100))
    assert prepare(faces_script, utkface).description["majority"]["gender"] == 0


def test_nobody_is_on_both_sides(faces_script, vggface2, tmp_path):
    """Also where an image is skipped."""
    faces = faces_script.list_vggface2(str(vggface2))
    identities = faces.attributes["identity"]
    held_out = faces_script.hold_out(faces.attributes["gender"], identities, 0.1)
    assert len(held_out) == 20 * len(set(identities[held_out])) == 80  # two men and two women, all their images
    assert not set(identities[held_out]) & set(np.delete(identities, held_out))
    shutil.copytree(vggface2, tmp_path / "faces")
    paths = faces_script.list_vggface2(str(tmp_path / "faces")).paths
    os.remove(paths[7])
    images, kept = decode_all(faces_script, paths)
    person_of = {image.tobytes(): person for image, person in zip(images, identities[kept])}
    splits = prepare(faces_script, tmp_path / "faces", "--validation_fraction=0.2").splits
    people = [{person_of[image] for image in pictures(split)} for split in splits.values()]
    assert sum(map(len, people)) == len(set.union(*people)) == 30


def test_split_by_image_says_what_it_leaks(faces_script, vggface2):
    assert "warning" not in prepare(faces_script, vggface2).description
    assert "same people" in prepare(faces_script, vggface2, "--split=image").description["warning"]


def test_images_that_cannot_be_read_are_named_and_counted(faces_script, utkface, tmp_path, capsys):
    """Truncated, empty and missing ones; a PNG named .jpg is read."""
    folder = tmp_path / "odd"
    shutil.copytree(utkface, folder)
    paths = sorted(folder.iterdir())
    Image.open(paths[2]).save(paths[2], "PNG")
    paths[3].write_bytes(paths[3].read_bytes()[:400])
    paths[4].write_bytes(b"")
    listed = [str(path) for path in paths]
    paths[5].unlink()
    images, kept = decode_all(faces_script, listed)
    assert kept.tolist() == [0, 1, 2, *range(6, 600)] and len(images) == 597
    out = capsys.readouterr().out
    assert "skipped 3 of 600 images" in out and all(listed[k] in out for k in (3, 4, 5))


def test_more_than_a_hundredth_damaged_is_an_error(run, utkface, tmp_path):
    shutil.copytree(utkface, tmp_path / "odd")
    for path in sorted((tmp_path / "odd").iterdir())[:7]:
        path.write_bytes(b"")
    assert_refused(run(data_dir=tmp_path / "odd"), "7 of 600", "1 %", tmp_path / "odd")


def test_a_face_is_the_middle_square_with_antialiasing(faces_script, tmp_path):
    """A triangle ten pixels wide about the middle of every fifth, spelled out in NumPy; Pillow rounds twice.

    At the edge of the square it reaches beyond it, where there is picture.
    """
    image = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "wide.png")
    found = faces_script.read_face(str(tmp_path / "wide.png"), 8)
    assert found.shape == (8, 8, 3) and found.dtype == np.uint8
    weights = []
    for start, length in ((0, 40), (20, 80)):
        of_axis = np.maximum(0, 1 - np.abs(np.arange(length) - (start + 5 * np.arange(8)[:, None] + 2)) / 5)
        weights.append(of_axis / of_axis.sum(axis=1, keepdims=True))
    expected = np.einsum("ik,jl,klc->ijc", *weights, image)
    assert np.abs(found - expected).max() < 1.01


def test_identical_pictures_stand_in_one_split_and_contradictions_in_none(faces_script, utkface, tmp_path, capsys):
    """Each of 40 faces is there a second time, one in ten with another age."""
    shutil.copytree(utkface, tmp_path / "faces")
    for k, path in enumerate(sorted(utkface.iterdir())[:40]):
        age, *rest = path.name.split("_")
        name = "_".join([str(int(age) + 1) if k % 10 == 0 else age, *rest[:2], f"9{rest[2]}"])
        shutil.copy(path, tmp_path / "faces" / name)
    data = prepare(faces_script, tmp_path / "faces", "--validation_fraction=0.2")
    found = data.description
    assert (found["identical"], found["left_out"], sum(found["sizes"].values())) == (36, 8, 632)
    told = capsys.readouterr().out
    assert "36 images are copies" in told and "8 images are left out" in told
    digests = {name: set(pictures(split)) for name, split in data.splits.items()}
    assert len(set.union(*digests.values())) == sum(map(len, digests.values())) == 596


def test_a_picture_of_several_people_is_left_out(faces_script, vggface2, tmp_path):
    shutil.copytree(vggface2, tmp_path / "faces")
    for person in (3, 5, 7, 9):  # men, as n000001
        shutil.copy(tmp_path / "faces/test/n000001/0001_01.jpg", tmp_path / f"faces/test/n{person:06d}/0001_01.jpg")
    for split in ("identity", "image"):
        found = prepare(faces_script, tmp_path / "faces", f"--split={split}").description
        assert (found["identical"], found["left_out"], sum(found["sizes"].values())) == (0, 5, 595)


@pytest.mark.parametrize("fraction", ["0.0", "0.2"])
def test_nothing_left(run, utkface, tmp_path, fraction):
    (tmp_path / "faces").mkdir()
    picture = next(utkface.glob("*.jpg"))
    for name, words in (("10_0_0_1", ["--validation_fraction", fraction]), ("40_1_0_2", ["contradict"])):
        shutil.copy(picture, tmp_path / "faces" / f"{name}.jpg.chip.jpg")
        result = run(f"--validation_fraction={fraction}", data_dir=tmp_path / "faces")
        assert_refused(result, f"--data_dir {tmp_path}/faces", *words)


def test_what_vggface2_does_not_know(run, vggface2):
    assert_error(run(data_dir=vggface2, tasks=["gender", "ethnicity"]), "--tasks", "ethnicities")
    assert_error(run(data_dir=vggface2, age_bins="20"), "--age_bins", "30")
    assert_error(run(split="identity"), "--split", "UTKFace")


@pytest.mark.parametrize("name, content, words", [
    ("identity_meta.csv", b"\xff\xfe\x00", "identity_meta.csv"),
    ("identity_meta.csv", b"a, b\n1, 2\n", "Class_ID"),
    ("test_agetemp_imglist.txt", b"", "test_agetemp_imglist.txt"),
    ("test_agetemp_imglist.txt", b"n999999/0001_01.jpg\n", "n999999/0001_01.jpg"),
    ("test_agetemp_imglist.txt", b"n000001/0001_01.jpg\n" * 2, "twice"),
    ("test_agetemp_imglist.txt", b"n000001/0001_01.jpg\n", "1 images of n000001"),
    ("identity_meta.csv", None, "identity_meta.csv"),
])  # fmt: skip
def test_damaged_lists_of_vggface2(run, vggface2, tmp_path, name, content, words):
    shutil.copytree(vggface2, tmp_path / "damaged")
    path = tmp_path / "damaged" / "meta" / name
    path.unlink() if content is None else path.write_bytes(content)
    assert_refused(run(data_dir=tmp_path / "damaged"), words)


@pytest.mark.slow
def test_learns_drawn_faces(run, faces_script, request):
    """Both layouts; the table of majorities tells what is no merit."""
    result = run(n_epoch=4, n_batch_size=32)
    assert result.status == 0, result
    results = faces_script.read_json(str(result.log_dir / "results.json"), "test", "data")
    assert results["test"]["gender"] > 0.85 and results["test"]["age"] > 0.85
    assert 0.4 < results["data"]["majority"]["gender"] < 0.6
    assert experiment_of(FACES, request).name == FACES
