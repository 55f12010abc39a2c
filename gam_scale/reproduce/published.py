"""The three tables of arXiv 2509.00605, as the README of its code gives them.

Each figure is of one run, without a spread. Perplexities are per token of the paper's tokenizer.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Quality:
    """A row of tables 1 and 3."""

    perplexity: float
    params: float
    """In millions, with one decimal as published."""
    loss: float | None = None
    epoch_seconds: float | None = None


@dataclass(frozen=True)
class BlockCost:
    """A row of table 2; None: the block did not fit in the GPU's memory."""

    ms: float | None
    megabytes: float | None
    """In units of 1024 * 1024 bytes."""


TABLE_1 = {
    ("wikitext2", "transformer"): Quality(918.99, 24.2, 6.8233, 131.9),
    ("wikitext2", "mamba"): Quality(1017.54, 20.5, 6.9251, 127.1),
    ("wikitext2", "gam"): Quality(882.57, 22.6, 6.7828, 117.2),
    ("tinystories", "transformer"): Quality(23.55, 24.2, 3.1591, 671.6),
    ("tinystories", "gam"): Quality(23.15, 22.6, 3.1418, 601.4),
}
"""By data set and model. Mamba on TinyStories is not published, nor is any training loss."""

TABLE_2 = {
    ("gam", 256): BlockCost(8.97, 179.42),
    ("gam", 512): BlockCost(13.09, 325.48),
    ("gam", 1024): BlockCost(25.86, 617.60),
    ("gam", 2048): BlockCost(51.94, 1201.85),
    ("gam", 4096): BlockCost(105.03, 2370.35),
    ("gam", 8192): BlockCost(217.30, 4707.35),
    ("transformer", 256): BlockCost(8.90, 216.03),
    ("transformer", 512): BlockCost(23.86, 552.98),
    ("transformer", 1024): BlockCost(74.19, 1964.79),
    ("transformer", 2048): BlockCost(279.37, 7483.92),
    ("transformer", 4096): BlockCost(None, None),
    ("transformer", 8192): BlockCost(None, None),
}
"""By block and T: forward and backward of one block, 16 sequences, fp16 autocast, on a GPU that
the paper's code does not name."""

TABLE_3 = {
    "gam": Quality(900.84, 22.6),
    "gam-global": Quality(905.45, 19.4),
    "gam-sum": Quality(942.59, 19.4),
    "gam-local": Quality(944.70, 17.9),
}
"""By model, on WikiText-2. The two models with a single path have no gates. The first row is the
same model as GAM in table 1, where its perplexity is 882.57."""
