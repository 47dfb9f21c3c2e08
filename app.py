"""M3-AGIQA Studio: `python app.py`, then open http://127.0.0.1:7860.

Environment: M3AGIQA_MODEL (a shipped model's name or a checkpoint folder), GRADIO_SERVER_NAME and
GRADIO_SERVER_PORT.
"""

from __future__ import annotations

import os

import gradio as gr

from annotation import look
from annotation.assess_tab import assess_tab
from annotation.examples import FOLDER as EXAMPLES
from annotation.model_banner import model_banner
from annotation.model_loader import ModelLoader

HOUR = 3600

loader = ModelLoader(os.environ.get("M3AGIQA_MODEL") or "nano")

with gr.Blocks(title="M3-AGIQA Studio", analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as demo:
    gr.HTML(look.HEADER)
    banner = model_banner(loader, demo)
    with gr.Tab("Assess", elem_id="assess-tab"):
        handlers = assess_tab(loader, banner)
    demo.unload(handlers.stop)


def main() -> None:
    """Start to load the model, and serve the page meanwhile."""
    loader.start()
    on_spaces = "SPACE_ID" in os.environ  # Hugging Face Spaces reach the app from outside its container
    name = os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if on_spaces else "127.0.0.1")
    demo.launch(
        server_name=name, allowed_paths=[str(EXAMPLES)], max_file_size="200mb", **look.launch_options()
    )


if __name__ == "__main__":
    main()
