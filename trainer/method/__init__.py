"""DP-DMD (arXiv:2602.03139): Algorithm 1, its losses, the roll-out."""
