"""The Data tab: how much there is, how far people agree, and exports."""
