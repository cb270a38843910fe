"""Which samples feed which step: order, step batches, packing."""
