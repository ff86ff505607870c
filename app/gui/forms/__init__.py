"""What each page's controls mean, without gradio."""
