"""Prompts in files as the generators write them."""

import gzip
import io
import json
import struct
import zlib
from html import escape
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from m3agiqa.conversation import MAX_PROMPT
from m3agiqa.image_metadata import LEFT_OUT, EmbeddedPrompt, find_prompt
from m3agiqa.image_metadata.generators import PROMPT_SOURCES
from m3agiqa.images import open_image

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
        (f"a cliff\nSteps: 3 lead down\nNegative prompt: x\n{SETTINGS}", "a cliff\nSteps: 3 lead down"),
        (f"a cliff\nSteps: 3\nup and down\n{SETTINGS}, Hashes: {{}}\nmore", "a cliff\nSteps: 3\nup and down"),
        ("Leuchtturm, 灯台, «маяк»", "Leuchtturm, 灯台, «маяк»"),
        (json.dumps({"prompt": "from Fooocus", "negative_prompt": "blurry"}), "from Fooocus"),
        ("{broken", None),
        ("", None),
    ],
)
def test_parameters(parameters: str, prompt: str | None) -> None:
    assert text_of(png(parameters=parameters)) == prompt


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
    assert (found.text, found.origin) == ("a lighthouse, (dusk:1.2)", "A1111 UserComment (EXIF)")


@pytest.mark.parametrize(
    "comment", [b"ASCII\0\0\0Screenshot", b"UNICODE\0" + "Grüße".encode("utf-16-be"), b""]
)
def test_other_comments_are_no_prompts(comment: bytes) -> None:
    assert find_prompt(with_exif("JPEG", ExifTags.Base.UserComment, comment)) is None
    assert find_prompt(with_exif("JPEG", ExifTags.Base.Model, "Canon EOS R5")) is None


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
    assert text_of(png(prompt="{}", workflow=workflow)) == "a lighthouse"
    graph = {"3": sampler(positive=["6", 0]), "6": encode("a harbour")}
    assert text_of(png(prompt=json.dumps(graph), workflow=workflow)) == "a harbour"


# --- ComfyUI: texts that come from elsewhere -------------------------------------------------------


def source_node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


LLM = source_node("OllamaGenerate", system="You write prompts.", prompt="write about a tower")
WILDCARDS = {"wildcard_text": "a {lighthouse|mill}", "populated_text": "a lighthouse", "mode": "populate"}


@pytest.mark.parametrize(
    "node, others, prompt",
    [
        (source_node("ImpactWildcardProcessor", **WILDCARDS), {}, "a lighthouse"),
        (source_node("ImpactWildcardProcessor", **{**WILDCARDS, "populated_text": ""}), {}, None),
        (source_node("DPRandomGenerator", text="a {lighthouse|mill}"), {}, None),
        (source_node("DPRandomGenerator", text="a lighthouse"), {}, "a lighthouse"),
        (LLM, {}, None),  # the instruction is no prompt
        (LLM, {"11": source_node("ShowText|pysssss", text=["10", 0], text_0="a lighthouse")}, "a lighthouse"),
        (
            source_node("ShowText|pysssss", text=["11", 0], text_0="a lighthouse"),
            {"11": LLM},
            "a lighthouse",
        ),
        (source_node("ShowText|pysssss", text=["11", 0]), {"11": encode("a lighthouse")}, "a lighthouse"),
        (source_node("TextEncodeQwenImageEdit", prompt="a lighthouse"), {}, "a lighthouse"),
    ],
)
def test_comfyui_texts_that_other_nodes_write(node: dict, others: dict, prompt: str | None) -> None:
    graph = {"3": sampler(**BOTH), "6": encode(["10", 0]), "7": NEGATIVE, "10": node, **others}
    assert text_of(png(prompt=json.dumps(graph))) == prompt


