"""The standalone GUI's look: calm, system fonts, the report's one accent colour, light and dark."""

from __future__ import annotations

from gradio import themes

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
CODE_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
TEAL = themes.Color(
    name="teal", c50="#eef7f8", c100="#d9edef", c200="#b5dce0", c300="#86c5cb", c400="#62c4cc",
    c500="#178490", c600="#0b6a75", c700="#0a5660", c800="#0b464e", c900="#0c3940", c950="#062429",
)  # fmt: skip
GREY = themes.Color(
    name="grey", c50="#f7f8fa", c100="#f0f2f5", c200="#e1e5ea", c300="#c9d0d8", c400="#a0abb6",
    c500="#6b7682", c600="#59636e", c700="#3a434c", c800="#2b323a", c900="#1c2228", c950="#14181c",
)  # fmt: skip
# Where these differ from gradio's base theme. A name that ends in _dark is for dark pages; *names
# refer to the theme's own values.
VALUES = {
    "body_background_fill": "#fcfcfd",
    "body_background_fill_dark": "*neutral_950",
    "background_fill_primary": "#fcfcfd",
    "background_fill_secondary": "#f4f6f8",
    "body_text_color": "#1b2026",
    "body_text_color_dark": "#e8ebee",
    "body_text_color_subdued": "*neutral_600",
    "border_color_primary_dark": "*neutral_800",
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "block_label_background_fill": "transparent",
    "block_label_background_fill_dark": "transparent",
    "block_border_width": "0px",
    "block_padding": "0px",
    "block_title_text_weight": "500",
    "block_title_text_color": "*body_text_color",
    "block_title_text_color_dark": "*body_text_color",
    "block_info_text_size": "13px",
    "input_background_fill": "white",
    "input_background_fill_dark": "*neutral_900",
    "input_border_width": "1px",
    "input_border_color": "*neutral_300",
    "input_border_color_dark": "*neutral_700",
    "input_border_color_focus": "*primary_500",
    "input_border_color_focus_dark": "*primary_400",
    "input_placeholder_color": "*neutral_500",
    "input_radius": "7px",
    "link_text_color": "*primary_600",
    "link_text_color_dark": "*primary_400",
    "color_accent": "*primary_600",
    "slider_color": "*primary_600",
    "slider_color_dark": "*primary_400",
    "checkbox_background_color_selected": "*primary_600",
    "checkbox_border_color_selected": "*primary_600",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_500",
    "button_secondary_background_fill": "*neutral_100",
    "button_secondary_background_fill_dark": "*neutral_800",
    "button_secondary_background_fill_hover": "*neutral_200",
    "button_secondary_text_color": "*body_text_color",
    "button_large_text_size": "15px",
    "button_small_text_size": "14px",
    "button_small_padding": "6px 14px",
    "button_large_radius": "7px",
    "button_small_radius": "7px",
}


def theme() -> themes.Base:
    """The theme that is handed to gradio."""
    base = themes.Base(
        primary_hue=TEAL,
        secondary_hue=TEAL,
        neutral_hue=GREY,
        font=[themes.Font(name) for name in FONTS],
        font_mono=[themes.Font(name) for name in CODE_FONTS],
    )
    return base.set(**VALUES)  # type: ignore[arg-type]
