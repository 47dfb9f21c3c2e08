"""A server's model speaks: all of it, once, and never mixed with what others have said."""

import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_stand import Answer, Asked, ChatStand, chat_stand
from forked_training import start_training
from hypothesis import given
from hypothesis import strategies as st
from scripted_backbone import ScriptedBackbone, begun_run, drawings, states
from waiting import kill_once

from m3agiqa.aspects import RATING_WORDS, Aspect, MosScale, Rating
from m3agiqa.conversation import Conversation
from m3agiqa.errors import InputError, M3AgiqaError
from training import pipeline
from training.__main__ import main
from training.data.variants import Variant, all_variants, own_variants
from training.evaluation.cross_dataset import cross
from training.parallel import Shard
from training.remote.client import ChatServer, ServerError
from training.run import RunFolder
from training.stages.describe_remote import (
    MAX_FAILED_IN_A_ROW,
    RemoteDescriptions,
    ServerConfig,
    rating_in,
    whole_sentences,
)

KEY = "sk-very-secret-key"
LIGHT = (Aspect.QUALITY, Aspect.AUTHENTICITY)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def stand() -> Iterator[ChatStand]:
    with chat_stand() as server:
        yield server


@pytest.fixture
def cases(tmp_path: Path) -> list[Variant]:
    """Eight drawings, six of them with a prompt, for two aspects."""
    return own_variants(drawings(tmp_path / "data", 8, MosScale(1, 5), LIGHT), LIGHT)


def served(
    stand: ChatStand, tmp_path: Path, slept: list[float] | None = None, **settings: object
) -> RemoteDescriptions:
    config = ServerConfig(stand.url, **{"patience": 0.01, "timeout": 5.0, **settings})
    sleep = None if slept is None else slept.append
    return RemoteDescriptions(config, tmp_path / "served", sleep)


def failing(*moods: tuple[int, str, Answer]) -> object:
    """Requests of a round whose question holds some words are answered like that, the first time."""

    def mood(asked: Asked, times: int) -> Answer:
        for turn, words, answer in moods:
            if times == 0 and asked.round == turn and words in asked.question:
                return answer
        return ""

    return mood


def about(number: int) -> str:
    return f"a grey number {number}'"


# --- conversations -------------------------------------------------------------------------------


def test_conversations_are_held_as_they_are_made(stand: ChatStand, tmp_path: Path) -> None:
    samples = [
        replace(sample, split="test")
        for sample in drawings(tmp_path / "data", 6, MosScale(1, 5), tuple(Aspect))
    ]
    cases = all_variants(samples, tuple(Aspect), seed=0)  # with damaged copies and unrelated prompts
    speaker = served(stand, tmp_path)
    assert speaker.describe(cases) == {}
    wanted = [(case, aspect) for case in cases for aspect in case.aspects]
    heard = speaker.conversations(cases)
    assert [(each.variant, each.conversation.aspect) for each in heard] == wanted
    held = {
        (each.question, each.image.tobytes()): each.body["messages"]
        for each in stand.asked
        if each.round == 2
    }
    for conversation in heard:
        case, told = conversation.variant, conversation.conversation
        first, said, second = told.turns
        assert told == Conversation.open(told.aspect, case.prompt).describe(said.content)
        shown, answer, rated = held[first.content, case.image().tobytes()]
        assert shown["content"][1] == {"type": "text", "text": first.content}
        assert answer == {"role": "assistant", "content": said.content}
        assert rated == {"role": "user", "content": second.content}
        light = float(np.asarray(case.image().convert("L")).mean()) / 255
        assert said.content == f"It is {light:.3f} bright."
        assert conversation.rating is RATING_WORDS[min(4, int(5 * light))]
    assert len(stand.asked) == 2 * len(wanted)
    assert {each.body["temperature"] for each in stand.asked} == {0.0}
    assert {each.body["model"] for each in stand.asked} == {"seer"}
    assert {each.authorization for each in stand.asked} == {None}


def test_what_was_answered_is_not_asked_for_again(
    stand: ChatStand, cases: list[Variant], tmp_path: Path
) -> None:
    served(stand, tmp_path).describe(cases[:5])
    asked = len(stand.asked)
    again = served(stand, tmp_path)
    again.describe(cases)
    assert len(stand.asked) - asked == 2 * 2 * 3
    assert again.missing(cases) == []
    stand.shutdown()  # nothing is left to be asked, so that it may be gone
    assert served(stand, tmp_path).describe(cases) == {}
    assert len(served(stand, tmp_path).conversations(cases)) == 16


