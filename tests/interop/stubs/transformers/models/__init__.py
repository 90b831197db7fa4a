"""Stands in for transformers.models."""
