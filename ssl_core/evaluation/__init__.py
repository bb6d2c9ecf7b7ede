"""Predictions, metrics, and whether pretraining helped."""
