"""The endpoints for programs, over HTTP: with curl, gradio_client and an MCP client; several users."""

import asyncio
import base64
import csv
import json
import shutil
import socket
import subprocess
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from app_server import Server, serve_team
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, TextContent
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from waiting import run_async, wait_until

from annotation.store import Database
from annotation.store.api_tokens import current_token, make_token, revoke_token
from annotation.ui.api_snippets import TOKEN_PLACEHOLDER
from annotation.users import Role, read_users, remove_user
from m3agiqa.assessment import Assessment

JAVASCRIPT_CLIENT = "@gradio/client@2.7.0"
COLOURS = ("red", "blue", "lime")  # full quality, authenticity, correspondence
FOREIGN = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
OUT_OF_REACH = {"path": "http://127.0.0.1:9/a.png", "meta": {"_type": "gradio.FileData"}}


@dataclass(frozen=True)
class Team:
    """A server, and the tokens of its users: ann and vic have roles, zoe was removed, ben's was revoked."""

    server: Server
    tokens: dict[str, str]
    folder: Path

    def headers(self, user: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[user]}"} if user else {}

    def client(self, user: str) -> Client:
        return Client(self.server.url, headers=self.headers(user), verbose=False)

    def curl(self, user: str, path: str, *options: str) -> tuple[int, str]:
        """Status and body."""
        header = [
            option for name, value in self.headers(user).items() for option in ("-H", f"{name}: {value}")
        ]
        command = ["curl", "-sS", "--max-time", "60", "-w", "\n%{http_code}", *header, *options]
        output = subprocess.run(
            [*command, f"{self.server.url}/gradio_api/{path}"], capture_output=True, text=True, check=True
        ).stdout
        body, _, status = output.rpartition("\n")
        return int(status), body

    def post(self, user: str, path: str, body: Any) -> tuple[int, Any]:
        status, answer = self.curl(user, path, "-H", "Content-Type: application/json", "-d", json.dumps(body))
        return status, json.loads(answer)

    def call(self, user: str, name: str, **arguments: Any) -> list[tuple[str, Any]]:
        """All events of a call, with their data."""
        status, answer = self.post(user, f"call/v2/{name}", arguments)
        assert status == 200, answer
        _, stream = self.curl(user, f"call/v2/{name}/{answer['event_id']}", "-N")
        events = [
            dict(line.split(": ", 1) for line in each.splitlines()) for each in stream.split("\n\n") if each
        ]
        return [(event["event"], json.loads(event["data"])) for event in events]

    async def mcp(
        self, user: str, name: str, told: list[str] | None = None, **arguments: Any
    ) -> CallToolResult:
        """A tool's answer; `told` takes the messages of its progress."""

        async def tell(done: float, total: float | None, message: str | None) -> None:
            told.append(message or "")

        url = f"{self.server.url}/gradio_api/mcp/"
        async with (
            httpx.AsyncClient(headers=self.headers(user), timeout=60) as http,
            streamable_http_client(url, http_client=http) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await session.call_tool(name, arguments, progress_callback=None if told is None else tell)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    for colour in COLOURS:
        Image.new("RGB", (64, 64), colour).save(folder / f"{colour}.png")
    roles = {"ann": Role.ADMIN, "ben": Role.ANNOTATOR, "vic": Role.VIEWER, "zoe": Role.VIEWER}
    with serve_team(folder, {"M3AGIQA_MCP": "1"}, **roles) as server:
        database, users = Database.open(f"sqlite:///{server.data / 'annotations.db'}"), folder / "users.txt"
        tokens = {"stranger": "m3a_guessed"}
        for name, user in read_users(users).items():
            tokens[name] = database.transact(
                lambda session, u=user: make_token(session, u.name, u.password_hash)
            )
        database.transact(lambda session: revoke_token(session, "ben"))
        remove_user(users, "zoe")
        yield Team(server, tokens, folder)
        with database.reading() as session:
            assert current_token(session, "vic").last_used_at is not None
        database.close()


def image(team: Team, colour: str) -> dict[str, Any]:
    return handle_file(str(team.folder / f"{colour}.png"))


def upload(team: Team, user: str, colour: str) -> str:
    """The path of an uploaded image on the server."""
    content = (team.folder / f"{colour}.png").read_bytes()
    url, files = f"{team.server.url}/gradio_api/upload", {"files": (f"{colour}.png", content)}
    return httpx.post(url, headers=team.headers(user), files=files).json()[0]


def as_data(team: Team, colour: str) -> str:
    """As agents send a file that has no URL."""
    content = (team.folder / f"{colour}.png").read_bytes()
    return "data:image/png;base64," + base64.b64encode(content).decode()


def text_of(result: CallToolResult) -> str:
    [content] = result.content
    assert isinstance(content, TextContent)
    return content.text


def test_three_endpoints_are_documented_and_no_other_is_a_tool(team: Team) -> None:
    named = json.loads(team.curl("vic", "info")[1])["named_endpoints"]
    assert list(named) == ["/assess", "/compare", "/score"]
    assert {each["parameter_name"] for each in named["/compare"]["parameters"]} == {
        "images",
        "prompt",
        "order",
        "weights",
    }
    for endpoint in named.values():
        assert endpoint["description"] and set(endpoint["code_snippets"]) == {
            "python",
            "javascript",
            "bash",
            "cli",
        }
    tools = json.loads(team.curl("vic", "mcp/schema")[1])
    assert [tool["name"] for tool in tools] == ["assess", "compare", "score"]
    assert all(tool["description"] and tool["inputSchema"]["properties"] for tool in tools)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_gets_what_the_command_prints(team: Team) -> None:
    status, uploaded = team.curl("vic", "upload", "-F", f"files=@{team.folder / 'red.png'}")
    assert status == 200
    file = {"path": json.loads(uploaded)[0], "orig_name": "red.png", "meta": {"_type": "gradio.FileData"}}
    *_, (event, [assessment]) = team.call("vic", "assess", image=file, prompt="a red square")
    assert event == "complete"
    assert set(assessment) == set(Assessment("", "", {}, "", "", 0.0).to_dict())
    assert (assessment["image"], assessment["prompt"]) == ("red.png", "a red square")
    assert {name: each["mos"] for name, each in assessment["aspects"].items()} == {
        "quality": 5.0,
        "correspondence": 1.0,
        "authenticity": 1.0,
    }


SHOWN_BY_SNIPPET = {"assess": "quality", "compare": "place", "score": "scores.csv"}


@pytest.fixture
def snippets(team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> dict[str, str]:
    """What the page shows for an endpoint, by language, in a folder with the files that it names."""
    monkeypatch.chdir(tmp_path)
    for file, colour in (("a.png", "red"), ("b.png", "blue")):
        shutil.copy(team.folder / f"{colour}.png", file)
    shown = json.loads(team.curl("vic", "info")[1])["named_endpoints"][f"/{name}"]["code_snippets"]
    return {language: text.replace(TOKEN_PLACEHOLDER, team.tokens["vic"]) for language, text in shown.items()}


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("name", SHOWN_BY_SNIPPET)
def test_the_snippets_of_the_page_run_as_they_stand(
    snippets: dict[str, str], capsys: pytest.CaptureFixture, name: str
) -> None:
    ran = subprocess.run(["bash", "-c", snippets["bash"]], capture_output=True, text=True, timeout=60)
    assert "event: complete" in ran.stdout and SHOWN_BY_SNIPPET[name] in ran.stdout, ran
    exec(snippets["python"], {})
    assert SHOWN_BY_SNIPPET[name] in capsys.readouterr().out


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Gradio's client for JavaScript is installed."""
    if (npm := shutil.which("npm")) is None:
        pytest.skip("there is no npm")
    folder = tmp_path_factory.mktemp("javascript")
    command = [npm, "install", "--silent", "--prefix", str(folder), JAVASCRIPT_CLIENT]
    if subprocess.run(command, timeout=120).returncode:
        pytest.skip(f"npm cannot install {JAVASCRIPT_CLIENT}")
    return folder / "node_modules"


@pytest.mark.parametrize("name", SHOWN_BY_SNIPPET)
def test_the_javascript_snippet_runs_as_it_stands(
    snippets: dict[str, str], node_modules: Path, name: str
) -> None:
    Path("snippet.mjs").write_text(snippets["javascript"], encoding="utf-8")
    Path("node_modules").symlink_to(node_modules)
    ran = subprocess.run(["node", "snippet.mjs"], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and SHOWN_BY_SNIPPET[name] in ran.stdout, ran


def test_weights_decide_the_order_and_a_map_comes_on_request(team: Team) -> None:
    client, images = team.client("vic"), [image(team, "red"), image(team, "blue")]
    for aspect, first in (("quality", "red.png"), ("authenticity", "blue.png")):
        ranking = client.predict(images, "a square", "overall", f"{aspect}=1", api_name="/compare")
        assert (ranking["weights"], ranking["images"][0]["image"]) == ({aspect: 1.0}, first)
    told = client.predict(image(team, "red"), "a square", True, api_name="/assess")["map"]
    assert told["parts"][3] == {"box": [32, 32, 32, 32], "quality": 0.0}


@pytest.mark.parametrize(
    ("user", "status", "sentence"),
    [
        ("", 401, "Not authenticated"),
        ("stranger", 401, "This token is not known here"),
        ("ben", 401, "This token was revoked"),
        ("zoe", 403, "zoe is no longer a user of this server"),
    ],
)
@pytest.mark.parametrize("path", ["call/assess", "mcp/"])
def test_who_has_no_role_is_told_why(team: Team, path: str, user: str, status: int, sentence: str) -> None:
    answered, body = team.post(user, path, {"data": [None, None]})
    assert answered == status
    assert sentence in (body.get("error") or body["detail"]["error"]) or (path, user) == ("mcp/", "")


def test_a_token_has_its_users_role_and_no_more(team: Team) -> None:
    status, body = team.post("vic", "run/progress", {"data": []})
    assert status == 500
    assert "vic is signed in as a viewer, and this takes an annotator" in body["error"]
    assert team.client("ann").predict(api_name="/progress")["mine"] == 0


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("assess", {"image": None}, "There is no image"),
        ("assess", {"image": "a.png"}, "cannot be taken"),
        ("assess", {"image": FOREIGN}, "cannot be taken"),
        ("assess", {"image": OUT_OF_REACH}, "cannot be taken"),
        ("compare", {"images": [], "weights": "beauty=1"}, "There is no aspect 'beauty'"),
        ("compare", {"images": [], "weights": "quality=much"}, "The weight of quality is not a number"),
        ("compare", {"images": []}, "0 images were given; 2 to 24 can be compared at once."),
        ("compare", {"images": [], "weights": 5}, "Weights must be text, not 5"),
        ("compare", {"images": [], "prompt": 5}, "The prompt must be text, not 5"),
        ("score", {"files": []}, "There are no files"),
    ],
)
def test_what_is_wrong_is_a_sentence_in_json(
    team: Team, name: str, arguments: dict[str, Any], sentence: str
) -> None:
    *_, (event, answer) = team.call("vic", name, **arguments)
    assert event == "error"
    assert sentence in answer["error"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_a_quota_that_is_used_up_says_when_it_goes_on(team: Team, tmp_path: Path) -> None:
    """Two images an hour: one is assessed, two more are one too many, another one is the last."""
    with serve_team(tmp_path, {"M3AGIQA_QUOTA": "2"}, ann=Role.ADMIN, vic=Role.VIEWER) as server:
        database = Database.open(f"sqlite:///{server.data / 'annotations.db'}")
        tokens = {
            user.name: database.transact(lambda session, u=user: make_token(session, u.name, u.password_hash))
            for user in read_users(tmp_path / "users.txt").values()
        }
        database.close()
        limited = Team(server, tokens, team.folder)
        file = {"path": upload(limited, "vic", "red"), "meta": {"_type": "gradio.FileData"}}
        assert limited.call("vic", "assess", image=file)[-1][0] == "complete"
        *_, (event, answer) = limited.call("vic", "compare", images=[file, file])
        assert event == "error" and "and 1 of them are left; it goes on at" in answer["error"]
        assert limited.call("vic", "assess", image=file)[-1][0] == "complete"
        for path in ("call/v2/assess", "call/compare", "run/score"):
            status, body = limited.post("vic", path, {"data": [None, None]})
            assert status == 429 and "used up; it goes on at" in body["error"]
        _, head = limited.curl("vic", "call/assess", "-i", "-d", "{}")
        assert 3000 < int(head.lower().partition("retry-after: ")[2].split()[0]) <= 3600
        with pytest.raises(AppError, match="it goes on at"):
            limited.client("vic").predict([image(team, "red")], api_name="/score")
        mine = {"path": upload(limited, "ann", "red"), "meta": {"_type": "gradio.FileData"}}
        assert limited.call("ann", "assess", image=mine)[-1][0] == "complete", "others go on"


@pytest.mark.parametrize(
    ("name", "arguments", "status", "sentence"),
    [
        ("judge", {}, 404, "There is no endpoint /judge; /gradio_api/info lists"),
        ("assess", {"picture": None}, 400, "Parameter `picture` is not a valid key-word argument"),
        ("score", {}, 400, "No value provided for required argument: files"),
    ],
)
def test_a_call_that_no_endpoint_takes_is_told_in_json(
    team: Team, name: str, arguments: dict[str, Any], status: int, sentence: str
) -> None:
    answered, body = team.post("vic", f"call/v2/{name}", arguments)
    assert answered == status and sentence in body["error"]


def test_two_users_take_turns_and_who_gives_up_leaves_the_line(team: Team) -> None:
    ann, vic = team.client("ann"), team.client("vic")
    first = ann.submit(image(team, "red"), "until stopped", api_name="/assess")
    wait_until(lambda: {"status": "Looking at the image"} in first.outputs())
    second = vic.submit(image(team, "blue"), api_name="/assess")
    place = "You are number 2 in the queue: one visitor is before you"
    wait_until(lambda: {"status": place} in second.outputs())
    first.cancel()
    assert second.result(timeout=60)["aspects"]["authenticity"]["mos"] == 5.0


def test_images_are_compared_and_scored(team: Team) -> None:
    vic = team.client("vic")
    ranking = vic.predict(
        [image(team, colour) for colour in COLOURS], "a square", "quality", api_name="/compare"
    )
    assert ranking["images"][0]["image"] == "red.png"
    assert (ranking["order"], ranking["prompt"]) == ("quality", "a square")
    info = PngInfo()
    info.add_text("parameters", "a fox\nSteps: 20, Sampler: Euler a, Seed: 1")
    for number in range(2):
        Image.new("RGB", (64, 64), (99, 99 * number, 0)).save(team.folder / f"fox-{number}.png", pnginfo=info)
    foxes = [image(team, f"fox-{number}") for number in range(2)]
    assert vic.predict(foxes, api_name="/compare")["prompt"] == "a fox", "which all files carry"
    with zipfile.ZipFile(team.folder / "images.zip", "w") as archive:
        for number in range(9):
            archive.write(team.folder / "lime.png", f"{number}.png")
        archive.writestr("0.txt", "a lime")
        archive.writestr("broken.png", "no image")
    job = vic.submit([handle_file(str(team.folder / "images.zip"))], api_name="/score")
    table, counts = job.result(timeout=60)
    assert {name: counts[name] for name in ("scored", "failed", "total")} == {
        "scored": 10,
        "failed": 1,
        "total": 10,
    }
    assert {each[1]["total"] for each in job.outputs()} <= {0, 10}
    with Path(table).open(encoding="utf-8-sig", newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert len(rows) == 10
    assert rows["0.png"]["correspondence_mos"] == "5.000" and rows["1.png"]["correspondence_mos"] == ""
    assert "not an image" in rows["broken.png"]["error"]


def test_agents_of_two_users_at_once(team: Team) -> None:
    told: list[str] = []

    uploaded = upload(team, "vic", "red")

    async def both() -> list[CallToolResult | BaseException]:
        calls = [
            team.mcp("ann", "assess", told, image=as_data(team, "blue"), prompt="a blue square"),
            team.mcp("vic", "compare", images=[as_data(team, "blue"), as_data(team, "red")], order="quality"),
            team.mcp("vic", "assess", image=base64.b64encode(b"x").decode()),
            team.mcp("vic", "score", files=[f"{team.server.url}/gradio_api/file={uploaded}"]),
            team.mcp("vic", "assess", image=f"{team.server.url}/gradio_api/file=/etc/hostname"),
            team.mcp("vic", "assess", image=FOREIGN),
            team.mcp("zoe", "assess", image=as_data(team, "blue")),
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    assessment, ranking, wrong, scores, foreign, as_dict, refused = run_async(both())
    assert json.loads(text_of(assessment))["aspects"]["authenticity"]["mos"] == 5.0
    assert told
    assert [each["place"] for each in json.loads(text_of(ranking))["images"]] == [1, 2]
    assert wrong.isError and "file" in text_of(wrong)
    table, counts = scores.content
    assert table.text.endswith("scores.csv") and json.loads(counts.text)["scored"] == 1
    assert foreign.isError and "There is no such uploaded file" in text_of(foreign)
    assert as_dict.isError
    assert isinstance(refused, BaseException)


def still_answers(team: Team) -> bool:
    """Whether the model is free again."""
    job = team.client("vic").submit(image(team, "red"), api_name="/assess")
    return job.result(timeout=30)["aspects"]["quality"]["mos"] == 5.0


def test_an_agent_that_hangs_up_leaves_the_line_and_takes_nobody_along(team: Team) -> None:
    async def hang_up() -> CallToolResult:
        long = asyncio.create_task(
            team.mcp("ann", "assess", image=as_data(team, "red"), prompt="until stopped")
        )
        await asyncio.sleep(3)
        other = asyncio.create_task(team.mcp("vic", "assess", image=as_data(team, "red")))
        await asyncio.sleep(1)
        long.cancel()
        return await other

    assert not run_async(hang_up()).isError
    assert still_answers(team)


def test_a_program_that_hangs_up_leaves_the_line(team: Team) -> None:
    file = {"path": upload(team, "ann", "red"), "meta": {"_type": "gradio.FileData"}}
    status, answer = team.post("ann", "call/v2/assess", {"image": file, "prompt": "until stopped"})
    assert status == 200
    path = f"{team.server.url}/gradio_api/call/v2/assess/{answer['event_id']}"
    with httpx.stream("GET", path, headers=team.headers("ann"), timeout=60) as stream:
        assert next(line for line in stream.iter_lines() if "Looking at the image" in line)
    assert still_answers(team)


def test_an_upload_that_breaks_off_is_no_error_of_the_server(team: Team) -> None:
    address = urlsplit(team.server.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = [
            "POST /gradio_api/upload HTTP/1.1",
            f"Host: {address.netloc}",
            *(f"{name}: {value}" for name, value in team.headers("ann").items()),
            "Content-Type: multipart/form-data; boundary=part",
            "Content-Length: 100000",
        ]
        connection.sendall("\r\n".join([*head, "", "--part\r\n"]).encode())
        time.sleep(0.5)  # until it reads the body
    assert still_answers(team)
    assert "Traceback" not in (team.folder / "log.txt").read_text()
