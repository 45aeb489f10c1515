"""What an exchange costs and when compressing it pays, from the rows of `experiments.scaling`.

A machine that sends S bytes over a wire of W bytes a second is done after S/W seconds, and coding
adds C. Compressed, the exchange is the faster one where S/W + C < S_dense/W, that is where

    W < (S_dense − S) / C.

Latency is left out, and so is sending while gradients are computed, which both exchanges can.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import runs
from experiments.figures import STYLE, plt, save

WIRES = (1.0, 10.0, 100.0, 400.0)  # Gbit/s that the verdict answers for
NOISY = 1.5  # upper quartile over lower, from which on a time is called noisy
GIGABIT = 1e9 / 8  # bytes
DENSE = "dense"


@dataclasses.dataclass(frozen=True)
class Row:
    """One compressor on one layout. Times are medians between their quartiles, of the wall."""

    compressor: str  # and its amount
    d: int  # numbers in the update, float32
    workers: int  # p
    devices: int  # n, with p/n workers simulated on each
    device: str
    kind: str  # how messages cross the wire between the devices, as `elastic_jax.wire` has it
    declared: int  # bytes that each hands to the collectives a step, says `elastic_jax.wire`
    handed: int  # the same, read from the compiled program
    sent: int  # bytes that each then sends, in a ring
    dense_declared: int  # the same for the dense mean
    dense_handed: int
    dense_sent: int
    seconds: float  # a step: gradients are given, exchange, new views
    seconds_low: float
    seconds_high: float
    dense_seconds: float  # the same with the dense mean, timed in turns
    dense_seconds_low: float
    dense_seconds_high: float
    ratio: float  # of neighbours in time, compressed over dense
    ratio_low: float
    ratio_high: float
    machine_kind: str  # with a machine for each worker: kind, and bytes sent
    machine_sent: int
    machine_dense_sent: int
    coding: float  # seconds that encoding, feedback and decoding take a machine, on one device;
    # on a CPU no more than those of this process
    coding_low: float
    coding_high: float
    load: float  # of the machine before this row: processes that want a core, mean of a minute

    @property
    def exact(self) -> bool:
        """Whether programs hand over what was declared; one device has nothing to send."""
        declared, handed = (self.declared, self.dense_declared), (self.handed, self.dense_handed)
        return self.devices == 1 or declared == handed

    @property
    def pays_below(self) -> float:
        """Bandwidth below which the compressed exchange is faster, in Gbit/s; 0 for nowhere."""
        return pays_below(self.machine_sent, self.machine_dense_sent, self.coding)


def pays_below(sent: int, dense_sent: int, coding: float) -> float:
    """Derives the bandwidth (S_dense − S) / C below which a compressed exchange is faster.

    Args:
        sent: S, bytes that a machine sends when they are compressed.
        dense_sent: S_dense, bytes that it sends when they are not.
        coding: C, seconds of encoding and decoding, above 0.

    Returns:
        Gbit/s; 0 where nothing is saved.

    Example:
        >>> pays_below(sent=500_000_000, dense_sent=1_500_000_000, coding=2.0)
        4.0
    """
    return max(0, dense_sent - sent) / coding / GIGABIT


def speedup(sent: int, dense_sent: int, coding: float, bandwidth: float) -> float:
    """Derives how many times faster than the dense one a compressed exchange is.

    Args:
        sent: S, as in `pays_below`, with the next two.
        dense_sent: S_dense.
        coding: C.
        bandwidth: W, Gbit/s.

    Returns:
        (S_dense/W) / (S/W + C).

    Example:
        >>> speedup(sent=500_000_000, dense_sent=1_500_000_000, coding=2.0, bandwidth=4.0)
        1.0
        >>> speedup(sent=500_000_000, dense_sent=1_500_000_000, coding=2.0, bandwidth=1.0)
        2.0
    """
    wire = bandwidth * GIGABIT
    return dense_sent / (sent + coding * wire)


def largest(rows: Sequence[Row]) -> list[Row]:
    """Returns a row of each compressor, at the largest p and, there, the largest d and n."""
    if not rows:
        return []
    p = max(row.workers for row in rows)
    d = max(row.d for row in rows if row.workers == p)
    here = sorted((r for r in rows if (r.workers, r.d) == (p, d)), key=lambda r: r.devices)
    return list({row.compressor: row for row in here}.values())


def verdict(rows: Sequence[Row]) -> list[str]:
    """Says whether the bytes are those declared, where compression pays, and what it did here."""
    if not rows:
        return []
    several = [row for row in rows if row.devices > 1]
    wrong = [row for row in several if not row.exact]
    said = [
        "Bytes: the compiled programs hand the collectives what `elastic_jax.wire` declares, to "
        f"the byte, in {len(several) - len(wrong)} of {len(several)} rows"
        + (f"; NOT in {_place(wrong[0])}." if wrong else " with several devices.")
    ]
    said += [f"{_place(row)}: {_pays(row, rows)}." for row in largest(rows)]
    if several:
        ratios = [row.ratio for row in several]
        faster = sum(row.ratio_high < 1 for row in several)
        slower = sum(row.ratio_low > 1 for row in several)
        wire = " (virtual devices: they share its cores, and memory is their wire)"
        said.append(
            f"On this machine{wire if several[0].device == 'cpu' else ''} a compressed step takes "
            f"{np.median(ratios):.2g} times the dense one in the median of {len(several)} rows, "
            f"{min(ratios):.2g} to {max(ratios):.2g}; with three quarters of its rounds it is "
            f"faster in {faster} and slower in {slower}."
        )
    noisy = sum(row.seconds_high > NOISY * row.seconds_low for row in rows)
    load = [row.load for row in rows]
    said.append(
        f"Times are medians with quartiles of a machine with a load of {min(load):.1f} to "
        f"{max(load):.1f} processes; in {noisy} of {len(rows)} rows the quartiles of a step are "
        f"more than a factor of {NOISY:g} apart. Bytes do not depend on that."
    )
    return said


def _place(row: Row) -> str:
    return f"{row.compressor}, d = {row.d:,}, p = {row.workers}"


def _pays(row: Row, rows: Sequence[Row]) -> str:
    """What compressing saves and costs a machine, and from which bandwidth on it does not pay."""
    if row.machine_kind == DENSE:
        return "payloads would be no smaller than the dense mean, so that is sent: it never pays"
    sizes = row.machine_sent, row.machine_dense_sent, row.coding
    alike = [other for other in rows if (other.compressor, other.d) == (row.compressor, row.d)]
    few = min(alike, key=lambda other: other.workers)
    less = f", {1e3 * few.coding:.3g} at p = {few.workers}" if few.workers < row.workers else ""
    gains = ", ".join(f"×{speedup(*sizes, wire):.2g} at {wire:g}" for wire in WIRES)
    return (
        f"a machine sends {_bytes(row.machine_sent)} in place of {_bytes(row.machine_dense_sent)}, "
        f"coding takes {1e3 * row.coding:.3g} ms ({1e3 * row.coding_low:.3g} to "
        f"{1e3 * row.coding_high:.3g}{less}); the exchange is faster on wires below "
        f"{row.pays_below:.3g} Gbit/s ({gains} Gbit/s)"
    )


def _bytes(count: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


# ---- the figure ----

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
MARKS = "osD^vPX"


def draw(rows: Sequence[Row]) -> Any:
    """Bytes over p, speed-up over bandwidth, and steps measured here over n and d."""
    names = list(dict.fromkeys(row.compressor for row in rows))
    looks: dict[str, Any] = {
        name: dict(color=COLOURS[i % 7], marker=MARKS[i % 7], ms=4, linewidth=1.2)
        for i, name in enumerate(names)
    }
    top = largest(rows)
    p, d, n = top[0].workers, top[0].d, max(row.devices for row in top)
    dense: Any = dict(color="black", linestyle="--", linewidth=1.2)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(8.6, 6.6), layout="constrained")
        (sent, gain), (steps, ratio) = axes
        for name in names:
            own = [row for row in rows if row.compressor == name]
            by_p = {row.workers: row for row in own if row.d == d}
            x = sorted(by_p)
            sent.plot(x, [by_p[w].machine_sent for w in x], label=name, **looks[name])
            by_n = {row.devices: row for row in own if (row.d, row.workers) == (d, p)}
            _bars(steps, by_n, "seconds", looks[name], 1e3)
            by_d = {row.d: row for row in own if (row.workers, row.devices) == (p, n)}
            _bars(ratio, by_d, "ratio", looks[name])
        by_p = {row.workers: row for row in rows if row.d == d}
        x = sorted(by_p)
        sent.plot(x, [by_p[w].machine_dense_sent for w in x], label=DENSE, **dense)
        here = [row for row in rows if (row.d, row.workers) == (d, p)]
        x = sorted({row.devices for row in here})
        each = [[1e3 * row.dense_seconds for row in here if row.devices == at] for at in x]
        steps.plot(x, [np.median(times) for times in each], **dense)

        wires = np.geomspace(0.1, 1000, 200)
        for row in top:
            sizes = row.machine_sent, row.machine_dense_sent, row.coding
            look = {**looks[row.compressor], "marker": ""}
            gain.plot(wires, [speedup(*sizes, w) for w in wires], **look)
            if row.pays_below > 0:
                look = {**looks[row.compressor], "linestyle": ""}
                gain.plot([row.pays_below], [1.0], **look)
        gain.axhspan(1, 1e9, color="#56B4E9", alpha=0.12, linewidth=0)
        gain.axhline(1, **dense)
        ratio.axhline(1, **dense)

        scales = {sent: "bytes that a machine sends a step", gain: "times faster than dense"}
        scales |= {steps: "ms a step", ratio: "compressed step / dense step"}
        for axis, label in scales.items():
            axis.set(xscale="log", yscale="log", ylabel=label)
        most = max(row.machine_dense_sent / row.machine_sent for row in top)  # on slow wires
        gain.set(xlim=(wires[0], wires[-1]), ylim=(1e-3, 2 * most))
        sent.set(xlabel="machines, one worker on each", title=f"what is sent, d = {d:,}")
        gain.set(xlabel="bandwidth (Gbit/s)", title=f"would it pay? d = {d:,}, p = {p}")
        gain.text(0.98, 0.96, "compression pays", transform=gain.transAxes, ha="right", va="top")
        device = "virtual CPU devices of this machine" if top[0].device == "cpu" else top[0].device
        steps.set(xlabel=device, title=f"measured, d = {d:,}, p = {p}")
        ratio.set(xlabel="d", title=f"measured, p = {p}, n = {n} devices")
        for axis, counts in ((sent, {r.workers for r in rows}), (steps, {r.devices for r in top})):
            counts = sorted(counts | {r.devices for r in rows} if axis is steps else counts)
            axis.set_xticks(counts, [str(count) for count in counts])
            axis.minorticks_off()
        figure.legend(*sent.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def _bars(
    axis: Any, rows: dict[int, Row], name: str, look: dict[str, Any], unit: float = 1
) -> None:
    """Draws medians with their quartiles."""
    x = sorted(rows)
    low, middle, high = (
        np.array([unit * getattr(rows[at], name + end) for at in x])
        for end in ("_low", "", "_high")
    )
    axis.errorbar(x, middle, yerr=(middle - low, high - middle), capsize=2, **look)


def conclude(
    folder: Path, rows: Sequence[Row], about: dict[str, Any], warnings: Sequence[str]
) -> tuple[list[str], bool]:
    """Writes tables, figure and verdict.

    Args:
        folder: where to.
        rows: in the order of the grid.
        about: what else rows.json says: the command line, versions, settings.
        warnings: what the reader must know first.

    Returns:
        The warnings and the verdict; whether bytes are other than declared.
    """
    said = [*warnings, *verdict(rows)]
    columns = [*(field.name for field in dataclasses.fields(Row)), "pays_below"]
    runs.write_tables(folder, rows, {**about, "verdict": said}, columns)
    if rows:
        held = runs.evidence(rows, [field.name for field in dataclasses.fields(Row)], about)
        save(folder, {"scaling.png": draw(rows)}, {"scaling.png": held})
    with runs.replacing(folder / "verdict.txt") as part:
        part.write_text("\n".join(said) + "\n")
    return said, not all(row.exact for row in rows)