SUBGRAPH = "7b34ab90-36f9-45ba-a665-71d418f0df18"
ENCODERS = [
    {"id": 27, "type": "CLIPTextEncode", "inputs": [], "widgets_values": ["a lighthouse"]},
    {"id": 28, "type": "CLIPTextEncode", "inputs": [], "widgets_values": ["a much longer negative prompt"]},
]
INNER_SAMPLER = {
    "id": 3,
    "type": "KSampler",
    "inputs": [{"name": "positive", "link": 31}, {"name": "negative", "link": 32}],
}


def links(*links: tuple[int, int, int, int, int]) -> list[dict]:
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    return [dict(zip(names, link, strict=True)) for link in links]


SUBGRAPHS = {
    "sampler and texts within": (
        {"nodes": [{"id": 57, "type": SUBGRAPH, "inputs": [], "widgets_values": ["x"]}], "links": []},
        {"nodes": [*ENCODERS, INNER_SAMPLER], "links": links((31, 27, 0, 3, 1), (32, 28, 0, 3, 2))},
    ),
    "texts within, sampler without": (
        {
            "nodes": [{"id": 57, "type": SUBGRAPH, "inputs": []}, INNER_SAMPLER],
            "links": [[31, 57, 0, 3, 1, "CONDITIONING"], [32, 57, 1, 3, 2, "CONDITIONING"]],
        },
        {"nodes": ENCODERS, "links": links((1, 28, 0, -20, 1), (2, 27, 0, -20, 0))},
    ),
    "text in the subgraph's own widget": (
        {
            "nodes": [
                {
                    "id": 57,
                    "type": SUBGRAPH,
                    "inputs": [
                        {"name": "seed", "widget": {"name": "seed"}, "link": None},
                        {"name": "text", "widget": {"name": "text"}, "link": None},
                    ],
                    "widgets_values": [42, "a lighthouse"],
                }
            ],
            "links": [],
        },
        {
            "inputs": [{"name": "text"}, {"name": "seed"}],
            "nodes": [
                {
                    "id": 27,
                    "type": "CLIPTextEncode",
                    "inputs": [{"name": "text", "link": 5}],
                    "widgets_values": ["an old text"],
                },
                INNER_SAMPLER,
            ],
            "links": links((5, -10, 0, 27, 0), (31, 27, 0, 3, 1)),
        },
    ),
    "text from a node outside": (
        {
            "nodes": [
                {"id": 57, "type": SUBGRAPH, "inputs": [{"name": "text", "link": 9}]},
                {"id": 2, "type": "PrimitiveString", "inputs": [], "widgets_values": ["a lighthouse"]},
            ],
            "links": [[9, 2, 0, 57, 0, "STRING"]],
        },
        {
            "inputs": [{"name": "text"}],
            "nodes": [
                {"id": 27, "type": "CLIPTextEncode", "inputs": [{"name": "text", "link": 5}]},
                INNER_SAMPLER,
            ],
            "links": links((5, -10, 0, 27, 0), (31, 27, 0, 3, 1)),
        },
    ),
}


@pytest.mark.parametrize("outer, inner", SUBGRAPHS.values(), ids=SUBGRAPHS)
def test_comfyui_subgraphs(outer: dict, inner: dict) -> None:
    workflow = {**outer, "definitions": {"subgraphs": [{"id": SUBGRAPH, **inner}]}}
    assert text_of(png(workflow=json.dumps(workflow))) == "a lighthouse"


def test_a_comfyui_subgraph_in_itself_ends() -> None:
    inside = {"id": SUBGRAPH, "nodes": [{"id": 1, "type": SUBGRAPH}], "links": links((1, 1, 0, -20, 0))}
    workflow = {"nodes": inside["nodes"], "links": [], "definitions": {"subgraphs": [inside]}}
    assert find_prompt(png(workflow=json.dumps(workflow))) is None


# --- one file of each kind that is read ------------------------------------------------------------

