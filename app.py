"""M3-AGIQA Studio: `python app.py`, then open http://127.0.0.1:7860.

Environment: M3AGIQA_MODEL (a shipped model's name or a checkpoint folder), GRADIO_SERVER_NAME and
GRADIO_SERVER_PORT.
"""

from __future__ import annotations

import os

import gradio as gr

from annotation.ui import look
from annotation.ui.assess_tab import assess_tab
from annotation.ui.examples import FOLDER as EXAMPLES
from annotation.ui.model_banner import model_banner
from annotation.ui.model_loader import ModelLoader

HOUR = 3600

loader = ModelLoader(os.environ.get("M3AGIQA_MODEL") or "nano")

with gr.Blocks(title="M3-AGIQA Studio", analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)) as demo:
    gr.HTML(look.HEADER)
    banner = model_banner(loader, demo)
    with gr.Tab("Assess", elem_id="assess-tab"):
        handlers = assess_tab(loader, banner)
    demo.unload(handlers.stop)


def main() -> None:
    """Serve the page, and load the model meanwhile."""
    on_spaces = "SPACE_ID" in os.environ  # Hugging Face Spaces reach the app from outside its container
    demo.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if on_spaces else "127.0.0.1"),
        allowed_paths=[str(EXAMPLES)],
        max_file_size="200mb",
        prevent_thread_lock=True,
        **look.launch_options(),
    )
    loader.start()  # only now: Gradio gives up if its own page does not answer quickly at launch
    demo.block_thread()


if __name__ == "__main__":
    main()
