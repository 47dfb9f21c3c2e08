"""The Gradio tabs, and what they need to follow a model at work."""
