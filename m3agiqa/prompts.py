"""The paper's prompt templates (arXiv 2502.15167, section VIII-A), as data.

Wording and punctuation are the paper's; quotation marks are the straight ones of the authors'
published conversation files, from which the authenticity template also takes the quotes around
its prompt. The teacher's template says "alignment" where everything else says correspondence.
"""

from __future__ import annotations

from m3agiqa.aspects import Aspect
from m3agiqa.prompt_elements import ElementKind

TEACHER_PROMPT = """\
Analyze this image generated from the text prompt: '{prompt}'.

The quality score is {mos_q}, alignment score is {mos_a}, authenticity score is {mos_au}. \
Scores are between {min} and {max}, with higher scores being better.

Provide your assessment in JSON format with the following keys:

quality_explanation: Describe the overall quality of the image, considering aspects such as \
composition, clarity, and any noticeable flaws.

alignment_explanation: Explain how well the image reflects the elements and intent of the provided \
prompt. Be specific about which aspects of the prompt are successfully conveyed and which might be \
missing or misinterpreted.

authenticity_explanation: Discuss how closely the image resembles real artworks. Highlight any parts \
of the image that appear non-real or artificial.

Do not include the numerical scores in your response.
Example:

```
{{
  "quality_explanation": "The overall quality of the image is quite high. The composition is \
balanced, with the boat centered and leading the viewer's eye towards the bridge and beyond. The \
clarity is excellent, with sharp details on the boat, water, and surrounding cliffs. The lighting is \
dramatic and enhances the overall atmosphere of the scene. However, there are some noticeable flaws, \
such as the overly saturated colors, which can detract from the natural feel of the image.",
  "alignment_explanation": "The image closely aligns with the prompt 'bridge over a body of water \
with a boat in the water.' The bridge is prominently featured, and the boat is clearly visible in the \
water. The scene captures the essential elements of the prompt well. However, some additional \
details, such as the type of bridge or the style of the boat, could have been more specific to better \
reflect the intent of the prompt.",
  "authenticity_explanation": "The image has a surreal, almost dreamlike quality, which makes it less \
authentic as a representation of a real-world scene. The colors are highly saturated and the lighting \
effects are dramatic, which enhances the artistic feel but reduces the realism. The boat and the \
bridge look more like artistic renditions rather than actual structures, and the overall scene feels \
more like a digital artwork or a scene from a fantasy world rather than a photograph of a real place."
}}
```"""

ONE_WORD = (
    "Please give me a result from [bad, poor, fair, good, excellent]. "
    "Please just output one word from the list."
)

ONE_ROUND = {
    Aspect.QUALITY: (
        "Take a close look at this AI-generated image and tell me everything you can about what you see. "
        "It's original prompt is: '{prompt}'. Could you please help to rate the image based on its "
        "overall quality? " + ONE_WORD
    ),
    Aspect.CORRESPONDENCE: (
        "Take a close look at this AI-generated image and tell me how well it aligns with the elements "
        "and intent of the original prompt: '{prompt}'. Could you please help to rate the image based on "
        "its correspondence with the prompt? " + ONE_WORD
    ),
    Aspect.AUTHENTICITY: (
        "Take a close look at this AI-generated image and evaluate how authentic it appears. Does it "
        "resemble real artworks or scenes? Highlight any parts that seem artificial or non-realistic. "
        "Could you please help to rate the image based on its authenticity? " + ONE_WORD
    ),
}

ONE_ROUND_WITHOUT_PROMPT = {
    Aspect.QUALITY: (
        "Take a close look at this AI-generated image and tell me everything you can about what you see. "
        "Could you please help to rate the image based on its overall quality? " + ONE_WORD
    ),
    Aspect.AUTHENTICITY: ONE_ROUND[Aspect.AUTHENTICITY],
}
"""The same without the sentence about the prompt."""

DESCRIBE_PROMPTS = {
    Aspect.QUALITY: (
        "Please closely examine this AI-generated image and provide a detailed analysis of its content "
        "and quality. The original prompt for the image was: '{prompt}' What can you deduce about the "
        "image based on this prompt, and how would you assess its overall quality?"
    ),
    Aspect.CORRESPONDENCE: (
        "Please closely examine this AI-generated image and provide a detailed analysis of how well it "
        "aligns with the original prompt: '{prompt}'."
    ),
    Aspect.AUTHENTICITY: (
        "Please closely examine this AI-generated image and provide a detailed analysis of its "
        "authenticity. The original prompt for the image was: '{prompt}'. How closely does the image "
        "resemble real artworks or scenes? Highlight any parts of the image that appear non-real or "
        "artificial."
    ),
}
"""First user turn of the multi-round conversation."""

DESCRIBE_WITHOUT_PROMPT = {
    Aspect.QUALITY: (
        "Please closely examine this AI-generated image and provide a detailed analysis of its content "
        "and quality. How would you assess its overall quality?"
    ),
    Aspect.AUTHENTICITY: (
        "Please closely examine this AI-generated image and provide a detailed analysis of its "
        "authenticity. How closely does the image resemble real artworks or scenes? Highlight any parts "
        "of the image that appear non-real or artificial."
    ),
}
"""The same without the sentences about the prompt, which the paper always has and users may not."""

RATE_PROMPTS = {
    Aspect.QUALITY: (
        "Based on your analysis, could you please rate the image's overall quality? Choose one word from "
        "the following list: [bad, poor, fair, good, excellent], where the words range from low to high "
        "quality."
    ),
    Aspect.CORRESPONDENCE: (
        "Based on your analysis, could you please rate the image's alignment with its original prompt? "
        "Choose one word from the following list: [bad, poor, fair, good, excellent], where the words "
        "indicate the degree of alignment from low to high."
    ),
    Aspect.AUTHENTICITY: (
        "Based on your analysis, could you please rate the image's authenticity? Choose one word from the "
        "following list: [bad, poor, fair, good, excellent], where the words indicate the degree of "
        "authenticity from low to high."
    ),
}
"""Second user turn of the multi-round conversation."""

_SHOWS = "Does this image show “{element}”? Please answer yes or no."
ELEMENT_QUESTIONS = dict.fromkeys(ElementKind, _SHOWS) | {
    ElementKind.STYLE: "Is the style of this image “{element}”? Please answer yes or no.",
    ElementKind.TEXT: "Is the text “{element}” written in this image? Please answer yes or no.",
}
"""User turn about an element of the image's prompt; not the paper's."""
