"""What happens: one LightningModule per experiment, and the commands that train, evaluate and report."""

import sys

from lightning_apps.process.interrupts import arm_in_commands

arm_in_commands(sys.orig_argv)  # before anything that takes time is imported
