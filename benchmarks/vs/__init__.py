"""fljax next to other simulators: one small runner each, in its own environment, on the same model, data and steps."""
