"""The tables of SPEED.md, from what throughput.py and machines.py measured and from the stored curves."""

import json

import numpy as np

from .analysis import RESULTS
from .markdown import table

IN_BFLOAT16 = " bfloat16"  # after the name of what was measured in this precision
STEPS_PER_EPOCH = 469  # of all 60,000 images, in batches of 128
THRESHOLD = 0.935
TIMED_AS = {  # setting of `decaying_15`: what the table calls it, and the name under which throughput.py timed it
    "baseline": ("separate columns", "separate columns"),
    "channel": ("units from the identity", "cross-stitch units"),
    "init 0.5": ("units from 0.5", "cross-stitch units"),
}
WEIGHT_BYTES = 4 * 6_482_253  # the gradients of the stitched network, float32


def throughput():
    """Return what throughput.py wrote."""
    return json.loads((RESULTS / "throughput.json").read_text())


def milliseconds(values):
    """Return the median of some seconds in milliseconds, as text."""
    return f"{1e3 * np.median(values):.0f}"


def peers_table():
    """Return the table beside peers. The last column is the median of the ratios within a round, in one precision."""
    seconds = throughput()["seconds_per_step"]
    rows = []
    for name, values in seconds.items():
        spread = f"{1e3 * min(values):.0f} to {1e3 * max(values):.0f}"
        ours = seconds["ours" + IN_BFLOAT16] if name.endswith(IN_BFLOAT16) else seconds["ours"]
        ratio = np.median(np.array(values) / ours)
        rows.append([name, milliseconds(values), spread, f"{ratio:.2f}"])
    return table(["", "ms a step", "fastest and slowest round", "time / ours in this precision"], rows)


def processor():
    """Return the processor on which the tables were measured."""
    found = throughput()["processor"]
    return f"{found['model']}, {found['cores']} cores ({', '.join(found['flags'])})"


def settings_table():
    """Return how long a step takes with separate columns, with units and with trunks."""
    seconds = throughput()["seconds_per_step_by_setting"]
    names = [name for name in seconds if not name.endswith(IN_BFLOAT16)]
    rows = []
    for name in names:
        row = [name]
        for precision in ("", IN_BFLOAT16):
            row += [milliseconds(seconds[name + precision]), f"{relative_time(name, precision):.2f}"]
        rows.append(row)
    return table(["", "float32, ms", "/ separate", "bfloat16, ms", "/ separate"], rows)


def relative_time(name, precision=IN_BFLOAT16):
    """Return the time of a step, as a multiple of that of separate columns."""
    seconds = throughput()["seconds_per_step_by_setting"]
    return float(np.median(np.array(seconds[name + precision]) / seconds["separate columns" + precision]))


def tasks_table():
    """Return how long a step takes with one to four tasks, all stitched."""
    seconds = throughput()["seconds_per_step_by_tasks"]
    rows = []
    for tasks, values in seconds.items():
        ratio = np.median(np.array(values) / seconds["2"])
        rows.append([tasks, milliseconds(values), f"{ratio:.2f}"])
    return table(["tasks", "ms a step", "/ two tasks"], rows)


def batches_table():
    """Return how long an image takes by batch size."""
    seconds = throughput()["seconds_per_image_by_batch"]
    rows = [[batch, f"{1e3 * np.median(values):.2f}"] for batch, values in seconds.items()]
    return table(["images in a batch", "ms an image"], rows)


def time_to_accuracy_table(curves):
    """Return how long it takes to THRESHOLD on all garments: epochs from stored curves, times a step's time."""
    seconds = throughput()["seconds_per_step_by_setting"]
    chosen = curves[(curves.experiment == "decaying_15") & (curves.tag == "summary/accuracy_test")]
    rows = []
    for setting, (words, timed_as) in TIMED_AS.items():
        of_setting = chosen[chosen.setting == setting]
        epochs = []
        for _, curve in of_setting.groupby("seed"):
            reached = curve[curve.value >= THRESHOLD].step.min()
            epochs.append(reached / STEPS_PER_EPOCH)
        row = [words, ", ".join(f"{epoch:.0f}" for epoch in epochs)]
        for precision in ("", IN_BFLOAT16):
            minutes = np.median(epochs) * STEPS_PER_EPOCH * np.median(seconds[timed_as + precision]) / 60
            row.append(f"{minutes:.1f}")
        rows.append(row)
    return table(["", "epochs (three seeds)", "minutes, float32", "minutes, bfloat16"], rows)


def step_on_machines(count, batch, gigabits, latency=1e-4):
    """Return the modelled seconds of a step on so many machines, in float32.

    One machine uses the fused batch norm. Several use Keras's, which is synchronised. A ring all-reduce sends each byte
    2 (N - 1) / N times over every link. Each of the small messages of batch norm takes `latency` seconds on a local
    network, for each of log2(N) rounds.
    """
    if count == 1:
        return float(np.median(throughput()["seconds_per_image_by_batch"][str(batch)])) * batch
    measured = json.loads((RESULTS / "machines.json").read_text())
    batches = sorted(int(size) for size in measured["alone"])
    computation = np.interp(batch / count, batches, [measured["alone"][str(size)] for size in batches])
    exchange = 2 * (count - 1) / count * WEIGHT_BYTES * 8 / (gigabits * 1e9)
    return float(computation + exchange + measured["messages"] * latency * np.log2(count))


def machines_table():
    """Return what the model expects of 1 to 64 machines, as a multiple of the images a second of one."""
    columns = [(128, 1), (128, 10), (1024, 1), (1024, 10), (1024, 100)]
    rows = []
    for count in (1, 2, 4, 8, 16, 32, 64):
        row = [str(count)]
        for batch, gigabits in columns:
            row.append(f"{step_on_machines(1, batch, gigabits) / step_on_machines(count, batch, gigabits):.1f}")
        rows.append(row)
    return table(["machines", *(f"batch {batch}, {gigabits} Gbit/s" for batch, gigabits in columns)], rows)


def machines_check_table():
    """Return what the model says of two processes on one machine, beside what was measured."""
    measured = json.loads((RESULTS / "machines.json").read_text())
    parts = {
        "computation on half of the batch, with half of the cores": measured["half"],
        "sum of the gradients": measured["exchange"],
        f"{measured['messages']} small messages": measured["messages"] * measured["statistics"],
    }
    rows = [[name, milliseconds(value)] for name, value in parts.items()]
    rows.append(["together, by the model", milliseconds(sum(parts.values()))])
    rows.append(["together, measured", milliseconds(measured["together"])])
    return table(["", "ms a step"], rows)
