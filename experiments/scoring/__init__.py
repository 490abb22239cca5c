"""Scores of predictions in files, of whatever origin: see docs/predictions.md."""
