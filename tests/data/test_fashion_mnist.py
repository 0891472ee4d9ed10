"""Where the images of the first script come from, what is checked, and how they are split."""

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
from conftest import load, parse, write_folder

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def prepare(script, data_dir, *flags):
    return script.prepare_data(parse(script, *([f"--data_dir={data_dir}"] if data_dir else []), *flags))


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
    train, test, _ = script.read_folder(tmp_path / "again")
    np.testing.assert_array_equal(images[..., None], train.images)
    np.testing.assert_array_equal(labels, train.labels["item"])
    np.testing.assert_array_equal(test_images[..., None], test.images)
    np.testing.assert_array_equal(test_labels, test.labels["item"])


def test_every_source_in_its_turn(script, small, elsewhere, monkeypatch, capsys):
    assert prepare(script, small).description["source"] == str(small)
    found = prepare(script, None).description
    assert found["source"] == script.SAMPLE and found["sizes"] == {"train": 6000, "test": 1000}
    assert "SAMPLE" in found["warning"]
    assert "--data_dir" in capsys.readouterr().out
    assert socket.getdefaulttimeout() is None  # as before the attempt

    cache = elsewhere / "datasets" / "fashion-mnist"  # as an earlier download leaves it
    shutil.copytree(small, cache, dirs_exist_ok=True)
    found = prepare(script, None).description
    assert found["source"] == str(cache) and found["sizes"] == {"train": 600, "test": 100}

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
    assert len(script.read_folder(folder)[0].images) == 600


@pytest.mark.slow
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
        prepare(script, None)


def test_a_script_that_was_copied_out_says_what_is_missing(script, elsewhere, monkeypatch):
    monkeypatch.setattr(script, "SAMPLE", str(elsewhere / "nowhere"))
    with pytest.raises(script.Failure, match=r"nowhere.*--data_dir"):
        prepare(script, None)


def idx_header(shape):
    return np.array([0x0800 + len(shape), *shape], ">u4").tobytes()


def idx(array, shape=None):
    return gzip.compress(idx_header(array.shape if shape is None else shape) + array.tobytes())


