"""The same samples in other shapes: what file-based loaders want to find, made of the tables of the shards.

A view lists what is there already. Its entries have the inode numbers of the samples' own files, so that nothing is
copied and pages are shared; only directories and what is generated (metadata, tars, label texts) have numbers of
their own. Read-only: knows nothing of staged writes, nor of FUSE.
"""
