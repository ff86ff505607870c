"""What a checkpoint consists of, as headers and configs show it."""
