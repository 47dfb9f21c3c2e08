"""Where model and people differ: the cases, choosing among them, and what is done with the chosen ones."""
