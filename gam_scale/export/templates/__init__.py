"""What an exported Hugging Face folder adds to the model's own source; needs transformers."""
