"""Teachers against a local server that speaks both protocols, with all its moods."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chat_stand import Answer, ChatStand, chat_reply, chat_stand
from forked_training import start_training
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_annotations import write_export
from waiting import kill_once

from m3agiqa.aspects import Aspect, MosScale
from m3agiqa.errors import InputError
from m3agiqa.prompts import TEACHER_PROMPT
from m3agiqa.samples import Sample, read_samples, write_samples
from training.__main__ import main
from training.data.human_feedback import read_annotations
from training.remote import teachers
from training.remote.client import ContentRefused, ServerError, TemporaryError
from training.remote.teachers import (
    GeminiTeacher,
    OpenAITeacher,
    RecordedTeacher,
    descriptions,
    question,
)
from training.stages.distill import DistillConfig, Replies, distill, plan

SCALE = MosScale(1, 5)
KEY = "sk-very-secret-key"
QUICK = DistillConfig(concurrency=3, per_minute=1e6, patience=0.01)
GOOD = {
    "quality_explanation": "It is sharp.",
    "alignment_explanation": "All of it\nis there.",
    "authenticity_explanation": "It looks real.",
}
WRAPPED = "Here you are:\n```json\n" + json.dumps(GOOD) + "\n```"


class Stand(ChatStand):
    """Speaks both protocols; answers by the mood named in the prompt, and remembers what it was asked."""

    def __init__(self, models: tuple[str, ...] | None) -> None:
        super().__init__(models)
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict] = []

    @property
    def url(self) -> str:
        return super().url.removesuffix("/v1")

    def respond(self, path: str, body: dict, authorization: str | None) -> Answer:
        gemini = "generateContent" in path
        text = (
            next(part["text"] for part in body["contents"][0]["parts"] if "text" in part)
            if gemini
            else body["messages"][0]["content"][0]["text"]
        )
        prompt = re.search("text prompt: '(.*?)'", text)[1]
        question = f"{'gemini' if gemini else 'openai'} {prompt}"
        with self.lock:
            self.asked[question] += 1
            first = self.asked[question] == 1
            self.bodies.append(body)
        mood = prompt.split()[0]
        if mood == "busy" and first:
            return 429, {"error": {"code": 429, "message": "slow down"}}, {"Retry-After": "0.2"}
        if mood == "broken" and first:
            return 500, {"error": {"code": 500, "message": "oops"}}, {}
        if mood == "late" and first:
            time.sleep(1.5)
        if mood == "key":
            return 401, {"error": {"code": 401, "message": f"bad key {KEY}"}}, {}
        if mood == "refused" and gemini:
            return 200, {"promptFeedback": {"blockReason": "SAFETY"}}, {}
        if mood == "refused" and prompt.endswith("twice"):
            return 400, {"error": {"code": "content_policy_violation", "message": "no"}}, {}
        said = "I would rather not use JSON." if mood == "garbled" and first else WRAPPED
        if not gemini:
            return 200, chat_reply(said, usage={"prompt_tokens": 100, "completion_tokens": 10}), {}
        content = {"role": "model", "parts": [{"text": said}]}
        used = {"promptTokenCount": 100, "candidatesTokenCount": 10, "totalTokenCount": 110}
        candidates = [{"content": content, "finishReason": "STOP"}]
        return 200, {"candidates": candidates, "usageMetadata": used}, {}


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)
    with chat_stand(kind=Stand) as server:
        yield server


@pytest.fixture
def sample(tmp_path: Path) -> Callable[[str], Sample]:
    image = tmp_path / "picture.png"
    Image.new("RGB", (64, 48), "teal").save(image)
    mos = {Aspect.QUALITY: 3.25, Aspect.CORRESPONDENCE: 4.0, Aspect.AUTHENTICITY: 2.0}
    return lambda prompt: Sample(f"id of {prompt}", image, prompt, mos)


def gemini(stand: Stand) -> GeminiTeacher:
    return GeminiTeacher("gemini-test", stand.url, timeout=0.7)


def openai(stand: Stand) -> OpenAITeacher:
    return OpenAITeacher("gpt-test", stand.url, timeout=0.7)


# --- questions and answers -----------------------------------------------------------------------


def test_the_question_is_the_papers_template(sample) -> None:
    asked = question(sample("a {red} fox"), SCALE)
    assert asked == TEACHER_PROMPT.format(
        prompt="a {red} fox", mos_q=3.25, mos_a="4", mos_au="2", min=1, max=5
    )


def test_scores_that_are_not_known_are_not_named(sample) -> None:
    known = Sample("x", sample("p").image, "a fox", {Aspect.CORRESPONDENCE: 2.5})
    asked = question(known, SCALE)
    assert "The alignment score is 2.5. Scores are between 1 and 5" in asked
    assert "quality score" not in asked and "{" not in asked.split("Example:")[0]


@given(
    st.sampled_from(["", "```json\n", "Sure! "]),
    st.booleans(),
    st.sampled_from(["alignment", "correspondence"]),
)
def test_answers_are_read_leniently(before: str, upper: bool, name: str) -> None:
    said = {f"{key.replace('alignment', name)}": value for key, value in GOOD.items()}
    text = (
        before + json.dumps({key.upper() if upper else key: value for key, value in said.items()}) + "\n```"
    )
    assert descriptions(text, list(Aspect)) == {
        Aspect.QUALITY: "It is sharp.",
        Aspect.CORRESPONDENCE: "All of it is there.",
        Aspect.AUTHENTICITY: "It looks real.",
    }


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[1]", '{"quality_explanation": ""}', '{"quality": 3}', "{{}"]
)
def test_answers_that_lack_something_are_asked_for_again(text: str) -> None:
    with pytest.raises(TemporaryError):
        descriptions(text, [Aspect.QUALITY])


# --- teachers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", [gemini, openai])
def test_a_teacher_sends_question_and_image_and_counts_tokens(teacher, stand: Stand, sample) -> None:
    reply = teacher(stand).explain(sample("fine"), question(sample("fine"), SCALE))
    assert descriptions(reply.text, [Aspect.QUALITY]) == {Aspect.QUALITY: "It is sharp."}
    assert (reply.input_tokens, reply.output_tokens) == (100, 10)
    sent = json.dumps(stand.bodies[0])
    assert "image" in sent and len(sent) > 500
    assert KEY not in sent


@pytest.mark.parametrize("teacher", [gemini, openai])
@pytest.mark.parametrize(("mood", "wait"), [("busy", 0.2), ("broken", None), ("late", None)])
def test_what_may_pass_is_busy(teacher, mood: str, wait: float | None, stand: Stand, sample) -> None:
    with pytest.raises(TemporaryError) as caught:
        teacher(stand).explain(sample(mood), question(sample(mood), SCALE))
    assert caught.value.retry_after == wait


@pytest.mark.parametrize("teacher", [gemini, openai])
def test_a_rejected_key_is_reported_without_the_key(teacher, stand: Stand, sample) -> None:
    with pytest.raises(ServerError, match="rejects the request") as caught:
        teacher(stand).explain(sample("key"), question(sample("key"), SCALE))
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in str(error)
        error = error.__cause__


def test_refusals_are_recognised(stand: Stand, sample) -> None:
    asked = question(sample("refused twice"), SCALE)
    for teacher in (gemini(stand), openai(stand)):
        with pytest.raises(ContentRefused):
            teacher.explain(sample("refused twice"), asked)


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ServerError, match="set OPENAI_API_KEY"):
        OpenAITeacher()


# --- distillation --------------------------------------------------------------------------------


def test_every_mood_ends_in_descriptions(stand: Stand, sample, tmp_path: Path) -> None:
    moods = ("fine", "busy", "broken", "late", "garbled", "refused once", "refused twice")
    samples = [sample(mood) for mood in moods]
    config = DistillConfig(concurrency=3, per_minute=1e6, patience=0.01, input_price=2.5, output_price=10)
    filled, summary = distill(samples, [gemini(stand), openai(stand)], tmp_path / "r.jsonl", SCALE, config)
    described = {s.prompt for s in filled if len(s.descriptions) == 3}
    assert described == set(moods) - {"refused twice"}
    assert (summary.described, summary.refused, summary.failed) == (6, 1, {})
    assert stand.asked["openai refused once"] == stand.asked["gemini refused once"] == 1
    assert stand.asked["openai fine"] == 0
    paid = 7  # one answer each for five moods and the fallback's, and the garbled one
    assert (summary.input_tokens, summary.output_tokens) == (paid * 100, paid * 10)
    assert summary.dollars == pytest.approx(paid * (100 * 2.5 + 10 * 10) / 1e6)
    asked = stand.asked.copy()
    again, summary = distill(samples, [gemini(stand), openai(stand)], tmp_path / "r.jsonl", SCALE, config)
    assert (again, stand.asked) == (filled, asked), "a second run asks nothing, not even the refusals"
    assert summary.input_tokens == 0
    assert KEY not in (tmp_path / "r.jsonl").read_text()


def test_given_descriptions_are_kept(stand: Stand, sample, tmp_path: Path) -> None:
    kept = Sample(**{**vars(sample("fine")), "descriptions": {Aspect.QUALITY: "By a person."}})
    (filled,), _ = distill([kept], [openai(stand)], tmp_path / "r.jsonl", SCALE, QUICK)
    assert filled.descriptions[Aspect.QUALITY] == "By a person."
    assert filled.descriptions[Aspect.CORRESPONDENCE] == "All of it is there."


def test_a_sample_that_never_gets_through_is_reported_and_tried_again(sample, tmp_path: Path) -> None:
    class Overloaded:
        name, tries = "overloaded", 0

        def explain(self, sample: Sample, question: str):
            self.tries += 1
            raise TemporaryError("status 503", retry_after=7.0)

    teacher, slept = Overloaded(), []
    for run in (1, 2):
        _, summary = distill([sample("x")], [teacher], tmp_path / "r.jsonl", SCALE, QUICK, slept.append)
        assert summary.failed == {"id of x": "overloaded: status 503"}
        assert teacher.tries == run * QUICK.attempts
    waited = [seconds for seconds in slept if seconds > 1]
    assert len(waited) == 2 * (QUICK.attempts - 1)
    assert min(waited) >= 7.0, "as long as the server asks for"


def test_requests_begin_no_faster_than_the_rate(sample, tmp_path: Path) -> None:
    (tmp_path / "said.jsonl").write_text("")
    teacher, slept = RecordedTeacher(tmp_path / "said.jsonl"), []
    config = DistillConfig(concurrency=1, per_minute=30)
    distill([sample(str(i)) for i in range(4)], [teacher], tmp_path / "r.jsonl", SCALE, config, slept.append)
    assert [round(seconds) for seconds in slept] == [2, 4, 6]  # as nobody really slept


def test_a_wrong_key_ends_the_run_and_keeps_what_was_answered(stand: Stand, sample, tmp_path: Path) -> None:
    samples = [sample("fine"), *(sample(f"key {i}") for i in range(50))]
    config = DistillConfig(concurrency=1, per_minute=1e6)
    with pytest.raises(ServerError):
        distill(samples, [openai(stand)], tmp_path / "r.jsonl", SCALE, config)
    assert [outcome.id for outcome in Replies(tmp_path / "r.jsonl").rows] == ["id of fine"]
    assert stand.asked.total() < 10


def test_killed_at_work_nothing_is_paid_for_twice(
    stand: Stand, sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [sample(f"fine {i}") for i in range(30)]
    write_samples(samples, tmp_path / "samples.jsonl")
    monkeypatch.setenv("OPENAI_BASE_URL", stand.url)
    command = ["distill", str(tmp_path / "samples.jsonl"), "--out", str(tmp_path / "out")]
    command += ["--teacher", "openai:gpt-test", "--per-minute", "600", "--concurrency", "1"]
    journal = tmp_path / "out" / "replies.jsonl"
    process = start_training(*command)
    kill_once(process, lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 9)
    assert stand.asked.total() < 30
    with journal.open("a") as file:
        file.write('{"id": "half a li')
    assert main(command) == 0
    told = capsys.readouterr()
    assert "30 samples described" in told.out
    assert KEY not in told.out + told.err
    # What was on its way when the process died may have been asked once more, nothing else.
    assert stand.asked.total() <= 30 + 1
    assert all(len(s.descriptions) == 3 for s in read_samples(tmp_path / "out" / "samples.jsonl"))


def test_dry_run_prints_questions_and_sends_nothing(stand: Stand, sample, tmp_path: Path, capsys) -> None:
    write_samples([sample("a fox"), sample("an owl")], tmp_path / "samples.jsonl")
    arguments = ["distill", str(tmp_path / "samples.jsonl"), "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "text prompt: 'an owl'" in printed and "2 requests would be sent" in printed
    assert not stand.asked and not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [True, False])
def test_scores_off_the_scale_are_named_before_anything_is_asked(
    stand: Stand, sample, tmp_path: Path, capsys, dry: bool
) -> None:
    wrong = Sample(**{**vars(sample("an owl")), "mos": {Aspect.QUALITY: 55.0}})
    write_samples([sample("a fox"), wrong], tmp_path / "samples.jsonl")
    arguments = ["distill", str(tmp_path / "samples.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*arguments, *(["--dry-run"] if dry else ["--teacher", "openai:x"])]) == 2
    shown = capsys.readouterr()
    assert "Sample id of an owl: quality is 55, outside the scale from 1 to 5" in shown.err
    assert not stand.asked and "a fox" not in shown.out
    told = Sample(**{**vars(wrong), "descriptions": {Aspect.QUALITY: "Sharp."}})
    with pytest.raises(InputError, match="an owl: quality is 55"):
        distill([told], [openai(stand)], tmp_path / "r.jsonl", SCALE, QUICK)


def test_recorded_answers(sample, tmp_path: Path, capsys) -> None:
    said = {"id": "id of a fox", "quality": "Sharp.", "correspondence": "A fox.", "authenticity": "Real."}
    (tmp_path / "said.jsonl").write_text(json.dumps(said) + "\n")
    write_samples([sample("a fox"), sample("an owl")], tmp_path / "samples.jsonl")
    arguments = ["distill", str(tmp_path / "samples.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--teacher", f"recorded:{tmp_path / 'said.jsonl'}"]) == 0
    fox, owl = read_samples(tmp_path / "out" / "samples.jsonl")
    assert fox.descriptions[Aspect.CORRESPONDENCE] == "A fox."
    assert owl.descriptions == {}
    assert "1 refused by every teacher" in capsys.readouterr().out
    assert main([*arguments, "--teacher", "oracle"]) == 2
    assert "There is no teacher 'oracle'" in capsys.readouterr().err


@pytest.fixture
def export(sample, tmp_path: Path) -> Path:
    """What people wrote of three images, of which one is held out."""
    people = []
    for number, (prompt, generator, text, part) in enumerate(
        (
            ("a red fox in the snow", "one", "People say: the FOX is soft.", "train"),
            ("a city at night", "two", "People say: the CITY glows.", "train"),
            ("a red fox in the rain", "one", "People say: HELD OUT.", "test"),
        )
    ):
        image = tmp_path / f"{number}.png"
        Image.new("RGB", (32, 32), (40 * number, 90, 120)).save(image)
        mos, told = {Aspect.QUALITY: 2.0 + number}, {Aspect.QUALITY: text}
        people.append(Sample(f"p{number}", image, prompt, mos, told, part, generator))
    return write_export(tmp_path / "export", people)


def test_people_s_descriptions_go_into_the_request_but_for_held_out_images(
    stand: Stand, sample, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", stand.url)
    asked = Sample(**{**vars(sample("a red fox in the grass")), "generator": "one"})
    write_samples([asked, sample("a night in the city")], tmp_path / "samples.jsonl")
    arguments = ["distill", str(tmp_path / "samples.jsonl"), "--out", str(tmp_path / "out")]
    arguments += ["--add-annotations", str(export), "--examples", "1", "--input-price", "1000"]
    assert main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "2 requests would be sent" in printed and "2 worked examples by people in 2 of them" in printed
    fox, city = printed.split("--- id of ")[1:]
    assert "the FOX is soft" in fox and "CITY" not in fox, "the nearest by generator and prompt"
    assert "the CITY glows" in city and "FOX" not in city
    tokens, dollars = re.search(r"about ([\d,]+) tokens beside the images \(\$([\d.]+)\)", printed).groups()
    texts = re.sub(r"(?m)^--- .*$\n?", "", printed)
    assert int(tokens.replace(",", "")) == pytest.approx(len(texts) / 4, rel=0.01)
    assert float(dollars) == pytest.approx(int(tokens.replace(",", "")) / 1000, abs=0.006)
    assert "HELD OUT" not in printed and not stand.asked

    assert main([*arguments[:-4], "--examples", "9", "--teacher", "openai:gpt-test"]) == 0
    sent = json.dumps(stand.bodies)
    assert "HELD OUT" not in sent and stand.asked.total() == 2
    assert sent.count("the FOX is soft") == sent.count("the CITY glows") == 2
    described = {each.prompt: each.descriptions for each in read_samples(tmp_path / "out" / "samples.jsonl")}
    assert described["a red fox in the snow"] == {Aspect.QUALITY: "People say: the FOX is soft."}
    assert described["a red fox in the grass"][Aspect.QUALITY] == "It is sharp."


def test_people_are_a_recorded_teacher(sample, export: Path, tmp_path: Path) -> None:
    asked = [
        Sample(**{**vars(s), "id": f"own {s.id}", "descriptions": {}})
        for s in read_annotations(export).samples
    ]
    more = Sample(**{**vars(asked[1]), "id": "more", "mos": {Aspect.QUALITY: 2.0, Aspect.AUTHENTICITY: 2.0}})
    recorded, journal = teachers.teacher(f"recorded:{export}"), tmp_path / "r.jsonl"
    filled, summary = distill([*asked, more, sample("a fox")], [recorded], journal, SCALE, QUICK)
    assert filled[0].descriptions == {Aspect.QUALITY: "People say: the FOX is soft."}
    assert (summary.described, summary.refused) == (3, 2), "what they have not described is left to others"


def test_two_samples_of_one_id_are_refused(stand: Stand, sample, tmp_path: Path) -> None:
    write_samples([sample("a fox")] * 2, tmp_path / "samples.jsonl")
    arguments = ["distill", str(tmp_path / "samples.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--teacher", "openai:x"]) == 2
    assert list(plan([], Replies(tmp_path / "none.jsonl"), SCALE)) == []