def test_shares_together_are_everything(stand: ChatStand, cases: list[Variant], tmp_path: Path) -> None:
    for index in range(3):
        served(stand, tmp_path).describe(cases, Shard(index, 3))
    assert len(stand.asked) == 2 * 16
    assert served(stand, tmp_path).missing(cases) == []


def test_another_model_has_answers_of_its_own(stand: ChatStand, cases: list[Variant], tmp_path: Path) -> None:
    served(stand, tmp_path).describe(cases)
    other = served(stand, tmp_path, model="other")
    assert len(other.missing(cases)) == 16
    with pytest.raises(InputError, match=r"16 of 16 conversations were not described .*Run `describe`"):
        other.conversations(cases)
    keys = {each.key("backbone") for each in served(stand, tmp_path).conversations(cases)}
    other.describe(cases)
    assert keys.isdisjoint(each.key("backbone") for each in other.conversations(cases))
    assert keys.isdisjoint(case.key(aspect, "backbone") for case in cases for aspect in case.aspects)
    assert keys.isdisjoint(
        each.key("other backbone") for each in served(stand, tmp_path).conversations(cases)
    )


def test_requests_are_under_way_at_once(stand: ChatStand, cases: list[Variant], tmp_path: Path) -> None:
    together = threading.Barrier(6)

    def wait(asked: Asked, times: int) -> Answer:
        if asked.round == 1 and len(stand.asked) <= 6:
            together.wait(20)  # raises unless six are there at a time
        return ""

    stand.moods = wait
    assert served(stand, tmp_path, at_once=6, timeout=30.0).describe(cases) == {}
    assert stand.most_under_way == 6, "and never more"
    assert len(stand.asked) == 32


# --- what may pass -------------------------------------------------------------------------------


def test_patience_with_a_server_in_trouble(stand: ChatStand, cases: list[Variant], tmp_path: Path) -> None:
    trouble: list[tuple[int, str, Answer]] = [
        (1, about(1), (429, {"error": {"message": "slow down"}}, {"Retry-After": "7"})),
        (1, about(2), (503, {"detail": "loading"}, {})),
        (1, about(3), None),
        (1, about(4), b"<html>no JSON"),
        (1, about(6), (200, {"choices": []}, {})),
        (1, about(7), "  \n"),
        (2, about(1), (500, {}, {})),
        (2, about(2), (429, {}, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})),
        (2, about(3), "Hmm."),
        (2, about(4), "Either good or excellent."),
        (2, about(6), "**The rating is FAIR!**"),
    ]
    stand.moods, slept = failing(*trouble), []
    speaker = served(stand, tmp_path, slept)
    assert speaker.describe(cases) == {}
    rounds = Counter(each.round for each in stand.asked)
    assert rounds == {1: 16 + 2 * 6, 2: 16 + 2 * 4}, "both aspects cite the prompt"
    assert len(slept) == 2 * 8, "an answer that is no word is asked for again at once"
    assert sum(seconds >= 7 for seconds in slept) == 2, "as long as the server asks for"
    fair = [
        each.rating
        for each in speaker.conversations(cases)
        if "number 6" in each.conversation.turns[0].content
    ]
    assert fair == [Rating.FAIR, Rating.FAIR]


def test_answers_that_take_too_long_are_asked_for_again(
    stand: ChatStand, cases: list[Variant], tmp_path: Path
) -> None:
    def late(asked: Asked, times: int) -> Answer:
        if times == 0 and asked.round == 1:
            time.sleep(1.5)
        return ""

    stand.moods = late
    assert served(stand, tmp_path, timeout=0.75).describe(cases[1:2]) == {}
    assert Counter(each.round for each in stand.asked) == {1: 4, 2: 2}


def test_a_description_that_was_cut_off_ends_with_a_sentence(
    stand: ChatStand, cases: list[Variant], tmp_path: Path
) -> None:
    text = " It is grey \ud800. It has 3.5 sides, and"  # with half a character, which no file can hold
    choice = {"message": {"content": text}, "finish_reason": "length"}
    stand.moods = lambda asked, times: (200, {"choices": [choice]}, {}) if asked.round == 1 else ""
    speaker = served(stand, tmp_path)
    speaker.describe(cases[:1])
    assert [each.conversation.turns[1].content for each in speaker.conversations(cases[:1])] == [
        "It is grey ?."
    ] * 2


