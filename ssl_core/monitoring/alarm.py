"""When to cry: k of the last m windows *and* the latest, with a threshold that keeps false alarms within a budget.

The budget counts alarms of windows in which nothing has changed, per 365 windows. Windows are taken as independent of each
other: with the chance p that an unchanged window exceeds its threshold, the rule raises an alarm with the chance

    p * P(Binomial(m - 1, p) >= k - 1)

That is so where each window has a reference of its own. Windows that are compared with the same reference samples exceed
together, where these happen to be unusual; ``shared`` takes that into account.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

WINDOWS_A_YEAR = 365
_NODES = 60
_LEAST = 1e-12


def alarm_rate(rate: float, k: int, m: int, shared: float = 0.0) -> float:
    """Chance of an alarm in one window, where each window exceeds with the chance ``rate``.

    ``shared``: the correlation of the scores of two windows. Given what they share, a standard normal z, they are independent and
    exceed with the chance ``Phi((sqrt(shared) z - t) / sqrt(1 - shared))``, t the normal quantile of ``1 - rate``; its mean over z is ``rate``.
    """
    from scipy.stats import binom, norm

    if shared == 0:
        return float(rate * binom.sf(k - 2, m - 1, rate))
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    given = norm.sf((norm.isf(rate) - math.sqrt(shared) * nodes) / math.sqrt(1 - shared))
    return float(weights / weights.sum() @ (given * binom.sf(k - 2, m - 1, given)))


def window_rate(budget: float, k: int, m: int, shared: float = 0.0) -> float:
    """The chance that one unchanged window may exceed its threshold, so that ``budget`` false alarms come in 365 windows.

    ``ValueError`` unless ``1 <= k <= m`` and ``0 < budget < 365``.
    """
    from scipy.optimize import brentq

    if not 1 <= k <= m:
        raise ValueError(f"k of m windows means 1 <= k <= m, not {k} of {m}")
    if not 0 < budget < WINDOWS_A_YEAR:
        raise ValueError(f"a budget of {budget:g} false alarms in {WINDOWS_A_YEAR} windows cannot be kept")
    return float(
        brentq(lambda rate: WINDOWS_A_YEAR * alarm_rate(rate, k, m, shared) - budget, _LEAST, 1 - _LEAST, xtol=1e-12)
    )


def shared_part(reference: int, n: int, m: int) -> float:
    """The correlation of two unchanged windows' scores, each of ``m`` samples against a random ``n`` of ``reference`` samples.

    Both scores estimate a squared distance of two means, whose deviations from the truth have the variances 1/n and 1/m. The
    part of the score that the reference brings has the variance ``2/n^2`` of ``2 (1/n + 1/m)^2`` in all; of the n samples, the
    share n / reference is also the other window's: ``(n / reference * m / (n + m))^2``.
    """
    return (n / reference * m / (n + m)) ** 2


def windows_needed(rate: float) -> int:
    """How many unchanged windows it takes before a threshold for ``rate`` can be read off them."""
    return math.ceil(1 / rate - 1 - 1e-9)


def threshold(stable: Sequence[float] | np.ndarray, rate: float) -> float:
    """What a further unchanged window exceeds with a chance of at most ``rate``, from the scores of ``stable`` windows.

    The ``ceil((N + 1)(1 - rate))``-th smallest of N scores: by symmetry, the chance holds exactly, for any distribution (Vovk,
    Gammerman and Shafer 2005, "Algorithmic Learning in a Random World", section 2.2). ``ValueError`` where N is less than
    ``windows_needed(rate)``.
    """
    scores = np.sort(np.asarray(stable, dtype=np.float64))
    place = math.ceil((len(scores) + 1) * (1 - rate) - 1e-9)
    if not 1 <= place <= len(scores):
        raise ValueError(
            f"{len(scores)} stable windows; at least {windows_needed(rate)} are needed for a rate of {rate:.3g}"
        )
    return float(scores[place - 1])


def is_alarm(exceeded: Sequence[bool], k: int, m: int) -> bool:
    """Whether the latest window exceeded, and k of the last m did; ``exceeded`` is in the order of time."""
    return bool(exceeded) and bool(exceeded[-1]) and sum(exceeded[-m:]) >= k
