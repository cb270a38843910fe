"""One optimizer step, the plan of a run, schedules, optimizers and parameter groups."""