def test_a_sample_that_fails_takes_no_other_with_it(
    stand: ChatStand, cases: list[Variant], tmp_path: Path
) -> None:
    too_long = "This model's maximum context length is 2048 tokens. However, you requested 3011 tokens."

    def mood(asked: Asked, times: int) -> Answer:
        if about(1) in asked.question and asked.round == 2:
            return "I like it."
        if about(2) in asked.question:
            return 400, {"object": "error", "message": too_long, "code": 400}, {}
        if about(3) in asked.question:
            return 400, {"error": {"message": "no", "code": "content_filter"}}, {}
        return (500, {}, {}) if about(4) in asked.question else ""

    stand.moods = mood
    cases[5].sample.image.write_bytes(b"no image")
    failed = served(stand, tmp_path, at_once=3).describe(cases)
    reasons = {f"d{n} {aspect}": reason for n in range(1, 6) for aspect in LIGHT for reason in [n]}
    assert failed.keys() == reasons.keys()
    assert "[bad, poor, fair, good, excellent], it says 'I like it.'" in failed["d1 quality"]
    assert "longer than seer can read" in failed["d2 quality"] and "2048 tokens" in failed["d2 quality"]
    assert failed["d3 quality"] == "seer refuses this image or prompt (content_filter)"
    assert failed["d4 authenticity"] == "status 500"
    assert "Sample d5" in failed["d5 quality"]
    assert len(served(stand, tmp_path).missing(cases)) == len(failed)
    asked = [each.round for each in stand.asked if about(1) in each.question]
    assert asked.count(2) == 2 * 3, "a few times"
    assert len({each.body["temperature"] for each in stand.asked if about(1) in each.question}) == 3

    stand.moods = None
    before = len(stand.asked)
    assert served(stand, tmp_path).describe([cases[1]]) == {}
    assert [each.round for each in stand.asked[before:]] == [2, 2], "what it had described is kept"


def test_nothing_more_is_asked_once_nothing_gets_through(stand: ChatStand, tmp_path: Path) -> None:
    many = own_variants(drawings(tmp_path / "data", 60, MosScale(1, 5), LIGHT), LIGHT)
    stand.moods = lambda asked, times: (500, {}, {}) if len(stand.asked) > 8 else ""
    with pytest.raises(
        ServerError, match=rf"{MAX_FAILED_IN_A_ROW} conversations in a row failed, .*status 500"
    ):
        served(stand, tmp_path, at_once=4, attempts=2).describe(many)
    assert len(stand.asked) < 100
    kept = 120 - len(served(stand, tmp_path).missing(many))
    assert kept >= 2


# --- what must be mended -------------------------------------------------------------------------

NO_IMAGES = {"object": "error", "message": "At most 0 image(s) may be provided in one prompt.", "code": 400}


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((401, {"error": {"message": f"wrong key {KEY}"}}, {}), "does not accept the key in OPENAI_API_KEY"),
        ((403, {}, {}), "does not accept the key in OPENAI_API_KEY; it says: status 403"),
        ((404, {"error": {"message": "no model"}}, {}), "has no model blind; it offers seer, other."),
        ((400, NO_IMAGES, {}), "The model blind at http.* takes no images: At most 0 image"),
        ((500, {"error": {"message": "image input is not supported"}}, {}), "takes no images"),
        ((307, {}, {"Location": "http://elsewhere/v1/"}), "has moved to http://elsewhere/v1/. Give"),
    ],
    ids=["key", "forbidden", "model", "images", "mmproj", "moved"],
)
def test_a_server_that_will_never_answer_is_asked_once(
    answer: Answer, sentence: str, cases: list[Variant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with chat_stand(("seer", "other")) as stand:
        stand.moods = lambda asked, times: answer
        with pytest.raises(ServerError, match=sentence) as caught:
            served(stand, tmp_path, model="blind", at_once=1).describe(cases)
        assert KEY not in str(caught.value)
        assert len(stand.asked) <= 2
        assert {each.authorization for each in stand.asked} == {f"Bearer {KEY}"}
    assert not any(KEY in path.read_text() for path in (tmp_path / "served").iterdir())


@pytest.mark.parametrize("key", ["schlüssel", "sk-secret\nsk-other"], ids=["letters", "lines"])
def test_what_is_no_key_is_reported_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match="OPENAI_API_KEY holds characters that no key has") as caught:
        ChatServer("http://gpu/v1")
    assert key.split()[0] not in str(caught.value)


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        (None, "does not say which models it has; name one with --server-model."),
        ((), "has no model."),
        (("seer", "other"), "has several models: seer, other. Choose one with --server-model."),
    ],
    ids=["silent", "none", "several"],
)
def test_a_model_must_be_known(
    models: tuple[str, ...] | None, sentence: str, cases: list[Variant], tmp_path: Path
) -> None:
    with chat_stand(models) as stand:
        with pytest.raises(ServerError, match=sentence):
            served(stand, tmp_path).describe(cases)
        assert served(stand, tmp_path, model="seer").describe(cases[:1]) == {}