IMAGE_BYTES = np.zeros((20, 8, 8), np.uint8)
LABEL_BYTES = np.arange(20, dtype=np.uint8) % 10
DAMAGE = {  # the file, its content, what the message names beside the file or the folder
    "missing": (IMAGES, None, ""),
    "empty": (IMAGES, b"", ""),
    "not gzip": (IMAGES, b"hello, world", ""),
    "truncated gzip": (IMAGES, idx(IMAGE_BYTES)[:-9], ""),
    "wrong checksum": (LABELS, idx(LABEL_BYTES)[:-8] + bytes(8), ""),
    "broken stream": (LABELS, idx(LABEL_BYTES)[:12] + bytes([255] * 30), ""),
    "truncated inside": (IMAGES, idx(IMAGE_BYTES[:19], shape=(20, 8, 8)), "1216"),
    "too long": (LABELS, idx(LABEL_BYTES, shape=(19,)), "19"),
    "short header": (IMAGES, gzip.compress(b"\0\0\x08\x03\0\0"), ""),
    "header alone": (IMAGES, gzip.compress(b"\0\0\x08\x03"), ""),
    "another type": (LABELS, gzip.compress(b"\0\0\x09\1" + idx_header((20,))[4:] + LABEL_BYTES.tobytes()), "IDX"),
    "images for labels": (LABELS, idx(IMAGE_BYTES), ""),
    "labels for images": (IMAGES, idx(LABEL_BYTES), ""),
    "fewer labels": (LABELS, idx(LABEL_BYTES[:19]), "item.*20"),
    "label 10": (LABELS, idx(LABEL_BYTES + 1), "10"),
    "other size": ("t10k-images-idx3-ubyte.gz", idx(np.zeros((20, 8, 9), np.uint8)), "test.*8, 9"),
    "no images": (IMAGES, idx(np.zeros((0, 8, 8), np.uint8)), "0, 8, 8"),
    "no labels": (LABELS, idx(np.zeros(0, np.uint8)), "20"),
    "tiny images": (IMAGES, idx(np.zeros((20, 3, 8), np.uint8)), "4 or more"),
    "a folder": (IMAGES, "a folder", ""),
    "pickled": (IMAGES, gzip.compress(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR."), ""),
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
    with pytest.raises(script.Failure, match=IMAGES):
        script.read_idx(path, 3)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


# ---- data of one's own

DIGITS = {"images": np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8), "digit": np.arange(20) % 10}
DIGITS |= {"parity": np.arange(20, dtype=np.uint8) % 2, "parity_names": np.array(["even", "odd"])}


def test_arrays_of_ones_own(script, tmp_path):
    np.savez(tmp_path / "train.npz", **DIGITS)
    np.savez(tmp_path / "test.npz", **{name: x[::-1] for name, x in DIGITS.items() if name != "parity_names"})
    train, test, classes = script.read_folder(tmp_path)
    assert classes == {"digit": list("0123456789"), "parity": ["even", "odd"]}
    np.testing.assert_array_equal(train.images, DIGITS["images"][..., None])
    np.testing.assert_array_equal(train.labels["digit"], DIGITS["digit"])
    np.testing.assert_array_equal(test.labels["parity"], DIGITS["parity"][::-1])
    data = prepare(script, tmp_path, "--tasks", "parity")
    assert list(data.classes) == list(data.splits["test"].labels) == ["parity"]
    assert data.splits["test"].labels["parity"].tolist() == [(19 - k) % 2 for k in range(20)]
    assert data.description["name"] == tmp_path.name and data.description["sizes"] == {"train": 20, "test": 20}


OBJECTS = np.array([{}] * 20)
WRONG = {  # arrays that are changed, and what the message names
    "no images": ({"images": None}, "no array `images`, only digit, parity, parity_names"),
    "floats": ({"images": DIGITS["images"] / 255}, "float64"),
    "flat": ({"images": DIGITS["images"].reshape(20, 64)}, "20, 64"),
    "tiny": ({"images": DIGITS["images"][:, :3]}, "3, 8"),
    "no tasks": ({"digit": None, "parity": None, "parity_names": None}, "images"),
    "a name for a tag": ({"units": DIGITS["digit"]}, "'units'"),
    "a name with a slash": ({"a/b": DIGITS["digit"]}, "'a/b'"),
    "a name beyond ASCII": ({"größe": DIGITS["digit"]}, "größe"),
    "fewer labels": ({"digit": DIGITS["digit"][1:]}, "digit.*19.*20"),
    "-1 and 1": ({"digit": DIGITS["digit"] % 2 * 2 - 1}, "digit go from -1 to 1"),
    "fractions": ({"digit": DIGITS["digit"] / 2}, "digit is float64"),
    "a class without a name": ({"parity_names": np.array(["even"])}, r"parity.*up to 1.*\(1,\)"),
    "one class": ({"digit": np.zeros(20, int)}, "digit.*one class"),
    "a huge class": ({"digit": DIGITS["digit"] + 2**40}, "digit.*1099511627776"),
    "unsigned -1": ({"digit": (DIGITS["digit"].astype(int) - 1).astype(np.uint64)}, "digit.*18446744073709551615"),
    "no channels": ({"images": DIGITS["images"][..., None][..., :0]}, "20, 8, 8, 0"),
    "names of no task": ({"pet_names": np.array(["cat", "dog"] * 10)}, "pet_names"),
    "names in Latin-1": ({"parity_names": np.array([b"pair", b"\xe9"])}, "train.npz"),
    "objects": ({"digit": OBJECTS}, "without Python objects"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arrays_are_named(script, tmp_path, wrong):
    changed, expected = WRONG[wrong]
    arrays = {name: x for name, x in {**DIGITS, **changed}.items() if x is not None}
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", **arrays)
    with pytest.raises(script.Failure, match=expected):
        script.read_folder(tmp_path)


def test_names_that_differ_between_train_and_test_are_refused(script, tmp_path):
    """As where each was encoded by itself: its numbers mean something else."""
    np.savez(tmp_path / "train.npz", **DIGITS)
    np.savez(tmp_path / "test.npz", **{**DIGITS, "parity_names": DIGITS["parity_names"][::-1]})
    with pytest.raises(script.Failure, match="parity_names differ"):
        script.read_folder(tmp_path)


def test_a_task_that_test_lacks_is_named(script, tmp_path):
    np.savez(tmp_path / "train.npz", **DIGITS)
    np.savez(tmp_path / "test.npz", images=DIGITS["images"], parity=DIGITS["parity"])
    with pytest.raises(script.Failure, match=r"test.*`digit`, only images, parity"):
        script.read_folder(tmp_path)


def test_a_file_among_the_arrays_is_named(script, tmp_path):
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", **DIGITS)
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "a") as file:
            file.writestr("README", "digits")
    with pytest.raises(script.Failure, match="README"):
        script.read_folder(tmp_path)


def test_damaged_arrays_are_named(script, tmp_path):
    np.savez(tmp_path / "train.npz", **DIGITS)
    whole = (tmp_path / "train.npz").read_bytes()
    with pytest.raises(script.Failure, match=r"test\.npz"):
        script.read_folder(tmp_path)
    damaged = [whole[: len(whole) // 2], b"", b"hello", whole[:200] + bytes([whole[200] ^ 255]) + whole[201:]]
    directory = whole.index(b"PK\x01\x02")  # of the archive: flags of its first file, and how that is compressed
    damaged += [whole[: directory + k] + b"\x01" + whole[directory + k + 1 :] for k in (8, 10)]
    for content in damaged:
        (tmp_path / "train.npz").write_bytes(content)
        with pytest.raises(script.Failure, match=r"train\.npz"):
            script.read_folder(tmp_path)
    np.save(tmp_path / "one.npy", DIGITS["images"])
    (tmp_path / "one.npy").rename(tmp_path / "train.npz")
    with pytest.raises(script.Failure, match=r"train\.npz"):
        script.read_folder(tmp_path)


def test_a_class_of_the_test_images_alone(script, tmp_path):
    for name, classes in (("train", 3), ("test", 4)):
        np.savez(tmp_path / name, images=np.zeros((20, 8, 8), np.uint8), digit=np.arange(20) % classes)
    assert script.read_folder(str(tmp_path))[2] == {"digit": ["0", "1", "2", "3"]}


# ---- splits


def test_labels_of_the_tasks(script, garments):
    labels = prepare(script, script.SAMPLE).splits["train"].labels
    np.testing.assert_array_equal(labels["item"], garments[1])
    groups = {"Shoes": {5, 7, 9}, "For Women": {3, 6, 8}, "Other": {0, 1, 2, 4}}
    assert script.TASKS["group"] == list(groups)
    for k, members in enumerate(groups.values()):
        assert set(garments[1][labels["group"] == k]) == members


def test_standardisation_comes_from_the_training_images_alone(script):
    data = prepare(script, script.SAMPLE, "--validation_fraction=0.25", "--train_fraction=0.1")
    assert list(data.classes) == ["item", "group"] and data.classes["group"] == ["Shoes", "For Women", "Other"]
    images = data.splits["train"].images
    assert data.description["sizes"] == {"train": 450, "test": 1000, "validation": 1500}
    np.testing.assert_allclose(data.mean, images.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(data.variance, np.maximum(images.var(axis=0), 1), rtol=1e-6)
    assert (images.std(axis=0) < 1).any()  # else the floor was not tried
    again = prepare(script, script.SAMPLE, "--seed=5", "--tasks=group").description
    assert again["sha256"] == data.description["sha256"]  # of all the data, whatever part of them is used


def pictures(split):
    return {image.tobytes() for image in split.images}


def test_every_image_keeps_its_labels(script, garments):
    label_of = {
        image.tobytes(): label for image, label in zip([*garments[0], *garments[2]], [*garments[1], *garments[3]])
    }
    data = prepare(script, script.SAMPLE, "--validation_fraction=0.2", "--train_fraction=0.5")
    assert list(data.splits) == ["train", "test", "validation"]
    for split in data.splits.values():
        assert [label_of[image.tobytes()] for image in split.images] == split.labels["item"].tolist()


def test_data_that_changed_have_another_digest(script, small, tmp_path):
    train, test, _ = script.read_folder(small)
    arrays = [
        array for split in (train, test) for array in (split.images[..., 0], split.labels["item"].astype(np.uint8))
    ]
    digests = set()
    for place in (None, (0, 7, 0, 0), (1, 7), (2, 7, 0, 0), (3, 7)):  # array, image, pixel
        changed = [array.copy() for array in arrays]
        if place:
            changed[place[0]][place[1:]] = (changed[place[0]][place[1:]] + 1) % 10
        folder = write_folder(tmp_path, changed[:2], changed[2:])
        digests.add(prepare(script, folder).description["sha256"])
    assert len(digests) == 5


def test_splits(script):
    flags = ["--validation_fraction=0.2", "--train_fraction=0.5"]
    splits = {seed: prepare(script, script.SAMPLE, *flags, f"--seed={seed}").splits for seed in (0, 1)}
    for of_seed in splits.values():
        assert np.bincount(of_seed["validation"].labels["item"]).tolist() == [120] * 10
        assert np.bincount(of_seed["train"].labels["item"]).tolist() == [240] * 10
        assert not pictures(of_seed["train"]) & pictures(of_seed["validation"])
    assert pictures(splits[0]["validation"]) == pictures(splits[1]["validation"])
    assert pictures(splits[0]["train"]) != pictures(splits[1]["train"])
    again = prepare(script, script.SAMPLE, *flags, "--tasks=group").splits["train"]
    assert pictures(again) == pictures(splits[0]["train"])  # whichever tasks are trained


def test_stratified_by_hand(script):
    """0.4 of 2, 4 and 1 images: 0.8, 1.6 and 0.4 of one, to the nearest but never none."""
    labels = np.array([5, 0, 5, 0, 5, 3, 5])
    indices = script.stratified(labels, 0.4, seed=0)
    assert sorted(labels[indices]) == [0, 3, 5, 5] and indices.tolist() == sorted(set(indices.tolist()))
