"""Gender and age: both layouts with the quirks of the real files, the network, and runs on drawn faces."""

import collections
import functools
import json
import os
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import assert_goes_on, assert_refused, load, read_events, run_main
from PIL import Image

draw = load("tests/draw_faces.py")


@pytest.fixture(scope="module")
def utkface(tmp_path_factory):
    """600 drawn faces in the layout of UTKFace."""
    folder = tmp_path_factory.mktemp("utkface")
    draw.draw_utkface(str(folder), 600, size=48)
    return folder


@pytest.fixture(scope="module")
def vggface2(tmp_path_factory):
    """30 drawn people in the layout of VGGFace2."""
    folder = tmp_path_factory.mktemp("vggface2")
    draw.draw_vggface2(str(folder), 30, size=48)
    return folder


@pytest.fixture
def run(faces_script, utkface, tmp_path, capfd):
    """A function that runs the script's main on the drawn faces, in this process, and returns its Result."""
    return functools.partial(run_main, faces_script, capfd, tmp_path / "run", data_dir=utkface, image_size=32)


def prepare(script, folder, *flags):
    args, _ = script.parse_arguments([f"--data_dir={folder}", "--image_size=32", "--n_batch_size=16", *flags])
    return script.prepare_data(args)


def decode_all(script, paths):
    return script.decode_all(functools.partial(script.decode, size=32), (32, 32, 3), paths)


def test_labels_of_utkface(faces_script, tmp_path, capsys):
    face, _ = draw.draw_face(np.random.default_rng(0), 0, 20, 0)
    names = ["1_0_0_20170109142408075", "29_1_4_20170109142408076", "30_0_2_20170109142408077", "116_1_3_2017"]
    broken = ["61_1_20170109142408075", "24_0_1_20170116220224657 ", "39_1_5_20170116174525125", "x_0_0_1"]
    for name in names + broken:
        draw.write_jpeg(str(tmp_path / f"{name}.jpg.chip.jpg"), face)
    paths, genders, ages, ethnicities, _ = faces_script.list_utkface(str(tmp_path))
    order = [names.index(path.split("/")[-1].split(".")[0]) for path in paths]
    assert sorted(order) == [0, 1, 2, 3]
    assert [[0, 1, 0, 1][k] for k in order] == genders.tolist()
    assert [[1, 29, 30, 116][k] for k in order] == ages.tolist()
    assert [[0, 4, 2, 3][k] for k in order] == ethnicities.tolist()
    assert "skipped 4 of 8 files for their names" in capsys.readouterr().out


def test_all_labels_and_digest(faces_script, utkface, tmp_path):
    paths, genders, ages, ethnicities, _ = faces_script.list_utkface(str(utkface))
    images, _ = decode_all(faces_script, paths)
    bins = np.searchsorted([13, 30, 60], ages, side="right")
    truth = {i.tobytes(): [*labels] for i, *labels in zip(images, genders, bins, ethnicities)}
    flags = ["--tasks", "gender", "age", "ethnicity", "--age_bins", "13", "30", "60", "--train_fraction=0.5"]
    parts, classes, _, _, record = prepare(faces_script, utkface, *flags)
    for part in parts.values():
        assert [truth[image.tobytes()] for image in part[0]] == part[1].tolist()
    assert classes["ethnicity"] == ["White", "Black", "Asian", "Indian", "Others"]
    assert classes["age"] == ["0-12", "13-29", "30-59", "60+"]
    flags[flags.index("60")] = "50"  # other labels alone
    assert prepare(faces_script, utkface, *flags)[-1]["sha256"] != record["sha256"]
    shutil.copytree(utkface, tmp_path / "faces")
    draw.write_jpeg(str(tmp_path / "faces" / os.path.basename(paths[7])), np.zeros((48, 48, 3), np.uint8))
    flags[flags.index("50")] = "60"  # and another picture alone
    assert prepare(faces_script, tmp_path / "faces", *flags)[-1]["sha256"] != record["sha256"]
    rows = [{i.tobytes() for i in prepare(faces_script, utkface, *flags, f"--seed={k}")[0]["train"][0]} for k in (0, 1)]
    assert rows[0] != rows[1]


