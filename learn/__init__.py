"""Merging coefficients that are learned on a handful of samples."""
