"""The page with all its tabs, and the server of it: what `python app.py` and `m3agiqa serve` start.

Environment: annotation.settings, and Gradio's GRADIO_SERVER_NAME and GRADIO_SERVER_PORT.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from http import HTTPStatus

import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from annotation import backup
from annotation.retraining import Retraining
from annotation.settings import Settings
from annotation.store import Store
from annotation.ui import api, theme, thumbnails, zero_gpu
from annotation.ui.access import Access, UsersAccess
from annotation.ui.annotate.tab import annotate_tab
from annotation.ui.api_snippets import use_code_snippets
from annotation.ui.assess.examples import EXAMPLES_FOLDER
from annotation.ui.assess.tab import assess_tab
from annotation.ui.compare.tab import compare_tab
from annotation.ui.context import Studio
from annotation.ui.data.tab import data_tab
from annotation.ui.failures.tab import failures_tab
from annotation.ui.header import page_head
from annotation.ui.model_service import ModelLoader, follow_model, from_registry, model_banner, model_to_serve
from annotation.ui.models.tab import models_tab
from annotation.ui.page import Page
from m3agiqa.errors import InputError, M3AgiqaError

log = logging.getLogger(__name__)


DELETE_CACHE = (3600, 24 * 3600)  # seconds between two looks for old uploads, and their greatest age


def build_page(studio: Studio) -> gr.Blocks:
    """The page with all its tabs."""
    with Page(title="M3-AGIQA Studio", analytics_enabled=False, delete_cache=DELETE_CACHE) as demo:
        api.publish(studio)  # first, for the page's own events have some of these names, too
        page_head(studio, demo)
        banner = model_banner(studio.loader)
        with gr.Tab("Assess", elem_id="assess-tab") as assess:
            assess_tab(studio, banner)
        with gr.Tab("Annotate", elem_id="annotate-tab") as annotate:
            annotating = annotate_tab(studio)
        with gr.Tab("Compare", elem_id="compare-tab") as compare:
            compare_tab(studio)
        with gr.Tab("Failure cases", elem_id="failures-tab") as failures:
            failures_tab(studio, failures, demo, annotating.prefetch)
        with gr.Tab("Data", elem_id="data-tab") as data:
            data_tab(studio, data)
        with gr.Tab("Models", elem_id="models-tab") as models:
            models_tab(studio, banner, models, annotating.prefetch.catch_up)
        if not zero_gpu.ON_ZERO_GPU:  # where this would use up somebody's share
            annotating.prefetch.resume()
        follow_model(studio.loader, banner, demo, [assess, annotate, compare, failures, data, models])
    return demo


def serve(studio: Studio) -> None:
    """Serve the page until the process is ended, and load the model meanwhile.

    Raises InputError where nothing can listen on the address.
    """
    on_spaces = os.environ.get("SPACE_ID")  # Hugging Face Spaces reach the app from outside its container
    server_name = os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if on_spaces else "127.0.0.1")
    for warning in (studio.access.warning(server_name), backup.storage_warning(studio.settings)):
        if warning:
            log.warning(warning)
    if studio.settings.mcp:
        from annotation.ui.mcp_server import use_mcp_server  # a second to import, which few need

        use_mcp_server()
    use_code_snippets(has_token=isinstance(studio.access, UsersAccess))
    demo = build_page(studio)
    if zero_gpu.ON_ZERO_GPU:  # at launch, it readies for the GPU what is loaded by then
        with suppress(M3AgiqaError):  # the page will say it
            studio.loader.wait(lambda: False, lambda load: None)
    options = studio.access.launch_options(studio.store.database, studio.quota)
    app_options = options.get("app_kwargs", {})
    options["app_kwargs"] = {
        **app_options,
        "middleware": [*app_options.get("middleware", []), Middleware(api.CallErrors)],
        "routes": thumbnails.THUMBNAIL_ROUTES,
        "exception_handlers": {ClientDisconnect: _nobody_waits},
    }
    try:
        demo.launch(
            server_name=server_name,
            allowed_paths=[str(EXAMPLES_FOLDER), str(studio.settings.images.resolve())],
            max_file_size="200mb",
            prevent_thread_lock=True,
            mcp_server=studio.settings.mcp,
            **options,
            **theme.launch_options(),
        )
    except OSError as error:  # no port is free, or the address is another machine's
        raise InputError(f"The app cannot be served on {server_name}: {error}") from error
    Retraining(studio.settings).watch(studio.store)
    if studio.backup:
        studio.backup.start()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so platforms end their containers
    studio.loader.start()  # only now: Gradio gives up if its own page does not answer quickly at launch
    demo.block_thread()
    if studio.backup:  # not when Python exits: its threads, which upload, are gone by then
        studio.backup.finish()


def _nobody_waits(request: Request, error: Exception) -> Response:
    """A page was closed or a connection was lost during an upload, which is no error of the server."""
    return Response(status_code=HTTPStatus.BAD_REQUEST)


def main() -> None:
    """Serve what the environment asks for."""
    try:
        settings = Settings.from_environment()
        backup.restore(settings)
        store = Store.open(settings.database_url, settings.images)
        access = Access.from_settings(settings)
        model = model_to_serve(store, settings)
        loader = ModelLoader(model, from_registry(settings), instead=settings.model)
        serve(Studio(settings, store, access, loader, backup.of(settings, store)))
    except M3AgiqaError as error:
        sys.exit(str(error))