PROMPT = "a lighthouse"
LIKE_A1111 = f"{PROMPT}\nNegative prompt: blurry\n{SETTINGS}"
SWARMUI = json.dumps({"sui_image_params": {"prompt": PROMPT, "negativeprompt": "blurry"}}, indent=2)
FOOOCUS = json.dumps({"prompt": PROMPT, "negative_prompt": "blurry", "performance": "Speed"})
DRAW_THINGS = json.dumps({"c": PROMPT, "uc": "blurry", "sampler": "DPM++", "seed": 1})
EASY_DIFFUSION = json.dumps({"prompt": PROMPT, "negative_prompt": "", "num_inference_steps": 20})
NOVELAI = json.dumps({"Software": "NovelAI", "Comment": json.dumps({"prompt": PROMPT, "uc": "blurry"})})
MIDJOURNEY = f"{PROMPT} --ar 3:2 --no people --v 6 Job ID: 00000000-0000-4000-8000-000000000000"
GRAPH = json.dumps(GRAPHS["plain"])


def comment(text: str, order: str = "utf-16-le") -> bytes:
    return with_exif("JPEG", ExifTags.Base.UserComment, b"UNICODE\0" + text.encode(order))


def xmp(
    form: str = "JPEG", creator: str = "", head: str = "<?xpacket begin='' id='W5M0'?>", **properties: str
) -> bytes:
    """A packet as Draw Things writes it: texts by language, the tool as an attribute."""
    spaces = {"dc": "http://purl.org/dc/elements/1.1/", "exif": "http://ns.adobe.com/exif/1.0/"}
    texts = "".join(
        f'<{space}:{name} xmlns:{space}="{spaces[space]}"><rdf:Alt><rdf:li xml:lang="x-default">'
        f"{escape(text)}</rdf:li></rdf:Alt></{space}:{name}>"
        for (space, name), text in ((key.split("_"), text) for key, text in properties.items())
    )
    packet = (
        f'{head}<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        f'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="{creator}">{texts}'
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )
    buffer = io.BytesIO()
    if form == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet)
        IMAGE.save(buffer, form, pnginfo=info)
    else:
        IMAGE.save(buffer, form, xmp=packet.encode())
    return buffer.getvalue()


