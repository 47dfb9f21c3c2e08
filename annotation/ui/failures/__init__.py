"""The Failure cases tab: where a model and people differ."""
