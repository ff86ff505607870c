"""The metrics of a run that pages and reports draw, and what good looks like in each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """One metric over training: its name in metrics.jsonl, a title, and what good looks like."""

    key: str
    title: str
    caption: str
    smoothed: bool = True


CURVES = (
    Curve(
        "diversity_kept",
        "Diversity kept",
        "Diversity on held-out prompts, as a share of the teacher's. Good: near 1.",
        smoothed=False,
    ),
    Curve(
        "perceptual_distance",
        "Perceptual distance from the teacher",
        "Between the student's and the teacher's images of those prompts, in the features of a "
        "network that knows photographs, at the same brightness; by it the best student is "
        "chosen. Good: falls to a low level and stays there.",
        smoothed=False,
    ),
    Curve(
        "teacher_distance",
        "Distance from the teacher",
        "Between the student's and the teacher's images of those prompts, in the layout of colours "
        "and edges. Good: falls to a low level and stays there.",
        smoothed=False,
    ),
    Curve(
        "diversity_loss",
        "Diversity loss",
        "How far the student's first step is from where the teacher goes. "
        "Good: falls quickly, then stays low.",
    ),
    Curve(
        "anchor_error",
        "Anchor error",
        "The same distance as a share of the target's own size; 0 would be a perfect match. "
        "Good: falls, then levels off.",
    ),
    Curve(
        "matching_gradient",
        "DMD gradient",
        "How strongly the later steps are still being corrected towards the teacher. "
        "Good: shrinks, then holds steady; noise is normal.",
    ),
    Curve(
        "score_cosine",
        "Score agreement",
        "Cosine between the teacher's and the fake score's predictions on the student's images. "
        "Good: close to 1.",
    ),
    Curve(
        "fake_loss",
        "Fake-score loss",
        "How well the fake score keeps up with the student's images. "
        "Good: low and steady; a lasting rise means it falls behind.",
    ),
    Curve(
        "student_grad_norm",
        "Student gradient norm",
        "Size of each update's gradient before clipping. Good: even, with rare spikes.",
    ),
    Curve(
        "fake_grad_norm",
        "Fake-score gradient norm",
        "The same for the fake score. Good: even, with rare spikes.",
    ),
    Curve(
        "student_lr",
        "Student learning rate",
        "As planned, not measured: a short warm-up, then a slow decay.",
        smoothed=False,
    ),
    Curve(
        "seconds",
        "Seconds per update",
        "Student update and its fake-score updates together. Good: flat.",
    ),
)