def hidden(
    text: str, channels: str = "A", packed: bool = True, form: str = "PNG", **options: object
) -> bytes:
    data = gzip.compress(text.encode()) if packed else text.encode()
    name = {"A": b"stealth_png", "RGB": b"stealth_rgb"}[channels] + (b"comp" if packed else b"info")
    bits = np.unpackbits(np.frombuffer(name + struct.pack(">I", 8 * len(data)) + data, np.uint8))
    width = max(64, len(bits) // 48 + 1)
    mode = "RGBA" if channels == "A" else "RGB"
    pixels = np.array(Image.new(mode, (width, 48), (200, 120, 40, 255)[: len(mode)])).swapaxes(0, 1).copy()
    flat = pixels[..., [mode.index(channel) for channel in channels]].reshape(-1)
    flat[: len(bits)] = (flat[: len(bits)] & 254) | bits
    pixels[..., [mode.index(channel) for channel in channels]] = flat.reshape(width, 48, -1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.swapaxes(0, 1).copy()).save(buffer, form, **options)
    return buffer.getvalue()


def gif(text: str) -> bytes:
    buffer = io.BytesIO()
    IMAGE.save(buffer, "GIF", comment=text.encode())
    return buffer.getvalue()


INVOKEAI = {"positive_prompt": PROMPT, "negative_prompt": "blurry"}
FILES: dict[str, list[bytes]] = {
    "A1111 parameters (PNG text)": [png(parameters=LIKE_A1111), png(parameters=PROMPT)],
    "A1111 comment (file comment)": [gif(LIKE_A1111)],
    "A1111 UserComment (EXIF)": [comment(LIKE_A1111), comment(LIKE_A1111, "utf-16-be")],
    "A1111 ImageDescription (EXIF)": [with_exif("JPEG", ExifTags.Base.ImageDescription, LIKE_A1111)],
    "A1111 stealth PNG info (hidden in the pixels)": [
        *(hidden(LIKE_A1111, channels, packed) for channels in ("A", "RGB") for packed in (True, False)),
        hidden(LIKE_A1111, form="WEBP", lossless=True),
    ],
    "SwarmUI parameters (PNG text)": [png(parameters=SWARMUI)],
    "SwarmUI UserComment (EXIF)": [comment(SWARMUI), comment(SWARMUI, "utf-16-be")],
    "SwarmUI stealth PNG info (hidden in the pixels)": [hidden(SWARMUI)],
    "Fooocus parameters (PNG text)": [png(parameters=FOOOCUS)],
    "Fooocus UserComment (EXIF)": [comment(FOOOCUS)],
    "ComfyUI prompt (PNG text)": [png(prompt=GRAPH)],
    "ComfyUI workflow (PNG text)": [png(workflow=json.dumps(WORKFLOW))],
    "ComfyUI UserComment (EXIF)": [
        comment(GRAPH),
        comment(json.dumps({"prompt": GRAPHS["plain"], "workflow": WORKFLOW})),
        comment(json.dumps({"prompt": GRAPH})),
        comment(json.dumps({"workflow": WORKFLOW})),
    ],
    "ComfyUI Model (EXIF)": [with_exif("WEBP", ExifTags.Base.Model, f"prompt:{GRAPH}")],
    "ComfyUI Make (EXIF)": [with_exif("WEBP", ExifTags.Base.Make, f"workflow:{json.dumps(WORKFLOW)}")],
    "InvokeAI invokeai_metadata (PNG text)": [
        png(invokeai_metadata=json.dumps(INVOKEAI)),
        png(invokeai_metadata=json.dumps({**INVOKEAI, "positive_style_prompt": PROMPT})),
        png(invokeai_metadata=json.dumps({**INVOKEAI, "positive_style_prompt": ""})),
    ],
    "InvokeAI sd-metadata (PNG text)": [
        png(sd_metadata=json.dumps({"image": {"prompt": "a lighthouse [blurry]"}})),
        png(sd_metadata=json.dumps({"image": {"prompt": [{"prompt": PROMPT, "weight": 1.0}]}})),
    ],
    "InvokeAI Dream (PNG text)": [
        png(Dream='"a lighthouse" -s 50 -S 42'),
        png(Dream='"a lighthouse [blurry]" -s50'),
        png(Dream='"a lighthouse"'),
    ],
    "NovelAI Comment (PNG text)": [png(Comment=json.dumps({"prompt": PROMPT, "uc": "blurry"}))],
    "NovelAI Description (PNG text)": [png(Software="NovelAI", Description=PROMPT)],
    "NovelAI stealth PNG info (hidden in the pixels)": [hidden(NOVELAI), hidden(NOVELAI, "RGB")],
    "Draw Things UserComment (EXIF)": [
        with_exif("PNG", ExifTags.Base.UserComment, b"ASCII\0\0\0" + DRAW_THINGS.encode())
    ],
    "Draw Things UserComment (XMP)": [
        xmp(form, exif_UserComment=DRAW_THINGS) for form in ("JPEG", "PNG", "WEBP")
    ],
    "Draw Things description (XMP)": [
        xmp(creator="Draw Things", dc_description=text)
        for text in (PROMPT, f"{PROMPT}\n-blurry\n{SETTINGS}", f"{PROMPT}\n{SETTINGS}")
    ],
    "Midjourney Description (PNG text)": [
        png(Description=text)
        for text in (
            MIDJOURNEY,
            f"{PROMPT} --v 4",
            f"https://s.mj.run/x  {PROMPT} —ar 3:2",
            f"<https://a.b> {MIDJOURNEY}",
        )
    ],
    "Midjourney ImageDescription (EXIF)": [with_exif("JPEG", ExifTags.Base.ImageDescription, MIDJOURNEY)],
    "Midjourney description (XMP)": [xmp(dc_description=MIDJOURNEY)],
    "Easy Diffusion prompt (PNG text)": [png(prompt=PROMPT, num_inference_steps="20")],
    "Easy Diffusion Prompt (PNG text)": [png(Prompt=PROMPT, Steps="20")],
    "Easy Diffusion UserComment (EXIF)": [comment(EASY_DIFFUSION)],
    "Sygil SD:prompt (PNG text)": [png(**{"SD:prompt": PROMPT, "SD:seed": "1"})],
    "mold mold:prompt (PNG text)": [png(**{"mold:prompt": PROMPT})],
    "prompt (PNG text)": [png(prompt=PROMPT)],
    "parameters (PNG text)": [png(parameters=json.dumps({"prompt": PROMPT}))],
    "UserComment (EXIF)": [comment(json.dumps({"prompt": PROMPT}))],
}


def test_there_is_a_file_for_each_row_of_the_table() -> None:
    assert list(FILES) == [source.origin for source in PROMPT_SOURCES]


@pytest.mark.parametrize("origin", FILES)
def test_prompt_of_each_generator(origin: str) -> None:
    assert [find_prompt(file) for file in FILES[origin]] == [EmbeddedPrompt(PROMPT, origin)] * len(
        FILES[origin]
    )


def test_the_style_prompt_of_sdxl_made_the_image_too() -> None:
    facts = {**INVOKEAI, "positive_style_prompt": "oil painting"}
    assert text_of(png(invokeai_metadata=json.dumps(facts))) == "a lighthouse, oil painting"


def test_hidden_texts_leave_the_image_as_it_is() -> None:
    pixels = np.asarray(open_image(hidden(LIKE_A1111, "A", packed=False)))
    assert (pixels == (200, 120, 40)).all()


def test_texts_behind_the_pixels() -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"tEXt", b"parameters\0" + LIKE_A1111.encode(), after_idat=True)
    buffer = io.BytesIO()
    IMAGE.save(buffer, "PNG", pnginfo=info)
    assert text_of(buffer.getvalue()) == PROMPT


