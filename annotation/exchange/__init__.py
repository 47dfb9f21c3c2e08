"""What comes into the annotation store from files, and what goes out of it."""
