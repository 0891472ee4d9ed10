"""Make all tables, numbers and figures of the pages from the stored runs.

In a page, what stands between `<!-- table: NAME -->` or `<!-- value: NAME -->` and `<!-- end -->` is made here, by the
function that `MAKERS` has for "table: NAME" or "value: NAME". What the tables show is chosen in pages.py. TABLES.md is
made whole, by tables.py.
"""

import re

import numpy as np
import pandas as pd

from . import analysis, figures, speed
from .analysis import RESULTS, gains
from .experiments import EXPERIMENTS
from .markdown import in_brackets, mean_and_deviation, p_value, percent, table, with_interval
from .pages import (
    ALSO_IN,
    BY_TASK,
    BY_TASK_EXPERIMENTS,
    CONFIRMATIONS,
    CONTROLS,
    EQUAL_TRUNK,
    EXCHANGES,
    FACES_TOGETHER,
    FURTHER_CONTROLS,
    GAINS,
    GROUP_OF_ITEM,
    HALF,
    IDENTITY,
    MAIN_ROWS,
    OLDER_ROWS,
    POOLED_GAINS,
    README_COLUMNS,
    README_ROWS,
    RECIPE,
    RECIPE_EXPERIMENTS,
    RECIPE_ROWS,
    RECIPE_TESTS,
    SHARING,
    SHARING_ROWS,
    SHARING_TESTS,
    SHARING_TESTS_ON_LANDMARKS,
    SPLIT_CHOICES,
    SPLIT_ROWS,
    TIMED_AS,
    TRAINING_SIZES,
    TRUNK,
)
from .tables import (
    all_tables,
    change_of_errors,
    course_of_2018,
    differences_of_images,
    interval_over_seeds_and_images,
    mean_change_by_averaging,
    with_p_values,
)

BENCHMARKS = RESULTS.parent
ROOT = BENCHMARKS.parent
TABLES = BENCHMARKS / "TABLES.md"
PAGES = [
    ROOT / "README.md",
    BENCHMARKS / "RESULTS.md",
    BENCHMARKS / "SETTING_2018.md",
    BENCHMARKS / "SPEED.md",
    BENCHMARKS / "TRIALS.md",
]


def main(check):
    """Rewrite every page and figure that is not what the stored runs give, and return the exit status.

    With `check`, only print the names of these files, and return 1 if there are any.
    """
    runs = analysis.load()
    wanted = {path: fill(path, runs) for path in PAGES}
    wanted[TABLES] = all_tables(runs)
    # Two columns are left to runs.jsonl: the versions are long, and "majority" is nested.
    wanted[RESULTS / "runs.csv"] = runs.drop(columns=["versions", "majority"], errors="ignore").to_csv(index=False)
    changed = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if not check:
        for path in changed:
            path.write_text(wanted[path], encoding="utf-8")
    changed += figures.draw_all(runs, analysis.load_curves(), check)
    for path in changed:
        print(f"{'differs from what the data give' if check else 'made'}: {path.relative_to(ROOT)}")
    return 1 if check and changed else 0


def fill(path, runs):
    """Return the text of a page in which the content between each mark and its end is made anew.

    Raises:
        SystemExit: A mark has no end or an end has no mark, a mark is broken over two lines, or its name is unknown.
    """
    text = path.read_text(encoding="utf-8")
    pairs = re.compile(r"<!-- ((?:table|value): [^>\n]+?) -->((?:(?!<!--).)*)<!-- end -->", re.DOTALL)
    marks_and_ends = re.findall(r"<!--\s*(?:table:|value:|end\b)", text)
    if len(marks_and_ends) != 2 * len(pairs.findall(text)):  # every mark and every end has to belong to a pair
        raise SystemExit(
            f"error: {path} has a mark without <!-- end -->, an end without a mark, or a mark on two lines."
        )

    def replace(match):
        name = match[1]
        if name not in MAKERS:
            raise SystemExit(f"error: {path} has the mark <!-- {name} -->, which report.py does not know.")
        content = MAKERS[name](runs)
        if name.startswith("table"):
            content = f"\n{content}\n"
        return f"<!-- {name} -->{content}<!-- end -->"

    return pairs.sub(replace, text)


