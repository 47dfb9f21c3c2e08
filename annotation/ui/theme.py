"""How the app looks: theme, style sheets and keys."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

STATIC_FOLDER = Path(__file__).parent / "static"
PAGE_SCRIPTS = ("event_stream.js", "assess.js", "uploads.js", "links.js")

# System fonts: the page asks no other server for anything.
_SANS_FONTS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO_FONTS = ("ui-monospace", "SFMono-Regular", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Calm and flat, so that the image is the most colourful thing on the page."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=_SANS_FONTS,
        font_mono=_MONO_FONTS,
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_cancel_background_fill="*neutral_700",
        # Gradio's own accent is too pale to read on white, and its grey is, too.
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
    )


def html(value: str, elem_id: str | None = None, script: str | None = None) -> gr.HTML:
    """HTML of our own, which static/*.css alone lays out; `script` runs once it is on the page."""
    return gr.HTML(value, elem_id=elem_id, js_on_load=script, apply_default_css=False)


def javascript(*names: str) -> str:
    """Files of `static/`, e.g. for gr.HTML(js_on_load=...)."""
    return "".join((STATIC_FOLDER / name).read_text(encoding="utf-8") for name in names)


def press(elem_id: str) -> str:
    """For `js=`: presses a button that is hidden, once the page has its new value."""
    return f'() => setTimeout(() => document.querySelector("#{elem_id}").click(), 100)'


def launch_options() -> dict:
    """What Gradio wants at launch, not when the page is built."""
    base = STATIC_FOLDER / "studio.css"
    return {
        "theme": theme(),
        "css_paths": [base, *sorted(set(STATIC_FOLDER.glob("*.css")) - {base})],
        "head": "".join(f"<script>{javascript(name)}</script>" for name in PAGE_SCRIPTS),
        "footer_links": ["api", "settings", "gradio"],
        "run_history": False,
    }
