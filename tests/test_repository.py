"""The repository keeps what it says: pinned dependencies, README's blocks, links, the order of every script."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT, SCRIPTS, parse, write_folder

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "benchmarks").glob("**/*.md"))]
ORDER = [
    "tasks and layer sizes",
    "cross-stitch units",
    "network",
    "losses and training step",
    "errors",
    "training loop",
    "data",
    "fast kernels and devices",
    "several machines",
    "the run's folder and its checkpoints",
    "event files and results",
    "prediction",
    "command line",
]


def requirements(name):
    """Return the lines of a file of requirements, without comments."""
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


def metadata(name):
    """Return the inline metadata of a script, which uv reads."""
    text = (ROOT / f"{name}.py").read_text()
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", text, re.MULTILINE)[1]
    return tomllib.loads(re.sub(r"^# ?", "", block, flags=re.MULTILINE))


@pytest.mark.parametrize("name", SCRIPTS)
def test_inline_metadata_equals_the_requirements(name):
    first, *packages = requirements("requirements.txt")
    assert first == "-c constraints.txt"
    assert [line.split("==")[0] for line in packages] == ["tensorflow", "numpy", "tensorboard"]
    found = metadata(name)
    assert found["dependencies"] == packages
    assert found["tool"]["uv"]["constraint-dependencies"] == requirements("constraints.txt")


def test_everything_is_pinned():
    for name in ("constraints.txt", "requirements-dev.txt", "benchmarks/requirements.txt"):
        lines = [line for line in requirements(name) if not line.startswith("-")]
        assert lines and all(re.fullmatch(r"[\w.\[\]-]+==[\w.]+", line) for line in lines), name
    assert requirements("requirements-dev.txt")[0] == "-r requirements.txt"


def test_the_constraints_name_all_that_is_brought_along():
    """What the three packages need, and what these need, has a version there."""
    import importlib.metadata

    from packaging.requirements import Requirement

    pinned = {line.split("==")[0].lower().replace("_", "-") for line in requirements("constraints.txt")}
    pinned |= {"tensorflow", "numpy", "tensorboard"}
    todo, seen = ["tensorflow", "numpy", "tensorboard"], set()
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name not in seen:
            seen.add(name)
            assert name in pinned
            for text in importlib.metadata.requires(name) or []:
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    todo.append(requirement.name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_has_the_method_first(name):
    text = (ROOT / f"{name}.py").read_text()
    found = re.findall(r"^# -{20,} (.+)$", text, re.MULTILINE)
    assert [heading for heading in found if heading != "related weights"] == ORDER
    place = {
        node.name: node.lineno for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    names = ["CrossStitch", "build_network", "train", "prepare_data", "main"]
    assert names == sorted(names, key=place.get) and place["CrossStitch"] <= 150


def test_readme_tells_the_defaults(script):
    """Of the first script, as the rows `| --a, --b | 1, 2 | ... |` of its table tell."""
    told = {}
    for flags, defaults in re.findall(r"^\| (`--[^|]+) \| ([^|]*)\|", README, re.M):
        told |= dict(zip(re.findall(r"`--(\w+)`", flags), defaults.strip().split(", "), strict=True))
    assert len(told) == 17
    args = vars(parse(script))
    for name, default in told.items():
        shown = "none" if args[name] is None else str(args[name]).removesuffix(".0")
        assert default.removesuffix(".0") == shown, name


def test_pages_name_no_argument_that_is_not_there():
    flags = {flag for name in SCRIPTS for flag in re.findall(r'"(--\w+)"', (ROOT / f"{name}.py").read_text())}
    others = {"--logdir", "--layout", "--fix", "--seeds", "--check", "--help", "--json", "--folder", "--keep_models"}
    others |= {"--settings", "--version"}
    for page in PAGES:
        if page.name not in ("CLUSTERS.md", "TRIALS.md"):
            assert set(re.findall(r"(?<![\w-])(--[a-z]\w+)", page.read_text())) <= flags | others, page.name


def test_no_comment_begins_a_line_of_text():
    """In Markdown it would end the paragraph, and what follows it in the line would not be rendered."""
    for page in PAGES:
        for line in page.read_text().splitlines():
            assert not re.match(r"\s*<!-- value", line), (page.name, line)


def test_links_lead_to_what_is_there():
    for page in PAGES:
        for path, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
            target = page.parent / path if path else page
            assert target.exists(), (page.name, path)
            words = heading.replace("-", "[^\\w\n]+")
            assert not heading or re.search(rf"^#+ {words}\W*$", target.read_text(), re.M | re.I), heading


def blocks(kind):
    """Return the blocks of README in a language."""
    return re.findall(rf"```{kind}\n(.*?)```", README, re.S)


def test_ci_runs_the_readme_test_command():
    assert any("-m pytest\n" in block for block in blocks("bash"))
    assert "-m pytest\n" in (ROOT / ".ci" / "run").read_text()
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


@pytest.mark.slow
def test_readme_bash_blocks_run(garments, tmp_path):
    """In a fresh folder, with nothing replaced but the number of epochs and the data, which are some of the sample.

    The blocks that install, that compare over seeds, that start tests, that need several machines or data that one has
    to download, and that train on all images are only parsed. See the next test for the seeds.
    """
    for name in os.listdir(ROOT):
        if name.endswith(".py") or name in ("data", "tests"):
            (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "garments").mkdir()
    write_folder(tmp_path / "garments", *((x[:600], y[:600]) for x, y in (garments[:2], garments[2:])))
    make_digits = next(block for block in blocks("python") if "load_digits" in block)
    environment = {**os.environ, "PYTHONPATH": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    subprocess.run([sys.executable, "-c", make_digits], cwd=tmp_path, check=True, env=environment)
    shutil.copy(ROOT / "img" / "tensorboard.png", tmp_path / "PICTURE")
    ran = 0
    for block in blocks("bash"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        only_parsed = (
            "--n_epoch 15",
            "--cross_stitch_enabled True",
            "UTKFace",
            "pip install",
            "TF_CONFIG",
            "tf_logs/fashion_mnist/RUN",
            "draw_faces",
            "$SEED",
        )
        if any(words in block for words in only_parsed):
            continue
        block = block.replace("30", "1").replace("--n_epoch 6", "--n_epoch 1").replace("--n_epoch 20", "--n_epoch 2")
        block = re.sub(r"^.*tensorboard.main.*$", "", block, flags=re.M)
        if "--data_dir" not in block and "--predict" not in block:
            block = re.sub(r"(_learning\.py)", r"\1 --n_epoch 1 --data_dir garments", block)
            block = block.replace("--n_epoch 1 --data_dir", "--data_dir") if "QUICK" in block else block
        block = block.replace("PICTURE ...", "PICTURE")
        result = subprocess.run(
            ["bash", "-e"], input=block, text=True, capture_output=True, cwd=tmp_path, env=environment
        )
        assert result.returncode == 0, (block, result.stdout[-500:], result.stderr[-1500:])
        ran += 1
    assert ran == 3  # the quick comparison, the prediction, the digits
    load = next(block for block in blocks("python") if "load_model" in block)
    out = subprocess.run([sys.executable, "-c", load], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert "item (2, 10)" in out.stdout and "group (2, 3)" in out.stdout, out


def test_readme_compares_runs_over_seeds(script, tmp_path, monkeypatch, capsys):
    """In the folders of the block before: gains of 1, 2, ... 5 points, and of half of that."""
    monkeypatch.chdir(tmp_path)
    loop = next(block for block in blocks("bash") if "$SEED" in block)
    shared = re.search(r"OWN=\((.*)\)", loop)[1].split()
    kinds = re.findall(r'"\$\{SAME\[@\]\}" (.*)', loop)
    for kind, gain in zip(kinds, (0, 0.01, 0.005), strict=True):
        for seed in range(5):
            own = kind.replace("$SEED", str(seed)).split()
            args, _ = script.parse_arguments([*shared, "--seed", str(seed), *own])
            assert args.cross_stitch_enabled == ("False" not in kind) and bool(args.split_after) == ("trunk" in kind)
            Path(args.log_dir).mkdir(parents=True)
            results = {"seed": seed, "test": {"accuracy": 0.9 + 0.01 * seed**2 % 0.07 + gain * (seed + 1)}}
            Path(args.log_dir, "results.json").write_text(json.dumps(results))
    exec(next(block for block in blocks("python") if "ttest_1samp" in block), {})
    # The first interval is 3 +- 2.776 * standard deviation 1.581 / root of 5.
    assert capsys.readouterr().out == "units: +3.00 [+1.04, +4.96]\ntrunk: +1.50 [+0.52, +2.48]\n"


@pytest.mark.slow
def test_readme_reads_pictures_from_folders(script, tmp_path):
    from PIL import Image

    for kind, colour in (("cat", "black"), ("cat", "white"), ("dog", "black")):
        folder = tmp_path / "pictures" / kind / colour
        folder.mkdir(parents=True)
        for k in range(2):
            Image.fromarray(np.full((40, 50, 3), 40 * k, np.uint8)).save(folder / f"{k}.png")
    code = next(block for block in blocks("python") if "pictures" in block)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    train, test, classes = script.read_folder(str(tmp_path / "pictures"))
    assert classes == {"kind": ["cat", "dog"], "colour": ["black", "white"]}
    assert train.images.shape == (4, 32, 32, 3) and test.images.shape == (2, 32, 32, 3)
    assert train.labels["kind"].tolist() == [0, 0, 0, 1] and test.labels["kind"].tolist() == [0, 1]
    assert train.labels["colour"].tolist() == [0, 1, 1, 0]


@pytest.mark.slow
def test_readme_trains_a_network_with_the_unit():
    code = next(block for block in blocks("python") if "model.fit" in block)
    found = {}
    exec(code, found)
    (unit,) = (layer for layer in found["model"].layers if hasattr(layer, "alpha"))
    assert unit.alpha.shape == (2, 2, 16) and np.abs(unit.mean_alpha() - [[0.9, 0.1], [0.1, 0.9]]).max() > 0


@pytest.mark.slow
def test_readme_stitches_two_networks_that_one_has(tmp_path):
    """It trains, its units at a rate of their own, and it is saved and loaded with equal predictions."""
    code = next(block for block in blocks("python") if "MobileNetV2" in block)
    code = code[: code.index("x = np.random")]  # it is trained below, eagerly
    found = {}
    exec(code, found)
    model = found["model"]
    model.run_eagerly = True  # to trace both networks would take longer than one step of them
    x = np.random.default_rng(0).random((4, 96, 96, 3)).astype(np.float32)
    model.fit(x, {"colour": np.arange(4) % 5, "shape": np.arange(4) % 3}, batch_size=4, epochs=1, verbose=0)
    moved = np.abs(model.get_layer("unit_2").alpha.numpy() - [[[0.9], [0.1]], [[0.1], [0.9]]])
    assert np.median(moved) == pytest.approx(1e-2, rel=0.1)  # one step of Adam; that of the columns has 1e-4
    plain = keras.Model(model.inputs, model.output)
    plain.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(plain(x)["shape"], loaded(x)["shape"])


def test_readme_makes_a_kind_of_unit():
    found = {}
    exec(next(block for block in blocks("python") if "PlaceCrossStitch" in block), found)
    unit = found["PlaceCrossStitch"](init=0.8)
    x, y = (np.full((1, 4, 5, 3), value, np.float32) for value in (1, 2))
    np.testing.assert_allclose(unit([x, y])[0], np.full((1, 4, 5, 3), 0.8 + 0.4), rtol=1e-6)
    np.testing.assert_allclose(unit.mean_alpha(), [[0.8, 0.2], [0.2, 0.8]], rtol=1e-6)


def test_the_project_speaks_of_itself_alone():
    """No path of a machine, no unfinished place."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in files or [path.name for path in ROOT.glob("*.md")]:
        path = ROOT / name
        if (
            path.suffix in (".py", ".md", ".toml", ".yml", ".cff")
            and path.exists()
            and path != ROOT / "tests" / "test_repository.py"
        ):
            assert not re.search(r"TODO|FIXME|XXX", path.read_text()), name
