"""What the pages show: the rows of their tables and the numbers in their text, by experiment and setting.

A comparison is a tuple: the experiment, the setting, the setting that it is compared with, and the measure.

The tasks are `item` and `group` for garments, `gender` and `age` for faces. For landmarks the second column learns the
attributes of a face. A measure such as test/item is the accuracy of this task on test images, test/accuracy is the mean
over the tasks, and late/accuracy is its mean over the last ten evaluations. MTFL's own test faces come from the data
set AFLW; aflw/pose is the accuracy of the pose on them.

Older runs were made before PROTOCOL.md was written. They have tables of their own, so that no result is dropped. Those
of `decaying_15` are left out there: its runs give the same accuracies as seeds 0-2 of `sharing_garments` and
`recipe_garments`, to the last digit.
"""

# The settings of experiments.py that the pages name most often. "baseline" is two columns without units that are
# trained together, by the sum of their losses.
IDENTITY = "channel"  # units that start as the identity; each channel has alphas of its own, hence the name
HALF = "init 0.5"  # units whose alphas all start at 0.5
NO_GROUP, NO_ITEM = "init 0.5, group not trained", "init 0.5, item not trained"
NO_GENDER, NO_AGE = "init 0.5, gender not trained", "init 0.5, age not trained"
RECIPE = "recipe, × 100"  # the paper's: columns trained alone first, then units from 0.9 at 100 times the columns' rate
RECIPE_1000 = "recipe, × 1000"  # the same at 1000 times the rate
TRUNK = "trunk"  # one network for all tasks up to the output layers, as wide as a column: half the parameters of two
EQUAL_TRUNK = "trunk, equal weights"  # 1.41 times as wide: as many parameters as two columns
WIDE_TRUNK = "trunk, double width"  # twice as wide: twice the parameters of two columns
SINGLE = "single-task"  # a network for each task, trained in a run of its own
WIDE_SINGLE = "single-task, double width"
# Settings of the landmarks that are trained without L2 loss.
STITCHED, TWO_COLUMNS = "cross-stitch, no L2", "two columns, no L2"
NO_ATTRIBUTES = "cross-stitch, attributes not trained, no L2"
ONE_WIDE, ONE = "one network, twice as wide, no L2", "one network, no L2"

# ---- README.md

# The table: {label of the row: [(experiment, setting) for each of README_COLUMNS, or None if it was not run]}.
README_COLUMNS = [
    "units from the identity",
    "units from 0.5",
    "the paper's recipe",
    "one trunk",
    "one trunk, equal size",
]
README_ROWS = {
    "all garments, 15 epochs, planned": [
        ("recipe_garments", IDENTITY),
        ("sharing_garments", HALF),
        ("recipe_garments", RECIPE),
        ("sharing_garments", TRUNK),
        ("sharing_garments", EQUAL_TRUNK),
    ],
    "all garments, 15 epochs, new seeds": [None, ("garments_15_confirmation", HALF), None, None, None],
    "a quarter of the garments, 12 epochs, planned": [
        ("sharing_garments_25", IDENTITY),
        ("sharing_garments_25", HALF),
        None,
        ("sharing_garments_25", TRUNK),
        ("sharing_garments_25", EQUAL_TRUNK),
    ],
    "a quarter of the garments, 12 epochs, new seeds": [
        None,
        ("garments_25_confirmation", HALF),
        None,
        ("garments_25_confirmation", TRUNK),
        ("garments_25_confirmation", EQUAL_TRUNK),
    ],
    "a quarter of the garments, 12 epochs, further new seeds": [
        None,
        None,
        ("recipe_garments_25", RECIPE),
        None,
        None,
    ],
    "faces, 8 epochs, planned": [
        ("sharing_faces", IDENTITY),
        ("sharing_faces", HALF),
        ("recipe_faces", RECIPE),
        ("sharing_faces", TRUNK),
        ("sharing_faces", EQUAL_TRUNK),
    ],
    "faces, 8 epochs, new seeds": [None, ("faces_confirmation", HALF), None, None, None],
    "landmarks, 20 epochs, planned": [
        ("recipe_landmarks", IDENTITY),
        ("sharing_landmarks", HALF),
        ("recipe_landmarks", RECIPE),
        ("sharing_landmarks", TRUNK),
        ("sharing_landmarks", EQUAL_TRUNK),
    ],
    "landmarks, 20 epochs, new seeds": [("landmarks_confirmation", IDENTITY), None, None, None, None],
    "landmarks, 60 epochs, older runs": [("landmarks_60", "cross-stitch"), None, None, None, None],
}

