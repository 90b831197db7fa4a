"""The one name that `streaming.base.dataloader` imports: it asks whether a batch is one."""


class BatchFeature(dict):
    """No batch is ever one of these here."""
