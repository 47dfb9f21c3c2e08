"""The endpoints for programs as MCP tools: Gradio's own server, with what its version 6.31 leaves out.

Its methods are private or undocumented; tests/annotation/test_programs.py fails where they change.
"""

from __future__ import annotations

import asyncio
import json
from importlib.util import find_spec
from typing import Any

import gradio.mcp
from gradio.mcp import GradioMCPServer
from gradio_client import Client
from gradio_client.utils import StatusUpdate

from annotation.ui.bearer_tokens import LOOPBACK_HEADER, LOOPBACK_SECRET
from m3agiqa.errors import InputError


def use_mcp_server() -> None:
    """Have Gradio take the server below at launch(mcp_server=True). Raises InputError without its package."""
    if find_spec("mcp") is None:
        raise InputError("M3AGIQA_MCP needs the Python package mcp: pip install -r requirements-mcp.txt")
    gradio.mcp.GradioMCPServer = StudioMcpServer  # type: ignore[misc]


class StudioMcpServer(GradioMCPServer):
    """Works with a login and lists of files, answers in JSON, tells progress in sentences, can be cancelled.

    Tools that are queued are called through HTTP, by a client of the app's own whom the login would refuse.
    """

    def _get_or_create_client(self) -> Client:
        if self._client_instance is None:
            self._client_instance = Client(
                self.local_url,
                download_files=False,
                verbose=False,
                analytics_enabled=False,
                _skip_components=False,
                headers={"x-gradio-user": "mcp", LOOPBACK_HEADER: LOOPBACK_SECRET},
            )
        return self._client_instance

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
        """Gradio leaves the files of a list as they are."""
        converted = super().convert_strings_to_filedata(value, filedata_positions)
        for name in _lists_of_files(filedata_positions) & converted.keys():
            given = value[name] if isinstance(value[name], list) else [value[name]]
            parts = [
                super(StudioMcpServer, self).convert_strings_to_filedata([each], [[0]]) for each in given
            ]
            converted[name] = [file for [file] in parts]
        return converted

    async def _execute_tool_without_progress(self, job: Any) -> list[Any]:
        try:
            result = await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            await asyncio.to_thread(job.cancel)
            raise
        return list(result) if isinstance(result, tuple) else [result]

    async def _execute_tool_with_progress(self, job: Any, progress_token: str | int) -> Any:
        try:
            return await super()._execute_tool_with_progress(job, progress_token)
        except asyncio.CancelledError:
            await asyncio.to_thread(job.cancel)
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
