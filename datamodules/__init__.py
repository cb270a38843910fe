"""Where the batches come from: one LightningDataModule per experiment, and the pure functions below them."""
