"""A GPU check whose parts end in every way: good figures, bad ones, an error, a death, a hang."""

import os
import signal
import time


def good(check) -> None:
    check.figure("speed", 2.0, "m/s", at_least=1)


def bad(check) -> None:
    check.figure("broken", float("nan"), at_most=1)


def raises(check) -> None:
    check.figure("before the error", 1.0)
    raise RuntimeError("no such kernel")


def dies(check) -> None:
    check.figure("before death", 1.0)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(check) -> None:
    check.note("before the hang", "here")
    time.sleep(600)


PARTS = {f.__name__: f for f in (good, bad, raises, dies, hangs)} | {"last": good}
