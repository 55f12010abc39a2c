"""Evaluation of trained models: loss, use of the context, recall and tasks."""
