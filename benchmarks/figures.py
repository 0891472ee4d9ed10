"""Draw the figures of README.md and RESULTS.md from the stored runs."""

import hashlib
from pathlib import Path

import numpy as np

from . import analysis
from .experiments import EXPERIMENTS
from .pages import MAIN_ROWS

IMG = Path(__file__).resolve().parent.parent / "img"
CURVES = {  # what curves.png shows: {experiment: title}
    "full": "constant rate",
    "decaying_15": "decaying rate, half the epochs",
    "setting_2018": "setting of 2018",
    "dense_2018_30": "setting of 2018 in float32, and published",
}
COLOURS = {"pool_1": "#1b6ca8", "pool_2": "#d1495b", "fc_3": "#3a7d44"}


def draw_all(runs, curves, check):
    """Draw the figures whose data have changed, and return their paths. With `check`, draw nothing."""
    shown = [setting for group in MAIN_ROWS.values() for setting in group]
    parts = {
        "results.png": (draw_differences, runs[runs.experiment.isin([name for _, name, _ in shown])]),
        "curves.png": (draw_curves, curves[curves.experiment.isin(CURVES) & (curves.tag == "summary/accuracy_test")]),
        "alphas.png": (draw_alphas, curves[(curves.experiment == "scarce_10") & curves.tag.str.startswith("units/")]),
    }
    changed = []
    for name, (draw, data) in parts.items():
        own = data.dropna(axis=1, how="all")  # without the measures that only other experiments have
        text = own.to_csv(index=False)
        text += Path(__file__).read_text() + repr(MAIN_ROWS)  # how it is drawn, and in which words
        source = hashlib.sha256(text.encode()).hexdigest()
        path = IMG / name
        if path.exists() and source.encode() in path.read_bytes():
            continue
        changed.append(path)
        if not check:
            figure = draw(data)
            figure.savefig(path, dpi=110, facecolor="white", bbox_inches="tight", metadata={"Source": source})
    return changed


