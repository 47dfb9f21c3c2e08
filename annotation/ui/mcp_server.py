"""The endpoints for programs as MCP tools: Gradio's own server, with what its version 6.31 leaves out.

Its methods are private or undocumented; tests/annotation/test_programs.py fails where they change.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from urllib.parse import unquote

import gradio.mcp
from gradio.mcp import GradioMCPServer
from gradio.route_utils import API_PREFIX
from gradio_client import Client, handle_file
from gradio_client.utils import StatusUpdate

from annotation.ui.bearer_tokens import LOOPBACK_HEADER, LOOPBACK_SECRET
from annotation.ui.images import Upload
from m3agiqa.errors import InputError

JOINING_SECONDS = 30  # at most, until a call has its place in Gradio's queue


def use_mcp_server() -> None:
    """Have Gradio take the server below at launch(mcp_server=True). Raises InputError without its package."""
    if find_spec("mcp") is None:
        raise InputError('M3AGIQA_MCP needs the Python package mcp: pip install "m3agiqa[mcp]".')
    gradio.mcp.GradioMCPServer = StudioMcpServer  # type: ignore[misc]


class StudioMcpServer(GradioMCPServer):
    """Works with a login and lists of files, answers in JSON, tells progress in sentences, can be cancelled.

    Tools that are queued are called through HTTP, by a client of the app's own whom the login would refuse.
    """

    def _get_or_create_client(self) -> Client:
        """One for each call: to cancel a call ends all that its client has made of this tool."""
        return Client(
            self.local_url,
            download_files=False,
            verbose=False,
            analytics_enabled=False,
            _skip_components=False,
            headers={"x-gradio-user": "mcp", LOOPBACK_HEADER: LOOPBACK_SECRET},
        )

    def get_input_schema(
        self, tool_name: str, parameters: dict[str, str] | None = None
    ) -> tuple[dict[str, Any], list[list[str | int]]]:
        """Gradio describes the files of a list by a reference that leads nowhere."""
        schema, positions = super().get_input_schema(tool_name, parameters)
        for name in _lists_of_files(positions):
            files = schema["properties"][name]
            files.pop("$defs", None)
            files["items"].pop("$ref", None)
        return schema, positions

    def convert_strings_to_filedata(self, value: Any, filedata_positions: list[list[str | int]]) -> Any:
        """Gradio leaves the files of a list as they are, and refuses to read its own uploads by their URL."""
        lists = _lists_of_files(filedata_positions)
        return {
            name: [self._file(each) for each in (given if isinstance(given, list) else [given])]
            if name in lists
            else self._file(given)
            if [name] in filedata_positions
            else given
            for name, given in value.items()
        }

    def _file(self, text: Any) -> Any:
        """From a URL, or a file's content as a data: URL. Raises ValueError for anything else.

        The client below would send any file of the server that a dict names, so none is taken from a caller.
        """
        if not isinstance(text, str):
            raise ValueError("Give a file as a URL: https://... or data:...")
        own = text.partition(f"{API_PREFIX}/file=")[2]
        if not own:
            return super().convert_strings_to_filedata([text], [[0]])[0]
        upload = Upload.from_payload({"path": unquote(own)})
        if upload is None:
            raise ValueError("There is no such uploaded file here; upload it again.")
        return handle_file(str(upload.path))

    async def _execute_tool_without_progress(self, job: Any) -> list[Any]:
        with self._cancelled_with_the_call(job):
            result = await asyncio.wrap_future(job.future)
        return list(result) if isinstance(result, tuple) else [result]

    async def _execute_tool_with_progress(self, job: Any, progress_token: str | int) -> Any:
        with self._cancelled_with_the_call(job):
            return await super()._execute_tool_with_progress(job, progress_token)

    @staticmethod
    @contextmanager
    def _cancelled_with_the_call(job: Any) -> Iterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            threading.Thread(target=_cancel, args=(job,), daemon=True).start()
            raise

    @staticmethod
    def _format_progress_message(update: StatusUpdate) -> str | None:
        for unit in update.progress_data or []:
            return unit.desc
        return GradioMCPServer._format_progress_message(update)

    def postprocess_output_data(self, data: Any, root_url: str) -> list[Any]:
        is_file = [isinstance(output, dict) and "meta" in output for output in data]
        as_text = [
            output if file or isinstance(output, str) else json.dumps(output, ensure_ascii=False)
            for output, file in zip(data, is_file, strict=True)
        ]
        return super().postprocess_output_data(as_text, root_url)


def _lists_of_files(positions: list[list[str | int]]) -> set[str]:
    """Arguments that are lists of files; of others a position has the name alone."""
    return {str(name) for name, *within in positions if within == ["items"]}


def _cancel(job: Any) -> None:
    """As soon as the call has its place in Gradio's queue."""
    deadline = time.monotonic() + JOINING_SECONDS
    while job.communicator.event_id is None and time.monotonic() < deadline:
        time.sleep(0.05)
    job.cancel()
