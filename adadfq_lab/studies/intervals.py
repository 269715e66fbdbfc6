"""95 % intervals over seeds, of a mean and of the difference of two, by Student's t."""

import math
from collections.abc import Sequence

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 % quantiles of Student's t, 1 to 9 degrees


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean of `values` by Student's t; None for fewer than two, 1.96 s/sqrt(n) above ten."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return (_T[n - 2] if n <= 10 else 1.96) * deviation / math.sqrt(n)


def difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """mean(a) - mean(b) and half the width of its 95 % interval, variances unequal (Welch); None without two values in each."""
    if min(len(a), len(b)) < 2:
        return None
    means = [sum(values) / len(values) for values in (a, b)]
    noise = [
        sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
        for values, mean in zip((a, b), means, strict=True)
    ]
    spread = sum(v**2 / (len(values) - 1) for v, values in zip(noise, (a, b), strict=True))
    freedom = int(sum(noise) ** 2 / spread + 1e-9) if spread else len(a) + len(b) - 2  # 3 may come out as 2.9999999999999996
    t = _T[freedom - 1] if freedom <= len(_T) else 1.96
    return means[0] - means[1], t * math.sqrt(sum(noise))