# ---- the tables of README.md and RESULTS.md: what settings gain over separate columns


def readme_table(runs):
    """Return README's table. A gain is bold if its interval lies above zero.

    A cell is empty if it was not run, or has fewer than three pairs.
    """
    rows = []
    for label, cells in README_ROWS.items():
        level, row, counts = "", [], set()
        for experiment_and_setting in cells:
            if experiment_and_setting is None:
                row.append("")
                continue
            experiment, setting = experiment_and_setting
            spec = EXPERIMENTS[experiment]
            level = level_of_baseline(runs, experiment)  # the experiments of a row have the same baseline
            pairs = gains(runs, experiment, setting, spec.baseline, spec.primary)
            if len(pairs) < analysis.FEWEST_PAIRS:
                row.append("")
                continue
            mean, bounds, _ = analysis.interval(pairs.to_numpy())
            cell = with_interval(mean, bounds)
            row.append(f"**{cell}**" if bounds[0] > 0 else cell)
            counts.add(len(pairs))
        seeds = " or ".join(map(str, sorted(counts)))
        rows.append([f"{label} ({seeds} seeds)", level, *row])
    return table(["", "separate columns", *README_COLUMNS], rows)


def gains_table(runs, groups):
    """Return a table of RESULTS.md, for groups as those of MAIN_ROWS. It has intervals that allow for other images.

    A row with fewer than three pairs is left out; TABLES.md has such runs.
    """
    rows = []
    for title, group in groups.items():
        _, first_experiment, _ = group[0]  # the experiments of a group have the same baseline
        rows.append([f"**{title}**: separate columns, {level_of_baseline(runs, first_experiment)}", "", "", "", ""])
        for words, experiment, setting in group:
            spec = EXPERIMENTS[experiment]
            pairs = gains(runs, experiment, setting, spec.baseline, spec.primary)
            if len(pairs) < analysis.FEWEST_PAIRS:
                continue
            mean, bounds, _ = analysis.interval(pairs.to_numpy())
            over_images = gain_over_images(runs, experiment, setting, spec.baseline)
            errors = change_of_errors(runs, experiment, setting, spec.baseline, spec.primary)
            rows.append([words, with_interval(mean, bounds), over_images, errors, str(len(pairs))])
    return table(["", "gain, in points", "allowing for other test images", "change of errors", "seeds"], rows)


def level_of_baseline(runs, experiment):
    """Return the accuracy of an experiment's baseline in words, as in "accuracy 93.68", or its mean error."""
    spec = EXPERIMENTS[experiment]
    measure = "mean error" if analysis.lower_is_better(spec.primary) else "accuracy"
    return f"{measure} {percent(analysis.values(runs, experiment, spec.baseline, spec.primary).mean())}"


def gain_cells(runs, experiments, setting):
    """Return a cell for each experiment: what a setting gains over the baseline, or the level of the baseline itself.

    The number of seeds is shown if it differs from the baseline's. With fewer than three pairs there is no interval,
    and the cell is empty; TABLES.md has such runs.
    """
    cells = []
    for experiment in experiments:
        experiment = ALSO_IN.get((experiment, setting), experiment)
        spec = EXPERIMENTS[experiment]
        seeds_of_baseline = len(analysis.values(runs, experiment, spec.baseline, spec.primary))
        if setting == spec.baseline:
            cells.append(f"{level_of_baseline(runs, experiment)}, {seeds_of_baseline} seeds")
            continue
        pairs = gains(runs, experiment, setting, spec.baseline, spec.primary)
        if len(pairs) < analysis.FEWEST_PAIRS:
            cells.append("")
            continue
        mean, bounds, _ = analysis.interval(pairs.to_numpy())
        note = "" if len(pairs) == seeds_of_baseline else f", {len(pairs)} seeds"
        cells.append(with_interval(mean, bounds) + note)
    return cells


