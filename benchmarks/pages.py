"""What the pages show: the rows of their tables, as experiments and settings, and what they say of them."""

PARTS_OF_GARMENTS = ["scarce_1", "scarce_5", "scarce_10", "scarce_25"]
GARMENTS_TOGETHER = [*PARTS_OF_GARMENTS, "decaying_15", "decaying"]
README_COLUMNS = ["units from the identity", "units from one half", "the paper's recipe", "one trunk"]
README_ROWS = {  # what it says: the experiment and the setting of each column; see PROTOCOL.md
    "all garments, 15 epochs": [
        ("recipe_garments", "channel"),
        ("sharing_garments", "init 0.5"),
        ("recipe_garments", "recipe, × 100"),
        ("sharing_garments", "trunk"),
    ],
    "all garments, 15 epochs, older runs": [("decaying_15", "channel"), ("decaying_15", "init 0.5"), None, None],
    "a quarter of the garments, 12 epochs": [
        ("sharing_garments_25", "channel"),
        ("sharing_garments_25", "init 0.5"),
        None,
        ("sharing_garments_25", "trunk"),
    ],
    "faces, 8 epochs": [
        ("sharing_faces", "channel"),
        ("sharing_faces", "init 0.5"),
        ("recipe_faces", "recipe, × 100"),
        ("sharing_faces", "trunk"),
    ],
    "faces, 8 epochs, eight further seeds": [None, ("faces_confirmation", "init 0.5"), None, None],
    "faces, 8 epochs, older runs": [
        ("gender_age_decaying", "channel"),
        ("gender_age_decaying", "init 0.5"),
        None,
        None,
    ],
    "landmarks, 20 epochs": [("recipe_landmarks", "channel"), None, ("recipe_landmarks", "recipe, × 100"), None],
    "landmarks, 20 epochs, older runs": [
        ("landmarks", "cross-stitch"),
        None,
        None,
        ("landmarks", "one network, split"),
    ],
    "landmarks, 60 epochs, older runs": [("landmarks_60", "cross-stitch"), None, None, None],
}
MAIN_ROWS = {  # of RESULTS.md's main table and of results.png: {title: [(what it says, the experiment, the setting)]}
    "all garments, 15 epochs": [
        ("units from the identity", "recipe_garments", "channel"),
        ("units from one half", "sharing_garments", "init 0.5"),
        ("units, the paper's recipe", "recipe_garments", "recipe, × 100"),
        ("one trunk", "sharing_garments", "trunk"),
    ],
    "all garments, 15 epochs, older runs": [
        ("units from the identity", "decaying_15", "channel"),
        ("units from one half", "decaying_15", "init 0.5"),
    ],
    "all garments, 30 epochs": [
        ("units from the identity", "decaying", "channel"),
        ("units from one half", "decaying", "init 0.5"),
    ],
    "a quarter of the garments, 12 epochs": [
        ("units from the identity", "sharing_garments_25", "channel"),
        ("units from one half", "sharing_garments_25", "init 0.5"),
        ("one trunk", "sharing_garments_25", "trunk"),
        ("one trunk, equal weights", "sharing_garments_25", "trunk, equal weights"),
        ("one trunk, twice as wide", "sharing_garments_25", "trunk, double width"),
        ("single networks", "sharing_garments_25", "single-task"),
        ("single networks, twice as wide", "sharing_garments_25", "single-task, double width"),
    ],
    "a tenth of the garments, 30 epochs": [
        ("units from the identity", "scarce_10", "channel"),
        ("units from one half", "scarce_10", "init 0.5"),
        ("units that stay at one half", "scarce_10", "init 0.5, α fixed"),
        ("units, the paper's recipe", "scarce_10", "channel, as in the paper"),
    ],
    "faces, 8 epochs": [
        ("units from the identity", "sharing_faces", "channel"),
        ("units from one half", "sharing_faces", "init 0.5"),
        ("units, the paper's recipe", "recipe_faces", "recipe, × 100"),
        ("one trunk up to the second pooling layer", "sharing_faces", "split after pool_2"),
        ("one trunk", "sharing_faces", "trunk"),
        ("one trunk, equal weights", "sharing_faces", "trunk, equal weights"),
    ],
    "faces, 8 epochs, eight further seeds": [
        ("units from one half", "faces_confirmation", "init 0.5"),
    ],
    "faces, 8 epochs, older runs": [
        ("units from the identity", "gender_age_decaying", "channel"),
        ("units from one half", "gender_age_decaying", "init 0.5"),
    ],
    "landmarks, 20 epochs": [
        ("units from the identity", "recipe_landmarks", "channel"),
        ("units, the paper's recipe", "recipe_landmarks", "recipe, × 100"),
    ],
    "landmarks, 20 epochs, older runs": [
        ("units from the identity", "landmarks", "cross-stitch"),
        ("units, columns related by a quadratic loss", "landmarks", "cross-stitch, related weights, l2"),
        ("units, columns related by an exponential loss", "landmarks", "cross-stitch, related weights, exp"),
        ("one network, landmarks alone", "landmarks", "one network, landmarks alone"),
        ("one trunk", "landmarks", "one network, split"),
    ],
    "landmarks, 60 epochs": [
        ("units from the identity", "landmarks_60", "cross-stitch"),
        ("one network, landmarks alone", "landmarks_60", "one network, landmarks alone"),
    ],
}
NO_GROUP, NO_ITEM = "init 0.5, group not trained", "init 0.5, item not trained"
CONTROLS = [  # what it says, the experiments, the setting, the other one, the measure
    ("units from one half, minus none", GARMENTS_TOGETHER, "init 0.5", "baseline", "test/accuracy"),
    ("units from the identity, minus none", GARMENTS_TOGETHER, "channel", "baseline", "test/accuracy"),
    ("one half, minus the identity", GARMENTS_TOGETHER, "init 0.5", "channel", "test/accuracy"),
    ("`item`: a second column without a task of its own", GARMENTS_TOGETHER, NO_GROUP, "baseline", "test/item"),
    ("`item`: that column learns `group`, too", GARMENTS_TOGETHER, "init 0.5", NO_GROUP, "test/item"),
    ("`group`: a second column without a task of its own", GARMENTS_TOGETHER, NO_ITEM, "baseline", "test/group"),
    ("`group`: that column learns `item`, too", GARMENTS_TOGETHER, "init 0.5", NO_ITEM, "test/group"),
    ("learning α, minus α that stay at one half", PARTS_OF_GARMENTS, "init 0.5", "init 0.5, α fixed", "test/accuracy"),
]
PARTS = {  # of the garments: the experiment
    "1 % of the images": "scarce_1",
    "5 %": "scarce_5",
    "10 %": "scarce_10",
    "25 %": "scarce_25",
    "all, 15 epochs": "decaying_15",
    "all, 30 epochs": "decaying",
}
GROUP_OF_ITEM = [  # what it says, the experiment, the setting
    ("a quarter of the garments: separate columns", "sharing_garments_25", "baseline"),
    ("a quarter of the garments: units from one half", "sharing_garments_25", "init 0.5"),
    ("a quarter of the garments: one trunk", "sharing_garments_25", "trunk"),
    ("all garments: separate columns", "sharing_garments", "baseline"),
    ("all garments: units from one half", "sharing_garments", "init 0.5"),
    ("all garments: one trunk", "sharing_garments", "trunk"),
]
SHARING = {
    "sharing_garments_25": "a quarter of the garments",
    "sharing_garments": "all garments",
    "sharing_faces": "faces",
}
SPLIT_CHOICES = {"split_choice": "a quarter of the garments", "split_choice_faces": "faces"}
SPLIT_ROWS = {  # after which layer the trunk ends: what it says, and the layer's name in each of SPLIT_CHOICES
    "the first pooling layer": ["pool_1", "pool_1"],
    "the second pooling layer": ["pool_2", "pool_2"],
    "the third pooling layer": [None, "pool_3"],
    "the last layer": ["fc_3", "fc_4"],
}
SHARING_ROWS = {  # setting: what it says, and the name under which throughput.py timed it, if it did
    "baseline": ("separate columns", "separate columns"),
    "channel": ("units from the identity", "cross-stitch units"),
    "init 0.5": ("units from one half", "cross-stitch units"),
    "split after pool_2": ("one trunk up to the second pooling layer", None),
    "trunk": ("one trunk", "one trunk"),
    "trunk, equal weights": ("one trunk, equal weights", "one trunk, equal weights"),
    "trunk, double width": ("one trunk, twice as wide", "one trunk, double width"),
    "single-task": ("single networks, one for each task", None),
    "single-task, double width": ("single networks, twice as wide", None),
}
FACES_TOGETHER = ["sharing_faces", "faces_confirmation"]  # the same settings and commit, with other seeds
SHARING_TESTS = {  # experiment: what it says, the setting, the other one; in PROTOCOL.md
    "sharing_garments_25": [
        ("one trunk, equal weights", "init 0.5", "trunk, equal weights"),
        ("one trunk, which is the best split", "init 0.5", "trunk"),
        ("separate columns", "init 0.5", "baseline"),
    ],
    "sharing_garments": [
        ("one trunk, the best split on a quarter", "init 0.5", "trunk"),
        ("separate columns", "init 0.5", "baseline"),
    ],
    "sharing_faces": [
        ("one trunk, equal weights", "init 0.5", "trunk, equal weights"),
        ("one trunk up to the second pooling layer, the best split", "init 0.5", "split after pool_2"),
        ("separate columns", "init 0.5", "baseline"),
    ],
}
RECIPE = {"recipe_garments": "all garments", "recipe_faces": "faces", "recipe_landmarks": "landmarks"}
RECIPE_ROWS = {  # setting: what it says
    "baseline": "separate columns",
    "channel": "units from the identity",
    "init 0.9": "units from 0.9 and 0.1",
    "pretrained": "columns trained alone for a third of the epochs, then units from the identity",
    "units' rate × 100": "units from the identity, their learning rate × 100",
    "units' rate × 1000": "units from the identity, their learning rate × 1000",
    "recipe, × 100": "the whole recipe, × 100",
    "recipe, × 1000": "the whole recipe, × 1000",
}
EXCHANGE = ("recipe_garments", "recipe, × 100")  # the experiment and the setting of the table of exchange
NO_GENDER = "init 0.5, gender not trained"
NO_ATTRIBUTES = "cross-stitch, attributes not trained, no L2"
ONE_WIDE, ONE = "one network, twice as wide, no L2", "one network, no L2"
FURTHER_CONTROLS = [  # what it says, the experiment, the setting, the other one, the measure
    ("faces, `age`: units from one half, minus none", "gender_age_decaying", "init 0.5", "baseline", "test/age"),
    (
        "faces, `age`: a second column without a task of its own",
        "gender_age_decaying",
        NO_GENDER,
        "baseline",
        "test/age",
    ),
    ("faces, `age`: that column learns `gender`, too", "gender_age_decaying", "init 0.5", NO_GENDER, "test/age"),
    (
        "landmarks, without L2: units from the identity, minus none",
        "landmarks_width",
        "cross-stitch, no L2",
        "two columns, no L2",
        "test/mean_error",
    ),
    (
        "landmarks, without L2: a second column without a task of its own",
        "landmarks_width",
        NO_ATTRIBUTES,
        "two columns, no L2",
        "test/mean_error",
    ),
    (
        "landmarks, without L2: that column learns attributes, too",
        "landmarks_width",
        "cross-stitch, no L2",
        NO_ATTRIBUTES,
        "test/mean_error",
    ),
    (
        "landmarks, without L2: one network twice as wide, minus one network",
        "landmarks_width",
        ONE_WIDE,
        ONE,
        "test/mean_error",
    ),
]
