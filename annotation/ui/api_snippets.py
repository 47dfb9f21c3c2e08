"""What "Use via API" shows for the three endpoints: programs that run as they stand, on files of one's own.

Gradio 6.31's own send no token, lose the call's id in bash, and have a list of files as one file. Its
function is replaced where it is looked up; tests/annotation/test_programs.py runs what is shown.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio.routes
from gradio_client.snippet import generate_code_snippets as gradios_snippets

TOKEN_PLACEHOLDER = "m3a_..."
FILE_ARGUMENTS = {"/assess": "image", "/compare": "images", "/score": "files"}


def use_code_snippets(has_token: bool) -> None:
    """Have Gradio show the snippets below; with a place for a token, where programs need one."""
    gradio.routes.generate_code_snippets = partial(code_snippets, has_token=has_token)  # type: ignore[attr-defined]


def code_snippets(
    api_name: str, endpoint_info: dict[str, Any], root: str, *, has_token: bool = False, **others: Any
) -> dict[str, str]:
    """By language; those of other endpoints are Gradio's."""
    if api_name not in FILE_ARGUMENTS:
        return gradios_snippets(api_name, endpoint_info, root, **others)
    return {
        "python": _python(api_name, root, has_token),
        "javascript": _javascript(api_name, root, has_token),
        "bash": _bash(api_name, root, has_token),
    }


def _python(api_name: str, root: str, has_token: bool) -> str:
    login = f', headers={{"Authorization": "Bearer {TOKEN_PLACEHOLDER}"}}' if has_token else ""
    name, files = FILE_ARGUMENTS[api_name], 'handle_file("a.png")'
    if name != "image":
        files = f'[{files}, handle_file("b.png")]'
    prompt = "" if api_name == "/score" else ' prompt="a lighthouse at dusk",'
    return (
        "from gradio_client import Client, handle_file\n\n"
        f'client = Client("{root}"{login})\n'
        f'result = client.predict({name}={files},{prompt} api_name="{api_name}")\n'
        "print(result)\n"
    )


def _javascript(api_name: str, root: str, has_token: bool) -> str:
    login = f', {{ headers: {{ Authorization: "Bearer {TOKEN_PLACEHOLDER}" }} }}' if has_token else ""
    name, files = FILE_ARGUMENTS[api_name], 'await file("a.png")'
    if name != "image":
        files = f'[{files}, await file("b.png")]'
    prompt = "" if api_name == "/score" else ', prompt: "a lighthouse at dusk"'
    return (
        'import { readFile } from "node:fs/promises";\n'
        'import { Client, handle_file } from "@gradio/client";\n\n'
        "const file = async (path) => handle_file(new File([await readFile(path)], path));\n"
        f'const client = await Client.connect("{root}"{login});\n'
        f'const result = await client.predict("{api_name}", {{ {name}: {files}{prompt} }});\n'
        "console.dir(result.data, { depth: null });\n"
    )


def _bash(api_name: str, root: str, has_token: bool) -> str:
    token, header = "", ""
    if has_token:
        token, header = f' token="Authorization: Bearer {TOKEN_PLACEHOLDER}"', ' -H "$token"'
    name, files = FILE_ARGUMENTS[api_name], "'$(file a.png)'"
    if name != "image":
        files = f"[{files}, '$(file b.png)']"
    prompt = "" if api_name == "/score" else ', "prompt": "a lighthouse at dusk"'
    return (
        f"url={root}/gradio_api{token}\n"
        f"file() {{ curl -s{header} $url/upload -F files=@$1 |\n"
        """  sed 's/.*"\\(.*\\)".*/{"path": "\\1", "meta": {"_type": "gradio.FileData"}}/'; }\n"""
        f"""data='{{"{name}": {files}{prompt}}}'\n"""
        f'id=$(curl -s{header} -H "Content-Type: application/json" $url/call/v2{api_name} -d "$data" |\n'
        "  cut -d'\"' -f4)\n"
        f"curl -sN{header} $url/call/v2{api_name}/$id\n"
    )
