"""What a trained model is worth: loss, perplexity, bits per byte."""
