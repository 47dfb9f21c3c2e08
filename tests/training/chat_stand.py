"""A local server that speaks OpenAI's chat completions and sees the images that it is shown."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image
from scripted_backbone import brightness

from m3agiqa.aspects import RATING_WORDS


@dataclass(frozen=True)
class Asked:
    """One request for an answer."""

    body: dict
    authorization: str | None

    @property
    def question(self) -> str:
        """The first one."""
        return self.body["messages"][0]["content"][1]["text"]

    @property
    def round(self) -> int:
        return 1 if len(self.body["messages"]) == 1 else 2

    @property
    def image(self) -> Image.Image:
        url = self.body["messages"][0]["content"][0]["image_url"]["url"]
        return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))


Answer = str | tuple[int, dict, dict] | bytes | None
"""A text; or status, JSON and headers; or a raw body; or nothing, and the connection breaks."""


class ChatStand(ThreadingHTTPServer):
    """Describes an image by its brightness, and rates it by that; `moods` may answer something else first."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, models: tuple[str, ...] | None = ("seer",)) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.asked: list[Asked] = []
        self.moods: Callable[[Asked, int], Answer] | None = None
        """Gets a request, and how often its question was asked in its round before; "": no mood."""
        self.pause = 0.0
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: object, address: object) -> None:
        pass  # clients that are killed

    def respond(self, path: str, body: dict, authorization: str | None) -> Answer:
        """What comes of a request."""
        if path != "/v1/chat/completions":
            return 404, {"detail": "Not Found"}, {}
        said = self.answer(Asked(body, authorization))
        return (200, chat_reply(said), {}) if isinstance(said, str) else said

    def answer(self, asked: Asked) -> Answer:
        with self.lock:
            before = [each for each in self.asked if each.round == asked.round]
            times = sum(
                each.question == asked.question and each.body["messages"] == asked.body["messages"]
                for each in before
            )
            self.asked.append(asked)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            time.sleep(self.pause)
            said = self.moods(asked, times) if self.moods else ""
            if said != "":
                return said
            light = brightness(asked.image)
            return (
                f"It is {light:.3f} bright."
                if asked.round == 1
                else f"{RATING_WORDS[min(4, int(5 * light))]}."
            )
        finally:
            with self.lock:
                self.under_way -= 1


class _Handler(BaseHTTPRequestHandler):
    server: ChatStand
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path != "/v1/models" or self.server.models is None:
            return self._send(404, {"detail": "Not Found"})
        return self._send(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = self.server.respond(self.path, body, self.headers.get("Authorization"))
        if said is None:
            self.close_connection = True
            return self.connection.shutdown(2)
        return self._write(200, said, {}) if isinstance(said, bytes) else self._send(*said)

    def _send(self, status: int, answer: dict, headers: dict[str, str] | None = None) -> None:
        self._write(
            status, json.dumps(answer).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _write(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        with suppress(OSError):  # the client has given up
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


def chat_reply(text: str, **facts: object) -> dict:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"choices": [choice], **facts}


@contextmanager
def chat_stand(
    models: tuple[str, ...] | None = ("seer",), kind: type[ChatStand] = ChatStand
) -> Iterator[ChatStand]:
    with kind(models) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
