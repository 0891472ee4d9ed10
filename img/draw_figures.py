"""Draws the explaining figure of README.md: the cross-stitch unit, and the network without and with units.

python img/draw_figures.py
"""

import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = os.path.dirname(os.path.abspath(__file__))
COLOURS = {"A": "#2a6fbb", "B": "#d9772b", "unit": "#4f9a5b", "ink": "#333333"}


def box(axes, x, y, width, height, text, colour, size=10, fill=0.14):
    """Draws a rounded box around (x, y) with `text` in it."""
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.09"
    axes.add_patch(
        FancyBboxPatch(
            corner, width, height, boxstyle=style, fc=matplotlib.colors.to_rgba(colour, fill), ec=colour, lw=1.5
        )
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=COLOURS["ink"])


def arrow(axes, start, end, colour, width=1.4, style="-"):
    """Draws an arrow from `start` to `end`, two (x, y) points."""
    shape = {"arrowstyle": "-|>", "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, color=colour, lw=width, linestyle=style, **shape))


def prepare(axes, width, height):
    """Gives axes that many units, all of one length, and no frame."""
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_aspect("equal")
    axes.axis("off")


def draw_unit(axes):
    """The linear combination that a cross-stitch unit is (arXiv:1604.03539, equation 1 and figure 3)."""
    prepare(axes, 17, 5.8)
    for y, task in ((4.3, "A"), (1.3, "B")):
        box(axes, 1.6, y, 2.6, 1.2, f"activations $x_{task}$\nof column {task}", COLOURS[task], 11)
        box(axes, 12.7, y, 3.2, 1.2, f"what column {task}\ngoes on with: $\\tilde{{x}}_{task}$", COLOURS[task], 11)
        box(axes, 8.0, y, 0.9, 0.9, "+", COLOURS["unit"], 16)
        arrow(axes, (8.45, y), (11.05, y), COLOURS["unit"], 2)
    ends = {"A": 4.3, "B": 1.3}
    label_places = {
        ("A", "A"): (5.3, 4.62),
        ("B", "B"): (5.3, 0.98),
        ("A", "B"): (5.85, 3.7),
        ("B", "A"): (5.85, 1.9),
    }
    for i in ends:
        for j in ends:
            arrow(
                axes,
                (2.95, ends[j]),
                (7.5, ends[i] + 0.18 * (ends[j] - ends[i]) / 3),
                COLOURS[j],
                2.2 if i == j else 1.4,
            )
            x, y = label_places[i, j]
            axes.text(x, y, f"$\\alpha_{{{i}{j}}}$", ha="center", va="center", fontsize=14, color=COLOURS[j])
    formula = (
        r"$\tilde{x}_i = \sum_j \alpha_{ij}\, x_j$"
        + "   one $\\alpha_{ij}$ per channel, learned; by default it starts as the identity"
    )
    axes.text(7.3, 5.35, formula, ha="center", va="center", fontsize=12, color=COLOURS["ink"])
    axes.text(
        7.3,
        0.2,
        "large $|\\alpha_{AB}|$: task A takes much from B        $\\alpha_{AB} = 0$: it takes nothing",
        ha="center",
        va="center",
        fontsize=10.5,
        color=COLOURS["ink"],
    )


LAYERS = [
    "conv 3×3, 32\nBN, ReLU, pool",
    "conv 3×3, 64\nBN, ReLU, pool",
    "dense 1024\nBN, ReLU",
    "dropout\noutput",
]


def draw_columns(axes, bottom, stitched):
    """Draws the two columns from left to right at the height `bottom`, with units between layers or without."""
    heights = {"A": bottom + 2.1, "B": bottom}
    box(axes, 0.85, bottom + 1.05, 1.4, 0.9, "image\n28×28", COLOURS["ink"], 9, fill=0.05)
    names = {"A": ("item", "10 classes"), "B": ("group", "3 classes")}
    for task, y in heights.items():
        arrow(axes, (1.55, bottom + 1.05), (2.2, y), COLOURS["ink"])
        for k, layer in enumerate(LAYERS):
            x = 3.3 + 3.6 * k
            box(axes, x, y, 2.2, 1.1, layer, COLOURS[task], 9)
            if k < 3:
                if stitched:
                    arrow(axes, (x + 1.1, y), (x + 1.5, y), COLOURS[task])
                    arrow(axes, (x + 2.1, y), (x + 2.5, y), COLOURS[task])
                else:
                    arrow(axes, (x + 1.1, y), (x + 2.5, y), COLOURS[task])
        axes.text(15.4, y, f"{names[task][0]}\n{names[task][1]}", va="center", fontsize=10, color=COLOURS[task])
    if stitched:
        for k, name in enumerate(("pool_1", "pool_2", "fc_3")):
            x = 5.1 + 3.6 * k
            box(axes, x, bottom + 1.05, 0.6, 3.2, "", COLOURS["unit"])
            axes.text(x, bottom + 1.05, f"cross-stitch {name}", rotation=90, ha="center", va="center", fontsize=9)


def draw_network(axes):
    """Both networks: the columns side by side (the baseline), and joined by units after each pool and dense layer."""
    prepare(axes, 17, 8.6)
    axes.text(0.15, 8.25, "baseline: two columns, nothing shared", fontsize=12, fontweight="bold")
    draw_columns(axes, 5.2, stitched=False)
    axes.text(0.15, 3.85, "cross-stitch: a unit after each pool and dense layer", fontsize=12, fontweight="bold")
    draw_columns(axes, 0.8, stitched=True)


def main():
    """Draws both, one above the other, on white so that they read in dark mode too."""
    figure, panels = plt.subplots(2, figsize=(17 / 1.6, 14.6 / 1.6), height_ratios=(5.8, 8.6))
    draw_unit(panels[0])
    draw_network(panels[1])
    figure.subplots_adjust(hspace=0.02)
    figure.savefig(os.path.join(HERE, "method.png"), dpi=110, facecolor="white", bbox_inches="tight", pad_inches=0.15)


if __name__ == "__main__":
    main()