def sharing_table(runs):
    """Return RESULTS.md's table that compares units with hard sharing (one trunk for all tasks), with size and time.

    The number of parameters and the time of a step are multiples of those of separate columns, on garments. Such
    a cell is empty for a setting that was not trained, or not timed, on garments.
    """
    parameters = runs[runs.experiment == "sharing_garments_25"].groupby("setting").parameters.first()
    rows = []
    for setting, label in SHARING_ROWS.items():
        weights = f"{parameters[setting] / parameters['baseline']:.1f}" if setting in parameters else ""
        time = f"{speed.relative_time(TIMED_AS[setting]):.2f}" if setting in TIMED_AS else ""
        rows.append([label, weights, time, *gain_cells(runs, SHARING, setting)])
    return table(["", "parameters", "time of a step", *(f"gain, {words}" for words in SHARING.values())], rows)


def recipe_table(runs):
    """Return RESULTS.md's table of the recipe that the paper publishes, and of its parts."""
    rows = [[label, *gain_cells(runs, RECIPE_EXPERIMENTS, setting)] for setting, label in RECIPE_ROWS.items()]
    return table(["", *(f"gain, {words}" for words in RECIPE_EXPERIMENTS.values())], rows)


def training_sizes_table(runs):
    """Return RESULTS.md's table of what units gain with few and with many training images of garments."""
    rows = []
    for label, experiment in TRAINING_SIZES.items():
        row = [label, percent(analysis.values(runs, experiment, "baseline", "test/accuracy").mean())]
        for setting in (IDENTITY, HALF):
            pairs = gains(runs, experiment, setting, "baseline", "test/accuracy")
            mean, bounds, _ = analysis.interval(pairs.to_numpy())
            row.append(f"{with_interval(mean, bounds)}, {len(pairs)} seeds")
        row.append(change_of_errors(runs, experiment, HALF, "baseline", "test/accuracy"))
        rows.append(row)
    head = ["separate columns", "units from the identity", "units from 0.5", "change of errors, from 0.5"]
    return table(["", *head], rows)


# ---- the tables of RESULTS.md: tests and controls


def confirmations_table(runs):
    """Return the table of tests in new seeds, and of the same comparisons with the earlier seeds together.

    A row with fewer than three pairs is left out, and Holm's correction is over the others.
    """
    rows, p_values, with_earlier = [], [], []
    for label, (experiment, earlier, setting, other) in CONFIRMATIONS.items():
        pairs = gains(runs, experiment, setting, other, "test/accuracy")
        if len(pairs) < analysis.FEWEST_PAIRS:
            continue
        mean, bounds, p = analysis.interval(pairs.to_numpy())
        rows.append([label, with_interval(mean, bounds), str(len(pairs))])
        p_values.append(p)
        *together, _, count = analysis.pooled(runs, [earlier, experiment], setting, other, "test/accuracy")
        with_earlier.append(f"{with_interval(*together)}, {count} pairs")
    rows = [[*row, together] for row, together in zip(with_p_values(rows, p_values), with_earlier)]
    return table(["", "new seeds", "pairs", "p", "p (Holm)", "with the planned runs"], rows)


def by_task_table(runs):
    """Return the table of what units from 0.5 gain over others, for each task of the garments."""
    head = [f"`{task}`, {words}" for words in BY_TASK_EXPERIMENTS for task in ("item", "group")]
    rows = []
    for label, (setting, other) in BY_TASK.items():
        cells = [
            pooled_gain(runs, experiments, setting, other, f"test/{task}")
            for experiments in BY_TASK_EXPERIMENTS.values()
            for task in ("item", "group")
        ]
        rows.append([label, *cells])
    return table(["points", *head], rows)


def controls_table(runs):
    """Return the table of controls on garments, pooled over experiments with seeds as clusters."""
    rows, p_values = [], []
    for label, (experiments, setting, other, measure) in CONTROLS.items():
        mean, bounds, p, count = analysis.pooled(runs, experiments, setting, other, measure)
        seeds = {seed for name in experiments for seed in gains(runs, name, setting, other, measure).index}
        rows.append([label, with_interval(mean, bounds), f"{count} ({len(seeds)})"])
        p_values.append(p)
    return table(["", "points", "pairs (seeds)", "p", "p (Holm)"], with_p_values(rows, p_values))