def test_a_wrong_address_is_named(stand: ChatStand, cases: list[Variant], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nobody = RemoteDescriptions(ServerConfig(f"http://127.0.0.1:{port}"), tmp_path / "served")
    with pytest.raises(ServerError, match=rf"There is no answer from http://127.0.0.1:{port}/v1: .*refused"):
        nobody.describe(cases)
    astray = RemoteDescriptions(ServerConfig(f"{stand.url}/api", "seer"), tmp_path / "served")
    with pytest.raises(ServerError, match=r"There are no chat completions at .*/v1/api\. Mend"):
        astray.describe(cases)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://gpu:8000", "http://gpu:8000/v1"),
        ("http://gpu:8000/", "http://gpu:8000/v1"),
        ("https://gpu/openai/v1/", "https://gpu/openai/v1"),
        ("http://gpu:8000/v1/chat/completions", "http://gpu:8000/v1"),
        ("HTTP://GPU:80/v1", "http://gpu/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_urls_are_taken_as_people_write_them(url: str, shown: str) -> None:
    assert ServerConfig(url).url == shown


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"url": "gpu:8000"}, "gpu:8000 is no URL of a server"),
        ({"url": "http://me:secret@gpu/v1"}, "must not hold a password"),
        ({"at_once": 0}, "server.at_once must be at least 1, not 0."),
        ({"timeout": 0.0}, "server.timeout must be more than 0 seconds, not 0."),
        ({"model": " "}, "server.model is empty"),
    ],
    ids=["url", "password", "at_once", "timeout", "model"],
)
def test_settings_that_cannot_be_are_named(settings: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ServerConfig(**{"url": "http://gpu/v1", **settings})


# --- words ---------------------------------------------------------------------------------------


@given(
    st.sampled_from(list(Rating)), st.text(alphabet=" .,!*_\"'\n:", max_size=4), st.sampled_from([1, 2, 3])
)
def test_the_one_rating_word_is_found(rating: Rating, around: str, form: int) -> None:
    word = {1: str(rating), 2: rating.upper(), 3: rating.title()}[form]
    assert rating_in(f"{around}{word}{around}") is rating
    assert rating_in(f"I would say that the rating is {around} {word}{around}") is rating


@pytest.mark.parametrize(
    "text", ["", "fine", "goodness", "good or fair", "[bad, poor, fair, good, excellent]", "unfair 😀"]
)
def test_no_word_or_several_are_no_rating(text: str) -> None:
    assert rating_in(text) is None


@given(st.text(max_size=60))
def test_whole_sentences_are_a_beginning(text: str) -> None:
    kept = whole_sentences(text)
    assert text.startswith(kept)
    assert kept == text or kept[-1] in ".!?"


# --- runs ----------------------------------------------------------------------------------------


def spoken(run: RunFolder, split: str) -> list[str]:
    return [target.description for target in run.targets(Aspect.QUALITY, split)]


@pytest.mark.usefixtures("scripted")
def test_a_whole_run_with_a_server(
    stand: ChatStand, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun_run(tmp_path)
    folder = ["--run", str(run.folder)]
    assert main(["encode", *folder, "--set", f"server.url={stand.url}"]) == 2
    assert "Run `describe` first." in capsys.readouterr().err

    assert main(["describe", *folder, "--server", stand.url.removesuffix("/v1")]) == 0
    assert ScriptedBackbone.asked == [], "the backbone does not speak"
    assert len(stand.asked) == 2 * 40
    assert main(["fit", *folder]) == 2
    assert "Run `encode` first." in capsys.readouterr().err
    assert main(["run", *folder, "--plan"]) == 0
    told = capsys.readouterr().out
    assert f"let the model at {stand.url} describe 40 samples in 40 conversations, 0 of them new" in told
    assert "read what the server's model said" in told

    assert main(["run", *folder]) == 0
    assert len(stand.asked) == 2 * 40
    run = RunFolder.open(run.folder)
    for target in run.targets(Aspect.QUALITY, "test"):
        told = Conversation.open(Aspect.QUALITY, target.sample.prompt).describe(target.description)
        case = Variant(target.sample, "own", (Aspect.QUALITY,), target.sample.prompt)
        assert target.description.startswith("It is 0.")
        assert torch.equal(target.states, states(case.image(), told)), "of just this conversation"
        assert target.rating in RATING_WORDS
    found = pipeline.write_outcome(run)["quality"]
    assert found["srcc"] > 0.5 and found["spoken_accuracy"] > 0.5
    assert "by seer on a server" in (run.folder / "report" / "report.html").read_text()
    assert (run.folder / "checkpoint" / "checkpoint.json").exists()

    heard = spoken(run, "test")
    monkeypatch.setattr(ScriptedBackbone, "asked", [])
    assert main(["fit", *folder, "--set", "server=null"]) == 2, "what a server's model said is not its own"
    assert main(["run", *folder, "--set", "server=null", "--until", "fit"]) == 0
    assert len(ScriptedBackbone.asked) > 0
    assert set(spoken(RunFolder.open(run.folder), "test")).isdisjoint(heard)
    assert main(["run", *folder, "--set", f"server={{url: {stand.url}, model: other}}", "--plan"]) == 0
    assert "40 of them new" in capsys.readouterr().out
    assert len(stand.asked) == 2 * 40


@pytest.mark.usefixtures("scripted")
def test_what_failed_is_reported_and_logged(stand: ChatStand, tmp_path: Path, capsys) -> None:
    run = begun_run(tmp_path, count=12)
    stand.moods = lambda asked, times: "well" if asked.round == 2 and about(3) in asked.question else ""
    arguments = ["describe", "--run", str(run.folder), "--server", stand.url, "--server-model", "1.5"]
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    assert line.startswith("Of the conversations 1 failed, the first (d3 quality) because asked for one of")
    assert "d3 quality" in (run.folder / "log.txt").read_text()
    stand.moods = None
    assert main(arguments) == 0
    assert RunFolder.open(run.folder).config.server.model == "1.5", "a name, whatever it looks like"
    other = ["describe", "--run", str(run.folder), "--server-model", "other"]
    assert main(other) == 0
    assert main([*other, "--set", "server=null"]) == 2
    assert "server.url is missing" in capsys.readouterr().err


@pytest.mark.usefixtures("scripted")
def test_a_served_run_crosses_over_to_other_data(stand: ChatStand, tmp_path: Path) -> None:
    config = ServerConfig(stand.url)
    trained = begun_run(tmp_path / "a", server=config)
    for stage in (pipeline.describe, pipeline.encode, pipeline.fit):
        stage(trained)
    asked = len(stand.asked)
    tested = begun_run(tmp_path / "b", count=24)
    found = cross(RunFolder.open(trained.folder), tested)
    assert found["quality"]["n"] == 6
    assert 0 < len(stand.asked) - asked <= 12, "drawings that are the same are known"
    assert all(entry.description.startswith("It is 0.") for entry in tested.cache.entries.values())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_killed_at_work_it_goes_on_where_it_was(stand: ChatStand, tmp_path: Path) -> None:
    run = begun_run(tmp_path)
    stand.pause = 0.05
    command = ["describe", "--run", str(run.folder), "--server", stand.url, "--set", "server.at_once=2"]
    process = start_training(*command)
    journal = run.folder / "served" / "answers.jsonl"
    kill_once(process, lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 12)
    time.sleep(2 * stand.pause)
    before = len(stand.asked)
    assert 12 <= before < 80
    with journal.open("a") as file:
        file.write('{"key": "half a li')
    stand.pause = 0.0
    assert main(command) == 0
    assert len(stand.asked) <= 80 + 2, "but for what was on its way"
    assert len(served_of(run).conversations(run.variants)) == 40


def served_of(run: RunFolder) -> RemoteDescriptions:
    return RunFolder.open(run.folder).served


def test_an_interruption_waits_for_no_one(stand: ChatStand, cases: list[Variant], tmp_path: Path) -> None:
    """The threads that are patient with a busy server give up at once."""

    def mood(asked: Asked, times: int) -> Answer:
        if len(stand.asked) > 3:
            return 401, {}, {}
        return 429, {}, {"Retry-After": "600"}

    stand.moods = mood
    began = time.monotonic()
    with pytest.raises(M3AgiqaError):
        served(stand, tmp_path, at_once=4).describe(cases)
    assert time.monotonic() - began < 30