# ---- RESULTS.md

# The main table, and results.png: {title of a group: [(label of the row, experiment, setting)]}.
MAIN_ROWS = {
    "all garments, 15 epochs, planned": [
        ("units from the identity", "recipe_garments", IDENTITY),
        ("units from 0.5", "sharing_garments", HALF),
        ("units, the paper's recipe", "recipe_garments", RECIPE),
        ("one trunk", "sharing_garments", TRUNK),
        ("one trunk, equal size", "sharing_garments", EQUAL_TRUNK),
    ],
    "all garments, 15 epochs, new seeds": [
        ("units from 0.5", "garments_15_confirmation", HALF),
    ],
    "a quarter of the garments, 12 epochs, planned": [
        ("units from the identity", "sharing_garments_25", IDENTITY),
        ("units from 0.5", "sharing_garments_25", HALF),
        ("one trunk", "sharing_garments_25", TRUNK),
        ("one trunk, equal size", "sharing_garments_25", EQUAL_TRUNK),
        ("one trunk, twice as wide", "sharing_garments_25", WIDE_TRUNK),
        ("single networks", "sharing_garments_25", SINGLE),
        ("single networks, twice as wide", "sharing_garments_25", WIDE_SINGLE),
    ],
    "a quarter of the garments, 12 epochs, new seeds": [
        ("units from 0.5", "garments_25_confirmation", HALF),
        ("one trunk", "garments_25_confirmation", TRUNK),
        ("one trunk, equal size", "garments_25_confirmation", EQUAL_TRUNK),
    ],
    "a quarter of the garments, 12 epochs, further new seeds": [
        ("units, the paper's recipe", "recipe_garments_25", RECIPE),
        ("units, the paper's recipe, × 1000", "recipe_garments_25", RECIPE_1000),
    ],
    "faces, 8 epochs, planned": [
        ("units from the identity", "sharing_faces", IDENTITY),
        ("units from 0.5", "sharing_faces", HALF),
        ("units, the paper's recipe", "recipe_faces", RECIPE),
        ("one trunk up to the second pooling layer", "sharing_faces", "split after pool_2"),
        ("one trunk", "sharing_faces", TRUNK),
        ("one trunk, equal size", "sharing_faces", EQUAL_TRUNK),
        ("single networks", "sharing_faces", SINGLE),
    ],
    "faces, 8 epochs, new seeds": [
        ("units from 0.5", "faces_confirmation", HALF),
    ],
    "landmarks, 20 epochs, planned": [
        ("units from the identity", "recipe_landmarks", IDENTITY),
        ("units from 0.5", "sharing_landmarks", HALF),
        ("units, the paper's recipe", "recipe_landmarks", RECIPE),
        ("one trunk", "sharing_landmarks", TRUNK),
        ("one trunk, equal size", "sharing_landmarks", EQUAL_TRUNK),
    ],
    "landmarks, 20 epochs, new seeds": [
        ("units from the identity", "landmarks_confirmation", IDENTITY),
    ],
}
# The same for older runs: a table, without a figure.
OLDER_ROWS = {
    "all garments, 30 epochs": [
        ("units from the identity", "decaying", IDENTITY),
        ("units from 0.5", "decaying", HALF),
    ],
    "a tenth of the garments, 30 epochs": [
        ("units from the identity", "scarce_10", IDENTITY),
        ("units from 0.5", "scarce_10", HALF),
        ("units that stay at 0.5", "scarce_10", "init 0.5, α fixed"),
        ("units, the paper's recipe", "scarce_10", "channel, as in the paper"),
    ],
    "faces, 8 epochs, another split into training and test images": [
        ("units from the identity", "gender_age_decaying", IDENTITY),
        ("units from 0.5", "gender_age_decaying", HALF),
    ],
    "landmarks, 20 epochs": [
        ("units from the identity", "landmarks", "cross-stitch"),
        ("units, columns related by a quadratic loss", "landmarks", "cross-stitch, related weights, l2"),
        ("units, columns related by an exponential loss", "landmarks", "cross-stitch, related weights, exp"),
        ("single network, landmarks alone", "landmarks", "one network, landmarks alone"),
        ("one trunk", "landmarks", "one network, split"),
    ],
    "landmarks, 60 epochs": [
        ("units from the identity", "landmarks_60", "cross-stitch"),
        ("single network, landmarks alone", "landmarks_60", "one network, landmarks alone"),
    ],
}

