"""Where the images come from, what is checked, and how they are split."""

import argparse
import gzip
import http.server
import shutil
import socket
import threading
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from conftest import load, write_folder

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def arguments(**changed):
    default = {"data_dir": None, "validation_fraction": 0, "train_fraction": 1, "n_batch_size": 10, "seed": 0}
    return argparse.Namespace(**{**default, "tasks": None, "task_weights": None, **changed})


@pytest.fixture
def elsewhere(script, monkeypatch, tmp_path):
    """No source but the embedded sample: no Debian package, an empty cache of Keras, a server that is not there."""
    monkeypatch.setattr(script, "DEBIAN", str(tmp_path / "no-package"))
    monkeypatch.setattr(script, "DOWNLOAD", "http://127.0.0.1:9/")
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    return tmp_path


def test_sample_is_what_its_script_makes(script, garments, monkeypatch, tmp_path):
    images, labels, test_images, test_labels = garments
    assert images.shape == (6000, 28, 28) and test_images.shape == (1000, 28, 28)
    assert np.bincount(labels).tolist() == [600] * 10 and np.bincount(test_labels).tolist() == [100] * 10
    maker = load("data/make_fashion_mnist_sample.py")
    monkeypatch.setattr(maker, "OUTPUT", str(tmp_path / "again"))
    (tmp_path / "again").mkdir()
    maker.main(script.SAMPLE)  # all of each class: the whole sample again
    again = script.read_folder(tmp_path / "again")
    for pixels, classes, part in ((images, labels, again[0]), (test_images, test_labels, again[1])):
        np.testing.assert_array_equal(pixels[..., None], part[0])
        np.testing.assert_array_equal(classes, part[1][:, 0])


def test_every_source_in_its_turn(script, small, elsewhere, monkeypatch, capsys):
    assert script.prepare_data(arguments(data_dir=str(small)))[-1]["source"] == str(small)
    record = script.prepare_data(arguments())[-1]
    assert record["source"] == script.SAMPLE and record["sizes"] == {"train": 6000, "test": 1000}
    assert "cannot be downloaded" in capsys.readouterr().out
    assert socket.getdefaulttimeout() is None  # as before the attempt

    cache = elsewhere / "datasets" / "fashion-mnist"  # as an earlier download leaves it
    shutil.copytree(small, cache, dirs_exist_ok=True)
    record = script.prepare_data(arguments())[-1]
    assert record["source"] == str(cache) and record["sizes"] == {"train": 600, "test": 100}

    monkeypatch.setattr(script, "DEBIAN", str(small))
    assert script.find_data() == str(small)


def test_downloads_into_the_cache(script, small, elsewhere, monkeypatch):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(small))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(script, "DOWNLOAD", f"http://127.0.0.1:{server.server_port}/")
    folder = script.find_data()
    server.shutdown()
    server.server_close()
    assert folder == str(elsewhere / "datasets" / "fashion-mnist") == script.find_data()  # now from the cache
    assert len(script.read_folder(folder)[0][0]) == 600