def test_one_bound_of_ages(faces_script, utkface):
    """Young and mature are those of VGGFace2, at 30; at another age the classes tell it."""
    for flags, expected in (([], ["young", "mature"]), (["--age_bins=13"], ["0-12", "13+"])):
        assert prepare(faces_script, utkface, "--tasks=age", *flags)[1]["age"] == expected


def test_a_face_whose_file_is_there_twice(faces_script, utkface, tmp_path, capsys):
    """In another folder, as in an archive of UTKFace, cropped in another way: the first folder's is taken."""
    shutil.copytree(utkface, tmp_path / "faces" / "b")
    for path in sorted(utkface.iterdir())[:30]:
        (tmp_path / "faces" / "a").mkdir(exist_ok=True)
        draw.write_jpeg(str(tmp_path / "faces" / "a" / path.name), np.zeros((48, 48, 3), np.uint8))
    paths = faces_script.list_utkface(str(tmp_path / "faces"))[0]
    assert "left out 30 of 630 files" in capsys.readouterr().out
    names = [os.path.basename(path) for path in paths]
    assert names == sorted(path.name for path in utkface.iterdir())
    assert sum("/faces/a/" in path for path in paths) == 30


def test_the_split_does_not_depend_on_the_pixels(faces_script, utkface, monkeypatch):
    """The same faces are held out at each size; another split is other data, with which no run can go on."""
    small, large = (prepare(faces_script, utkface, f"--image_size={size}") for size in (24, 48))
    for part in ("test", "train"):
        grey = [parts[part][0].mean(axis=(1, 2)) for parts in (small[0], large[0])]
        np.testing.assert_allclose(*grey, atol=3)  # the faces' mean colours differ by far more
        assert np.abs(grey[0] - np.roll(grey[1], 1, axis=0)).mean() > 10
    other = faces_script.hold_out
    monkeypatch.setattr(faces_script, "hold_out", lambda strata, *rest: other(strata[::-1], *rest))
    assert prepare(faces_script, utkface, "--image_size=24")[-1]["sha256"] != small[-1]["sha256"]


def test_labels_of_vggface2(faces_script, vggface2):
    paths, genders, ages, ethnicities, identities = faces_script.list_vggface2(str(vggface2))
    assert len(paths) == 600 and ethnicities is None
    for path, gender, age, identity in zip(paths, genders, ages, identities):
        person, number = re.search(r"/test/n(\d+)/(\d+)_01\.jpg$", path).groups()
        assert identity == f"n{person}"
        assert gender == (int(person) - 1) % 2 and (age >= 30) == (int(number) > 10)


def test_splits(faces_script, utkface, vggface2):
    def digests(part):
        return {image.tobytes() for image in part[0]}

    for folder in (utkface, vggface2):
        one, other = (prepare(faces_script, folder, f"--seed={k}", "--validation_fraction=0.2")[0] for k in (0, 1))
        assert len(one["test"][0]) == pytest.approx(70, abs=12)  # a tenth, rounded in every stratum
        for part in ("test", "validation"):
            assert digests(one[part]) == digests(other[part])
            assert not digests(one[part]) & digests(one["train"])