# The confirmations on garments, one family for Holm's method: {label of the row: (experiment with new seeds, earlier
# one, setting, other one)}, in the mean accuracy of the tasks.
CONFIRMATIONS = {
    "a quarter: units from 0.5, minus separate columns": (
        "garments_25_confirmation",
        "sharing_garments_25",
        HALF,
        "baseline",
    ),
    "all images: units from 0.5, minus separate columns": (
        "garments_15_confirmation",
        "sharing_garments",
        HALF,
        "baseline",
    ),
    "a quarter: units from 0.5, minus one trunk": ("garments_25_confirmation", "sharing_garments_25", HALF, TRUNK),
    "a quarter: units from 0.5, minus one trunk, equal size": (
        "garments_25_confirmation",
        "sharing_garments_25",
        HALF,
        EQUAL_TRUNK,
    ),
}

# How far a trunk for all tasks goes: {experiment: head of its column}, and {label of the row: the name of the layer in
# each of these experiments, in this order}.
SPLIT_CHOICES = {"split_choice": "a quarter of the garments", "split_choice_faces": "faces"}
SPLIT_ROWS = {
    "the first pooling layer": ["pool_1", "pool_1"],
    "the second pooling layer": ["pool_2", "pool_2"],
    "the third pooling layer": [None, "pool_3"],
    "the fully connected layer": ["fc_3", "fc_4"],
}

# Units compared with hard sharing: {experiment: head of its column}, and {setting: label of its row}.
SHARING = {
    "sharing_garments_25": "a quarter of the garments",
    "sharing_garments": "all garments",
    "sharing_faces": "faces",
    "sharing_landmarks": "landmarks",
}
SHARING_ROWS = {
    "baseline": "separate columns",
    IDENTITY: "units from the identity",
    HALF: "units from 0.5",
    "split after pool_2": "one trunk up to the second pooling layer",
    TRUNK: "one trunk",
    EQUAL_TRUNK: "one trunk, equal size",
    WIDE_TRUNK: "one trunk, twice as wide",
    SINGLE: "single networks, one for each task",
    WIDE_SINGLE: "single networks, twice as wide",
}
TIMED_AS = {  # {setting: the name under which throughput.py timed its steps}
    "baseline": "separate columns",
    IDENTITY: "cross-stitch units",
    HALF: "cross-stitch units",
    TRUNK: "one trunk",
    EQUAL_TRUNK: "one trunk, equal weights",
    WIDE_TRUNK: "one trunk, double width",
}
# The tests of PROTOCOL.md, one family for Holm's method: {label of the row: comparison}. The chosen split is that of
# SPLIT_CHOICES with the highest accuracy on validation images.
SHARING_TESTS = {
    "a quarter of the garments: 0.5 minus one trunk, equal size": (
        "sharing_garments_25",
        HALF,
        EQUAL_TRUNK,
        "test/accuracy",
    ),
    "a quarter of the garments: 0.5 minus one trunk (the chosen split)": (
        "sharing_garments_25",
        HALF,
        TRUNK,
        "test/accuracy",
    ),
    "a quarter of the garments: 0.5 minus separate columns": (
        "sharing_garments_25",
        HALF,
        "baseline",
        "test/accuracy",
    ),
    "all garments: 0.5 minus one trunk, equal size": ("sharing_garments", HALF, EQUAL_TRUNK, "test/accuracy"),
    "all garments: 0.5 minus one trunk (the split chosen on a quarter)": (
        "sharing_garments",
        HALF,
        TRUNK,
        "test/accuracy",
    ),
    "all garments: 0.5 minus separate columns": ("sharing_garments", HALF, "baseline", "test/accuracy"),
    "faces: 0.5 minus one trunk, equal size": ("sharing_faces", HALF, EQUAL_TRUNK, "test/accuracy"),
    "faces: 0.5 minus one trunk up to the second pooling layer (the chosen split)": (
        "sharing_faces",
        HALF,
        "split after pool_2",
        "test/accuracy",
    ),
    "faces: 0.5 minus separate columns": ("sharing_faces", HALF, "baseline", "test/accuracy"),
}
# The gains on garments by task: {label of the row: (setting, other one)}.
BY_TASK = {
    "units from 0.5, minus separate columns": (HALF, "baseline"),
    "units from 0.5, minus one trunk": (HALF, TRUNK),
    "units from 0.5, minus one trunk, equal size": (HALF, EQUAL_TRUNK),
}
BY_TASK_EXPERIMENTS = {  # {part of the heads of two columns: experiments, whose pairs are taken together}
    "a quarter": ["sharing_garments_25", "garments_25_confirmation"],
    "all": ["sharing_garments", "garments_15_confirmation"],
}

