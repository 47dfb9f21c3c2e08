"""How events of the page run: keyword arguments that Gradio's listeners share."""

from __future__ import annotations

from typing import Any

QUIET_EVENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""For the page alone, not for programs; no bar of Gradio's lies over what changes."""
PARALLEL_EVENT: dict[str, Any] = {"concurrency_limit": None, **QUIET_EVENT}
"""No visitor waits for another one's."""
