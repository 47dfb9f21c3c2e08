"""Prompts in files as the generators write them."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from m3agiqa.image_metadata import find_prompt

SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 42, Size: 512x512"
A1111 = f"a lighthouse, (dusk:1.2)\nNegative prompt: blurry, low quality\n{SETTINGS}"
IMAGE = Image.new("RGB", (32, 32))


def png(**texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key.replace("_", "-") if key == "sd_metadata" else key, text)
    buffer = io.BytesIO()
    IMAGE.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def with_exif(form: str, tag: int, value: bytes | str) -> bytes:
    exif = Image.Exif()
    if tag == ExifTags.Base.UserComment:
        exif.get_ifd(ExifTags.IFD.Exif)[tag] = value
    else:
        exif[tag] = value
    buffer = io.BytesIO()
    IMAGE.save(buffer, form, exif=exif.tobytes())
    return buffer.getvalue()


def text_of(data: bytes) -> str | None:
    found = find_prompt(data)
    return found and found.text


# --- A1111 and Fooocus ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters, prompt",
    [
        (A1111, "a lighthouse, (dusk:1.2)"),
        (f"a lighthouse\n{SETTINGS}", "a lighthouse"),
        (f"two\nlines\nNegative prompt: x\n{SETTINGS}", "two\nlines"),
        ("only a prompt", "only a prompt"),
        (f"Negative prompt: blurry\n{SETTINGS}", None),
        ("Leuchtturm, 灯台, «маяк»", "Leuchtturm, 灯台, «маяк»"),
        (json.dumps({"prompt": "from Fooocus", "negative_prompt": "blurry"}), "from Fooocus"),
        ("{broken", None),
        ("", None),
    ],
)
def test_parameters(parameters: str, prompt: str | None) -> None:
    assert text_of(png(parameters=parameters)) == prompt


def test_origin_is_reported() -> None:
    assert find_prompt(png(parameters=A1111)).origin == "A1111 parameters (PNG text)"


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + A1111.encode("utf-16-be"),
        b"UNICODE\0" + A1111.encode("utf-16-le"),
        b"UNICODE\0" + A1111.encode("utf-16"),
        b"ASCII\0\0\0" + A1111.encode(),
        bytes(8) + A1111.encode(),
        A1111.encode(),
    ],
)
def test_user_comment(form: str, comment: bytes) -> None:
    found = find_prompt(with_exif(form, ExifTags.Base.UserComment, comment))
    assert (found.text, found.origin) == ("a lighthouse, (dusk:1.2)", "EXIF user comment")


def test_image_description() -> None:
    assert text_of(with_exif("JPEG", ExifTags.Base.ImageDescription, A1111)) == "a lighthouse, (dusk:1.2)"


@pytest.mark.parametrize(
    "comment", [b"ASCII\0\0\0Screenshot", b"UNICODE\0" + "Grüße".encode("utf-16-be"), b""]
)
def test_other_comments_are_no_prompts(comment: bytes) -> None:
    assert find_prompt(with_exif("JPEG", ExifTags.Base.UserComment, comment)) is None


def test_long_prompts_are_cut_and_that_is_reported() -> None:
    found = find_prompt(png(parameters="word " * 3000))
    assert len(found.text) == 8000
    assert found.origin == "A1111 parameters (PNG text), its first 8,000 characters"


# --- ComfyUI -------------------------------------------------------------------------------------


def encode(text: object) -> dict:
    return {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["4", 1]}}


def sampler(kind: str = "KSampler", **inputs: object) -> dict:
    return {"class_type": kind, "inputs": {"seed": 1, "sampler_name": "euler", "model": ["4", 0], **inputs}}


LOADER = {
    "class_type": "CheckpointLoaderSimple",
    "inputs": {"ckpt_name": "a long checkpoint name.safetensors"},
}
NEGATIVE = encode("watermark, text, and a very long list of everything that nobody wants to see")
BOTH = {"positive": ["6", 0], "negative": ["7", 0]}

GRAPHS = {
    "plain": {"3": sampler(**BOTH), "4": LOADER, "6": encode("a lighthouse"), "7": NEGATIVE},
    "negative first": {
        "1": NEGATIVE,
        "2": encode("a lighthouse"),
        "3": sampler(positive=["2", 0], negative=["1", 0]),
    },
    "controlnet between": {
        "3": sampler(positive=["9", 0], negative=["9", 1]),
        "9": {"class_type": "ControlNetApplyAdvanced", "inputs": {**BOTH, "strength": 1.0}},
        "6": encode("a lighthouse"),
        "7": NEGATIVE,
    },
    "flux": {
        "13": {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["22", 0], "noise": ["25", 0]}},
        "22": {"class_type": "BasicGuider", "inputs": {"conditioning": ["26", 0], "model": ["4", 0]}},
        "26": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["6", 0], "guidance": 3.5}},
        "6": encode("a lighthouse"),
    },
    "zeroed negative": {
        "3": sampler(positive=["6", 0], negative=["8", 0]),
        "8": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["6", 0]}},
        "6": encode("a lighthouse"),
    },
    "string node": {
        "3": sampler(**BOTH),
        "6": encode(["10", 0]),
        "7": NEGATIVE,
        "10": {"class_type": "PrimitiveString", "inputs": {"value": "a lighthouse"}},
    },
    "sdxl, both encoders alike": {
        "3": sampler("KSamplerAdvanced", **BOTH),
        "6": {
            "class_type": "CLIPTextEncodeSDXL",
            "inputs": {"text_g": "a lighthouse", "text_l": "a lighthouse"},
        },
        "7": NEGATIVE,
    },
    "texts on the loader": {
        "3": sampler("KSampler (Efficient)", positive=["1", 1], negative=["1", 2]),
        "1": {"class_type": "Efficient Loader", "inputs": {"positive": "a lighthouse", "negative": "blurry"}},
    },
    "style node with both": {
        "3": sampler(**BOTH),
        "6": encode(["5", 0]),
        "7": encode(["5", 1]),
        "5": {"class_type": "Styler", "inputs": {"text_positive": "a lighthouse", "text_negative": "blurry"}},
    },
    "concatenated texts": {
        "3": sampler(**BOTH),
        "6": encode(["8", 0]),
        "7": NEGATIVE,
        "8": {
            "class_type": "StringConcatenate",
            "inputs": {"string_a": "a", "string_b": ["9", 0], "delimiter": " "},
        },
        "9": {"class_type": "Text Multiline", "inputs": {"text": "lighthouse"}},
    },
    "no sampler that is known": {"1": encode("a lighthouse"), "2": {"class_type": "Show", "inputs": {}}},
    "positive leads nowhere": {
        "3": sampler(positive=["99", 0], negative=["7", 0]),
        "6": encode("a lighthouse"),
        "7": NEGATIVE,
    },
}


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_comfyui(graph: dict) -> None:
    found = find_prompt(png(prompt=json.dumps(graph)))
    assert (found.text, found.origin) == ("a lighthouse", "ComfyUI prompt (PNG text)")


def test_comfyui_combined_conditioning() -> None:
    combined = {"conditioning_1": ["1", 0], "conditioning_2": ["2", 0]}
    graph = {
        "1": encode("a lighthouse"),
        "2": encode("at dusk"),
        "6": {"class_type": "ConditioningCombine", "inputs": combined},
        "3": sampler(positive=["6", 0]),
    }
    assert text_of(png(prompt=json.dumps(graph))) == "a lighthouse, at dusk"


def test_comfyui_loop_ends() -> None:
    graph = {"3": sampler(**BOTH), "6": encode(["7", 0]), "7": encode(["6", 0])}
    assert find_prompt(png(prompt=json.dumps(graph))) is None


WORKFLOW = {
    "nodes": [
        {
            "id": 3,
            "type": "KSampler",
            "inputs": [{"name": "positive", "link": 4}, {"name": "negative", "link": 6}],
            "widgets_values": [42, "randomize", 20, 8, "euler", "normal"],
        },
        {
            "id": 7,
            "type": "CLIPTextEncode",
            "inputs": [],
            "widgets_values": ["a long list of what nobody wants"],
        },
        {"id": 9, "type": "Reroute", "inputs": [{"name": "", "link": 5}]},
        {"id": 6, "type": "CLIPTextEncode", "inputs": [{"name": "clip"}], "widgets_values": ["a lighthouse"]},
    ],
    "links": [[4, 9, 0, 3, 1, "CONDITIONING"], [5, 6, 0, 9, 0, "*"], [6, 7, 0, 3, 2, "CONDITIONING"]],
}


def test_comfyui_workflow_is_the_second_choice() -> None:
    workflow = json.dumps(WORKFLOW)
    found = find_prompt(png(prompt="{}", workflow=workflow))
    assert (found.text, found.origin) == ("a lighthouse", "ComfyUI workflow (PNG text)")
    graph = {"3": sampler(positive=["6", 0]), "6": encode("a harbour")}
    assert text_of(png(prompt=json.dumps(graph), workflow=workflow)) == "a harbour"


def test_comfyui_webp() -> None:
    graph = json.dumps(GRAPHS["plain"])
    assert text_of(with_exif("WEBP", ExifTags.Base.Model, f"prompt:{graph}")) == "a lighthouse"
    assert (
        text_of(with_exif("WEBP", ExifTags.Base.Make, f"workflow:{json.dumps(WORKFLOW)}")) == "a lighthouse"
    )
    assert find_prompt(with_exif("JPEG", ExifTags.Base.Model, "Canon EOS R5")) is None


# --- InvokeAI and NovelAI ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts",
    [
        {"invokeai_metadata": json.dumps({"positive_prompt": "a lighthouse", "negative_prompt": "blurry"})},
        {"sd_metadata": json.dumps({"image": {"prompt": "a lighthouse [blurry]"}})},
        {"sd_metadata": json.dumps({"image": {"prompt": [{"prompt": "a lighthouse", "weight": 1.0}]}})},
        {"Dream": '"a lighthouse" -s 50 -S 42'},
        {"Dream": '"a lighthouse [blurry]" -s50'},
        {"Dream": '"a lighthouse"'},
        {"Comment": json.dumps({"prompt": "a lighthouse", "uc": "blurry"})},
        {"Software": "NovelAI", "Description": "a lighthouse"},
    ],
)
def test_invokeai_and_novelai(texts: dict[str, str]) -> None:
    assert text_of(png(**texts)) == "a lighthouse"


def test_descriptions_by_other_software_are_no_prompts() -> None:
    assert find_prompt(png(Software="Camera", Description="Family holiday")) is None


# --- anything else -------------------------------------------------------------------------------


def test_no_prompt_and_no_image(tmp_path: Path) -> None:
    letter = tmp_path / "letter.png"
    letter.write_text("not an image")
    for source in (png(), png(Title="x", prompt="not JSON"), letter, tmp_path / "gone.png", tmp_path, b""):
        assert find_prompt(source) is None


def test_an_open_file_is_left_where_it_was() -> None:
    stream = io.BytesIO(png(parameters=A1111))
    assert find_prompt(stream) == find_prompt(stream) == find_prompt(Image.open(stream))


def test_deep_and_half_encoded_json() -> None:
    assert find_prompt(png(parameters='{"prompt":' * 100_000)) is None
    assert find_prompt(png(prompt="[" * 100_000)) is None
    assert text_of(png(parameters='{"prompt": "a \\ud800 b\\u0000"}')) == "a ? b"
    chain = {str(i): encode([str(i + 1), 0]) for i in range(5000)}
    assert find_prompt(png(prompt=json.dumps({**chain, "s": sampler(positive=["0", 0])}))) is None


KEYS = (
    "parameters",
    "prompt",
    "workflow",
    "invokeai_metadata",
    "sd_metadata",
    "Dream",
    "Comment",
    "Description",
)
names = st.sampled_from(
    ["prompt", "image", "positive_prompt", "class_type", "inputs", "positive", "text", "delimiter"]
) | st.sampled_from(["nodes", "links", "id", "type", "link", "name", "widgets_values", "1", "2"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["KSampler", "CLIPTextEncode", "1", "2"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5),
    max_leaves=30,
)  # fmt: skip


@settings(deadline=None)
@given(key=st.sampled_from(KEYS), value=values)
def test_json_of_any_shape(key: str, value: object) -> None:
    found = find_prompt(png(**{key: json.dumps(value)}))
    assert found is None or (0 < len(found.text) <= 8000 and found.origin)


@settings(deadline=None)
@given(key=st.sampled_from(KEYS), text=st.text(max_size=60))
def test_text_of_any_kind(key: str, text: str) -> None:
    found = find_prompt(png(**{key: text.encode("utf-8", "ignore").decode().replace("\0", "")}))
    assert found is None or found.text.strip()


@settings(deadline=None)
@given(comment=st.binary(max_size=60), head=st.sampled_from([b"UNICODE\0", b"ASCII\0\0\0", b""]))
def test_comments_of_any_bytes(comment: bytes, head: bytes) -> None:
    found = find_prompt(with_exif("JPEG", ExifTags.Base.UserComment, head + comment))
    assert found is None or found.text.strip()


@settings(deadline=None)
@given(data=st.binary(max_size=200), at=st.integers(0, 400))
def test_damaged_files(data: bytes, at: int) -> None:
    whole = with_exif("PNG", ExifTags.Base.UserComment, b"ASCII\0\0\0" + A1111.encode())
    for damaged in (data, whole[:at] + data + whole[at + len(data) :]):
        found = find_prompt(damaged)
        assert found is None or found.text.strip()
