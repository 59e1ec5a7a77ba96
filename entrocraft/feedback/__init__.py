"""Feedback: measured entropy and target in, one signed pressure out."""

from entrocraft.feedback.planner import (
    FEEDBACKS,
    Band,
    Deadband,
    Feedback,
    Planner,
    ProportionalIntegral,
    Situation,
    get_feedback,
)

__all__ = [
    "FEEDBACKS",
    "Band",
    "Deadband",
    "Feedback",
    "Planner",
    "ProportionalIntegral",
    "Situation",
    "get_feedback",
]
