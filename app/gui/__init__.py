"""Pages for the browser. Only `app`, `studio`, `theme`, `wiring` and *_page import gradio."""
