"""The table of experiments: what is trained, and what is compared. PROTOCOL.md has their questions and their seeds.

To add an experiment, write an entry here, run it, and make the tables:

    python -m benchmarks run NAME --seeds 0-4
    python -m benchmarks report

A setting is made of the script's own arguments, in a dict. What is not named has the script's default, so `{}` is a
network of two columns with units, one alpha for each channel, that start as the identity. This setting is called
`channel`. The same columns without units are called `baseline`. (In older experiments on landmarks the two are called
"cross-stitch" and "two columns". The names are stored with the results, so they stay. For the same reason a trunk with
as many parameters as two columns is called "trunk, equal weights"; its losses are weighted like those of the others.)

The paper is Misra et al. 2016, arXiv:1604.03539. The scripts cite it, the code of 2018, and the poster.
"""

from dataclasses import dataclass

GARMENTS = "fashion_mnist_multi_task_learning"
FACES = "gender_age_multi_task_learning"
LANDMARKS = "facial_landmark_multi_task_learning"

ACCURACY = {"item": "test/item", "group": "test/group", "mean of tasks": "test/accuracy"}
ACCURACY_LATE = ACCURACY | {"mean of tasks, last ten evaluations": "late/accuracy"}
ACCURACY_OF_FACES = {"gender": "test/gender", "age": "test/age", "mean of tasks": "test/accuracy"}
ERRORS = {"failure rate": "test/failure_rate", "mean error": "test/mean_error"}
ATTRIBUTES = {f"{task} (AFLW)": f"aflw/{task}" for task in ("gender", "smile", "glasses", "pose")}


@dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        runs: The arguments of each process that trains, dicts. There is more than one where the tasks are trained
            apart.
        untrained: The names of the measures that say nothing, since their task was not trained. `group` stands for
            test/group and validation/group, `landmarks` for the error of each landmark in each part of the data.
    """

    runs: tuple
    untrained: tuple = ()


@dataclass(frozen=True)
class Comparison:
    """A measure of one setting minus that of another one, in a table of its own."""

    measure: str
    setting: str
    other: str


@dataclass(frozen=True)
class Experiment:
    """Settings of one script that are compared, seed by seed.

    Attributes:
        title: What is trained on, in words.
        script: The script, without .py.
        settings: {name: `Setting`}.
        measures: {column of the table: measure}. A measure is a part of the data and a name in results.json, as in
            test/accuracy, which is measured after the last epoch. late/accuracy is the mean of the last ten evaluations
            on the test images, of settings that are trained in one process and evaluated more than ten times.
        primary: The measure in which each setting is compared with the baseline; one of `measures`' values.
        baseline: The setting that the others are compared with.
        comparisons: Further `Comparison`s, also of other measures.
        stored: Whether results are kept in the repository.
    """

    title: str
    script: str
    settings: dict
    measures: dict
    primary: str
    baseline: str = "baseline"
    comparisons: tuple = ()
    stored: bool = True


def one(common, untrained=(), **arguments):
    """Return the `Setting` with one run, whose arguments are those in `common` and `arguments`."""
    return Setting(({**common, **arguments},), untrained)


def apart(common, tasks):
    """Return the `Setting` in which every task is trained in a run of its own, by a single column."""
    return Setting(tuple({**common, "tasks": [task]} for task in tasks))


def decaying(n_epoch):
    """Return the arguments of a training over `n_epoch` epochs whose learning rate halves six times.

    At a constant rate the accuracy jumps, and the jump of the last evaluation can be larger than what is compared.
    """
    return {"n_epoch": n_epoch, "lr_half_life": n_epoch / 6}


# `untrained` is no argument of a script: `one` takes it out.
BASELINE = {"cross_stitch_enabled": False}
ONE_HALF = {"cross_stitch_init": 0.5}
PAPER = {"cross_stitch_init": 0.9, "cross_stitch_lr_scale": 100.0}
BFLOAT16 = {"precision": "bfloat16"}
# The weights are those of (item, group) and of (gender, age).
NO_GROUP = {**ONE_HALF, "task_weights": [1.0, 0.0], "untrained": ("group", "accuracy")}
NO_ITEM = {**ONE_HALF, "task_weights": [0.0, 1.0], "untrained": ("item", "accuracy")}
NO_GENDER = {**ONE_HALF, "task_weights": [0.0, 1.0], "untrained": ("gender", "accuracy")}
NO_AGE = {**ONE_HALF, "task_weights": [1.0, 0.0], "untrained": ("age", "accuracy")}
NO_ATTRIBUTES = {"aux_lambda": [0.0], "untrained": ("gender", "smile", "glasses", "pose")}
NO_LANDMARKS = {
    "landmark_lambda": 0.0,
    "untrained": (
        "mean_error",
        "failure_rate",
        "mean_error_interocular",
        "failure_rate_interocular",
        "landmarks",
    ),
}
STARTS = {"baseline": BASELINE, "channel": {}, "init 0.5": ONE_HALF}
NOT_TRAINED = {"init 0.5, group not trained": NO_GROUP, "init 0.5, item not trained": NO_ITEM}


def of(common, table):
    """Return {name: Setting} of a table {name: arguments}."""
    return {name: one(common, **arguments) for name, arguments in table.items()}


# What a task gains by a second column that has no task of its own, and what it gains further if that column is also
# trained for its own task.
WHERE_IT_COMES_FROM = (
    Comparison("test/item", "init 0.5, group not trained", "baseline"),
    Comparison("test/item", "init 0.5", "init 0.5, group not trained"),
    Comparison("test/group", "init 0.5, item not trained", "baseline"),
    Comparison("test/group", "init 0.5", "init 0.5, item not trained"),
)
LEARNING_ALPHA = Comparison("test/accuracy", "init 0.5", "init 0.5, α fixed")
TWO_STARTS = Comparison("test/accuracy", "init 0.5", "channel")
SHARING = (*WHERE_IT_COMES_FROM, LEARNING_ALPHA, TWO_STARTS)
LATE = tuple(Comparison("late/accuracy", setting, "baseline") for setting in ("channel", "init 0.5"))

ABLATIONS = {  # what differs from `channel` in one thing
    "layer": {"cross_stitch_unit": "layer"},
    "activation": {"cross_stitch_unit": "activation"},
    "init 0.9": {"cross_stitch_init": 0.9},
    "units' rate × 10": {"cross_stitch_lr_scale": 10.0},
    "units' rate × 100": {"cross_stitch_lr_scale": 100.0},
    "units' rate × 1000": {"cross_stitch_lr_scale": 1000.0},
    "pretrained, 5 epochs": {"pretrain_epoch": 5},
    "unit at pool_1 only": {"cross_stitch_at": ["pool_1"]},
    "unit at pool_2 only": {"cross_stitch_at": ["pool_2"]},
    "unit at fc_3 only": {"cross_stitch_at": ["fc_3"]},
}


def scarce(fraction, n_epoch, decay=True, **further):
    """Return the settings on a part of the training images, evaluated every 141 steps.

    `n_epoch` is chosen so that each part is trained for 1,410 to 1,500 steps. The columns are trained alone for a part
    of these epochs.
    """
    common = {"train_fraction": fraction, "n_epoch": n_epoch, "eval_every": 141}
    if decay:
        common |= decaying(n_epoch)
    table = {
        "baseline": BASELINE,
        "channel": {},
        "channel, as in the paper": {**PAPER, "pretrain_epoch": n_epoch // 3},
        **further,
    }
    return {"single-task": apart(common, ("item", "group")), **of(common, table)}


FROM_ONE_HALF = {"init 0.5": ONE_HALF, **NOT_TRAINED, "init 0.5, α fixed": {**ONE_HALF, "cross_stitch_lr_scale": 0.0}}

LANDMARK_TABLE = {
    "one network, landmarks alone": {"network": "single"},
    "one network, split": {"network": "split"},
    "two columns": BASELINE,
    "cross-stitch": {},
    "cross-stitch, attributes not trained": NO_ATTRIBUTES,
    "cross-stitch, related weights, l2": {"weight_reg": "l2", "weight_reg_lambda": 1e-6},
    "cross-stitch, related weights, exp": {"weight_reg": "exp", "weight_reg_lambda": 1e-2},
    "two columns, no L2": {**BASELINE, "reg_lambda": 0.0},
    "cross-stitch, no L2": {"reg_lambda": 0.0},
    "cross-stitch, attributes not trained, no L2": {**NO_ATTRIBUTES, "reg_lambda": 0.0},
}
# The second column has no task of its own. (With the L2 loss its weights would be drawn to zero.)
CONTROL = "cross-stitch, attributes not trained, no L2"
CONTROL_OF_ATTRIBUTES = "cross-stitch, landmarks not trained, no L2"
WIDE = "one network, twice as wide, no L2"


def landmark_comparisons():
    """Return the comparisons of the attributes on MTFL without L2."""
    pairs = (
        ("cross-stitch, no L2", "two columns, no L2"),
        (CONTROL_OF_ATTRIBUTES, "two columns, no L2"),
        ("cross-stitch, no L2", CONTROL_OF_ATTRIBUTES),
    )
    return tuple(Comparison(measure, *pair) for measure in ATTRIBUTES.values() for pair in pairs)


# The code of 2018 has a dense unit, `activation`: one alpha for each pair of activations. SETTING_2018.md tells more.
SETTING_2018 = {"preset": "2018", **BFLOAT16}
TABLE_2018 = {
    "baseline": {**BASELINE, "cross_stitch_unit": "channel"},
    "channel": {"cross_stitch_unit": "channel"},
    "activation": {},
}
POSTER = {"preset": "poster", "eval_every": 630}  # evaluated every ten of its 100 epochs

# ---- the paper's rival: hard sharing, see PROTOCOL.md

# One trunk for both tasks, up to the last layer after which there could be a unit.
TRUNK_OF_GARMENTS, TRUNK_OF_FACES = {"split_after": "fc_3"}, {"split_after": "fc_4"}
TRUNK_OF_LANDMARKS = {"split_after": "fc_5"}
EQUAL_WEIGHTS = {"width": 1.41}  # a trunk of this width has about as many weights as two columns
DOUBLE = {"width": 2.0}


def sharing_settings(common, tasks, trunk, splits):
    """Return unstitched and stitched columns, single networks, trunks of three widths, and splits at lower layers."""
    table = {
        "baseline": BASELINE,
        "channel": {},
        "init 0.5": ONE_HALF,
        "trunk": trunk,
        "trunk, equal weights": {**trunk, **EQUAL_WEIGHTS},
        "trunk, double width": {**trunk, **DOUBLE},
        **{f"split after {layer}": {"split_after": layer, **BASELINE} for layer in splits},
    }
    return {
        **of(common, table),
        "single-task": apart(common, tasks),
        "single-task, double width": apart({**common, **DOUBLE}, tasks),
    }


def recipe_settings(common, n_epoch):
    """Return the parts of the published recipe, each alone, and all of it. The pretraining is a part of `n_epoch`."""
    pretrained = {"pretrain_epoch": n_epoch // 3}
    table = {
        "baseline": BASELINE,
        "channel": {},
        "init 0.9": {"cross_stitch_init": 0.9},
        "pretrained": pretrained,
        "units' rate × 100": {"cross_stitch_lr_scale": 100.0},
        "units' rate × 1000": {"cross_stitch_lr_scale": 1000.0},
        "recipe, × 100": {**PAPER, **pretrained},
        "recipe, × 1000": {**PAPER, **pretrained, "cross_stitch_lr_scale": 1000.0},
    }
    return of(common, table)


VALIDATED = {"validation_fraction": 0.2, **BFLOAT16}
VALIDATION = {"mean of tasks (validation)": "validation/accuracy"}
QUARTER = {"train_fraction": 0.25, **decaying(12), **BFLOAT16}

EXPERIMENTS = {
    "full": Experiment(
        "Fashion-MNIST, all 60,000 training images, 30 epochs, constant learning rate",
        GARMENTS,
        of(
            {},
            {
                "baseline": BASELINE,
                "channel": {},
                "layer": {"cross_stitch_unit": "layer"},
                "channel, 0.9, ×100": PAPER,
                "baseline, batch norm over 1000 steps": {**BASELINE, "bn_momentum": 0.999},
            },
        ),
        ACCURACY_LATE,
        "test/accuracy",
        comparisons=(
            Comparison("late/accuracy", "channel", "baseline"),
            Comparison("late/accuracy", "layer", "baseline"),
            Comparison("late/accuracy", "channel, 0.9, ×100", "baseline"),
        ),
    ),
    "decaying": Experiment(
        "Fashion-MNIST, all 60,000 training images, 30 epochs",
        GARMENTS,
        of(decaying(30), STARTS),
        ACCURACY_LATE,
        "test/accuracy",
        comparisons=LATE,
    ),
    "decaying_15": Experiment(
        "Fashion-MNIST, all 60,000 training images, 15 epochs, in bfloat16",
        GARMENTS,
        of({**decaying(15), **BFLOAT16}, STARTS | NOT_TRAINED),
        ACCURACY_LATE,
        "test/accuracy",
        comparisons=(*LATE, *WHERE_IT_COMES_FROM, TWO_STARTS),
    ),
    "scarce_25": Experiment(
        "Fashion-MNIST, 25 % of the training images, 1,416 steps",
        GARMENTS,
        scarce(0.25, 12, **FROM_ONE_HALF),
        ACCURACY,
        "test/accuracy",
        comparisons=SHARING,
    ),
    "scarce_10": Experiment(
        "Fashion-MNIST, 10 % of the training images, 1,410 steps",
        GARMENTS,
        scarce(0.1, 30, **FROM_ONE_HALF, **ABLATIONS),
        ACCURACY,
        "test/accuracy",
        comparisons=SHARING,
    ),
    "scarce_5": Experiment(
        "Fashion-MNIST, 5 % of the training images, 1,440 steps",
        GARMENTS,
        scarce(0.05, 60, **FROM_ONE_HALF),
        ACCURACY,
        "test/accuracy",
        comparisons=SHARING,
    ),
    "scarce_1": Experiment(
        "Fashion-MNIST, 1 % of the training images, 1,500 steps",
        GARMENTS,
        scarce(0.01, 300, **FROM_ONE_HALF),
        ACCURACY,
        "test/accuracy",
        comparisons=SHARING,
    ),
    "constant_10": Experiment(
        "Fashion-MNIST, 10 % of the training images, constant learning rate",
        GARMENTS,
        scarce(0.1, 30, decay=False),
        ACCURACY,
        "test/accuracy",
    ),
    "constant_1": Experiment(
        "Fashion-MNIST, 1 % of the training images, constant learning rate",
        GARMENTS,
        scarce(0.01, 300, decay=False),
        ACCURACY,
        "test/accuracy",
    ),
    "gender_age": Experiment(
        "UTKFace, 12,784 training images, 8 epochs, constant learning rate",
        FACES,
        of({}, STARTS),
        ACCURACY_OF_FACES,
        "test/accuracy",
    ),
    "gender_age_decaying": Experiment(
        "UTKFace, 8 epochs, in bfloat16",
        FACES,
        of({**decaying(8), **BFLOAT16}, STARTS | {"init 0.5, gender not trained": NO_GENDER}),
        ACCURACY_OF_FACES,
        "test/accuracy",
        comparisons=(
            Comparison("test/accuracy", "init 0.5", "channel"),
            Comparison("test/age", "init 0.5", "baseline"),
            Comparison("test/age", "init 0.5, gender not trained", "baseline"),
            Comparison("test/age", "init 0.5", "init 0.5, gender not trained"),
        ),
    ),
    "three_tasks": Experiment(
        "UTKFace, 12,784 training images, 8 epochs, constant learning rate, three tasks",
        FACES,
        of({"tasks": ["gender", "age", "ethnicity"]}, {"channel": {}}),
        {"ethnicity": "test/ethnicity", **ACCURACY_OF_FACES},
        "test/accuracy",
        baseline="channel",
    ),
    # The first runs on MTFL had 8,000 training faces. One of them is also a test photo, and is left out since then.
    "landmarks": Experiment(
        "MTFL, 8,000 training faces, 20 epochs",
        LANDMARKS,
        of({"eval_every": 625}, LANDMARK_TABLE),
        {
            **ERRORS,
            "failure rate (AFLW)": "aflw/failure_rate",
            "mean error (AFLW)": "aflw/mean_error",
            **ATTRIBUTES,
        },
        "test/mean_error",
        "two columns",
        (
            Comparison("test/mean_error", "cross-stitch", "cross-stitch, attributes not trained"),
            Comparison("test/mean_error", "cross-stitch, no L2", "two columns, no L2"),
            Comparison("test/mean_error", CONTROL, "two columns, no L2"),
            Comparison("test/mean_error", "cross-stitch, no L2", CONTROL),
            Comparison("test/mean_error", "cross-stitch, related weights, l2", "cross-stitch"),
            Comparison("test/mean_error", "cross-stitch, related weights, exp", "cross-stitch"),
            Comparison("test/mean_error", "one network, split", "one network, landmarks alone"),
        ),
    ),
    "landmarks_60": Experiment(
        "MTFL, 8,000 training faces, 60 epochs",
        LANDMARKS,
        # The half-life was chosen by the single network's error on the validation faces: 1.95 % with 12, 2.00 with 18.
        of(
            {"eval_every": 625, "n_epoch": 60, "lr_half_life": 12.0},
            {
                **{
                    name: LANDMARK_TABLE[name]
                    for name in ("one network, landmarks alone", "two columns", "cross-stitch", CONTROL)
                },
                "two columns, no L2": {**BASELINE, "reg_lambda": 0.0},
                "cross-stitch, no L2": {"reg_lambda": 0.0},
            },
        ),
        {**ERRORS, **ATTRIBUTES},
        "test/mean_error",
        "two columns",
        (
            # The two differ in the L2 loss, too. The pairs without L2 below are the better ones; see PROTOCOL.md.
            Comparison("test/mean_error", "cross-stitch", CONTROL),
            Comparison("test/mean_error", "cross-stitch, no L2", "two columns, no L2"),
            Comparison("test/mean_error", "cross-stitch, no L2", CONTROL),
        ),
    ),
    "landmarks_width": Experiment(
        "MTFL, 7,999 training faces, 20 epochs, without L2, in bfloat16",
        LANDMARKS,
        of(
            {"eval_every": 625, **BFLOAT16},
            {
                **{name: LANDMARK_TABLE[name] for name in LANDMARK_TABLE if name.endswith("no L2")},
                CONTROL_OF_ATTRIBUTES: {**NO_LANDMARKS, "reg_lambda": 0.0},
                "one network, no L2": {"network": "single", "reg_lambda": 0.0},
                # The rate is the best of three by the error on the validation faces, see TRIALS.md.
                WIDE: {"network": "single", "width": 2.0, "reg_lambda": 0.0, "lr": 0.001},
            },
        ),
        {**ERRORS, **ATTRIBUTES},
        "test/mean_error",
        "two columns, no L2",
        (
            Comparison("test/mean_error", "cross-stitch, no L2", CONTROL),
            Comparison("test/mean_error", CONTROL, "one network, no L2"),
            Comparison("test/mean_error", WIDE, "one network, no L2"),
            *landmark_comparisons(),
        ),
    ),
    "bfloat16": Experiment(
        "Fashion-MNIST, 10 % of the training images, stitched, in both precisions",
        GARMENTS,
        of(
            {"train_fraction": 0.1, "eval_every": 141, **decaying(30)},
            {name: {"precision": name} for name in ("float32", "bfloat16")},
        ),
        ACCURACY,
        "test/accuracy",
        "float32",
    ),
    "bfloat16_landmarks": Experiment(
        "MTFL, 20 epochs, stitched, in both precisions",
        LANDMARKS,
        of({"eval_every": 625}, {name: {"precision": name} for name in ("float32", "bfloat16")}),
        ERRORS,
        "test/mean_error",
        "float32",
    ),
    "setting_2018": Experiment(
        "Fashion-MNIST, all 60,000 training images, the setting of 2018, 30 epochs, in bfloat16",
        GARMENTS,
        of(SETTING_2018, TABLE_2018),
        ACCURACY_LATE,
        "late/accuracy",
        comparisons=(Comparison("test/accuracy", "channel", "baseline"),),
    ),
    "dense_2018": Experiment(
        "Fashion-MNIST, all 60,000 training images, the setting of 2018, its first 20 of 30 epochs, in bfloat16",
        GARMENTS,
        of({**SETTING_2018, "n_epoch": 20}, TABLE_2018),
        ACCURACY_LATE,
        "late/accuracy",
    ),
    "dense_2018_30": Experiment(
        "Fashion-MNIST, all 60,000 training images, the setting of 2018, 30 epochs, in float32",
        GARMENTS,
        of({"preset": "2018"}, {"baseline": BASELINE, "activation": {}}),
        ACCURACY_LATE,
        "late/accuracy",
    ),
    "poster": Experiment(
        "MTFL, 7,999 training faces, the poster's setting, 100 epochs",
        LANDMARKS,
        of(
            POSTER,
            {
                "two columns": {**BASELINE, "weight_reg": "none"},
                "cross-stitch": {"weight_reg": "none"},
                "cross-stitch, related weights, l2": {},
            },
        ),
        ERRORS,
        "test/mean_error",
        "two columns",
        (Comparison("test/mean_error", "cross-stitch, related weights, l2", "cross-stitch"),),
    ),
    # ---- see PROTOCOL.md: hard sharing. The first two choose the layer after which to split.
    "split_choice": Experiment(
        "Fashion-MNIST, 25 % of the training images, splits, judged on validation images alone, in bfloat16",
        GARMENTS,
        of(
            {**QUARTER, **VALIDATED},
            {f"split after {layer}": {"split_after": layer, **BASELINE} for layer in ("pool_1", "pool_2", "fc_3")},
        ),
        VALIDATION,
        "validation/accuracy",
        "split after fc_3",
    ),
    "split_choice_faces": Experiment(
        "UTKFace, 8 epochs, splits, judged on validation images alone, in bfloat16",
        FACES,
        of(
            {**decaying(8), **VALIDATED},
            {
                f"split after {layer}": {"split_after": layer, **BASELINE}
                for layer in ("pool_1", "pool_2", "pool_3", "fc_4")
            },
        ),
        VALIDATION,
        "validation/accuracy",
        "split after fc_4",
    ),
    "sharing_garments_25": Experiment(
        "Fashion-MNIST, 25 % of the training images, 12 epochs, in bfloat16: units and hard sharing",
        GARMENTS,
        sharing_settings(QUARTER, ("item", "group"), TRUNK_OF_GARMENTS, ("pool_1", "pool_2")),
        ACCURACY,
        "test/accuracy",
        comparisons=(Comparison("test/accuracy", "init 0.5", "trunk, equal weights"),),
    ),
    "sharing_garments": Experiment(
        "Fashion-MNIST, all 60,000 training images, 15 epochs, in bfloat16: units and hard sharing",
        GARMENTS,
        {
            name: setting
            for name, setting in sharing_settings(
                {**decaying(15), **BFLOAT16}, ("item", "group"), TRUNK_OF_GARMENTS, ("pool_1", "pool_2")
            ).items()
            if name
            in ("baseline", "init 0.5", "trunk", "trunk, equal weights", "split after pool_1", "split after pool_2")
        },
        ACCURACY,
        "test/accuracy",
        comparisons=tuple(
            Comparison("test/accuracy", "init 0.5", trunk) for trunk in ("trunk", "trunk, equal weights")
        ),
    ),
    "sharing_faces": Experiment(
        "UTKFace, 8 epochs, in bfloat16: units and hard sharing",
        FACES,
        sharing_settings(
            {**decaying(8), **BFLOAT16}, ("gender", "age"), TRUNK_OF_FACES, ("pool_1", "pool_2", "pool_3")
        ),
        ACCURACY_OF_FACES,
        "test/accuracy",
        comparisons=(Comparison("test/accuracy", "init 0.5", "trunk, equal weights"),),
    ),
    "sharing_landmarks": Experiment(
        "MTFL, 7,999 training faces, 20 epochs, in bfloat16: units and hard sharing",
        LANDMARKS,
        of(
            {"eval_every": 625, **BFLOAT16},
            {
                **STARTS,
                "trunk": TRUNK_OF_LANDMARKS,
                "trunk, equal weights": {**TRUNK_OF_LANDMARKS, **EQUAL_WEIGHTS},
            },
        ),
        ERRORS,
        "test/mean_error",
        comparisons=(
            Comparison("test/mean_error", "channel", "trunk"),
            Comparison("test/mean_error", "channel", "trunk, equal weights"),
            Comparison("test/mean_error", "init 0.5", "channel"),
        ),
    ),
    # ---- see PROTOCOL.md: the published recipe
    "recipe_garments": Experiment(
        "Fashion-MNIST, all 60,000 training images, 15 epochs, in bfloat16: the published recipe",
        GARMENTS,
        recipe_settings({**decaying(15), **BFLOAT16}, 15),
        ACCURACY,
        "test/accuracy",
    ),
    "recipe_garments_25": Experiment(
        "Fashion-MNIST, 25 % of the training images, 12 epochs: the published recipe, new seeds",
        GARMENTS,
        {
            name: setting
            for name, setting in recipe_settings({"train_fraction": 0.25, **decaying(12)}, 12).items()
            if name in ("baseline", "recipe, × 100", "recipe, × 1000")
        },
        ACCURACY,
        "test/accuracy",
        comparisons=(Comparison("test/accuracy", "recipe, × 1000", "recipe, × 100"),),
    ),
    "recipe_faces": Experiment(
        "UTKFace, 8 epochs, in bfloat16: the published recipe",
        FACES,
        recipe_settings({**decaying(8), **BFLOAT16}, 8),
        ACCURACY_OF_FACES,
        "test/accuracy",
    ),
    "recipe_landmarks": Experiment(
        "MTFL, 7,999 training faces, 20 epochs, in bfloat16: the published recipe",
        LANDMARKS,
        recipe_settings({"eval_every": 625, **BFLOAT16}, 20),
        ERRORS,
        "test/mean_error",
    ),
    # ---- see PROTOCOL.md: confirmations of other experiments, by new seeds
    "faces_confirmation": Experiment(
        "UTKFace, 8 epochs, in bfloat16: new seeds",
        FACES,
        of(
            {**decaying(8), **BFLOAT16},
            STARTS | {"init 0.5, gender not trained": NO_GENDER, "init 0.5, age not trained": NO_AGE},
        ),
        ACCURACY_OF_FACES,
        "test/accuracy",
        comparisons=(
            Comparison("test/accuracy", "init 0.5", "channel"),
            Comparison("test/age", "init 0.5", "init 0.5, gender not trained"),
            Comparison("test/gender", "init 0.5", "init 0.5, age not trained"),
        ),
    ),
    "garments_confirmation": Experiment(
        "Fashion-MNIST, all 60,000 training images, 30 epochs: new seeds",
        GARMENTS,
        of(decaying(30), STARTS),
        ACCURACY_LATE,
        "test/accuracy",
        comparisons=(Comparison("test/accuracy", "init 0.5", "channel"),),
    ),
    "garments_25_confirmation": Experiment(
        "Fashion-MNIST, 25 % of the training images, 12 epochs, in bfloat16: new seeds",
        GARMENTS,
        of(
            QUARTER,
            {
                "baseline": BASELINE,
                "init 0.5": ONE_HALF,
                "trunk": TRUNK_OF_GARMENTS,
                "trunk, equal weights": {**TRUNK_OF_GARMENTS, **EQUAL_WEIGHTS},
            },
        ),
        ACCURACY,
        "test/accuracy",
        comparisons=tuple(
            Comparison("test/accuracy", "init 0.5", trunk) for trunk in ("trunk", "trunk, equal weights")
        ),
    ),
    "garments_15_confirmation": Experiment(
        "Fashion-MNIST, all 60,000 training images, 15 epochs, in bfloat16: new seeds",
        GARMENTS,
        of({**decaying(15), **BFLOAT16}, {"baseline": BASELINE, "init 0.5": ONE_HALF}),
        ACCURACY,
        "test/accuracy",
    ),
    "landmarks_confirmation": Experiment(
        "MTFL, 7,999 training faces, 20 epochs: new seeds",
        LANDMARKS,
        of({"eval_every": 625}, {"baseline": BASELINE, "channel": {}}),
        {**ERRORS, **ATTRIBUTES},
        "test/mean_error",
    ),
    # ---- to try it; its results are never stored
    "quick": Experiment(
        "Fashion-MNIST, 10 % of the training images, 6 epochs",
        GARMENTS,
        of(
            {"train_fraction": 0.1, "bn_momentum": 0.9, "n_epoch": 6, "lr_half_life": 1.0},
            {"baseline": BASELINE, "init 0.5": ONE_HALF},
        ),
        ACCURACY,
        "test/accuracy",
        stored=False,
    ),
}
