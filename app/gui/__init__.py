"""Pages for the browser, on gradio; `forms` and `guard` work without it."""
