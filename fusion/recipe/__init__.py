"""Recipes: a merge as a YAML file, in our own schema or in mergekit's."""
