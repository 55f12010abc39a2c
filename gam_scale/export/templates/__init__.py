"""Modules that an exported Hugging Face folder adds to the model's source; need transformers."""