def test_a_network_that_hangs_is_given_up(script, elsewhere, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(script, "DOWNLOAD", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        began = time.monotonic()
        assert script.find_data() == script.SAMPLE
        assert 5 < time.monotonic() - began < 30


def test_a_damaged_source_is_an_error_and_not_passed_over(script, small, elsewhere, monkeypatch, tmp_path):
    package = tmp_path / "package"
    shutil.copytree(small, package)
    (package / IMAGES).write_bytes((small / IMAGES).read_bytes()[:-100])
    monkeypatch.setattr(script, "DEBIAN", str(package))
    with pytest.raises(script.Failure, match=IMAGES):
        script.prepare_data(arguments())


def test_without_any_source_it_says_so(script, elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(script, "SAMPLE", str(elsewhere / "nowhere"))
    with pytest.raises(script.Failure, match=r"nowhere.*No such file"):
        script.prepare_data(arguments())
    assert "--data_dir" in capsys.readouterr().out


def idx_header(shape):
    return np.array([0x0800 + len(shape), *shape], ">u4").tobytes()


def idx(array, shape=None):
    return gzip.compress(idx_header(array.shape if shape is None else shape) + array.tobytes())


IMAGE_BYTES = np.zeros((20, 8, 8), np.uint8)
LABEL_BYTES = np.arange(20, dtype=np.uint8) % 10
DAMAGE = {
    "missing": (IMAGES, None, "No such file"),
    "empty": (IMAGES, b"", "not enough values"),
    "not gzip": (IMAGES, b"hello, world", "whole and sound"),
    "truncated gzip": (IMAGES, idx(IMAGE_BYTES)[:-9], "whole and sound"),
    "wrong checksum": (LABELS, idx(LABEL_BYTES)[:-8] + bytes(8), "whole and sound"),
    "broken stream": (LABELS, idx(LABEL_BYTES)[:12] + bytes([255] * 30), "whole and sound"),
    "truncated inside": (IMAGES, idx(IMAGE_BYTES[:19], shape=(20, 8, 8)), "size 1216 into shape .20,8,8"),
    "too long": (LABELS, idx(LABEL_BYTES, shape=(19,)), "size 20 into shape .19,"),
    "short header": (IMAGES, gzip.compress(b"\0\0\x08\x03\0\0"), "multiple of element size"),
    "header alone": (IMAGES, gzip.compress(b"\0\0\x08\x03"), "size 0 into shape"),
    "images for labels": (LABELS, idx(IMAGE_BYTES), "size 21 into shape .20,"),
    "labels for images": (IMAGES, idx(LABEL_BYTES), "into shape"),
    "fewer labels": (
        LABELS,
        idx(LABEL_BYTES[:19]),
        "train: expected item, 20 whole numbers from 0 to 9999, .* found int64 .19",
    ),
    "label 10": (LABELS, idx(LABEL_BYTES + 1), "labels 0..9, found 10"),
    "other size": (
        "t10k-images-idx3-ubyte.gz",
        idx(np.zeros((20, 8, 9), np.uint8)),
        "test: expected images, .* all of one size, .* found uint8 .20, 8, 9",
    ),
    "no images": (IMAGES, idx(np.zeros((0, 8, 8), np.uint8)), r"found uint8 .0, 8, 8"),
    "no labels": (LABELS, idx(np.zeros(0, np.uint8)), r"20 whole numbers from 0 to 9999, .* found int64 .0,"),
    "tiny images": (IMAGES, idx(np.zeros((20, 3, 8), np.uint8)), "4 or more per side"),
    "a folder": (IMAGES, "a folder", "Is a directory"),
    "pickled": (IMAGES, gzip.compress(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR."), "into shape"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(script, tmp_path, damage):
    name, content, expected = DAMAGE[damage]
    write_folder(tmp_path, (IMAGE_BYTES, LABEL_BYTES), (IMAGE_BYTES, LABEL_BYTES))
    assert len(script.read_folder(tmp_path)) == 3
    (tmp_path / name).unlink()
    if content == "a folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(script.Failure, match=f"({name}|{tmp_path}).*{expected}"):
        script.read_folder(tmp_path)


def test_a_bomb_is_not_unpacked(script, tmp_path):
    """300 MB after a header that announces one image: no more than that is read."""
    path = tmp_path / IMAGES
    path.write_bytes(gzip.compress(idx_header((1, 8, 8)) + bytes(300_000_000), 1))
    tracemalloc.start()
    with pytest.raises(script.Failure, match=r"size 65 into shape .1,8,8"):
        script.read_idx(path, 3)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_class_without_a_name_in_the_table_of_tasks_is_named(script, small, monkeypatch):
    monkeypatch.setitem(script.TASKS, "sleeves", (["none"], (0, 1) * 5))
    with pytest.raises(script.Failure, match="expected two classes or more of sleeves and a name for each"):
        script.read_folder(small)


# ---- data of one's own

DIGITS = {"images": np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8), "digit": np.arange(20) % 10}
DIGITS |= {"parity": np.arange(20, dtype=np.uint8) % 2, "parity_names": np.array(["even", "odd"])}


def test_arrays_of_ones_own(script, tmp_path):
    np.savez(tmp_path / "train.npz", **DIGITS)
    np.savez(tmp_path / "test.npz", **{name: x[::-1] for name, x in DIGITS.items() if name != "parity_names"})
    (images, labels), test, classes = script.read_folder(tmp_path)
    assert classes == {"digit": list("0123456789"), "parity": ["even", "odd"]}
    np.testing.assert_array_equal(images, DIGITS["images"][..., None])
    np.testing.assert_array_equal(labels, np.stack([DIGITS["digit"], DIGITS["parity"]], axis=1))
    np.testing.assert_array_equal(test[1], labels[::-1])
    args = arguments(data_dir=str(tmp_path), tasks=["parity"])
    parts, classes, _, _, record = script.prepare_data(args)
    assert list(classes) == ["parity"] and parts["test"][1].tolist() == [[(19 - k) % 2] for k in range(20)]
    assert record["name"] == tmp_path.name and record["sizes"] == {"train": 20, "test": 20}


OBJECTS = np.array([{}] * 20)
WRONG = {
    "no images": ({"images": None}, "expected images, uint8"),
    "floats": ({"images": DIGITS["images"] / 255}, "expected images, uint8 .* found float64"),
    "flat": ({"images": DIGITS["images"].reshape(20, 64)}, "expected images"),
    "tiny": ({"images": DIGITS["images"][:, :3]}, "4 or more per side"),
    "no tasks": ({"digit": None, "parity": None, "parity_names": None}, "arrays of labels beside images"),
    "a name for a layer": ({"pool_1": DIGITS["digit"]}, "named after their tasks"),
    "a name for a layer of another task": ({"digit_pool_1": DIGITS["digit"]}, "named after their tasks"),
    "a name with a slash": ({"a/b": DIGITS["digit"]}, "named after their tasks"),
    "fewer labels": ({"digit": DIGITS["digit"][1:]}, "expected digit, 20 whole numbers from 0"),
    "negative": ({"digit": DIGITS["digit"] - 1}, "expected digit, 20 whole numbers from 0"),
    "fractions": ({"digit": DIGITS["digit"] / 2}, "expected digit, 20 whole numbers from 0"),
    "a class without a name": ({"parity_names": np.array(["even"])}, "two classes or more of parity and a name"),
    "one class": ({"digit": np.zeros(20, int)}, "two classes or more of digit"),
    "a huge class": ({"digit": DIGITS["digit"] + 2**40}, "whole numbers from 0 to 9999"),
    "unsigned -1": ({"digit": (DIGITS["digit"].astype(int) - 1).astype(np.uint64)}, "whole numbers from 0 to 9999"),
    "no channels": ({"images": DIGITS["images"][..., None][..., :0]}, r"expected images, .* found uint8 .20, 8, 8, 0"),
    "a name beyond ASCII": ({"größe": DIGITS["digit"]}, "named after their tasks"),
    "names of no task": ({"pet_names": np.array(["cat", "dog"] * 10)}, "expected pet_names, 20 whole numbers"),
    "names in Latin-1": ({"parity_names": np.array([b"pair", b"\xe9"])}, "expected a file of numpy.savez"),
    "objects": ({"digit": OBJECTS}, "without Python objects"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arrays_are_named(script, tmp_path, wrong):
    changed, expected = WRONG[wrong]
    arrays = {name: x for name, x in {**DIGITS, **changed}.items() if x is not None}
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", **arrays)
    with pytest.raises(script.Failure, match=expected):
        script.read_folder(tmp_path)


def test_names_that_differ_between_the_parts_are_refused(script, tmp_path):
    """As where each part was encoded by itself: its numbers mean something else."""
    np.savez(tmp_path / "train.npz", **DIGITS)
    np.savez(tmp_path / "test.npz", **{**DIGITS, "parity_names": DIGITS["parity_names"][::-1]})
    with pytest.raises(script.Failure, match="expected the same parity_names, in one order, in both parts"):
        script.read_folder(tmp_path)


def test_a_file_among_the_arrays_is_named(script, tmp_path):
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", **DIGITS)
        with zipfile.ZipFile(tmp_path / f"{part}.npz", "a") as file:
            file.writestr("README", "digits")
    with pytest.raises(script.Failure, match="expected README, 20 whole numbers"):
        script.read_folder(tmp_path)


def test_damaged_arrays_are_named(script, tmp_path):
    np.savez(tmp_path / "train.npz", **DIGITS)
    whole = (tmp_path / "train.npz").read_bytes()
    with pytest.raises(script.Failure, match=r"test\.npz: expected a file of numpy\.savez"):
        script.read_folder(tmp_path)
    damaged = [whole[: len(whole) // 2], b"", b"hello", whole[:200] + bytes([whole[200] ^ 255]) + whole[201:]]
    directory = whole.index(b"PK\x01\x02")  # of the archive: flags of its first file, and how that is compressed
    damaged += [whole[: directory + k] + b"\x01" + whole[directory + k + 1 :] for k in (8, 10)]
    for content in damaged:
        (tmp_path / "train.npz").write_bytes(content)
        with pytest.raises(script.Failure, match=r"train\.npz: expected a file of numpy\.savez"):
            script.read_folder(tmp_path)
    np.save(tmp_path / "one.npy", DIGITS["images"])
    (tmp_path / "one.npy").rename(tmp_path / "train.npz")
    with pytest.raises(script.Failure, match=r"train\.npz: expected a file of numpy\.savez"):
        script.read_folder(tmp_path)


def test_labels_of_the_tasks(script, garments):
    labels = script.prepare_data(arguments(data_dir=script.SAMPLE))[0]["train"][1]
    np.testing.assert_array_equal(labels[:, 0], garments[1])
    groups = {"Shoes": {5, 7, 9}, "For Women": {3, 6, 8}, "Other": {0, 1, 2, 4}}
    assert script.TASKS["group"][0] == list(groups)
    for k, members in enumerate(groups.values()):
        assert set(garments[1][labels[:, 1] == k]) == members


def test_standardisation_comes_from_the_training_images_alone(script, garments):
    args = arguments(data_dir=script.SAMPLE, validation_fraction=0.25, train_fraction=0.1)
    parts, classes, mean, deviation, record = script.prepare_data(args)
    assert list(classes) == ["item", "group"] and classes["group"] == ["Shoes", "For Women", "Other"]
    images = parts["train"][0]
    assert record["sizes"] == {"train": 450, "test": 1000, "validation": 1500}
    np.testing.assert_allclose(mean, images.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(deviation, np.maximum(images.std(axis=0), 1), rtol=1e-6)
    assert (images.std(axis=0) < 1).any()  # else the floor was not tried
    again = script.prepare_data(arguments(data_dir=script.SAMPLE, seed=5))[-1]
    assert again["sha256"] == record["sha256"]  # of all the data, whatever part is used


def rows(part):
    return {image.tobytes() for image in part[0]}


def test_every_image_keeps_its_labels(script, garments):
    label_of = {
        image.tobytes(): label for image, label in zip([*garments[0], *garments[2]], [*garments[1], *garments[3]])
    }
    parts = script.prepare_data(arguments(data_dir=script.SAMPLE, validation_fraction=0.2, train_fraction=0.5))[0]
    for images, labels in parts.values():
        assert [label_of[image.tobytes()] for image in images] == labels[:, 0].tolist()


def test_data_that_changed_have_another_digest(script, small, tmp_path):
    (images, labels), (tested, truth), _ = script.read_folder(small)
    small_arrays = [images[..., 0], labels[:, 0].astype(np.uint8), tested[..., 0], truth[:, 0].astype(np.uint8)]
    digests = set()
    for place in (None, (0, 7, 0, 0), (1, 7), (2, 7, 0, 0), (3, 7)):  # array, image, pixel
        arrays = [array.copy() for array in small_arrays]
        if place:
            arrays[place[0]][place[1:]] = (arrays[place[0]][place[1:]] + 1) % 10
        folder = write_folder(tmp_path, arrays[:2], arrays[2:])
        digests.add(script.prepare_data(arguments(data_dir=str(folder)))[-1]["sha256"])
    assert len(digests) == 5


def test_splits(script):
    prepared = {}
    for seed in (0, 1):
        args = arguments(data_dir=script.SAMPLE, validation_fraction=0.2, train_fraction=0.5, seed=seed)
        prepared[seed] = parts = script.prepare_data(args)[0]
        assert np.bincount(parts["validation"][1][:, 0]).tolist() == [120] * 10
        assert np.bincount(parts["train"][1][:, 0]).tolist() == [240] * 10
        assert not rows(parts["train"]) & rows(parts["validation"])
    assert rows(prepared[0]["validation"]) == rows(prepared[1]["validation"])
    assert rows(prepared[0]["train"]) != rows(prepared[1]["train"])
    assert rows(prepared[0]["train"]) == rows(script.prepare_data(arguments(**vars(args) | {"seed": 0}))[0]["train"])


def test_identical_images_stand_in_one_part(script, tmp_path):
    """Each of 40 pictures is there twice: half of them are held out, with both copies."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8).repeat(2, axis=0)
    for part in ("train", "test"):
        np.savez(tmp_path / part, images=np.asfortranarray(images), digit=np.arange(80) // 2 % 2)
    parts = script.prepare_data(arguments(data_dir=str(tmp_path), validation_fraction=0.5))[0]
    assert [len(parts[part][0]) for part in ("train", "validation")] == [40, 40]
    assert not rows(parts["train"]) & rows(parts["validation"])


def test_a_class_of_the_test_part_alone(script, tmp_path):
    for part, classes in (("train", 3), ("test", 4)):
        np.savez(tmp_path / part, images=np.zeros((20, 8, 8), np.uint8), digit=np.arange(20) % classes)
    assert script.read_folder(str(tmp_path))[2] == {"digit": ["0", "1", "2", "3"]}


def test_stratified_by_hand(script):
    """0.4 of 2, 4 and 1 images: 0.8, 1.6 and 0.4 of one, to the nearest but never none."""
    labels = np.array([5, 0, 5, 0, 5, 3, 5])
    indices = script.stratified(labels, 0.4, seed=0)
    assert sorted(labels[indices]) == [0, 3, 5, 5] and indices.tolist() == sorted(set(indices.tolist()))
