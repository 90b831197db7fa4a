"""Stands in for transformers, see the README beside it."""
