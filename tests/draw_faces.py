"""Draws faces in the layout of UTKFace, VGGFace2 or MTFL, for tests and for trying the scripts without a download.

    python tests/draw_faces.py FOLDER                       # 2,000 faces as UTKFace has them
    python tests/draw_faces.py FOLDER --layout vggface2     # 100 people, 20 images of each
    python tests/draw_faces.py FOLDER --layout mtfl         # 2,000 photos with landmarks to train on, 500 to test

What the scripts are to learn can be seen: women have long hair, the mature have grey hair and wrinkles, ethnicities
differ in the colour of the skin; eyes, nose and mouth move to where the head turns, and mouths smile or do not.
Place, size, colours and background vary at random, with a fixed seed.
"""

import argparse
import os

import numpy as np

SKIN = np.array([[232, 190, 172], [120, 80, 60], [240, 210, 160], [180, 130, 90], [205, 165, 140]], float)


def draw_face(rng, female, age, ethnicity, size=64, smile=0, glasses=0, turn=0):
    """Returns a face as a uint8 array (size, size, 3), and its landmarks (5, 2), x and y in pixels.

    `female`, `smile` and `glasses` are 0 or 1, `age` is in years, `ethnicity` 0 to 4, `turn` -2 (to the left) to 2.
    The landmarks are left eye, right eye, nose, left and right corner of the mouth, as they lie in the picture.
    """
    y, x = np.mgrid[0:size, 0:size] / size
    cx, cy, scale = 0.5 + rng.uniform(-0.05, 0.05), 0.52 + rng.uniform(-0.05, 0.05), rng.uniform(0.85, 1.1)
    u, v = (x - cx) / scale, (y - cy) / scale
    image = np.ones((size, size, 3)) * rng.uniform(60, 200, 3)
    hair = np.array([180, 180, 185]) if age >= 30 else rng.uniform(20, 110, 3)
    image[(u / 0.33) ** 2 + ((v + 0.04) / 0.42) ** 2 < 1] = hair
    if female:
        image[(np.abs(u) < 0.34) & (v > -0.05) & (v < 0.42)] = hair
    face = (u / 0.24) ** 2 + ((v - 0.04) / 0.34) ** 2 < 1
    image[face] = SKIN[ethnicity] + rng.normal(0, 6, 3)
    aside = 0.03 * turn  # the eyes and the mouth; the nose moves more
    landmarks = np.array([[-0.1, -0.05], [0.1, -0.05], [0.6 * aside, 0.08], [-0.09, 0.2], [0.09, 0.2]])
    landmarks[:, 0] += aside
    landmarks[3:, 1] -= 0.04 * smile
    eyes = rng.uniform(10, 60, 3)
    for across, down in landmarks[:2]:
        image[((u - across) / 0.045) ** 2 + ((v - down) / 0.025) ** 2 < 1] = eyes
        if glasses:
            ring = np.hypot(u - across, v - down)
            image[(ring > 0.06) & (ring < 0.085)] = (20, 20, 20)
    image[((u - landmarks[2, 0]) / 0.025) ** 2 + ((v - landmarks[2, 1]) / 0.03) ** 2 < 1] = (120, 70, 60)
    lips = 0.2 - 0.04 * smile * ((u - aside) / 0.09) ** 2  # a smile is a parabola, its ends at the corners
    image[(np.abs(u - aside) < 0.09) & (np.abs(v - lips) < 0.022)] = (140, 30, 40)
    if age >= 30:
        for height in (-0.2, -0.16, -0.12):
            image[face & (np.abs(v - height) < 0.008) & (np.abs(u) < 0.15)] *= 0.6
    image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    return image, (landmarks * scale + [cx, cy]) * size


def write_jpeg(path, image):
    """Writes a uint8 array (height, width, 3) as a JPEG."""
    import tensorflow as tf

    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(tf.io.encode_jpeg(image, quality=90).numpy())


def draw_utkface(folder, n, seed=0, size=64):
    """Draws n faces into `folder`, named as UTKFace names them."""
    rng = np.random.default_rng(seed)
    for k in range(n):
        female, age, ethnicity = rng.integers(0, 2), rng.integers(1, 90), rng.integers(0, 5)
        name = f"{age}_{female}_{ethnicity}_{20170100000000000 + k}.jpg.chip.jpg"
        write_jpeg(os.path.join(folder, name), draw_face(rng, female, age, ethnicity, size)[0])


