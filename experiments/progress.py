"""Progress of many runs or steps, with the time left: on a terminal or in plain lines."""

import sys
import time

import rich.console
import rich.progress


class Progress:
    """Progress with the time left: a bar on a terminal, else a line now and then."""

    def __init__(self, total: int, done: int, every: float = 15.0, unit: str = "runs"):
        """Starts the clock.

        Args:
            total: runs.
            done: of them, done before.
            every: seconds between lines where there is no terminal.
            unit: what they are called.
        """
        self.total, self.done, self.before, self.every = total, done, done, every
        self.start = self.said = time.monotonic()
        self.unit = unit
        self.bar = None
        if sys.stderr.isatty():
            columns = (
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn(unit),
                rich.progress.TimeElapsedColumn(),
                rich.progress.TextColumn("{task.description}"),
            )
            console = rich.console.Console(stderr=True)
            self.bar = rich.progress.Progress(*columns, console=console)
            self.task = self.bar.add_task("", total=total, completed=done)
            self.bar.start()

    def step(self) -> None:
        """Counts a run."""
        self.done += 1
        now = time.monotonic()
        pace = (now - self.start) / (self.done - self.before)
        known = self.done - self.before >= 8  # the first runs wait for compilation
        left = f"about {_duration(pace * (self.total - self.done))} left" if known else "starting"
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, description=left)
        elif now - self.said >= self.every or self.done == self.total:
            self.said = now
            print(f"{self.done}/{self.total} {self.unit}, {left}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Prints a line."""
        if self.bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self.bar.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Leaves the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole / 60:.0f} min"
