"""What a case chooses: by chance, or as it was written down."""

import mlx.core as mx


def written(value):
    """A choice as a literal."""
    if isinstance(value, (mx.Dtype, mx.DeviceType)):
        return str(value).rpartition(".")[2]
    return value


class Choices:
    """Chooses from lists whose first entry is the simplest.

    Args:
        case (dict): What is chosen already. Anything else is the simplest.
        rng (Generator, optional): Chooses anything else by chance, and writes it into
            the case.
    """

    def __init__(self, case, rng=None):
        self.case, self.rng = case, rng

    def __call__(self, name, values):
        values = list(values)
        if name in self.case:
            # As text: a case may have been written in another form.
            texts = [repr(written(v)) for v in values]
            return values[texts.index(repr(self.case[name]))]
        if self.rng is None:
            return values[0]
        at = int(self.rng.integers(len(values)))
        if at:
            self.case[name] = written(values[at])
        return values[at]

    def rarely(self, name, values, share=0.2):
        """Choose the first entry but for a share of the cases."""
        if name in self.case or self.rng is None or self.rng.random() < share:
            return self(name, values)
        return values[0]
