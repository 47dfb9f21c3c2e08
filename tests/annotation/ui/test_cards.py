import base64
import json
import re
from dataclasses import replace

from annotation.store.corrections import AspectResponse
from annotation.ui.assess.cards import card, provenance
from annotation.ui.assess.runs import RunStage, RunState
from m3agiqa.aspects import Aspect, MosScale, Rating
from m3agiqa.assessment import AspectResult, Assessment
from m3agiqa.checkpoint.calibration import Calibration
from m3agiqa.prompt_elements import CheckedElement, ElementKind, Presence, PromptElement

SCALE = MosScale(1, 5)
NASTY = '<img src=x onerror="alert(1)"> & so on'


def result(raw: float, scale: MosScale = SCALE, description: str = "Fine.") -> AspectResult:
    return AspectResult(Aspect.QUALITY, description, Rating.GOOD, scale.clamp(raw), raw, scale)


def finished(judged: AspectResult) -> RunState:
    return RunState(stage=RunStage.FINISHED, results={judged.aspect: judged})


def test_text_is_escaped_while_it_is_spoken_and_afterwards():
    speaking = RunState(stage=RunStage.ASSESSING, descriptions={Aspect.QUALITY: NASTY})
    for state in (speaking, finished(result(3, description=NASTY))):
        html = card(Aspect.QUALITY, state)
        assert "<img" not in html
        assert "&lt;img src=x onerror=&quot;alert(1)&quot;&gt; &amp; so on" in html


def test_mos_within_its_scale_with_the_raw_value_beside_it():
    html = card(Aspect.QUALITY, finished(result(5.27)))
    assert "<strong>5.0</strong> of 1–5" in html
    assert "raw 5.27" in html
    assert 'class="rating excellent">excellent<' in html
    assert "good" not in html, "the spoken word, which is not that of the MOS"


def test_raw_value_is_left_out_where_it_says_the_same():
    assert "raw" not in card(Aspect.QUALITY, finished(result(3.6)))


def test_gauge_follows_the_scale():
    html = card(Aspect.QUALITY, finished(result(25, MosScale(0, 100))))
    assert 'role="meter"' in html
    for attribute in ('aria-valuemin="0"', 'aria-valuemax="100"', 'aria-valuenow="25.00"'):
        assert attribute in html
    assert 'class="gauge poor"' in html
    assert "width:25.0%" in html
    assert "of 0–100" in html


def test_interval_and_percentile():
    judged = replace(result(3.62), calibration=Calibration(0.5, 100, (2.0, 4.0), 3827))
    html = card(Aspect.QUALITY, finished(judged))
    assert "say <b>3.1 to 4.1</b>. The score is above <b>81 %</b> of the 3,827 images" in html
    assert 'class="interval" style="left:53.0%;width:25.0%"' in html
    for said in (True, False):
        response = AspectResponse(Aspect.QUALITY, 3.6 if said else 2.1, SCALE, agrees=said)
        assert ("People would likely say" in card(Aspect.QUALITY, finished(judged), response)) is said


def test_of_a_long_prompt_the_card_says_what_was_read():
    html = card(Aspect.QUALITY, finished(replace(result(3.62), read_characters=2861)))
    assert "the first 2,861 characters" in html


def test_elements_of_the_prompt_are_chips():
    elements = (
        CheckedElement(PromptElement(ElementKind.THING, "a <fox>"), Presence.SEEN, "“<fox>” with all."),
        CheckedElement(PromptElement(ElementKind.COUNT, "two foxes"), Presence.NOT_JUDGED, "Not compared."),
    )
    judged = replace(result(3.0), elements=elements)
    html = card(judged.aspect, finished(judged))
    chips = re.findall(r'<details name="element" class="(\w+)"><summary>([^<]*)<.*?<p>(.*?)</p>', html)
    assert chips == [
        ("seen", "a &lt;fox&gt;", "<b>Thing, seen.</b> “&lt;fox&gt;” with all."),
        ("not_judged", "two foxes", "<b>Count, not judged by this model.</b> Not compared."),
    ]
    assert "Elements of the prompt" not in card(judged.aspect, finished(result(3.0)))


def test_an_unknown_prompt_is_said_plainly():
    judged = replace(result(3.62), calibration=Calibration(0.5, 100, (2.0, 4.0), 3827), unknown_prompt=True)
    html = card(Aspect.QUALITY, finished(judged))
    assert "another language or script" in html and "above" not in html


def test_correspondence_says_why_it_is_empty_without_a_prompt():
    state = RunState(stage=RunStage.ASSESSING, has_prompt=False)
    assert "there is no prompt" in card(Aspect.CORRESPONDENCE, state)
    assert "there is no prompt" not in card(Aspect.QUALITY, state)


def test_an_aspect_that_the_model_does_not_judge_says_so():
    html = card(Aspect.AUTHENTICITY, finished(result(3)))
    assert "not trained for this aspect" in html
    assert 'aria-busy="false"' in html


def test_stopped_keeps_the_text():
    html = card(Aspect.QUALITY, RunState(stage=RunStage.STOPPED, descriptions={Aspect.QUALITY: "So far"}))
    assert "So far" in html
    assert "Stopped." in html
    assert 'aria-busy="false"' in html


def test_speaking_is_busy():
    assert 'aria-busy="true"' in card(Aspect.QUALITY, RunState(stage=RunStage.ASSESSING))


def test_a_card_is_there_before_the_first_run():
    html = card(Aspect.QUALITY, None)
    assert 'id="card-quality"' in html
    assert 'class="rating' not in html


def test_what_a_person_said_stands_in_place_of_the_model_which_is_still_told():
    said = AspectResponse(Aspect.QUALITY, 2.1, SCALE, NASTY, tags=("missed <flaw>",), comment="see & weep")
    html = card(Aspect.QUALITY, finished(result(3.6)), said)
    assert "<img" not in html
    assert "&lt;img src=x" in html
    assert "Fine." not in html
    assert "missed &lt;flaw&gt;" in html
    assert "see &amp; weep" in html
    assert "<strong>2.1</strong> of 1–5 by you" in html
    assert "model 3.6" in html
    assert 'class="rating poor">poor<' in html


def test_a_score_alone_leaves_the_models_description():
    html = card(Aspect.QUALITY, finished(result(3.6)), AspectResponse(Aspect.QUALITY, 2.1, SCALE))
    assert "Fine." in html
    assert "<strong>2.1</strong>" in html


def test_provenance_names_model_and_data_and_offers_the_result():
    assessment = Assessment(
        image='my "cat" <1>.png',
        prompt="a cat",
        aspects={Aspect.QUALITY: result(5.27)},
        model="nano <1>",
        learned_from="an LLM's scores",
        seconds=1.5,
    )
    html = provenance(assessment)
    assert "kept" not in html
    assert "kept on this server" in provenance(assessment, kept=True)
    assert "nano &lt;1&gt;" in html
    assert "Learned from an LLM&#x27;s scores.</span>" in html
    assert 'download="my &quot;cat&quot; &lt;1&gt;.m3agiqa.json"' in html
    data = re.search(r'href="data:application/json;base64,([^"]+)"', html)
    assert json.loads(base64.b64decode(data[1])) == assessment.to_dict()


def test_no_provenance_without_a_result():
    assert provenance(None) == ""
