"""Draws faces in the layout of UTKFace or VGGFace2, for tests and for trying the scripts without a download.

    python tests/draw_faces.py FOLDER                       # 2,000 faces as UTKFace has them
    python tests/draw_faces.py FOLDER --layout vggface2     # 100 people, 20 images of each

What the scripts are to learn can be seen: women have long hair, the mature have grey hair and wrinkles, ethnicities
differ in the colour of the skin. Place, size, colours and background vary at random, with a fixed seed.
"""

import argparse
import os

import numpy as np

SKIN = np.array([[232, 190, 172], [120, 80, 60], [240, 210, 160], [180, 130, 90], [205, 165, 140]], float)


def draw_face(rng, female, age, ethnicity, size=64):
    """Returns a face as a uint8 array (size, size, 3): `female` 0 or 1, `age` in years, `ethnicity` 0 to 4."""
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
    for side in (-1, 1):
        image[((u - 0.1 * side) / 0.045) ** 2 + ((v + 0.05) / 0.025) ** 2 < 1] = rng.uniform(10, 60, 3)
    image[((u / 0.09) ** 2 + ((v - 0.2) / 0.025) ** 2 < 1)] = (170, 60, 60)
    if age >= 30:
        for height in (-0.2, -0.16, -0.12):
            image[face & (np.abs(v - height) < 0.008) & (np.abs(u) < 0.15)] *= 0.6
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


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
        write_jpeg(os.path.join(folder, name), draw_face(rng, female, age, ethnicity, size))


def draw_vggface2(folder, people=100, seed=0, size=64):
    """Draws 20 images of each of so many people, the first ten young, as VGGFace2 lays out its age templates."""
    rng, listed = np.random.default_rng(seed), []
    rows = ["Class_ID, Name, Sample_Num, Flag, Gender"]
    for person in range(people):
        female, ethnicity, identity = person % 2, rng.integers(0, 5), f"n{person + 1:06d}"
        rows.append(f'{identity}, "Doe, {"Jane" if female else "John"} {person}", 20, 0, {"f" if female else "m"}')
        for k in range(20):
            name = f"{identity}/{k + 1:04d}_01.jpg"
            face = draw_face(rng, female, 20 if k < 10 else 60, ethnicity, size)
            write_jpeg(os.path.join(folder, "test", name), face)
            listed.append(name)
    os.makedirs(os.path.join(folder, "meta"), exist_ok=True)
    for name, lines in (("identity_meta.csv", rows), ("test_agetemp_imglist.txt", listed)):
        with open(os.path.join(folder, "meta", name), "w") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--layout", choices=("utkface", "vggface2"), default="utkface")
    args = parser.parse_args()
    if args.layout == "utkface":
        draw_utkface(args.folder, 2000)
    else:
        draw_vggface2(args.folder)