def comparisons_table(runs, comparisons):
    """Return a table of {label: comparison}, as gains. They are one family for Holm's method."""
    rows, p_values = [], []
    for label, comparison in comparisons.items():
        pairs = gains(runs, *comparison)
        mean, bounds, p = analysis.interval(pairs.to_numpy())
        rows.append([label, with_interval(mean, bounds), str(len(pairs))])
        p_values.append(p)
    return table(["", "gain, in points", "pairs", "p", "p (Holm)"], with_p_values(rows, p_values))


# ---- the tables of RESULTS.md that look into trained networks


def exchange_table(experiment, setting):
    """Return the table of each unit's alphas, and of how the measures change without exchange between the columns.

    Without exchange, the alphas between the columns are set to zero after the training. Where it was measured, the
    table also has the change if only a mean is exchanged (`models.outputs_with_mean_exchange`). A change is a mean over
    seeds, with its interval if there are three or more.
    """
    stored = pd.read_csv(RESULTS / "exchange.csv")
    stored = stored[(stored.experiment == experiment) & (stored.setting == setting)]
    measures = list(stored.measure.unique())
    kinds = {"without exchange": "without_exchange"}  # {in the head of a column: name in exchange.csv}
    if stored.mean_exchange.notna().any():
        kinds["if only the mean is exchanged"] = "mean_exchange"
    rows = []
    for unit, of_unit in stored.groupby("unit", sort=False):
        row = ["all units" if unit == "all" else f"`{unit}`"]
        row += [f"{of_unit.own_alpha.mean():.2f}", f"{of_unit.other_alphas_rms.mean():.2f}"]
        for measure in measures:
            of_measure = of_unit[of_unit.measure == measure]
            for column in kinds.values():
                change = (of_measure[column] - of_measure.value).dropna().to_numpy()
                row.append(with_interval(*analysis.interval(change)[:2]) if len(change) else "")
        rows.append(row)
    names = ["mean error" if measure == "test/mean_error" else f"`{measure.split('/')[1]}`" for measure in measures]
    changes = [f"{name}, change {kind}" for name in names for kind in kinds]
    return table(["", "own α, mean", "α between columns, root mean square", *changes], rows)


def change_of_alphas(runs):
    """Return how far the alphas of units from 0.5 moved on all garments: a root mean square, averaged over seeds."""
    stored = pd.read_csv(RESULTS / "exchange.csv")
    chosen = (stored.experiment == "garments_15_confirmation") & (stored.setting == HALF) & (stored.unit == "all")
    return f"{stored[chosen].alpha_change_rms.mean():.2f}"


def group_of_item_table():
    """Return the table of the accuracy of `group`, by its own output and by the group of the predicted `item`.

    Every kind of garment belongs to one group. The labels of the test images tell which one.
    """
    rows = []
    for label, experiment, setting in GROUP_OF_ITEM:
        with np.load(RESULTS / "predictions" / f"{experiment}.npz") as stored:
            items, groups = stored["truth|item"], stored["truth|group"]
            group_of_item = np.array([groups[items == item][0] for item in range(10)])
            seeds = [key.split("|")[1] for key in stored if key.startswith(f"{setting}|") and key.endswith("|group")]
            own = np.array([np.mean(stored[f"{setting}|{seed}|group"] == groups) for seed in seeds])
            derived = np.array([np.mean(group_of_item[stored[f"{setting}|{seed}|item"]] == groups) for seed in seeds])
        mean, bounds, _ = analysis.interval(derived - own)
        difference = with_interval(mean, bounds)
        rows.append([label, percent(own.mean()), percent(derived.mean()), difference, str(len(seeds))])
    return table(["", "its own output", "the group of the predicted `item`", "difference", "seeds"], rows)


