"""Stands in for torchvision, see the README beside it."""
