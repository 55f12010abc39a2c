"""Format numbers for people: on pages, in tables and on terminals."""

import math
from collections.abc import Callable

Form = Callable[[float], str]
"""A function that formats one number."""
Range = tuple[float, float] | None
"""The ends of an interval, or None if there is none."""

UNKNOWN = "unknown"
"""Shown in place of a number that is not known."""
_NO_BREAK = "\u00a0"


def large(value: float) -> str:
    """Format 1.3e9 as ``1.3B``, with units up to trillions."""
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g}{unit}" if value < 1e15 else scientific(value)
    return f"{value:.3g}"


def metric(value: float, unit: str) -> str:
    """Format with three digits and a metric prefix: ``136 MFLOP``."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{_NO_BREAK}{prefix}{unit}"
    return f"{value:,.0f}{_NO_BREAK}{unit}"


def scientific(value: float, digits: int = 2) -> str:
    """Format as ``3.1e20``, without the zeros that ``%e`` pads with."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def general(value: float, digits: int = 3) -> str:
    """Format with ``digits`` digits: ``0.340``, ``25,600``; below 1e-3 and from 1e5: ``1.68e7``."""
    if not math.isfinite(value):
        return UNKNOWN
    rounded = float(f"{value:.{digits}g}")
    if rounded and not 1e-3 <= abs(rounded) < 1e5:
        return scientific(value, digits)
    whole = abs(rounded) >= 10 ** (digits - 1)
    return f"{rounded:,.0f}" if whole else f"{value:#.{digits}g}"


def gigabytes(size: float) -> str:
    """Format bytes as ``0.91 GB``, of 10^9 bytes each."""
    return f"{size / 1e9:.2f} GB"


def duration(seconds: float) -> str:
    """Format seconds as ``40 s``, ``12 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f}{_NO_BREAK}s"
    if seconds < 5400:
        return f"{seconds / 60:.0f}{_NO_BREAK}min"
    return f"{seconds / 3600:,.1f}{_NO_BREAK}h"


def hours(value: float) -> str:
    """Format GPU-hours with two or three digits."""
    if value >= 1e9:
        return scientific(value)
    if value >= 1e6:
        return f"{value / 1e6:,.3g} million"
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.2g}" if value >= 0.01 else "< 0.01"


def times(ratio: float) -> str:
    """Format a ratio with three digits: ``3,250 times``."""
    return f"{float(f'{ratio:.3g}'):,.0f} times" if ratio >= 1000 else f"{ratio:.3g} times"


def span(first: int, last: int) -> str:
    """Format a range as ``128-255``, or as one number if its ends are equal."""
    return f"{first:,}" if first == last else f"{first:,}-{last:,}"


def between(interval: Range, form: Form = "{:.3f}".format) -> str:
    """Format an interval as ``[0.310, 0.372]``; empty if there is none."""
    return "" if interval is None else f"[{form(interval[0])}, {form(interval[1])}]"


def known(value: float | None, form: Form = "{:.3f}".format) -> str:
    """Format a value; ``unknown`` if it is None or not finite."""
    return UNKNOWN if value is None or not math.isfinite(value) else form(value)


def ranged(value: float, interval: Range, form: Form = "{:.3f}".format) -> str:
    """Format as ``0.340 [0.310, 0.372]``, or the value alone if there is no interval."""
    return f"{form(value)} {between(interval, form)}".rstrip()


def plus_minus(value: float, deviation: float | None, form: Form = "{:,.1f}".format) -> str:
    """Format as ``630.3 ± 12.1``, or the value alone if there is no deviation."""
    return form(value) if deviation is None else f"{form(value)} ± {form(deviation).lstrip('+')}"


def or_over(value: int | None, most: int) -> str:
    """Format a value as ``1,024``; None, beyond the ``most`` that was tried, as ``over 4,096``."""
    return f"{value:,}" if value is not None else f"over {most:,}"