# ---- the tables of choices that were made on validation images


def splits_table(runs):
    """Return RESULTS.md's table of trunks that end after different layers, by their accuracy on validation images."""
    rows = []
    for words, layers in SPLIT_ROWS.items():
        row = [words]
        for experiment, layer in zip(SPLIT_CHOICES, layers):
            accuracies = analysis.values(runs, experiment, f"split after {layer}", "validation/accuracy")
            row.append(mean_and_deviation(accuracies) if layer else "")  # None: the network has no such layer
        rows.append(row)
    return table(["the trunk ends after", *SPLIT_CHOICES.values()], rows)


def trials_table(runs, experiment, measures):
    """Return TRIALS.md's table of one-seed trials.

    Args:
        measures: {head of the column: name of the measure, on validation images}.
    """
    rows = []
    for _, trial in runs[runs.experiment == experiment].iterrows():
        rows.append([trial.setting, *(percent(trial[measure]) for measure in measures.values())])
    return table(["trial", *measures], rows)


TRIALS_OF_FACES = {"gender": "validation/gender", "age": "validation/age", "mean of tasks": "validation/accuracy"}
TRIALS_OF_LANDMARKS = {"failure rate": "validation/failure_rate", "mean error": "validation/mean_error"}


# ---- numbers in the text


def gain_with_interval(runs, experiment, setting, other, measure):
    """Return what one setting gains over another one, with its interval."""
    pairs = gains(runs, experiment, setting, other, measure)
    return with_interval(*analysis.interval(pairs.to_numpy())[:2])


def pooled_gain(runs, experiments, setting, other, measure):
    """Return what one setting gains over another one in several experiments together, with its interval."""
    return with_interval(*analysis.pooled(runs, experiments, setting, other, measure)[:2])


def gain_over_images(runs, experiment, setting, other):
    """Return the interval of a gain in the primary measure that also allows for other test images."""
    primary = EXPERIMENTS[experiment].primary
    pairs = gains(runs, experiment, setting, other, primary)
    low, high = interval_over_seeds_and_images(experiment, setting, other, list(pairs.index))
    if analysis.lower_is_better(primary):  # the interval is that of an error, and the gain is its fall
        low, high = -high, -low
    return in_brackets((low, high))


def half_on_faces_over_images(runs):
    """Return such an interval for units from 0.5 on faces, over the seeds of `FACES_TOGETHER`."""
    differences = []
    for experiment in FACES_TOGETHER:
        seeds = gains(runs, experiment, HALF, "baseline", "test/accuracy").index
        differences.append(differences_of_images(experiment, HALF, "baseline", seeds))
    return in_brackets(analysis.over_seeds_and_images(np.concatenate(differences)))


def difference_on_all_garments(runs, one, other):
    """Return what one (experiment, setting) gains over another one on all garments, with its interval.

    `gains` takes pairs within one experiment only. But `sharing_garments` and `recipe_garments` have copies of the same
    runs as baseline, so the baseline cancels if one gain is subtracted from the other.
    """
    first, second = (
        gains(runs, experiment, setting, "baseline", "test/accuracy") for experiment, setting in (one, other)
    )
    return with_interval(*analysis.interval((first - second).dropna().to_numpy())[:2])


def p_of_recipe(runs, experiment):
    """Return the p-value of the recipe's gain in an experiment, corrected by Holm's method for all that was run."""
    spec = EXPERIMENTS[experiment]
    p_values = {}
    for setting in spec.settings:
        pairs = gains(runs, experiment, setting, spec.baseline, spec.primary)
        if setting != spec.baseline and len(pairs):
            p_values[setting] = analysis.interval(pairs.to_numpy())[2]
    corrected = dict(zip(p_values, analysis.holm(list(p_values.values()))))
    return p_value(corrected[RECIPE])


def p_of_identity_on_landmarks(runs):
    """Return the p-value of the test that PROTOCOL.md fixed for the new seeds on landmarks."""
    pairs = gains(runs, "landmarks_confirmation", IDENTITY, "baseline", "test/mean_error")
    return p_value(analysis.interval(pairs.to_numpy())[2])


