"""Names that `streaming.vision` imports: it derives from the first and calls the second in a converter."""


class VisionDataset:
    """A base class that nothing here instantiates."""


class CIFAR10:
    """Never downloaded here."""
