"""GAM Scale: train Gated Associative Memory language models (arXiv 2509.00605) at scale."""

__version__ = "0.1.0"