SHARING_TESTS_ON_LANDMARKS = {  # a family of their own: {label of the row: comparison}
    "units from the identity, minus one trunk": ("sharing_landmarks", IDENTITY, TRUNK, "test/mean_error"),
    "units from the identity, minus one trunk, equal size": (
        "sharing_landmarks",
        IDENTITY,
        EQUAL_TRUNK,
        "test/mean_error",
    ),
    "units from 0.5, minus units from the identity": ("sharing_landmarks", HALF, IDENTITY, "test/mean_error"),
}

# Runs of another experiment with the same baseline, where a setting of SHARING_ROWS was only trained there.
ALSO_IN = {("sharing_garments", IDENTITY): "recipe_garments"}

# The paper's recipe and its parts: {experiment: head of its column}, and {setting: label of its row}.
RECIPE_EXPERIMENTS = {
    "recipe_garments": "all garments",
    "recipe_garments_25": "a quarter of the garments, new seeds",
    "recipe_faces": "faces",
    "recipe_landmarks": "landmarks",
}
RECIPE_ROWS = {
    "baseline": "separate columns",
    IDENTITY: "units from the identity",
    "init 0.9": "units from 0.9 and 0.1",
    "pretrained": "columns trained alone for a third of the epochs, then units from the identity",
    "units' rate × 100": "units from the identity, their learning rate × 100",
    "units' rate × 1000": "units from the identity, their learning rate × 1000",
    RECIPE: "the whole recipe, × 100",
    RECIPE_1000: "the whole recipe, × 1000",
}
RECIPE_TESTS = {  # in new seeds on a quarter of the garments, a family of their own: {label of the row: comparison}
    "the whole recipe, × 100, minus separate columns": ("recipe_garments_25", RECIPE, "baseline", "test/accuracy"),
    "the whole recipe, × 1000, minus × 100": ("recipe_garments_25", RECIPE_1000, RECIPE, "test/accuracy"),
}
# The networks of `python -m benchmarks exchange` that RESULTS.md shows: {name of the table: (experiment, setting)}.
EXCHANGES = {"exchange": ("recipe_garments", RECIPE), "exchange on landmarks": ("landmarks_confirmation", IDENTITY)}

