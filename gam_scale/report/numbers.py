"""Numbers as people read them, on pages, in tables and on terminals."""

import math
from collections.abc import Callable

Form = Callable[[float], str]
"""How one number is written."""
Range = tuple[float, float] | None
"""The ends of an interval, where there is one."""

UNKNOWN = "unknown"
"""Stands where there is no number."""
_NO_BREAK = "\u00a0"


def large(value: float) -> str:
    """``1.3B`` for 1.3e9, up to trillions."""
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g}{unit}" if value < 1e15 else scientific(value)
    return f"{value:.3g}"


def metric(value: float, unit: str) -> str:
    """``136 MFLOP``: three digits and a metric prefix."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{_NO_BREAK}{prefix}{unit}"
    return f"{value:,.0f}{_NO_BREAK}{unit}"


def scientific(value: float, digits: int = 2) -> str:
    """``3.1e20``, without the zeros that ``%e`` pads with."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def general(value: float, digits: int = 3) -> str:
    """``0.34``, ``25,600`` or ``1.68e7``: so many digits, a power of ten where it is shorter."""
    if not math.isfinite(value):
        return UNKNOWN
    rounded = float(f"{value:.{digits}g}")
    if rounded and not 1e-3 <= abs(rounded) < 1e5:
        return scientific(value, digits)
    whole = abs(rounded) >= 10 ** (digits - 1)
    return f"{rounded:,.0f}" if whole else f"{value:#.{digits}g}"


def gigabytes(size: float) -> str:
    """``0.91 GB`` of 10^9 bytes each."""
    return f"{size / 1e9:.2f} GB"


def duration(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f}{_NO_BREAK}s"
    if seconds < 5400:
        return f"{seconds / 60:.0f}{_NO_BREAK}min"
    return f"{seconds / 3600:,.1f}{_NO_BREAK}h"


def hours(value: float) -> str:
    """GPU-hours, to two or three digits."""
    if value >= 1e9:
        return scientific(value)
    if value >= 1e6:
        return f"{value / 1e6:,.3g} million"
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.2g}" if value >= 0.01 else "< 0.01"


def times(ratio: float) -> str:
    """``3,250 times``, to three digits."""
    return f"{float(f'{ratio:.3g}'):,.0f} times" if ratio >= 1000 else f"{ratio:.3g} times"


def span(first: int, last: int) -> str:
    """``128-255``, or one number."""
    return f"{first:,}" if first == last else f"{first:,}-{last:,}"


def between(interval: Range, form: Form = "{:.3f}".format) -> str:
    """``[0.310, 0.372]``; empty where there is no interval."""
    return "" if interval is None else f"[{form(interval[0])}, {form(interval[1])}]"


def known(value: float | None, form: Form = "{:.3f}".format) -> str:
    """The value, or that it is unknown."""
    return UNKNOWN if value is None or not math.isfinite(value) else form(value)


def ranged(value: float, interval: Range, form: Form = "{:.3f}".format) -> str:
    """``0.340 [0.310, 0.372]``, or the value alone."""
    return f"{form(value)} {between(interval, form)}".rstrip()


def plus_minus(value: float, deviation: float | None, form: Form = "{:,.1f}".format) -> str:
    """``630.3 ± 12.1``, or the value alone."""
    return form(value) if deviation is None else f"{form(value)} ± {form(deviation).lstrip('+')}"


def or_over(value: int | None, most: int) -> str:
    """``1,024``; or, beyond all that were looked at, ``over 4,096``."""
    return f"{value:,}" if value is not None else f"over {most:,}"