def pyplot():
    """Return matplotlib's pyplot, which draws into files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_differences(runs):
    """Draw what units (blue) and one network or trunk (orange) gain over separate columns, for each kind of data.

    A setting has a dot for each seed, a bar for the 95 % interval, and a stroke at the mean.
    """
    kinds = {  # the word that titles of MAIN_ROWS have in common, and what a point is
        "garments": "gain over separate columns, in points of accuracy      better →",
        "faces": "gain over separate columns, in points of accuracy      better →",
        "landmarks": "fall of the error, in % of the width of the face's box      better →",
    }
    groups_of = {kind: {title: group for title, group in MAIN_ROWS.items() if kind in title} for kind in kinds}
    counts = [sum(len(group) + 1 for group in groups.values()) for groups in groups_of.values()]
    figure, axes_of = pyplot().subplots(
        len(kinds), figsize=(11, 0.32 * sum(counts) + 2.2), height_ratios=counts, layout="constrained"
    )
    for axes, kind in zip(axes_of, kinds):
        draw_rows(axes, runs, groups_of[kind])
        axes.set_xlabel(kinds[kind])
    return figure


def draw_rows(axes, runs, groups):
    """Draw the rows of some groups of MAIN_ROWS below each other, without those with fewer than three pairs."""
    place = 0
    for title, group in groups.items():
        axes.text(-0.02, place, title, ha="right", va="center", weight="bold", transform=axes.get_yaxis_transform())
        place += 1
        for label, experiment, setting in group:
            spec = EXPERIMENTS[experiment]
            pairs = analysis.differences(runs, experiment, setting, spec.baseline, spec.primary)
            if len(pairs) < analysis.FEWEST_PAIRS:
                continue
            sign = -100 if analysis.lower_is_better(spec.primary) else 100  # an error that falls is a gain
            mean, bounds, _ = analysis.interval(pairs.to_numpy())
            colour = "#2a6fbb" if label.startswith("units") else "#c4722a"
            text = f"{label} ({len(pairs)})"
            axes.text(-0.02, place, text, ha="right", va="center", transform=axes.get_yaxis_transform())
            axes.plot(sign * pairs, [place] * len(pairs), "o", color=colour, alpha=0.4)
            axes.plot([sign * bounds[0], sign * bounds[1]], [place, place], color=colour, lw=2.4)
            axes.plot(sign * mean, place, "|", color=colour, markersize=13, markeredgewidth=2.4)
            place += 1
    axes.axvline(0, color="#444444", lw=1)
    axes.set_yticks([])
    axes.set_ylim(place - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["left", "right", "top"]].set_visible(False)


def draw_curves(curves):
    """Draw the test accuracy over training on all garments, mean and range over the seeds, and the published one."""
    kinds = [("baseline", "#777777", "without units"), ("channel", "#1b6ca8", "with units")]
    kinds += [("activation", "#d1495b", "dense units")]
    figure, axes_of = pyplot().subplots(2, 2, figsize=(9, 6.2), sharex=True, sharey=True)
    for axes, (name, title) in zip(axes_of.flat, CURVES.items()):
        for setting, colour, label in kinds:
            chosen = curves[(curves.experiment == name) & (curves.setting == setting)]
            if len(chosen):
                values = 100 * chosen.pivot(index="step", columns="seed", values="value")
                axes.fill_between(values.index, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.2, lw=0)
                axes.plot(values.mean(axis=1), color=colour, lw=1.6, label=f"{label} ({values.shape[1]})")
        axes.set_title(title, fontsize=11)
        axes.set_ylim(88, 94.2)
        axes.grid(alpha=0.3)
    path = analysis.RESULTS / "published_2018_test_accuracy.csv"
    steps, *published = np.genfromtxt(path, delimiter=",", skip_header=1).T
    for values, (_, colour, label) in zip(published, (kinds[0], kinds[2])):
        axes_of[1, 1].plot(steps, 100 * values, ":", color=colour, lw=1.8, label=f"{label}, published")
    for axes in axes_of.flat:
        axes.legend(loc="lower right", fontsize=9)
    for axes in axes_of[1]:
        axes.set_xlabel("step")
    for axes in axes_of[:, 0]:
        axes.set_ylabel("test accuracy (%)")
    figure.tight_layout()
    return figure


def draw_alphas(curves):
    """Draw the mean alpha of each unit over training, from three beginnings."""
    panels = {
        "channel": "from the identity",
        "init 0.5": "from 0.5",
        "channel, as in the paper": "the paper's recipe",
    }
    figure, axes_of = pyplot().subplots(1, 3, figsize=(8.6, 3.6), sharey=True)
    widths = {"pool_1": 4, "pool_2": 2.4, "fc_3": 1.2}  # one line may hide another
    for axes, (setting, title) in zip(axes_of, panels.items()):
        chosen = curves[curves.setting == setting]
        for unit, colour in COLOURS.items():
            for kind, style in (("alpha_self", "-"), ("alpha_cross", "--")):
                values = chosen[chosen.tag == f"units/{unit}/{kind}"]
                # Not all seeds were logged at the same steps.
                mean = values.pivot(index="step", columns="seed", values="value").dropna().mean(axis=1)
                axes.plot(mean, style, color=colour, lw=widths[unit])
        if setting == "channel, as in the paper":  # ten epochs of 47 steps each, columns alone
            axes.axvline(470, color="#444444", lw=1)
            axes.text(495, 0.5, "stitched\nfrom here\non", fontsize=8, va="center")
        axes.set_title(f"{title} ({chosen.seed.nunique()} seeds)", fontsize=11)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    for place, (unit, colour) in enumerate(COLOURS.items()):
        axes_of[0].text(0.97, 0.6 - 0.09 * place, unit, color=colour, ha="right", transform=axes_of[0].transAxes)
    axes_of[0].set_ylabel("mean α: own (line), other (dashes)")
    figure.suptitle("a tenth of the garments, 30 epochs", fontsize=11, weight="bold")
    figure.tight_layout()
    return figure
