"""From base weights and samples to a checkpoint: one module a stage, run with `python -m training STAGE`."""
