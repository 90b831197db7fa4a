"""A writable mount against a model: the same random operations on both, in this process and through the kernel.

`python -m tests.model.play --help` replays a run; `tests/unit/test_model.py` and `tests/mount/test_model_mounted.py`
play a few thousand operations each time the tests run.
"""