# {a mark: the function that makes its content from the runs}
MAKERS = {
    "table: readme": readme_table,
    "table: main": lambda runs: gains_table(runs, MAIN_ROWS),
    "table: older": lambda runs: gains_table(runs, OLDER_ROWS),
    "table: confirmations": confirmations_table,
    "table: sharing": sharing_table,
    "table: sharing tests": lambda runs: comparisons_table(runs, SHARING_TESTS),
    "table: by task": by_task_table,
    "table: splits": splits_table,
    "table: recipe": recipe_table,
    "table: recipe tests": lambda runs: comparisons_table(runs, RECIPE_TESTS),
    "table: controls": controls_table,
    "table: further controls": lambda runs: comparisons_table(runs, FURTHER_CONTROLS),
    "table: sharing tests on landmarks": lambda runs: comparisons_table(runs, SHARING_TESTS_ON_LANDMARKS),
    "table: group of item": lambda runs: group_of_item_table(),
    "table: training sizes": training_sizes_table,
    "table: 2018": course_of_2018,
    "table: trials of faces": lambda runs: trials_table(runs, "gender_age_trials", TRIALS_OF_FACES),
    "table: trials of landmarks": lambda runs: trials_table(runs, "landmark_trials", TRIALS_OF_LANDMARKS),
    "table: speed": lambda runs: speed.peers_table(),
    "table: speed of settings": lambda runs: speed.settings_table(),
    "table: speed of tasks": lambda runs: speed.tasks_table(),
    "table: speed of batches": lambda runs: speed.batches_table(),
    "table: time to accuracy": lambda runs: speed.time_to_accuracy_table(analysis.load_curves()),
    "table: machines": lambda runs: speed.machines_table(),
    "table: machines, checked": lambda runs: speed.machines_check_table(),
    "value: processor": lambda runs: speed.processor(),
    "value: averaging": lambda runs: mean_change_by_averaging(
        runs, "garments_15_confirmation", "baseline", ("test/item", "test/group")
    ),
    "value: separate columns in the setting of 2018": lambda runs: percent(
        analysis.values(runs, "setting_2018", "baseline", "late/accuracy").mean()
    ),
    "value: half on faces, together, over images": half_on_faces_over_images,
    "value: recipe minus half on all": lambda runs: difference_on_all_garments(
        runs, ("recipe_garments", RECIPE), ("sharing_garments", HALF)
    ),
    "value: half minus identity on all": lambda runs: difference_on_all_garments(
        runs, ("sharing_garments", HALF), ("recipe_garments", IDENTITY)
    ),
    "value: recipe minus trunk on all": lambda runs: difference_on_all_garments(
        runs, ("recipe_garments", RECIPE), ("sharing_garments", TRUNK)
    ),
    "value: change of alphas": change_of_alphas,
    "value: recipe minus equal trunk on all": lambda runs: difference_on_all_garments(
        runs, ("recipe_garments", RECIPE), ("sharing_garments", EQUAL_TRUNK)
    ),
    "value: p of identity on landmarks, new seeds": p_of_identity_on_landmarks,
    "value: p of recipe on all": lambda runs: p_of_recipe(runs, "recipe_garments"),
    "value: p of recipe on faces": lambda runs: p_of_recipe(runs, "recipe_faces"),
    "value: p of recipe on landmarks": lambda runs: p_of_recipe(runs, "recipe_landmarks"),
}
# (Each function keeps its own comparison by a default argument, since a loop's variable is looked up only when called.)
for name, comparison in GAINS.items():
    MAKERS[f"value: {name}"] = lambda runs, comparison=comparison: gain_with_interval(runs, *comparison)
for name, networks in EXCHANGES.items():
    MAKERS[f"table: {name}"] = lambda runs, networks=networks: exchange_table(*networks)
for name, comparison in POOLED_GAINS.items():
    MAKERS[f"value: {name}"] = lambda runs, comparison=comparison: pooled_gain(runs, *comparison)
