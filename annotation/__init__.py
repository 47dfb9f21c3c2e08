"""What people see, say and correct: the store of annotations, its statistics, and the Gradio tabs."""
