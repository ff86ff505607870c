"""The pages of the studio, in gradio."""