def test_the_split_is_stratified_by_gender_and_decade(faces_script, utkface):
    names = [path.name.split("_") for path in utkface.iterdir()]
    cells = collections.Counter((int(gender), int(age) // 10) for age, gender, *_ in names)
    parts, *_ = prepare(faces_script, utkface, "--age_bins", *map(str, range(10, 120, 10)))
    tested = collections.Counter(map(tuple, parts["test"][1].tolist()))
    assert tested == {cell: max(1, round(0.1 * n)) for cell, n in cells.items()}


def test_majority_is_that_of_the_training_images(faces_script, utkface, monkeypatch):
    """Tested on men alone, trained on women alone: always female is never right."""
    monkeypatch.setattr(faces_script, "hold_out", lambda strata, *rest: np.flatnonzero(strata < 100))
    assert prepare(faces_script, utkface)[-1]["majority"]["gender"] == 0


def test_nobody_is_on_both_sides(faces_script, vggface2, tmp_path):
    """Also where an image is skipped."""
    identities = faces_script.list_vggface2(str(vggface2))[4]
    genders = np.repeat(np.arange(30) % 2, 20)
    held_out = faces_script.hold_out(genders, identities, 0.1)
    assert len(held_out) == 20 * len(set(identities[held_out])) == 80  # two men and two women, all their images
    assert not set(identities[held_out]) & set(np.delete(identities, held_out))
    shutil.copytree(vggface2, tmp_path / "faces")
    paths = faces_script.list_vggface2(str(tmp_path / "faces"))[0]
    os.remove(paths[7])
    images, kept = decode_all(faces_script, paths)
    person_of = {image.tobytes(): person for image, person in zip(images, identities[kept])}
    parts = prepare(faces_script, tmp_path / "faces", "--validation_fraction=0.2")[0]
    people = [{person_of[image.tobytes()] for image in parts[part][0]} for part in parts]
    assert sum(map(len, people)) == len(set.union(*people)) == 30


def test_split_by_image_says_what_it_leaks(faces_script, vggface2):
    assert "warning" not in prepare(faces_script, vggface2)[4]
    assert "same person" in prepare(faces_script, vggface2, "--split=image")[4]["warning"]


def test_odd_images(faces_script, utkface, tmp_path, capsys, monkeypatch):
    """Grey, CMYK and PNG named .jpg are read; truncated, empty and missing ones are named, counted and skipped."""
    from PIL import Image

    folder = tmp_path / "odd"
    shutil.copytree(utkface, folder)
    paths = sorted(folder.iterdir())
    picture = Image.open(paths[0])
    picture.convert("L").save(paths[0], "JPEG")
    picture.convert("CMYK").save(paths[1], "JPEG")
    picture.save(paths[2], "PNG")
    listed = [str(path) for path in paths]
    paths[3].write_bytes(paths[3].read_bytes()[:400])
    paths[4].write_bytes(b"")
    paths[5].unlink()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    images, kept = decode_all(faces_script, listed)
    assert kept.tolist() == [0, 1, 2, *range(6, 600)] and len(images) == 597
    out = capsys.readouterr().out  # the progress bar ends its line
    assert "\nskipped 3 of 600 images" in out and all(listed[k] in out for k in (3, 4, 5))
    grey, cmyk, png = images[:3].astype(float)
    assert (grey == grey[..., :1]).all()
    assert np.abs(cmyk - png).mean() < 8  # the same face, but for the loss of JPEG
    assert prepare(faces_script, folder)[4]["sizes"]["train"] > 500


def test_more_than_a_hundredth_damaged_is_an_error(run, utkface, tmp_path):
    shutil.copytree(utkface, tmp_path / "odd")
    for path in sorted((tmp_path / "odd").iterdir())[:7]:
        path.write_bytes(b"")
    result = run(data_dir=tmp_path / "odd")
    assert result.status == 2 and "as 7 of 600 images, expected 1 % at most" in result.err.splitlines()[-1]
    assert not result.log_dir.exists()


def test_decoding_takes_the_middle_square_with_antialiasing(faces_script, tmp_path):
    """A triangle ten pixels wide about the middle of every fifth, spelled out in NumPy; the nearest whole number."""
    image = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    (tmp_path / "wide.png").write_bytes(tf.io.encode_png(image).numpy())
    found = faces_script.decode(str(tmp_path / "wide.png"), 1, 8).numpy()
    assert found.shape == (8, 8, 3) and found.dtype == np.uint8
    weights = np.maximum(0, 1 - np.abs(np.arange(40) - (5 * np.arange(8)[:, None] + 2)) / 5)
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.einsum("ik,jl,klc->ijc", weights, weights, image[:, 20:60])
    assert np.abs(found - expected).max() < 0.501


def build(script, *flags, classes=None):
    keras.utils.set_random_seed(0)
    args, _ = script.parse_arguments(list(flags))
    shape = (args.image_size, args.image_size, 3)
    classes = classes or {"gender": ["male", "female"], "age": ["young", "mature"]}
    return script.build_network(args, classes, np.full(shape, 120.0), np.full(shape, 60.0))


def test_parameter_count(faces_script):
    column = 27 * 32 + 2 * 32 + 288 * 64 + 2 * 64 + 576 * 128 + 2 * 128 + 8 * 8 * 128 * 256 + 2 * 256 + 256 * 2 + 2
    units = 4 * (32 + 64 + 128 + 256)
    for flags, expected in (([], 2 * column + units), (["--cross_stitch_enabled=no"], 2 * column)):
        network = build(faces_script, *flags)
        assert sum(int(np.prod(v.shape)) for v in network.trainable_variables) == expected
    names = [layer.name for layer in build(faces_script).layers if isinstance(layer, faces_script.CrossStitch)]
    assert names == ["pool_1", "pool_2", "pool_3", "fc_4"]


def test_the_network_does_what_its_flags_say(faces_script):
    flags = ["--cross_stitch_at", "pool_2", "--cross_stitch_init=0.9", "--keep_prob=0.7", "--bn_momentum=0.6"]
    network = build(faces_script, *flags)
    units = [layer for layer in network.layers if isinstance(layer, faces_script.CrossStitch)]
    assert [unit.name for unit in units] == ["pool_2"] and units[0].mixing()[0, 0] == pytest.approx(0.9)
    assert network.get_layer("gender_dropout").rate == pytest.approx(0.3)
    assert network.get_layer("age_bn_2").momentum == 0.6 and network.get_layer("augment")
    kernel = network.get_layer("age_fc_4").kernel.numpy()
    assert abs(kernel.std() / (2 / (8 * 8 * 128)) ** 0.5 - 1) < 0.03
    held = build(faces_script, *flags, "--pretrain_epoch=1").get_layer("pool_2")
    np.testing.assert_array_equal(held.mixing(), np.eye(2))


def test_three_columns_have_units_of_three_by_three(faces_script):
    classes = {"gender": ["m", "f"], "age": ["young", "mature"], "ethnicity": list("abcde")}
    network = build(faces_script, "--cross_stitch_init=0.9", "--image_size=32", classes=classes)
    assert network.get_layer("pool_3").alpha.shape == (3, 3, 128)
    assert {task: x.shape[1] for task, x in network.output.items()} == {"gender": 2, "age": 2, "ethnicity": 5}


def test_augmentation_mirrors_and_shifts_in_training_alone(faces_script):
    """Against SciPy: each image is some mirror and some move of it, by at most 5 %, and both are drawn anew."""
    from scipy import ndimage, optimize

    rng = np.random.default_rng(0)
    images = ndimage.gaussian_filter(rng.normal(size=(24, 32, 32, 1)), (0, 4, 4, 0)).astype(np.float32)
    keras.utils.set_random_seed(0)
    layer = faces_script.MirrorAndShift()
    np.testing.assert_array_equal(layer(images, training=False), images)
    one, other = (layer(images, training=True).numpy() for _ in range(2))
    assert np.abs(one - other).max(axis=(1, 2, 3)).min() > 1e-6
    found = []
    for before, after in zip(images[..., 0], one[..., 0]):
        options = []
        for flipped in (False, True):
            start = before[:, ::-1] if flipped else before

            def distance(move, start=start, after=after):
                return np.square(ndimage.shift(start, move, order=1, mode="nearest") - after).sum()

            grid = [(y, x) for y in np.arange(-2, 2.1, 0.25) for x in np.arange(-2, 2.1, 0.25)]
            best = optimize.minimize(distance, min(grid, key=distance), method="Nelder-Mead")
            options.append((best.fun, flipped, *np.abs(best.x)))
        found.append(min(options))
    worst, flipped, down, right = np.transpose(found)
    assert worst.max() < 0.01 and 5 < flipped.sum() < 19
    for move in (down, right):
        assert 0.8 < move.max() < 1.62  # of 32 pixels, 5 %
    assert "augment" not in [layer.name for layer in build(faces_script, "--augment=False").layers]


def test_identical_pictures_stand_in_one_part_and_contradictions_in_none(faces_script, utkface, tmp_path, capsys):
    """Each of 40 faces is there a second time, one in ten with another age."""
    shutil.copytree(utkface, tmp_path / "faces")
    for k, path in enumerate(sorted(utkface.iterdir())[:40]):
        age, *rest = path.name.split("_")
        name = "_".join([str(int(age) + 1) if k % 10 == 0 else age, *rest[:2], f"9{rest[2]}"])
        shutil.copy(path, tmp_path / "faces" / name)
    parts, *_, record = prepare(faces_script, tmp_path / "faces", "--validation_fraction=0.2")
    assert (record["identical"], record["left_out"], sum(record["sizes"].values())) == (36, 8, 632)
    told = capsys.readouterr().out
    assert "36 images are copies of others" in told and "8 images are left out: their copies differ" in told
    digests = {part: {image.tobytes() for image in images} for part, (images, _) in parts.items()}
    assert len(set.union(*digests.values())) == sum(map(len, digests.values())) == 596


def test_a_picture_of_several_people_is_left_out(faces_script, vggface2, tmp_path):
    shutil.copytree(vggface2, tmp_path / "faces")
    for person in (3, 5, 7, 9):  # men, as n000001
        shutil.copy(tmp_path / "faces/test/n000001/0001_01.jpg", tmp_path / f"faces/test/n{person:06d}/0001_01.jpg")
    for split in ("identity", "image"):
        *_, record = prepare(faces_script, tmp_path / "faces", f"--split={split}")
        assert (record["identical"], record["left_out"], sum(record["sizes"].values())) == (0, 5, 595)


@pytest.mark.parametrize("fraction", ["0.0", "0.2"])
def test_nothing_left(run, utkface, tmp_path, fraction):
    (tmp_path / "faces").mkdir()
    picture = next(utkface.glob("*.jpg"))
    for name, expected in (
        ("10_0_0_1", f", --validation_fraction {fraction}: nothing left to train on"),
        ("40_1_0_2", ": nothing left, all images contradict each other"),
    ):
        shutil.copy(picture, tmp_path / "faces" / f"{name}.jpg.chip.jpg")
        result = run(f"--validation_fraction={fraction}", data_dir=tmp_path / "faces")
        assert_refused(result, f"--data_dir {tmp_path}/faces{expected}")


def test_every_image_keeps_its_labels(faces_script, utkface, tmp_path):
    """Also after an image that was skipped: a drawn face tells its labels, as the files' names do."""
    shutil.copytree(utkface, tmp_path / "faces")
    paths = sorted((tmp_path / "faces").iterdir())
    paths[1].write_bytes(b"")
    images, kept = decode_all(faces_script, [str(path) for path in paths])
    gender_of = {image.tobytes(): int(paths[k].name.split("_")[1]) for image, k in zip(images, kept)}
    flags = ["--validation_fraction=0.2", "--train_fraction=0.5"]
    parts, _, mean, deviation, record = prepare(faces_script, tmp_path / "faces", *flags)
    for part_images, labels in parts.values():
        assert [gender_of[image.tobytes()] for image in part_images] == labels[:, 0].tolist()
    train = parts["train"][0]
    assert record["sizes"]["train"] == len(train) == pytest.approx(0.5 * 0.8 * 0.9 * 599, rel=0.1)
    np.testing.assert_allclose(mean, train.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(deviation, np.maximum(train.std(axis=0), 1), rtol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_read_upright(faces_script, tmp_path, orientation):
    """As Pillow turns them."""
    from PIL import Image, ImageOps

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8))
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as photo:
        expected = np.asarray(ImageOps.exif_transpose(photo))
    assert faces_script.orientation(str(tmp_path / "photo.png")) == orientation
    np.testing.assert_array_equal(faces_script.upright(tf.constant(np.asarray(picture)), orientation), expected)


def test_lying_standing_and_turned_photos_are_decoded_alike(faces_script, landmark_script, tmp_path):
    """Lying, standing, and standing but stored lying: the middle square is the same."""
    picture = np.random.default_rng(0).integers(0, 256, (80, 40, 3), np.uint8)
    stored = Image.fromarray(np.rot90(picture))
    exif = stored.getexif()
    exif[0x0112] = 6
    stored.save(tmp_path / "stored.png", exif=exif)
    Image.fromarray(picture).save(tmp_path / "standing.png")
    Image.fromarray(picture.transpose(1, 0, 2)).save(tmp_path / "lying.png")
    paths = [str(tmp_path / f"{name}.png") for name in ("standing", "stored", "lying")]
    (standing, stored, lying), _ = decode_all(faces_script, paths)
    np.testing.assert_array_equal(standing, stored)
    np.testing.assert_allclose(standing.astype(int), lying.transpose(1, 0, 2), atol=1)
    box = np.array([5, 30, 30], np.float32)
    standing, stored = (
        landmark_script.decode(path, faces_script.orientation(path), box, 32, 1.0) for path in paths[:2]
    )
    np.testing.assert_array_equal(standing, stored)


def test_linked_folders_are_read_once(faces_script, utkface, tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "part1").symlink_to(utkface)
    (tmp_path / "faces" / "part2").symlink_to(utkface)
    (utkface / "round").symlink_to(tmp_path / "faces")
    try:
        assert len(faces_script.list_utkface(str(tmp_path / "faces"))[0]) == 600
    finally:
        (utkface / "round").unlink()


def test_a_folder_whose_name_is_not_utf_8(faces_script, utkface, tmp_path, capsys):
    (tmp_path / os.fsdecode(b"caf\xe9")).symlink_to(utkface)
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    (tmp_path / os.fsdecode(b"\xff") / "10_0_0_1.jpg.chip.jpg").write_bytes(b"")
    parts, *_ = faces_script.prepare_data(faces_script.parse_arguments([f"--data_dir={tmp_path}"])[0])
    assert len(parts["train"][0]) + len(parts["test"][0]) == 600
    assert "skipped 1 of 601 images, each missing or damaged" in capsys.readouterr().out


BAD = {
    "--age_bins 30 20": "--age_bins 30 20: expected rising years such as 13 20 30 45 60",
    "--age_bins old": "--age_bins: expected a whole number in [1, 120], got 'old'",
    "--image_size 8": "--image_size: expected a whole number in [16, 512], got '8'",
    "--tasks gender shoe": "--tasks: invalid choice: 'shoe'",
    "--tasks age age": "--tasks age age: expected each once",
    "--task_weights 1 2 3": "--task_weights: expected 2 numbers, one each for gender age",
    "--model m.keras": "--model: expected with --predict PHOTO",
    "--augment maybe": "--augment: invalid choice: 'maybe' (choose from True, False)",
    "--split identity": "--split identity: UTKFace does not say who is who, expected image",
    "--predict a.jpg": "--predict: expected --model with the model.keras of a run",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_flag(run, flags):
    result = run(*flags.split(), image_size=None)
    assert_refused(result, BAD[flags])


def test_bad_data_folder(run, tmp_path):
    for folder in (None, tmp_path / "absent", tmp_path):
        last = run(data_dir=folder).err.splitlines()[-1]
        assert last.startswith("error: --data_dir") and "UTKFace" in last and "VGGFace2" in last


def test_what_vggface2_does_not_know(run, vggface2):
    assert "VGGFace2 has no ethnicities" in run(data_dir=vggface2, tasks=["gender", "ethnicity"]).err.splitlines()[-1]
    assert "VGGFace2 says young or mature" in run(data_dir=vggface2, age_bins="20").err.splitlines()[-1]


@pytest.mark.parametrize("name, content, expected", [
    ("identity_meta.csv", b"\xff\xfe\x00", "expected VGGFace2's"),
    ("identity_meta.csv", b"a, b\n1, 2\n", "expected the columns Class_ID"),
    ("test_agetemp_imglist.txt", b"", "expected the paths of images, one a line, none of them twice"),
    ("test_agetemp_imglist.txt", b"n999999/0001_01.jpg\n", "found n999999/0001_01.jpg"),
    ("test_agetemp_imglist.txt", b"n000001/0001_01.jpg\n" * 2, "one a line, none of them twice"),
    ("test_agetemp_imglist.txt", b"n000001/0001_01.jpg\n", "expected 20 images of each identity, found 1 of n000001"),
    ("identity_meta.csv", None, "No such file"),
])  # fmt: skip
def test_damaged_lists_of_vggface2(run, vggface2, tmp_path, name, content, expected):
    shutil.copytree(vggface2, tmp_path / "damaged")
    path = tmp_path / "damaged" / "meta" / name
    path.unlink() if content is None else path.write_bytes(content)
    result = run(data_dir=tmp_path / "damaged")
    assert result.status == 2 and expected in result.err.splitlines()[-1]


@pytest.mark.slow
def test_learns_drawn_faces_and_predicts(run, faces_script, utkface, tmp_path, capfd):
    result = run(n_epoch=4, n_batch_size=32, tasks=["gender", "age"])
    assert result.status == 0, result
    results = json.loads((result.log_dir / "results.json").read_text())
    assert results["test"]["gender"] > 0.85 and results["test"]["age"] > 0.85
    assert 0.4 < results["data"]["majority"]["gender"] < 0.6
    assert {"summary/accuracy_test", "gender/accuracy_test", "units/pool_3/alpha"} <= read_events(result.log_dir).keys()
    photos = [str(tmp_path / name) for name in ("woman.jpg", "man.jpg")]
    rng = np.random.default_rng(7)
    for photo, female in zip(photos, (1, 0)):
        draw.write_jpeg(photo, draw.draw_face(rng, female, 60, 0)[0])
    model = str(result.log_dir / "model.keras")
    predicted = run("--predict", *photos, "--model", model, data_dir=None, image_size=None, log_dir=None)
    assert predicted.status == 0
    rows = [re.split(r"\s+", line) for line in predicted.out.strip().splitlines()[-2:]]
    assert [row[:2] for row in rows] == [[photos[0], "female"], [photos[1], "male"]]
    turned = Image.fromarray(np.rot90(np.asarray(Image.open(photos[0]))))
    exif = turned.getexif()
    exif[0x0112] = 6
    for name, picture, options in (("standing", Image.open(photos[0]), {}), ("lying", turned, {"exif": exif})):
        picture.save(tmp_path / f"{name}.png", **options)
    both = [tmp_path / "standing.png", tmp_path / "lying.png"]
    told = run("--predict", *both, "--model", model, data_dir=None, image_size=None, log_dir=None).out
    standing, lying = (line.split()[1:] for line in told.splitlines()[-2:])
    assert standing == lying and standing[0] == "female"
    assert all(0.5 < float(row[2]) <= 1 and row[3] == "mature" for row in rows)
    other = tmp_path / "other" / "model.keras"
    other.parent.mkdir()
    shutil.copy(result.log_dir / "results.json", other.parent)
    keras.Sequential([keras.layers.Input((3,)), keras.layers.ReLU()], name="other").save(other)
    damaged = tmp_path / "damaged" / "model.keras"
    shutil.copytree(result.log_dir, damaged.parent)
    content = damaged.read_bytes()
    for words, named in (
        (["absent.jpg", "--model", model], "absent.jpg"),
        ([photos[0], "--model", photos[0]], "results.json"),
        ([photos[0], "--model", other], "expected a model of gender_age_multi_task_learning.py, found one of other"),
    ):
        failed = run("--predict", *words, data_dir=None, image_size=None, log_dir=None)
        assert failed.status == 2 and named in failed.err.splitlines()[-1]
    for k in range(5):
        damaged.write_bytes(content[: k * len(content) // 5])
        failed = run("--predict", photos[0], "--model", damaged, data_dir=None, image_size=None, log_dir=None)
        assert failed.status == 2 and "expected the model.keras of a run" in failed.err.splitlines()[-1]


@pytest.mark.slow
def test_a_run_on_drawn_people_of_vggface2(run, vggface2):
    result = run(data_dir=vggface2, n_epoch=1, n_batch_size=32)
    assert result.status == 0 and result.out.startswith("gender: male 300, female 300; "), result
    results = json.loads((result.log_dir / "results.json").read_text())
    assert results["test"].keys() == {"gender", "age", "accuracy"} and results["data"]["split"] == "identity"
    for flags, expected in (([], "this run is finished"), (["--n_epoch", 2], "epoch 2/2")):
        again = run("--resume", result.log_dir, *flags, data_dir=None, image_size=None, log_dir=None)
        assert again.status == 0 and expected in again.out, again


MALICIOUS = """
import keras
from keras.layers import Flatten, Lambda
x = keras.Input((4, 4, 3))
y = Lambda(lambda v: __import__("os").system("touch pwned") or v, output_shape=(4, 4, 3))(x)
keras.Model(x, {"gender": Flatten()(y)}, name="gender_age_multi_task_learning").save("model.keras")
"""


@pytest.mark.slow
def test_a_model_file_runs_no_code(run, tmp_path, monkeypatch):
    """One whose Lambda layer holds some."""
    subprocess.run([sys.executable, "-c", MALICIOUS], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "pwned").unlink(missing_ok=True)
    (tmp_path / "results.json").write_text(json.dumps({"arguments": {}, "classes": {"gender": ["male", "female"]}}))
    draw.write_jpeg(str(tmp_path / "face.jpg"), np.zeros((8, 8, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    result = run("--predict", "face.jpg", "--model", "model.keras", data_dir=None, image_size=None)
    assert_refused(result, "--model model.keras: expected the model.keras of a run (ValueError)")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_resumed(faces_script, utkface, tmp_path):
    flags = ["--n_batch_size=60", "--image_size=16", "--log_every=1", f"--data_dir={utkface}"]
    assert_goes_on(faces_script, tmp_path, *flags)
