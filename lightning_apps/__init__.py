"""What happens: one LightningModule per experiment, and the commands that train, evaluate and report."""