FEW_GARMENTS = ["scarce_1", "scarce_5", "scarce_10", "scarce_25"]  # the only ones with alphas that stay at 0.5
ALL_SIZES = [*FEW_GARMENTS, "decaying_15", "decaying"]
# Where the gain comes from, pooled over experiments: {label of the row: (experiments, setting, other one, measure)}.
CONTROLS = {
    "units from 0.5, minus separate columns": (ALL_SIZES, HALF, "baseline", "test/accuracy"),
    "units from the identity, minus separate columns": (ALL_SIZES, IDENTITY, "baseline", "test/accuracy"),
    "units from 0.5, minus units from the identity": (ALL_SIZES, HALF, IDENTITY, "test/accuracy"),
    "`item`: from a second column without a task": (ALL_SIZES, NO_GROUP, "baseline", "test/item"),
    "`item`: from the labels of `group` in addition": (ALL_SIZES, HALF, NO_GROUP, "test/item"),
    "`group`: from a second column without a task": (ALL_SIZES, NO_ITEM, "baseline", "test/group"),
    "`group`: from the labels of `item` in addition": (ALL_SIZES, HALF, NO_ITEM, "test/group"),
    "learned α, minus α that stay at 0.5": (FEW_GARMENTS, HALF, "init 0.5, α fixed", "test/accuracy"),
}
# The same on faces and landmarks, where there is one experiment for each: {label of the row: comparison}.
FURTHER_CONTROLS = {
    "faces, `age`: units from 0.5, minus separate columns": ("faces_confirmation", HALF, "baseline", "test/age"),
    "faces, `age`: from a second column without a task": ("faces_confirmation", NO_GENDER, "baseline", "test/age"),
    "faces, `age`: from the labels of `gender` in addition": ("faces_confirmation", HALF, NO_GENDER, "test/age"),
    "faces, `gender`: units from 0.5, minus separate columns": (
        "faces_confirmation",
        HALF,
        "baseline",
        "test/gender",
    ),
    "faces, `gender`: from a second column without a task": ("faces_confirmation", NO_AGE, "baseline", "test/gender"),
    "faces, `gender`: from the labels of `age` in addition": ("faces_confirmation", HALF, NO_AGE, "test/gender"),
    "landmarks: units from the identity, minus separate columns": (
        "landmarks_width",
        STITCHED,
        TWO_COLUMNS,
        "test/mean_error",
    ),
    "landmarks: from a second column without a task": (
        "landmarks_width",
        NO_ATTRIBUTES,
        TWO_COLUMNS,
        "test/mean_error",
    ),
    "landmarks: from the labels of the attributes in addition": (
        "landmarks_width",
        STITCHED,
        NO_ATTRIBUTES,
        "test/mean_error",
    ),
    "landmarks: one network twice as wide, minus one network": ("landmarks_width", ONE_WIDE, ONE, "test/mean_error"),
}

# With few and with many training images of garments: {label of the row: experiment}.
TRAINING_SIZES = {
    "1 % of the images": "scarce_1",
    "5 %": "scarce_5",
    "10 %": "scarce_10",
    "25 %": "scarce_25",
    "all, 15 epochs": "decaying_15",
    "all, 30 epochs": "decaying",
}

# `group` as the network's output, and read off the predicted `item`: (label of the row, experiment, setting).
GROUP_OF_ITEM = [
    ("a quarter of the garments: separate columns", "sharing_garments_25", "baseline"),
    ("a quarter of the garments: units from 0.5", "sharing_garments_25", HALF),
    ("a quarter of the garments: one trunk", "sharing_garments_25", TRUNK),
    ("all garments: separate columns", "sharing_garments", "baseline"),
    ("all garments: units from 0.5", "sharing_garments", HALF),
    ("all garments: one trunk", "sharing_garments", TRUNK),
]

# ---- numbers in the text of all pages

