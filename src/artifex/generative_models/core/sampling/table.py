"""A sampler as data: of each step, the coefficients of one linear update.

With the state x, y (a sample that is kept) and m1, m2 (the last two estimates), and `o` what the network
gives, step k of a table is

    o = network(input * x, time)
    m = bounded(x_to_m * x + o_to_m * o)
    y = Y . (x, y, m, m1, m2, o)
    x = X . (x, y, m, m1, m2, o, noise)
    m1, m2 = m, m1

where `m` estimates the sample without noise: it is the preview. Every solver in `solvers` is of this form.
Before a step, x is `signal * sample + noise`, of which the table has the signal and the noise's deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# How the rows of a table are laid out.
TIME, INPUT, X_TO_M, O_TO_M, BOUND, QUANTILE, QUANTILE_MAX = range(7)
KEEP = slice(7, 13)  # Y: coefficients of x, y, m, m1, m2, o
STEP = slice(13, 20)  # X: of x, y, m, m1, m2, o, noise
LOG_VARIANCE = slice(20, 22)  # of noise whose variance is learned: the logarithms of its least and its most
IS_LEARNED = 22
GUIDANCE = 23
LEVEL = slice(24, 26)  # of x before the step: what the sample in it is multiplied with, and its noise
NUM_COLUMNS = 26

# Lengths that tables are padded to, so that samplers with other numbers of steps share one executable.
LENGTHS = (64, 256, 1024, 2048)


@dataclass(frozen=True)
class Table:
    """A sampler for one number of steps.

    Args:
        rows: The steps, float64 [evaluations, NUM_COLUMNS].
        scale: Standard deviation of the noise that it starts from.
    """

    rows: np.ndarray
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.rows)


class TableBuilder:
    """Puts a table together, step by step.

    Args:
        bound: The largest absolute value of an estimate; None is any.
        quantile: Dynamic thresholding: estimates are divided by this quantile of their absolute values, where
            that is over 1, and cut there (Saharia et al. 2022, section 2.3); None is no thresholding.
        quantile_max: The largest threshold.
    """

    def __init__(
        self, *, bound: float | None = None, quantile: float | None = None, quantile_max: float = 1.0
    ):
        self._rows: list[np.ndarray] = []
        self._bound = float(np.finfo(np.float32).max) if bound is None else bound
        self._quantile, self._quantile_max = quantile or 0.0, quantile_max

    def add(
        self,
        time: float,
        *,
        level: tuple[float, float],
        estimate: tuple[float, float],
        step: dict[str, float],
        keep: dict[str, float] | None = None,
        scale: float = 1.0,
        log_variance: tuple[float, float] | None = None,
    ) -> None:
        """Adds a step.

        Args:
            time: What the network is told.
            level: Before the step, what x has the sample multiplied with, and the deviation of its noise.
            estimate: Coefficients of x and o in the estimate m.
            step: Coefficients of the next x, by the names x, y, m, m1, m2, o, noise; others are 0.
            keep: Coefficients of the next y, by the same names without noise; None keeps it as it is.
            scale: What x is multiplied with for the network.
            log_variance: Least and most of the noise's log variance, between which the network chooses.
        """
        row = np.zeros(NUM_COLUMNS)
        row[[TIME, INPUT, BOUND]] = time, scale, self._bound
        row[LEVEL] = level
        row[[X_TO_M, O_TO_M]] = estimate
        row[[QUANTILE, QUANTILE_MAX]] = self._quantile, self._quantile_max
        names = ("x", "y", "m", "m1", "m2", "o", "noise")
        row[KEEP] = [(keep or {"y": 1.0}).get(name, 0.0) for name in names[:6]]
        row[STEP] = [step.get(name, 0.0) for name in names]
        if log_variance is not None:
            row[LOG_VARIANCE], row[IS_LEARNED] = log_variance, 1
        self._rows.append(row)

    def table(self, scale: float = 1.0) -> Table:
        """What was put together; `scale` is the standard deviation of the noise that it starts from."""
        return Table(np.stack(self._rows), scale)
