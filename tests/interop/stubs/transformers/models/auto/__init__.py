"""Stands in for transformers.models.auto."""