# {NAME of `<!-- value: NAME -->`: the comparison whose gain and interval it is}
GAINS = {
    "half minus identity on a quarter": ("sharing_garments_25", HALF, IDENTITY, "test/accuracy"),
    "half minus equal trunk on a quarter": ("sharing_garments_25", HALF, EQUAL_TRUNK, "test/accuracy"),
    "half on a quarter": ("sharing_garments_25", HALF, "baseline", "test/accuracy"),
    "half on all": ("sharing_garments", HALF, "baseline", "test/accuracy"),
    "recipe on all": ("recipe_garments", RECIPE, "baseline", "test/accuracy"),
    "recipe on faces": ("recipe_faces", RECIPE, "baseline", "test/accuracy"),
    "recipe on landmarks": ("recipe_landmarks", RECIPE, "baseline", "test/mean_error"),
    "half on a quarter, new seeds": ("garments_25_confirmation", HALF, "baseline", "test/accuracy"),
    "half on all, new seeds": ("garments_15_confirmation", HALF, "baseline", "test/accuracy"),
    "half minus equal trunk on a quarter, new seeds": ("garments_25_confirmation", HALF, EQUAL_TRUNK, "test/accuracy"),
    "half minus trunk on a quarter, new seeds": ("garments_25_confirmation", HALF, TRUNK, "test/accuracy"),
    "trunk on a quarter": ("sharing_garments_25", TRUNK, "baseline", "test/accuracy"),
    "trunk on a quarter, new seeds": ("garments_25_confirmation", TRUNK, "baseline", "test/accuracy"),
    "wide trunk on a quarter": ("sharing_garments_25", WIDE_TRUNK, "baseline", "test/accuracy"),
    "wide single networks on a quarter": ("sharing_garments_25", WIDE_SINGLE, "baseline", "test/accuracy"),
    "wide trunk minus half": ("sharing_garments_25", WIDE_TRUNK, HALF, "test/accuracy"),
    "wide single networks minus half": ("sharing_garments_25", WIDE_SINGLE, HALF, "test/accuracy"),
    "wide trunk minus wide single networks": ("sharing_garments_25", WIDE_TRUNK, WIDE_SINGLE, "test/accuracy"),
    "trunk minus single networks": ("sharing_garments_25", TRUNK, SINGLE, "test/accuracy"),
    "recipe on a tenth": ("scarce_10", "channel, as in the paper", "baseline", "test/accuracy"),
    "half minus equal trunk on all": ("sharing_garments", HALF, EQUAL_TRUNK, "test/accuracy"),
    "half minus trunk on all": ("sharing_garments", HALF, TRUNK, "test/accuracy"),
    "identity on a quarter": ("sharing_garments_25", IDENTITY, "baseline", "test/accuracy"),
    "half minus trunk on a quarter": ("sharing_garments_25", HALF, TRUNK, "test/accuracy"),
    "identity on all": ("recipe_garments", IDENTITY, "baseline", "test/accuracy"),
    "recipe minus identity on all": ("recipe_garments", RECIPE, IDENTITY, "test/accuracy"),
    "setting of 2018": ("setting_2018", IDENTITY, "baseline", "late/accuracy"),
    "half on faces": ("sharing_faces", HALF, "baseline", "test/accuracy"),
    "half on faces, confirmation": ("faces_confirmation", HALF, "baseline", "test/accuracy"),
    "half on faces, age": ("sharing_faces", HALF, "baseline", "test/age"),
    "half on faces, gender": ("sharing_faces", HALF, "baseline", "test/gender"),
    "half on faces, confirmation, age": ("faces_confirmation", HALF, "baseline", "test/age"),
    "half on faces, confirmation, gender": ("faces_confirmation", HALF, "baseline", "test/gender"),
    "half on faces, older": ("gender_age_decaying", HALF, "baseline", "test/accuracy"),
    "half minus trunk on faces": ("sharing_faces", HALF, TRUNK, "test/accuracy"),
    "half minus equal trunk on faces": ("sharing_faces", HALF, EQUAL_TRUNK, "test/accuracy"),
    "single networks on faces": ("sharing_faces", SINGLE, "baseline", "test/accuracy"),
    "recipe minus identity on faces": ("recipe_faces", RECIPE, IDENTITY, "test/accuracy"),
    "identity on landmarks": ("recipe_landmarks", IDENTITY, "baseline", "test/mean_error"),
    "identity on landmarks, new seeds": ("landmarks_confirmation", IDENTITY, "baseline", "test/mean_error"),
    "pose, new seeds": ("landmarks_confirmation", IDENTITY, "baseline", "aflw/pose"),
    "glasses, new seeds": ("landmarks_confirmation", IDENTITY, "baseline", "aflw/glasses"),
    "recipe × 1000 on landmarks": ("recipe_landmarks", RECIPE_1000, "baseline", "test/mean_error"),
    "recipe on a quarter": ("recipe_garments_25", RECIPE, "baseline", "test/accuracy"),
    "recipe × 1000 minus × 100 on a quarter": ("recipe_garments_25", RECIPE_1000, RECIPE, "test/accuracy"),
    "recipe × 1000 on a quarter": ("recipe_garments_25", RECIPE_1000, "baseline", "test/accuracy"),
    "rate × 1000 on landmarks": ("recipe_landmarks", "units' rate × 1000", "baseline", "test/mean_error"),
    "recipe minus identity on landmarks": ("recipe_landmarks", RECIPE, IDENTITY, "test/mean_error"),
    "identity minus pretrained on landmarks": ("recipe_landmarks", IDENTITY, "pretrained", "test/mean_error"),
    "half minus identity on landmarks": ("sharing_landmarks", HALF, IDENTITY, "test/mean_error"),
    "half on landmarks": ("sharing_landmarks", HALF, "baseline", "test/mean_error"),
    "identity minus equal trunk on landmarks": ("sharing_landmarks", IDENTITY, EQUAL_TRUNK, "test/mean_error"),
    "identity on landmarks, 60 epochs": ("landmarks_60", "cross-stitch", "two columns", "test/mean_error"),
    "age, from a column": ("faces_confirmation", NO_GENDER, "baseline", "test/age"),
    "age, from labels": ("faces_confirmation", HALF, NO_GENDER, "test/age"),
    "age, from a column, older": ("gender_age_decaying", NO_GENDER, "baseline", "test/age"),
    "age, from labels, older": ("gender_age_decaying", HALF, NO_GENDER, "test/age"),
    "gender, from a column": ("faces_confirmation", NO_AGE, "baseline", "test/gender"),
    "gender, from labels": ("faces_confirmation", HALF, NO_AGE, "test/gender"),
    "landmarks, from a column": ("landmarks_width", NO_ATTRIBUTES, TWO_COLUMNS, "test/mean_error"),
    "landmarks, from labels": ("landmarks_width", STITCHED, NO_ATTRIBUTES, "test/mean_error"),
    "pose": ("landmarks_width", STITCHED, TWO_COLUMNS, "aflw/pose"),
    "glasses": ("landmarks_width", STITCHED, TWO_COLUMNS, "aflw/glasses"),
}
FACES_TOGETHER = ["sharing_faces", "faces_confirmation"]  # the same settings, commit and test images, with other seeds
# Gains pooled over experiments: {NAME: (experiments, setting, other one, measure)}
POOLED_GAINS = {
    "item, from a column": CONTROLS["`item`: from a second column without a task"],
    "item, from labels": CONTROLS["`item`: from the labels of `group` in addition"],
    "group, from a column": CONTROLS["`group`: from a second column without a task"],
    "group, from labels": CONTROLS["`group`: from the labels of `item` in addition"],
    "learned minus fixed": CONTROLS["learned α, minus α that stay at 0.5"],
    "half minus equal trunk on a quarter, together": (
        BY_TASK_EXPERIMENTS["a quarter"],
        HALF,
        EQUAL_TRUNK,
        "test/accuracy",
    ),
    "half on all, together": (BY_TASK_EXPERIMENTS["all"], HALF, "baseline", "test/accuracy"),
    "half on faces, together": (FACES_TOGETHER, HALF, "baseline", "test/accuracy"),
    "half on faces, together, age": (FACES_TOGETHER, HALF, "baseline", "test/age"),
    "half on faces, together, gender": (FACES_TOGETHER, HALF, "baseline", "test/gender"),
}
