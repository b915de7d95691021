"""Experiment configurations and recipes."""
