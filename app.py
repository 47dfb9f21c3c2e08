"""M3-AGIQA Studio: `python app.py`, then open http://127.0.0.1:7860. It is what Hugging Face Spaces start."""

from annotation.ui.server import main

if __name__ == "__main__":
    main()
