"""What a trained model is worth: its loss, how it uses its context, what it recalls."""
