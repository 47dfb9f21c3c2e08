"""How good a run is: agreement on the test split, ablations, transfer, and the report."""
