"""The list of checks. It imports no torch: what starts them must outlive whatever torch does."""

from typing import NamedTuple


class Entry(NamedTuple):
    """A check, as the command knows it."""

    title: str
    module: str
    """The module that has its ``PARTS``."""
    seconds: int
    """The check's share of the ten minutes; time that earlier checks leave unused is added."""


CHECKS = (
    Entry("the machine and its rates", "benchmarks.accept.machine", 35),
    Entry("memories against float64", "benchmarks.accept.memories", 45),
    Entry("kernels at the run's shapes", "benchmarks.accept.kernels", 50),
    Entry("graphs and breaks of a block", "benchmarks.accept.graphs", 75),
    Entry("time of a block", "benchmarks.accept.block", 60),
    Entry("solve, scans and loss alone", "benchmarks.accept.operators", 35),
    Entry("twelve steps of gam_1b, shortened", "benchmarks.accept.steps", 70),
    Entry("quickstart, killed and resumed", "benchmarks.accept.quickstart", 75),
    Entry("ctx16k, shortened", "benchmarks.accept.long_context", 65),
    Entry("dtypes of a block", "benchmarks.accept.precisions", 30),
    Entry("the largest micro-batch", "benchmarks.accept.allocator", 40),
)
