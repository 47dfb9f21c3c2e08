"""The Models tab: which model is served, and which ones could be."""
