"""Checkpoints in other formats: to and from Hugging Face, safetensors, DeepSpeed universal."""