def draw_vggface2(folder, people=100, seed=0, size=64):
    """Draws 20 images of each of so many people, the first ten young, as VGGFace2 lays out its age templates."""
    rng, listed = np.random.default_rng(seed), []
    rows = ["Class_ID, Name, Sample_Num, Flag, Gender"]
    for person in range(people):
        female, ethnicity, identity = person % 2, rng.integers(0, 5), f"n{person + 1:06d}"
        rows.append(f'{identity}, "Doe, {"Jane" if female else "John"} {person}", 20, 0, {"f" if female else "m"}')
        for k in range(20):
            name = f"{identity}/{k + 1:04d}_01.jpg"
            face, _ = draw_face(rng, female, 20 if k < 10 else 60, ethnicity, size)
            write_jpeg(os.path.join(folder, "test", name), face)
            listed.append(name)
    os.makedirs(os.path.join(folder, "meta"), exist_ok=True)
    for name, lines in (("identity_meta.csv", rows), ("test_agetemp_imglist.txt", listed)):
        with open(os.path.join(folder, "meta", name), "w") as file:
            file.write("\n".join(lines) + "\n")


def draw_mtfl(folder, training=2000, test=300, aflw=200, seed=0, size=64):
    """Draws so many photos for each list of MTFL, which come in the form of its files, with all that is odd in them."""
    rng = np.random.default_rng(seed)
    lists = {"training.txt": [], "trainImageList.txt": [], "testImageList.txt": [], "testing.txt": []}
    parts = [
        ("lfw_5590", "Face_{:05d}.jpg", training),
        ("net_7876", "{:05d}_1.jpg", test),
        ("AFLW", "{:04d}.jpg", aflw),
    ]
    for part, form, count in parts:
        for k in range(count):
            attributes = rng.integers(0, 2), rng.integers(0, 2), rng.integers(0, 2), rng.integers(-2, 3)
            female, smile, glasses, turn = attributes
            age, ethnicity = rng.integers(1, 90), rng.integers(0, 5)
            face, points = draw_face(rng, female, age, ethnicity, size, smile, glasses, turn)
            if part != "AFLW":  # which come as crops
                photo = np.clip(rng.normal(120, 20, (2 * size, 2 * size, 3)), 0, 255).astype(np.uint8)
                left, top = rng.integers(0, size, 2)
                photo[top : top + size, left : left + size] = face
                face, points = photo, points + np.array([left, top])
            write_jpeg(os.path.join(folder, part, form.format(k)), face)
            middle, side = points.mean(axis=0) + rng.normal(0, 0.02 * size, 2), size * rng.uniform(0.38, 0.48)
            box = np.round([middle[0] - side / 2, middle[0] + side / 2, middle[1] - side / 2, middle[1] + side / 2])
            separator = "/" if part == "AFLW" else "\\"
            name = part + separator + form.format(k)
            numbers = [f"{value:.6f}" for value in (points.T + 1).ravel()]
            classes = [str(1 + female), str(2 - smile), str(2 - glasses), str(3 + turn)]
            with_attributes = " ".join([name, *numbers, *classes])
            with_box = " ".join([name, *(f"{v:.0f}" for v in box), *(f"{v:.6f}" for v in points.ravel())])
            if part == "lfw_5590":
                lists["training.txt"].append(with_attributes + "\r\n ")  # the last line is a blank alone
                lists["trainImageList.txt"].append(with_box + "\r\n")
            elif part == "net_7876":
                lists["testImageList.txt"].append(with_box + "\r\n")
            else:
                lists["testing.txt"].append(" " + with_attributes + "\n")
    for name, lines in lists.items():
        with open(os.path.join(folder, name), "w", newline="") as file:
            file.writelines(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--layout", choices=("utkface", "vggface2", "mtfl"), default="utkface")
    args = parser.parse_args()
    if args.layout == "utkface":
        draw_utkface(args.folder, 2000)
    elif args.layout == "vggface2":
        draw_vggface2(args.folder)
    else:
        draw_mtfl(args.folder)
