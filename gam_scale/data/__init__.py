"""Text in, token blocks out: sources, tokenizer, prepared sets on disk, and reading them."""