@pytest.mark.parametrize("behind", [False, True])
def test_a_text_that_is_too_large_is_left_out_and_that_is_reported(behind: bool) -> None:
    bomb = b"parameters\0\0" + zlib.compress(b"a " * 2_000_000)
    info = PngImagePlugin.PngInfo()
    info.add(b"zTXt", bomb, after_idat=behind)
    buffer = io.BytesIO()
    IMAGE.save(buffer, "PNG", pnginfo=info)
    assert find_prompt(buffer.getvalue()) is LEFT_OUT
    assert open_image(buffer.getvalue()).size == IMAGE.size


def test_texts_of_other_kinds_that_are_too_large() -> None:
    assert len(text_of(hidden("a" * 9_000_000))) == MAX_PROMPT
    entities = '<!DOCTYPE a [<!ENTITY b "all of it">]>'
    assert find_prompt(xmp(head=entities, dc_description=MIDJOURNEY)) is None


def test_descriptions_by_other_software_are_no_prompts() -> None:
    assert find_prompt(png(Software="Camera", Description="Family holiday -- in Spain")) is None
    assert find_prompt(xmp(creator="Photoshop", dc_description="Family holiday")) is None


# --- anything else -------------------------------------------------------------------------------


def test_no_prompt_and_no_image(tmp_path: Path) -> None:
    letter = tmp_path / "letter.png"
    letter.write_text("not an image")
    for source in (png(), png(Title="x", prompt="..."), letter, tmp_path / "gone.png", tmp_path, b""):
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
    *("parameters", "prompt", "workflow", "invokeai_metadata"),
    *("sd_metadata", "Dream", "Comment", "Description"),
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
