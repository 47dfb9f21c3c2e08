"""Entering corrections: the form, and how what is entered reaches the store, for both tabs that have one."""
