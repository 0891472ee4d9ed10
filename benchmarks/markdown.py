"""Write numbers and tables as Markdown.

Every function takes fractions, such as 0.0123, and writes percentages or percentage points, such as 1.23.
"""

import numpy as np


def percent(fraction, sign=False):
    """Return a fraction as a percentage with two decimals. If `sign` is true, it has a plus unless it is negative."""
    rounded = round(100 * float(fraction), 2) + 0.0  # so that there is no -0.00: -0.0 + 0.0 is 0.0
    return f"{rounded:{'+' if sign else ''}.2f}"


def mean_and_deviation(sample):
    """Return the mean of some fractions, and their standard deviation if there are two or more; "" for none."""
    if not len(sample):
        return ""
    if len(sample) == 1:
        return percent(sample.mean())
    return f"{percent(sample.mean())} ± {percent(sample.std(ddof=1))}"


def in_brackets(bounds):
    """Return an interval in points, or "" if its bounds are NaN.

    A bound just below zero is written as -0.00, so that one sees that the interval includes zero.
    """
    low, high = bounds
    return f"[{100 * low:+.2f}, {100 * high:+.2f}]" if np.isfinite(low) else ""


def with_interval(mean, bounds):
    """Return a difference in points with its interval, if there is one."""
    return f"{percent(mean, True)} {in_brackets(bounds)}".strip()


def p_value(p):
    """Return a p-value with two decimals, "< 0.01" for one that would be 0.00, and "" for NaN."""
    if not np.isfinite(p):
        return ""
    return "< 0.01" if p < 0.005 else f"{p:.2f}"


def table(head, rows):
    """Return a Markdown table of cells that are text, the first column aligned to the left, the others to the right."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
