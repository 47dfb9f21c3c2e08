"""What people see and say in the browser: the Gradio tabs and what they need."""
